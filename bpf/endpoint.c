/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * At the node's end of each pod's device: what the pod sends (from_pod) and what it gets (to_pod). A packet to another
 * pod of this node goes straight there; both pods' policies have then been asked on the sender's side.
 */
#include "path.h"
#include "source.h"

/* The first packet of a flow that the pod begins. */
static __always_inline int begin_from_pod(struct __sk_buff *skb, struct work *work, const struct endpoint *endpoint,
					  struct flow **flow)
{
	__u32 revision = current_state(STATE_REVISION);
	__u32 flags = 0;
	int reason = find_service(work, ORIGIN_POD, &flags);

	if (reason)
		return reason;
	work->judged = work->next;
	work->is_live = 0;
	reason = judge(skb, work, endpoint, endpoint_with(&work->judged.destination), false);
	if (reason)
		return reason;
	if (flags & FLOW_BALANCED) {
		store_balanced(work, &work->set);
		TELL(skb, work, EVENT_TRANSLATION, FILE_LB);
		reason = rewrite(skb, work);
		if (reason)
			return reason;
	}
	*flow = begin_flow(work, flags | work->asked);
	(*flow)->revision = revision;
	store_flow(work);
	return REASON_NONE;
}

/* Into the pod that the packet is for, past the node's own stack; or to that, where it is for nobody here. */
static __always_inline int send_on(struct __sk_buff *skb, struct work *work, const struct endpoint *from, __u32 flags)
{
	bool answers = !!(flags & FLOW_FROM_SECOND) != !!work->from_second;
	__u32 *device = bpf_map_lookup_elem(&pod_devices, work->kind == PACKET_ERROR ? &work->outer.destination :
										       &work->packet.tuple.destination);
	struct endpoint *to;
	int reason;

	/* Who has not been asked is asked at its own device. */
	if (!device || !(flags & (answers ? FLOW_ASKED_SENDER : FLOW_ASKED_RECEIVER)))
		return NEXT_PROGRAM;
	to = bpf_map_lookup_elem(&endpoints, device);
	if (!to || ((to->flags | from->flags) & ENDPOINT_IS_SHAPED) || work->packet.hops <= 1)
		return NEXT_PROGRAM;
	reason = translate_source(skb, work, flags, *device);
	if (reason)
		return DROP(skb, work, reason, FILE_ENDPOINT);
	if (decrement_hops(skb, &work->packet) || address_frame(skb, to))
		return DROP(skb, work, REASON_MALFORMED, FILE_ENDPOINT);
	return bpf_redirect_peer(*device, 0);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &device);
	struct work *work = working_memory();
	struct flow *flow;
	__u8 macs[12];
	__u32 flags;
	int reason;

	if (!work)
		return TC_ACT_SHOT;
	begin_event(work);
	begin_layer(&work->packet, ETH_HLEN);
	__builtin_memset(&work->next, 0, sizeof(work->next));
	if (!endpoint)
		return DROP(skb, work, REASON_UNKNOWN_ENDPOINT, FILE_ENDPOINT);
	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return DROP(skb, work, REASON_MALFORMED, FILE_ENDPOINT);
	if (!same_mac(macs + 6, endpoint->mac))
		return DROP(skb, work, REASON_FORGED_SOURCE, FILE_SOURCE);
	if (skb->protocol == bpf_htons(ETH_P_ARP)) {
		reason = check_arp(skb, endpoint);
		return reason ? DROP(skb, work, reason, FILE_SOURCE) : NEXT_PROGRAM;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return DROP(skb, work, REASON_UNSUPPORTED, FILE_ENDPOINT);
	reason = parse(skb, work, ETH_HLEN);
	if (reason)
		return DROP(skb, work, reason, FILE_PARSE);
	if (!is_own_source(skb, &work->packet))
		return DROP(skb, work, REASON_FORGED_SOURCE, FILE_SOURCE);
	if (is_neighbour_discovery(&work->packet)) {
		reason = check_neighbour_discovery(skb, work, endpoint);
		return reason ? DROP(skb, work, reason, FILE_SOURCE) : NEXT_PROGRAM;
	}
	if (is_listener_report(&work->packet))
		return NEXT_PROGRAM;

	flow = enter(skb, work, &reason);
	if (reason)
		return DROP(skb, work, reason, FILE_NAT);
	if (!flow) {
		reason = begin_from_pod(skb, work, endpoint, &flow);
		if (reason == REJECT_PACKET) {
			TELL(skb, work, EVENT_REJECT, FILE_LB);
			reason = refuse(skb, work);
			if (!reason)
				return bpf_redirect_peer(device, 0);
		}
		if (reason || !flow)
			return DROP(skb, work, reason, FILE_ENDPOINT);
	} else {
		reason = judge_again(skb, work, flow, endpoint, true);
		if (reason)
			return DROP(skb, work, reason, FILE_POLICY);
		follow_flow(work, flow);
	}
	flags = flow->flags;
	return send_on(skb, work, endpoint, flags);
}

/* The first packet of a flow to the pod that did not begin at another pod of this node. */
static __always_inline int begin_to_pod(struct __sk_buff *skb, struct work *work, const struct endpoint *endpoint,
					struct flow **flow)
{
	__u32 revision = current_state(STATE_REVISION);
	/* An origin, not an address: what was generated on this node came in by no device. */
	bool from_host = !skb->ingress_ifindex;
	int reason;

	if (!from_host && ((address_flags(&work->packet.tuple.source) & ADDRESS_IS_OWN) ||
			   endpoint_with(&work->packet.tuple.source)))
		return REASON_FORGED_SOURCE;
	work->judged = work->packet.tuple;
	work->is_live = 0;
	reason = judge(skb, work, NULL, endpoint, from_host);
	if (reason)
		return reason;
	*flow = begin_flow(work, (from_host ? FLOW_FROM_HOST : 0) | work->asked);
	(*flow)->revision = revision;
	store_flow(work);
	return REASON_NONE;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &device);
	struct work *work = working_memory();
	struct flow *flow;
	int reason;

	if (!work)
		return TC_ACT_SHOT;
	begin_event(work);
	begin_layer(&work->packet, ETH_HLEN);
	__builtin_memset(&work->next, 0, sizeof(work->next));
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return NEXT_PROGRAM;
	if (!endpoint)
		return DROP(skb, work, REASON_UNKNOWN_ENDPOINT, FILE_ENDPOINT);
	reason = parse(skb, work, ETH_HLEN);
	if (reason)
		return DROP(skb, work, reason, FILE_PARSE);
	/* The node's own; from elsewhere they are not routed. */
	if (is_neighbour_discovery(&work->packet) && work->packet.hops == 255 && !skb->ingress_ifindex)
		return NEXT_PROGRAM;

	flow = meet(skb, work);
	if (!flow) {
		reason = begin_to_pod(skb, work, endpoint, &flow);
		if (reason || !flow)
			return DROP(skb, work, reason, FILE_ENDPOINT);
	} else {
		reason = judge_again(skb, work, flow, endpoint, false);
		if (reason)
			return DROP(skb, work, reason, FILE_POLICY);
		follow_flow(work, flow);
	}
	reason = translate_source(skb, work, flow->flags, device);
	if (reason)
		return DROP(skb, work, reason, FILE_NAT);
	return NEXT_PROGRAM;
}

char _license[] SEC("license") = "Dual BSD/GPL";
