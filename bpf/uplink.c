/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * At the node's devices to the outside: Services for who asks from there (from_wire), masquerade, and the addresses that
 * answers come from (to_wire). Policy is not asked here: what is for a pod meets it at the pod's device.
 */
#include "path.h"

/* linux/if_packet.h needs a C library's headers. */
#define PACKET_OTHERHOST 3

static __always_inline bool is_ip(const struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* The first packet of a flow: only what is for a Service is followed from here on. */
static __always_inline int begin_from_wire(struct __sk_buff *skb, struct work *work)
{
	__u32 flags = 0;
	int reason = find_service(work, ORIGIN_OUTSIDE, &flags);

	if (reason || !(flags & FLOW_BALANCED))
		return reason;
	reason = store_balanced(work, &work->set);
	if (reason)
		return reason;
	TELL(skb, work, EVENT_TRANSLATION, FILE_UPLINK);
	reason = rewrite(skb, work);
	if (reason)
		return reason;
	/* Of no revision: a local backend's device judges it. */
	return begin_flow(work, flags, 0);
}

/* What would begin or change a flow while flows are handed over, which then one engine would not know. */
static __always_inline bool is_for_service(const struct layer *packet)
{
	struct backend to = { .address = packet->tuple.destination, .port = packet->tuple.destination_port };

	return has_ports(packet->tuple.proto) && find_frontend(&to, packet->tuple.proto, false);
}

SEC("tc")
int from_wire(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &device);
	struct work *work = working_memory();
	bool held = is_held();
	int reason;

	if (!uplink || !work || !is_ip(skb) || (stands_aside() && !held))
		return NEXT_PROGRAM;
	/* A switch floods frames for others, too: to answer them would be to answer for others. */
	if (skb->pkt_type == PACKET_OTHERHOST)
		return NEXT_PROGRAM;
	begin_work(work, uplink->header_length);
	reason = parse(skb, work);
	if (held && !reason && is_for_service(&work->packet))
		return DROP(skb, work, REASON_ENGINE_SWITCH, FILE_UPLINK);
	if (stands_aside())
		return NEXT_PROGRAM;
	if ((address_flags(&work->packet.tuple.source) & ADDRESS_IS_OWN) || endpoint_with(&work->packet.tuple.source))
		return DROP(skb, work, REASON_FORGED_SOURCE, FILE_UPLINK);
	/* What cannot be read is for the stack; it cannot get by a pod's device either. */
	if (reason)
		return NEXT_PROGRAM;
	remember_fragment(&work->packet);
	if (is_neighbour_discovery(&work->packet))
		return NEXT_PROGRAM;

	if (enter(skb, work, false, &reason)) {
		if (reason)
			return DROP(skb, work, reason, FILE_UPLINK);
		follow_flow(work);
		TRACE(skb, work, FILE_UPLINK);
		return NEXT_PROGRAM;
	}
	reason = begin_from_wire(skb, work);
	if (reason == REJECT_PACKET) {
		TELL(skb, work, EVENT_REJECT, FILE_UPLINK);
		reason = uplink->header_length == ETH_HLEN ? refuse(skb, work) : REASON_UNSUPPORTED;
		if (!reason)
			return bpf_redirect(device, 0);
	}
	if (reason)
		return DROP(skb, work, reason, FILE_UPLINK);
	return NEXT_PROGRAM;
}

/*
 * The node's own packets, mostly. Those to Services were translated at their socket; what is left has no endpoint, or
 * comes from a socket that nobody translates.
 */
static __always_inline int leave_without_flow(struct __sk_buff *skb, struct work *work, const struct uplink *uplink,
					      __u32 device)
{
	const struct address *destination = &work->packet.tuple.destination;
	__u32 flags = 0;
	int reason;

	/* A pod's packets have a flow, unless a cache has lost it on their way through. */
	if (endpoint_with(&work->packet.tuple.source) && leaves_cluster(&work->packet, destination, address_flags(destination)))
		return DROP(skb, work, REASON_NO_ROOM, FILE_UPLINK);
	if (!(address_flags(&work->packet.tuple.source) & ADDRESS_IS_OWN) || skb->ingress_ifindex ||
	    is_neighbour_discovery(&work->packet))
		return NEXT_PROGRAM;
	if (has_bound_source(skb, work, device)) {
		reason = begin_flow(work, FLOW_FROM_HOST | FLOW_MASQUERADED, 0);
		if (!reason)
			reason = translate_source(skb, work, device);
		return reason ? DROP(skb, work, reason, FILE_UPLINK) : NEXT_PROGRAM;
	}
	reason = find_service(work, ORIGIN_HOST, &flags);
	/* From a socket that was connected before there was the Service: its program's next one is led to a backend. */
	if (flags & FLOW_BALANCED)
		reason = work->packet.tuple.proto == IPPROTO_SCTP ? REASON_UNSUPPORTED : rejection(&work->packet);
	if (reason == REJECT_PACKET) {
		TELL(skb, work, EVENT_REJECT, FILE_UPLINK);
		reason = uplink->header_length == ETH_HLEN ? refuse(skb, work) : REASON_UNSUPPORTED;
		if (!reason)
			return bpf_redirect(device, BPF_F_INGRESS);
	}
	return reason ? DROP(skb, work, reason, FILE_UPLINK) : NEXT_PROGRAM;
}

SEC("tc")
int to_wire(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &device);
	struct work *work = working_memory();
	int reason;

	if (!uplink || !work || !is_ip(skb) || stands_aside())
		return NEXT_PROGRAM;
	begin_work(work, uplink->header_length);
	reason = parse(skb, work);
	if (reason) {
		/* A pod's address must not go out where nobody knows it. */
		if (endpoint_with(&work->packet.tuple.source))
			return DROP(skb, work, reason, FILE_UPLINK);
		return NEXT_PROGRAM;
	}
	remember_fragment(&work->packet);
	if (!meet(skb, work))
		return leave_without_flow(skb, work, uplink, device);
	follow_flow(work);
	TRACE(skb, work, FILE_UPLINK);
	if (has_other_source(work)) {
		reason = translate_source(skb, work, device);
		if (reason)
			return DROP(skb, work, reason, FILE_UPLINK);
	}
	return NEXT_PROGRAM;
}

char _license[] SEC("license") = "Dual BSD/GPL";
