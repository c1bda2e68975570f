/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_NAT_H
#define SLUICE_NAT_H

#include "balance.h"
#include "events.h"
#include "flows.h"
#include "rewrite.h"

/*
 * Translations come in pairs: what the flow's packets become, and what its answers become. A packet's destination changes
 * where it comes in, its source where it leaves: between the two it has the tuple that policy judges and the flow is
 * known by.
 */

/* Masqueraded flows take their ports from a range that the node's own sockets never draw from by themselves. */
const volatile __u16 first_masquerade_port = 61000;
const volatile __u16 masquerade_ports = 4536;

#define PORT_TRIES 32
/* A prime, so that tries are spread. */
#define PORT_STRIDE 1009

static __always_inline struct translation *find_translation(struct work *work, const struct tuple *tuple, __u8 step)
{
	work->lookup = *tuple;
	work->lookup.step = step;
	return bpf_map_lookup_elem(&translations, &work->lookup);
}

static __always_inline bool same_tuple(const struct tuple *left, const struct tuple *right)
{
	return same_address(&left->source, &right->source) && same_address(&left->destination, &right->destination) &&
	       left->source_port == right->source_port && left->destination_port == right->destination_port;
}

/* Of one client with one backend: next to none is taken. */
#define FREE_PORT_TRIES 8

/* Gives `work->next` a source port that makes it no flow's tuple; a reason where none is found. */
static __noinline int take_free_port(struct work *work)
{
	__u32 start = bpf_get_prandom_u32();

	for (int i = 0; i < FREE_PORT_TRIES; i++) {
		work->next.source_port = bpf_htons(first_masquerade_port + (start + i * PORT_STRIDE) % masquerade_ports);
		if (!find_flow(work, &work->next))
			return REASON_NONE;
	}
	return REASON_MASQUERADE_PORTS;
}

/*
 * A balanced flow: `work->packet.tuple` becomes `work->next`, chosen from `set`; NULL: it is only kept apart from another.
 * Where another connection of the client has that tuple already, through another Service or directly, for the client two
 * connections, it becomes one from another port.
 */
static __always_inline int store_balanced(struct work *work, const struct set_key *set)
{
	struct translation *translation = &work->translation;
	struct translation *known;
	int reason;

	if (work->packet.tuple.proto == IPPROTO_TCP && find_flow(work, &work->next)) {
		reverse(&work->judged, &work->packet.tuple);
		reverse(&work->lookup, &work->next);
		work->lookup.step = STEP_SOURCE;
		known = bpf_map_lookup_elem(&translations, &work->lookup);
		if (!known || !same_tuple(&known->to, &work->judged)) {
			reason = take_free_port(work);
			if (reason)
				return reason;
		}
	}
	__builtin_memset(translation, 0, sizeof(*translation));
	if (set)
		translation->set = *set;
	translation->to = work->next;
	work->lookup = work->packet.tuple;
	work->lookup.step = STEP_DESTINATION;
	bpf_map_update_elem(&translations, &work->lookup, translation, BPF_ANY);
	reverse(&translation->to, &work->packet.tuple);
	reverse(&work->lookup, &work->next);
	work->lookup.step = STEP_SOURCE;
	bpf_map_update_elem(&translations, &work->lookup, translation, BPF_ANY);
	return REASON_NONE;
}

/* How long a connection that was closed keeps its masquerade port from others, in seconds. */
#define CLOSED_PORT_SECONDS 10

/* Whether the answers that `lookup` names belong to a flow that is over. Keeps the packet's own key. */
static __always_inline bool is_abandoned(struct work *work, const struct translation *answers)
{
	struct flow *flow;
	__u64 end;

	order(&work->inner_next, &answers->to);
	flow = bpf_map_lookup_elem(&flows, &work->inner_next);
	if (!flow)
		flow = bpf_map_lookup_elem(&attempts, &work->inner_next);
	if (!flow)
		return true;
	end = flow->state == FLOW_CLOSING ? CLOSED_PORT_SECONDS * SECONDS : lifetime(answers->to.proto, flow);
	return work->now > flow->seen + end;
}

/*
 * Chooses the port that the flow `work->packet.tuple` leaves with, and remembers it. `work->next` has the new source
 * address; a reason where no port is free.
 */
static __noinline int choose_masquerade(struct work *work)
{
	struct translation *translation = &work->translation;
	const struct tuple *from = &work->packet.tuple;
	bool echo = is_icmp(&work->packet) && is_echo_request(&work->packet);
	bool has_choice = echo || from->proto == IPPROTO_TCP || from->proto == IPPROTO_UDP;
	__u32 start = bpf_get_prandom_u32();
	int tries = has_choice ? PORT_TRIES : 1;

	__builtin_memset(translation, 0, sizeof(*translation));
	translation->is_masquerade = 1;
	reverse(&translation->to, from);
	for (int i = 0; i < PORT_TRIES; i++) {
		struct translation *taken;

		if (i >= tries)
			break;
		if (has_choice)
			work->next.source_port = bpf_htons(first_masquerade_port + (start + i * PORT_STRIDE) % masquerade_ports);
		reverse(&work->lookup, &work->next);
		work->lookup.step = STEP_DESTINATION;
		if (bpf_map_update_elem(&translations, &work->lookup, translation, BPF_NOEXIST)) {
			taken = bpf_map_lookup_elem(&translations, &work->lookup);
			if (!taken || !is_abandoned(work, taken))
				continue;
			bpf_map_update_elem(&translations, &work->lookup, translation, BPF_ANY);
		}
		work->lookup = *from;
		work->lookup.step = STEP_SOURCE;
		translation->to = work->next;
		bpf_map_update_elem(&translations, &work->lookup, translation, BPF_ANY);
		return REASON_NONE;
	}
	return REASON_MASQUERADE_PORTS;
}

/*
 * Sees to it that answers to `work->next` find their way to us: a cache may have lost it. false where they are another
 * flow's by now.
 */
static __always_inline bool keep_answers(struct work *work)
{
	struct translation *translation = &work->translation;
	struct translation *known;

	__builtin_memset(translation, 0, sizeof(*translation));
	translation->is_masquerade = 1;
	reverse(&translation->to, &work->packet.tuple);
	reverse(&work->lookup, &work->next);
	work->lookup.step = STEP_DESTINATION;
	known = bpf_map_lookup_elem(&translations, &work->lookup);
	if (known)
		return same_tuple(&known->to, &translation->to);
	return !bpf_map_update_elem(&translations, &work->lookup, translation, BPF_NOEXIST);
}

/* Leaves this node's address of the packet's family in `address` where it has one for packets that leave by `device`. */
static __always_inline bool masquerade_address(__u32 device, __u8 family, struct address *address)
{
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &device);
	__u32 index = family == FAMILY_V4 ? 0 : 1;
	struct address *internal;

	if (uplink) {
		*address = family == FAMILY_V4 ? uplink->v4 : uplink->v6;
	} else {
		internal = bpf_map_lookup_elem(&internal_addresses, &index);
		if (!internal)
			return false;
		*address = *internal;
	}
	return !is_unspecified(address);
}

/* Whether a packet of `work->flow` leaves with another source than it has. */
static __always_inline bool has_other_source(const struct work *work)
{
	return work->flow.flags & (is_answer(work) ? FLOW_BALANCED : FLOW_MASQUERADED);
}

/*
 * The second half of translation, where a packet that `has_other_source` leaves by `device`. A packet whose translation
 * is lost must not go out as it is.
 */
static __noinline int translate_source(struct __sk_buff *skb, struct work *work, __u32 device)
{
	bool answers = is_answer(work);
	struct translation *known;
	int reason;

	known = find_translation(work, &work->packet.tuple, STEP_SOURCE);
	if (known)
		work->next = known->to;
	if (!known || (known->is_masquerade && !keep_answers(work))) {
		if (answers || work->kind == PACKET_ERROR)
			return REASON_MASQUERADE_PORTS;
		work->next = work->packet.tuple;
		if (!masquerade_address(device, work->packet.family, &work->next.source))
			return REASON_NONE;
		reason = choose_masquerade(work);
		if (reason)
			return reason;
	}
	work->next.step = 0;
	TELL(skb, work, EVENT_TRANSLATION, FILE_NAT);
	return rewrite(skb, work);
}

#endif
