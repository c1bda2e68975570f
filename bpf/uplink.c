/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * At the node's devices to the outside: Services for who asks from there (from_wire), masquerade, and the addresses that
 * answers come from (to_wire). Policy is not asked here: what is for a pod meets it at the pod's device.
 */
#include "path.h"

static __always_inline bool is_ip(const struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* The first packet of a flow: only what is for a Service is followed from here on. */
static __always_inline int begin_from_wire(struct __sk_buff *skb, struct work *work, bool *is_balanced)
{
	__u32 flags = 0;
	int reason = find_service(work, ORIGIN_OUTSIDE, &flags);

	*is_balanced = false;
	if (reason || !(flags & FLOW_BALANCED))
		return reason;
	*is_balanced = true;
	store_balanced(work, &work->set);
	TELL(skb, work, EVENT_TRANSLATION, FILE_LB);
	reason = rewrite(skb, work);
	if (reason)
		return reason;
	/* Of no revision: a local backend's device judges it. */
	begin_flow(work, flags);
	store_flow(work);
	return REASON_NONE;
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &device);
	struct work *work = working_memory();
	bool is_balanced;
	struct flow *flow;
	int reason;

	if (!uplink || !work || !is_ip(skb))
		return NEXT_PROGRAM;
	begin_event(work);
	__builtin_memset(&work->next, 0, sizeof(work->next));
	/* What cannot be read is for the stack; it cannot get by a pod's device either. */
	if (parse(skb, work, uplink->header_length))
		return NEXT_PROGRAM;
	if ((address_flags(&work->packet.tuple.source) & ADDRESS_IS_OWN) || endpoint_with(&work->packet.tuple.source))
		return DROP(skb, work, REASON_FORGED_SOURCE, FILE_UPLINK);
	if (is_neighbour_discovery(&work->packet))
		return NEXT_PROGRAM;

	flow = enter(skb, work, &reason);
	if (reason)
		return DROP(skb, work, reason, FILE_NAT);
	if (flow) {
		follow_flow(work, flow);
		return NEXT_PROGRAM;
	}
	reason = begin_from_wire(skb, work, &is_balanced);
	if (reason == REJECT_PACKET) {
		TELL(skb, work, EVENT_REJECT, FILE_LB);
		reason = uplink->header_length == ETH_HLEN ? refuse(skb, work) : REASON_UNSUPPORTED;
		if (!reason)
			return bpf_redirect(device, 0);
	}
	if (reason)
		return DROP(skb, work, reason, FILE_UPLINK);
	return NEXT_PROGRAM;
}

SEC("tc")
int to_wire(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &device);
	struct work *work = working_memory();
	struct flow *flow;
	int reason;

	if (!uplink || !work || !is_ip(skb))
		return NEXT_PROGRAM;
	begin_event(work);
	__builtin_memset(&work->next, 0, sizeof(work->next));
	reason = parse(skb, work, uplink->header_length);
	if (reason) {
		/* A pod's address must not go out where nobody knows it. */
		if (endpoint_with(&work->packet.tuple.source))
			return DROP(skb, work, reason, FILE_PARSE);
		return NEXT_PROGRAM;
	}
	flow = meet(skb, work);
	if (!flow)
		return NEXT_PROGRAM;
	follow_flow(work, flow);
	reason = translate_source(skb, work, flow->flags, device);
	if (reason)
		return DROP(skb, work, reason, FILE_NAT);
	return NEXT_PROGRAM;
}

char _license[] SEC("license") = "Dual BSD/GPL";
