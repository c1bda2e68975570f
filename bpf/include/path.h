/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_PATH_H
#define SLUICE_PATH_H

#include "reject.h"
#include "services.h"

/* Flows that were allowed once are never judged again. */
const volatile bool keeps_established = false;

/* Whether another engine has the packet path. */
static __always_inline bool stands_aside(void)
{
	return current_state(STATE_MODE) & MODE_ASIDE;
}

/*
 * Whether packets of pods and Services wait for a change of engines: one that both engines had a hand in would have been
 * changed twice.
 */
static __always_inline bool is_held(void)
{
	__u32 until = current_state(STATE_MODE) & ~MODE_ASIDE;

	/* 31 bits that come round again. */
	return until && (__s32)(until - ((__u32)(bpf_ktime_get_ns() >> MODE_TIME_SHIFT) << 1)) > 0;
}

/* A packet of `work->flow` goes on its way. */
static __always_inline void trace(struct __sk_buff *skb, struct work *work, __u32 file_and_line)
{
	if (!is_heard(EVENT_TRACE))
		return;
	work->event.is_answer = is_answer(work);
	tell(skb, work, EVENT_TRACE << 8, file_and_line);
}

#define TRACE(SKB, WORK, FILE) trace(SKB, WORK, HERE(FILE))

/* The steps that all programs take, in the order in which a packet takes them. */

/*
 * An ICMP error about a packet of a live flow belongs to that flow; its tuple is an answer's to that packet. It goes to
 * who sent that packet, and a pod's comes from who got it; any other is a packet like any.
 */
static __always_inline bool find_error_flow(struct __sk_buff *skb, struct work *work, bool translates, bool from_pod)
{
	struct translation *translation;
	bool found;

	if (parse_about(skb, work))
		return false;
	reverse(&work->next, &work->about.tuple);
	if (!same_address(&work->packet.tuple.destination, &work->next.destination) ||
	    (from_pod && !same_address(&work->packet.tuple.source, &work->next.source)))
		return false;
	found = find_flow(work, &work->next);
	if (!found && translates) {
		translation = find_translation(work, &work->next, STEP_DESTINATION);
		if (translation)
			found = find_flow(work, &translation->to);
		work->is_translated = 1;
	}
	if (!found)
		return false;
	work->kind = PACKET_ERROR;
	work->outer = work->packet.tuple;
	work->packet.tuple = work->next;
	return true;
}

/*
 * A backend that serves no longer gets no more datagrams, nor does one by a frontend that the Service no longer has.
 */
static __always_inline bool has_moved(const struct work *work, const struct translation *translation)
{
	const struct tuple *tuple = &work->packet.tuple;
	struct backend told = { .address = tuple->destination, .port = tuple->destination_port };
	struct backend backend = { .address = translation->to.destination, .port = translation->to.destination_port };
	struct frontend *frontend;

	if (translation->is_masquerade || tuple->proto != IPPROTO_UDP)
		return false;
	frontend = find_frontend(&told, IPPROTO_UDP, false);
	return !frontend || frontend->service != translation->set.service ||
	       !is_member(&translation->set, &backend, false);
}

/*
 * Whether a packet that comes from a pod is not of the flow that has its tuple: that one's come to the Service that its
 * client asked for. Its client has used the port again, for a connection with the backend itself (or one that was balanced
 * at its socket). From the wire nobody could tell: a packet comes in twice where one device is above another (VLANs), and
 * the second time it is translated.
 */
static __always_inline bool is_of_another(const struct work *work)
{
	return work->kind == PACKET_PLAIN && work->packet.tuple.proto == IPPROTO_TCP && !is_answer(work) &&
	       (work->flow.flags & FLOW_BALANCED);
}

/*
 * Where a packet comes in: its flow, found under the tuple that it has or the one that it is translated to, which it then
 * has. false where there is none: it is the first.
 */
static __always_inline bool enter(struct __sk_buff *skb, struct work *work, bool from_pod, int *reason)
{
	struct translation *translation;
	bool found = false;

	*reason = REASON_NONE;
	work->is_translated = 0;
	if (is_icmp(&work->packet) && is_error(&work->packet))
		found = find_error_flow(skb, work, true, from_pod);
	if (!found) {
		work->is_translated = 0;
		found = find_flow(work, &work->packet.tuple);
	}
	work->is_taken = from_pod && found && !work->is_translated && is_of_another(work);
	if (found && !work->is_translated && !work->is_taken)
		return true;
	translation = find_translation(work, &work->packet.tuple, STEP_DESTINATION);
	if (translation && !has_moved(work, translation)) {
		bool is_balanced = !translation->is_masquerade;

		work->next = translation->to;
		/* Not a connection of the client's own with the same backend. */
		if (find_flow(work, &work->next) && (!is_balanced || (work->flow.flags & FLOW_BALANCED)))
			goto translated;
	}
	/* An error begins no flow. */
	if (work->kind != PACKET_ERROR)
		return false;
	*reason = REASON_MASQUERADE_PORTS;
	return true;

translated:
	TELL(skb, work, EVENT_TRANSLATION, FILE_PATH);
	*reason = rewrite(skb, work);
	return true;
}

/* Where a packet leaves that was read anew: its flow. */
static __always_inline bool meet(struct __sk_buff *skb, struct work *work)
{
	if (is_icmp(&work->packet) && is_error(&work->packet) && find_error_flow(skb, work, false, false))
		return true;
	return find_flow(work, &work->packet.tuple);
}

/*
 * The first packet that we see of a flow, `work->judged`. TCP begins with a SYN: what comes without one is of a
 * connection that we know nothing of, and nobody knows who began it. Either may have to be allowed.
 */
static __always_inline int judge_first(struct __sk_buff *skb, struct work *work, const struct endpoint *sender,
				       const struct endpoint *receiver, bool from_host)
{
	struct tuple first = work->judged;
	__u32 asked;
	int reason;

	work->is_live = 0;
	reason = judge(skb, work, sender, receiver, from_host);
	if (reason || first.proto != IPPROTO_TCP || begins_connection(&work->packet))
		return reason;
	asked = work->asked;
	reverse(&work->judged, &first);
	reason = judge(skb, work, receiver, sender, false);
	work->judged = first;
	work->asked = asked;
	return reason;
}

/*
 * Judges a flow again that was judged by other tables, or without the pod at whose device we are: `own`. A flow that is
 * denied now is not forgotten: the other end's next packet would begin it anew, in the other direction.
 */
static __always_inline int judge_again(struct __sk_buff *skb, struct work *work, const struct endpoint *own,
				       bool own_sends)
{
	bool own_began = own_sends != is_answer(work);
	const struct endpoint *sender, *receiver;
	__u32 revision = current_state(STATE_REVISION);
	struct flow *flow = &work->flow;
	int reason;

	if ((flow->revision == revision || (keeps_established && flow->revision)) &&
	    flow->flags & (own_began ? FLOW_ASKED_SENDER : FLOW_ASKED_RECEIVER))
		return REASON_NONE;
	work->is_live = flow->revision != 0;
	original_tuple(&work->judged, work);
	sender = own_began ? own : endpoint_with(&work->judged.source);
	receiver = own_began ? endpoint_with(&work->judged.destination) : own;
	reason = judge(skb, work, sender, receiver, flow->flags & FLOW_FROM_HOST);
	flow->flags &= ~(FLOW_ASKED_SENDER | FLOW_ASKED_RECEIVER);
	flow->revision = 0;
	if (!reason) {
		flow->flags |= work->asked;
		flow->revision = revision;
	}
	flow->seen = work->now;
	save_flow(work);
	return reason;
}

/*
 * A router's part of a packet that goes straight into another pod: one hop less, and the frame is from this node. Written
 * directly, for the same reason as READ; the kernel makes a packet writable before the program begins.
 */
static __always_inline int forward(struct __sk_buff *skb, const struct layer *packet, const struct pod_device *to)
{
	__u8 hops = packet->hops - 1;
	struct iphdr *header;
	struct ethhdr *frame;
	__u32 sum;

	/* Nothing makes up for this one in a checksum that a device has taken of the whole packet. */
	if (packet->family == FAMILY_V6 &&
	    bpf_skb_store_bytes(skb, packet->network + offsetof(struct ipv6hdr, hop_limit), &hops, 1, BPF_F_RECOMPUTE_CSUM))
		return -1;
	frame = (void *)(long)skb->data;
	header = (void *)(frame + 1);
	if ((void *)(header + 1) > (void *)(long)skb->data_end) {
		if (bpf_skb_pull_data(skb, ETH_HLEN + sizeof(*header)))
			return -1;
		frame = (void *)(long)skb->data;
		header = (void *)(frame + 1);
		if ((void *)(header + 1) > (void *)(long)skb->data_end)
			return -1;
	}
	if (packet->family == FAMILY_V4) {
		header->ttl = hops;
		/* RFC 1141: the word with the hops has 0x0100 less. */
		sum = (__u32)header->check + bpf_htons(0x0100);
		header->check = sum + (sum >= 0xffff);
	}
	__builtin_memcpy(frame->h_dest, to->mac, ETH_ALEN);
	__builtin_memcpy(frame->h_source, to->gateway_mac, ETH_ALEN);
	return 0;
}

#endif
