/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * At the node's end of each pod's device: what the pod sends (from_pod) and what it gets (to_pod). A packet to another
 * pod of this node goes straight there; both pods' policies have then been asked on the sender's side.
 */
#include "path.h"
#include "source.h"

/* The first packet of a flow that the pod begins. */
static __always_inline int begin_from_pod(struct __sk_buff *skb, struct work *work, const struct endpoint *endpoint)
{
	__u32 revision = current_state(STATE_REVISION);
	__u32 flags = 0;
	int reason = find_service(work, ORIGIN_POD, &flags);

	if (reason)
		return reason;
	work->judged = work->next;
	reason = judge_first(skb, work, endpoint, endpoint_with(&work->judged.destination), false);
	if (reason)
		return reason;
	if ((flags & FLOW_BALANCED) || work->is_taken) {
		reason = store_balanced(work, flags & FLOW_BALANCED ? &work->set : NULL);
		if (reason)
			return reason;
		flags |= FLOW_BALANCED;
		TELL(skb, work, EVENT_TRANSLATION, FILE_ENDPOINT);
		reason = rewrite(skb, work);
		if (reason)
			return reason;
	}
	return begin_flow(work, flags | work->asked, revision);
}

/* Into the pod that the packet is for, past the node's own stack; or to that, where it is for nobody here. */
static __always_inline int send_on(struct __sk_buff *skb, struct work *work, const struct endpoint *from)
{
	struct pod_device *to = bpf_map_lookup_elem(&pod_devices, work->kind == PACKET_ERROR ?
									  &work->outer.destination :
									  &work->packet.tuple.destination);
	__u32 asked = is_answer(work) ? FLOW_ASKED_SENDER : FLOW_ASKED_RECEIVER;
	int reason;

	TRACE(skb, work, FILE_ENDPOINT);
	/* Who has not been asked is asked at its own device. */
	if (!to || !(work->flow.flags & asked) || ((to->flags | from->flags) & ENDPOINT_IS_SHAPED) ||
	    work->packet.hops <= 1)
		return NEXT_PROGRAM;
	if (has_other_source(work)) {
		reason = translate_source(skb, work, to->device);
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
	}
	if (forward(skb, &work->packet, to))
		return DROP(skb, work, REASON_MALFORMED, FILE_ENDPOINT);
	return bpf_redirect_peer(to->device, 0);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &device);
	struct work *work = working_memory();
	struct ethhdr frame;
	int reason;

	if (!work)
		return TC_ACT_SHOT;
	begin_work(work, ETH_HLEN);
	if (is_held())
		return DROP(skb, work, REASON_ENGINE_SWITCH, FILE_ENDPOINT);
	if (stands_aside())
		return NEXT_PROGRAM;
	if (!endpoint)
		return DROP(skb, work, REASON_UNKNOWN_ENDPOINT, FILE_ENDPOINT);
	if (READ(skb, 0, frame))
		return DROP(skb, work, REASON_MALFORMED, FILE_ENDPOINT);
	if (!same_mac(frame.h_source, endpoint->mac))
		return DROP(skb, work, REASON_FORGED_SOURCE, FILE_ENDPOINT);
	if (skb->protocol == bpf_htons(ETH_P_ARP)) {
		reason = check_arp(skb, endpoint);
		return reason ? DROP(skb, work, reason, FILE_ENDPOINT) : NEXT_PROGRAM;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return DROP(skb, work, REASON_UNSUPPORTED, FILE_ENDPOINT);
	reason = parse(skb, work);
	if (reason)
		return DROP(skb, work, reason, FILE_ENDPOINT);
	if (!is_own_source(skb, &work->packet, endpoint))
		return DROP(skb, work, REASON_FORGED_SOURCE, FILE_ENDPOINT);
	remember_fragment(&work->packet);
	if (is_neighbour_discovery(&work->packet)) {
		reason = check_neighbour_discovery(skb, work, endpoint);
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
	}
	if ((is_neighbour_discovery(&work->packet) || is_listener_report(&work->packet)) && stays_on_link(&work->packet))
		return NEXT_PROGRAM;

	if (enter(skb, work, true, &reason)) {
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
		reason = judge_again(skb, work, endpoint, true);
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
		follow_flow(work);
		return send_on(skb, work, endpoint);
	}
	reason = begin_from_pod(skb, work, endpoint);
	if (reason == REJECT_PACKET) {
		TELL(skb, work, EVENT_REJECT, FILE_ENDPOINT);
		reason = refuse(skb, work);
		if (!reason)
			return bpf_redirect_peer(device, 0);
	}
	if (reason)
		return DROP(skb, work, reason, FILE_ENDPOINT);
	return send_on(skb, work, endpoint);
}

/*
 * An origin, not an address: what was generated on this node came in by no device. Nor do IPv6 packets seem to that were
 * put together from fragments, so the source has to be this node's as well.
 */
static __always_inline bool is_from_host(struct __sk_buff *skb, const struct layer *packet)
{
	return !skb->ingress_ifindex && ((address_flags(&packet->tuple.source) & ADDRESS_IS_OWN) ||
					 (packet->family == FAMILY_V6 && is_link_local(&packet->tuple.source)));
}

/* Only this node sends from its own addresses, and only its pods from theirs: those packets have a flow by now. */
static __always_inline bool is_forged(const struct layer *packet)
{
	return (address_flags(&packet->tuple.source) & ADDRESS_IS_OWN) || endpoint_with(&packet->tuple.source);
}

/* The first packet of a flow to the pod that did not begin at another pod of this node. */
static __always_inline int begin_to_pod(struct __sk_buff *skb, struct work *work, const struct endpoint *endpoint)
{
	__u32 revision = current_state(STATE_REVISION);
	bool from_host = is_from_host(skb, &work->packet);
	__u32 flags = 0;
	int reason;

	if (!from_host && is_forged(&work->packet))
		return REASON_FORGED_SOURCE;
	work->judged = work->packet.tuple;
	reason = judge_first(skb, work, NULL, endpoint, from_host);
	if (reason)
		return reason;
	if (from_host)
		flags = FLOW_FROM_HOST | (has_bound_source(skb, work, skb->ifindex) ? FLOW_MASQUERADED : 0);
	return begin_flow(work, flags | work->asked, revision);
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	__u32 device = skb->ifindex;
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &device);
	struct work *work = working_memory();
	int reason;

	if (!work)
		return TC_ACT_SHOT;
	begin_work(work, ETH_HLEN);
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return NEXT_PROGRAM;
	if (is_held())
		return DROP(skb, work, REASON_ENGINE_SWITCH, FILE_ENDPOINT);
	if (stands_aside())
		return NEXT_PROGRAM;
	if (!endpoint)
		return DROP(skb, work, REASON_UNKNOWN_ENDPOINT, FILE_ENDPOINT);
	reason = parse(skb, work);
	if (reason)
		return DROP(skb, work, reason, FILE_ENDPOINT);
	remember_fragment(&work->packet);
	/* The node's own; from elsewhere they are not routed. */
	if (is_neighbour_discovery(&work->packet) && work->packet.hops == 255 && is_from_host(skb, &work->packet))
		return NEXT_PROGRAM;

	if (meet(skb, work)) {
		if ((work->flow.flags & FLOW_FROM_HOST) && !is_answer(work) && skb->ingress_ifindex)
			return DROP(skb, work, REASON_FORGED_SOURCE, FILE_ENDPOINT);
		reason = judge_again(skb, work, endpoint, false);
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
		follow_flow(work);
	} else {
		reason = begin_to_pod(skb, work, endpoint);
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
	}
	TRACE(skb, work, FILE_ENDPOINT);
	if (has_other_source(work)) {
		reason = translate_source(skb, work, device);
		if (reason)
			return DROP(skb, work, reason, FILE_ENDPOINT);
	}
	return NEXT_PROGRAM;
}

char _license[] SEC("license") = "Dual BSD/GPL";
