/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_PATH_H
#define SLUICE_PATH_H

#include "reject.h"
#include "services.h"

/* Flows that were allowed once are never judged again. */
const volatile bool keeps_established = false;

/* The steps that all programs take, in the order in which a packet takes them. */

/*
 * An ICMP error about a packet of a live flow belongs to that flow; its tuple is an answer's to that packet. Any other is a
 * packet like any.
 */
static __always_inline struct flow *find_error_flow(struct __sk_buff *skb, struct work *work, bool translates)
{
	struct translation *translation;
	struct flow *flow;

	if (parse_about(skb, work))
		return NULL;
	reverse(&work->next, &work->about.tuple);
	flow = find_flow(work, &work->next);
	if (!flow && translates) {
		translation = find_translation(work, &work->next, STEP_DESTINATION);
		if (translation)
			flow = find_flow(work, &translation->to);
		work->is_translated = 1;
	}
	if (!flow)
		return NULL;
	work->kind = PACKET_ERROR;
	work->outer = work->packet.tuple;
	work->packet.tuple = work->next;
	return flow;
}

/* A backend that serves no longer gets no more datagrams: conntrack of none can send them there. */
static __always_inline bool has_moved(const struct work *work, const struct translation *translation)
{
	struct backend backend = { .address = translation->to.destination, .port = translation->to.destination_port };

	return !translation->is_masquerade && work->packet.tuple.proto == IPPROTO_UDP &&
	       !is_member(&translation->set, &backend, false);
}

/*
 * Where a packet comes in: its flow, found under the tuple that it has or the one that it is translated to, which it then
 * has. NULL where there is none: it is the first.
 */
static __always_inline struct flow *enter(struct __sk_buff *skb, struct work *work, int *reason)
{
	struct translation *translation;
	struct flow *flow = NULL;

	*reason = REASON_NONE;
	work->is_translated = 0;
	if (is_icmp(&work->packet) && is_error(&work->packet))
		flow = find_error_flow(skb, work, true);
	if (!flow) {
		work->is_translated = 0;
		flow = find_flow(work, &work->packet.tuple);
	}
	if (flow && !work->is_translated)
		return flow;
	translation = find_translation(work, &work->packet.tuple, STEP_DESTINATION);
	if (!translation || has_moved(work, translation))
		return NULL;
	work->next = translation->to;
	flow = find_flow(work, &work->next);
	if (!flow)
		return NULL;
	TELL(skb, work, EVENT_TRANSLATION, FILE_NAT);
	*reason = rewrite(skb, work);
	return flow;
}

/* Where a packet leaves that was read anew: its flow. */
static __always_inline struct flow *meet(struct __sk_buff *skb, struct work *work)
{
	struct flow *flow = NULL;

	if (is_icmp(&work->packet) && is_error(&work->packet))
		flow = find_error_flow(skb, work, false);
	return flow ? flow : find_flow(work, &work->packet.tuple);
}

/*
 * Judges a flow again that was judged by other tables, or without the pod at whose device we are: `own`.
 */
static __always_inline int judge_again(struct __sk_buff *skb, struct work *work, struct flow *flow,
				       const struct endpoint *own, bool own_sends)
{
	bool own_began = own_sends != is_answer(work, flow);
	const struct endpoint *sender, *receiver;
	__u32 revision = current_state(STATE_REVISION);
	int reason;

	if ((flow->revision == revision || (keeps_established && flow->revision)) &&
	    flow->flags & (own_began ? FLOW_ASKED_SENDER : FLOW_ASKED_RECEIVER))
		return REASON_NONE;
	work->is_live = flow->revision != 0;
	original_tuple(&work->judged, work, flow);
	sender = own_began ? own : endpoint_with(&work->judged.source);
	receiver = own_began ? endpoint_with(&work->judged.destination) : own;
	reason = judge(skb, work, sender, receiver, flow->flags & FLOW_FROM_HOST);
	if (reason) {
		forget_flow(work);
		return reason;
	}
	flow->flags = (flow->flags & ~(FLOW_ASKED_SENDER | FLOW_ASKED_RECEIVER)) | work->asked;
	flow->revision = revision;
	return REASON_NONE;
}

/* A router's part of a packet that goes straight into another pod. */
static __always_inline int decrement_hops(struct __sk_buff *skb, const struct layer *packet)
{
	__u8 hops = packet->hops - 1;

	if (packet->family == FAMILY_V4) {
		__be16 before = bpf_htons(packet->hops << 8), after = bpf_htons(hops << 8);

		return bpf_l3_csum_replace(skb, packet->network + offsetof(struct iphdr, check), before, after, 2) ||
		       bpf_skb_store_bytes(skb, packet->network + offsetof(struct iphdr, ttl), &hops, 1, 0);
	}
	return bpf_skb_store_bytes(skb, packet->network + offsetof(struct ipv6hdr, hop_limit), &hops, 1,
				   BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int address_frame(struct __sk_buff *skb, const struct endpoint *to)
{
	__u8 macs[12];

	__builtin_memcpy(macs, to->mac, 6);
	__builtin_memcpy(macs + 6, to->gateway_mac, 6);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

#endif
