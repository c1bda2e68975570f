/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_POLICY_H
#define SLUICE_POLICY_H

#include <linux/in.h>

#include "events.h"

/* What `judge` says of the tables (Sources/DataplaneModel/Judge.swift), in a fixed number of look-ups. */

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

/* A peer that is gone ends no flow that it was allowed. */
#define PEER_IS_GONE 0xffffffff

static __always_inline __u32 identity_of(const struct address *address, bool is_live)
{
	__u32 *identity = bpf_map_lookup_elem(&identities, address);
	struct range_key key = { .prefix_length = 32 + 128, .address = *address };

	if (identity)
		return *identity;
	if (is_live && is_in_range(RANGE_POD, address))
		return PEER_IS_GONE;
	key.table = current_state(is_v4(address) ? STATE_BLOCKS_V4 : STATE_BLOCKS_V6);
	identity = bpf_map_lookup_elem(&blocks, &key);
	return identity ? *identity : 0;
}

/* One direction: whether a pod with `subject` may talk to `peer` as `work->judged` says. */
static __noinline int decide(struct __sk_buff *skb, struct work *work, __u32 subject, __u32 direction)
{
	const struct address *peer = direction == DIRECTION_EGRESS ? &work->judged.destination : &work->judged.source;
	struct port_key port_key = { .prefix_length = 32 + 24, .proto = work->judged.proto };
	struct clause_key clause_key = {};
	struct pair_key pair_key = { .subject = subject };
	struct counter *counter;
	struct pair *pair;
	__u32 *clause;
	__u32 kind;

	work->event.direction = direction;
	work->event.identity = 0;
	/* Not those of the other direction, which was asked before. */
	work->event.attribution = 0;
	work->event.clause = 0;
	if (!subject)
		return REASON_NONE;
	pair_key.identity = identity_of(peer, work->is_live);
	if (pair_key.identity == PEER_IS_GONE)
		return REASON_NONE;
	work->event.identity = pair_key.identity;
	if (!pair_key.identity)
		return REASON_NO_VERDICT;
	pair = bpf_map_lookup_elem(&pairs, &pair_key);
	if (!pair) {
		pair_key.identity = 0;
		pair = bpf_map_lookup_elem(&pairs, &pair_key);
		if (!pair)
			return REASON_NO_VERDICT;
	}
	clause_key.attribution = pair->attribution;
	port_key.port_set = pair->port_set;
	if (has_ports(work->judged.proto))
		__builtin_memcpy(port_key.port, &work->judged.destination_port, 2);
	clause = bpf_map_lookup_elem(&ports, &port_key);
	if (!clause)
		clause = bpf_map_lookup_elem(&port_ranges, &port_key);
	if (!clause)
		return REASON_NO_VERDICT;
	clause_key.clause = *clause;
	work->event.attribution = clause_key.attribution;
	work->event.clause = clause_key.clause;
	counter = bpf_map_lookup_elem(&clauses, &clause_key);
	if (!counter)
		return REASON_NO_VERDICT;
	counter->packets++;
	counter->bytes += skb->len - work->packet.network;
	kind = clause_key.clause >> 16;
	if (kind == CLAUSE_AUDIT_DENY) {
		TELL(skb, work, EVENT_AUDIT, FILE_POLICY);
		return REASON_NONE;
	}
	if (kind != CLAUSE_ALLOW && kind != CLAUSE_NOT_ISOLATED)
		return REASON_POLICY_DENIED;
	TELL(skb, work, EVENT_VERDICT, FILE_POLICY);
	return REASON_NONE;
}

/*
 * Both sides of the flow `work->judged`, as far as they are pods of this node. `sender` and `receiver` are NULL where
 * they are not.
 */
static __always_inline int judge(struct __sk_buff *skb, struct work *work, const struct endpoint *sender,
				 const struct endpoint *receiver, bool from_host)
{
	int reason;

	work->asked = (sender ? FLOW_ASKED_SENDER : 0) | (receiver ? FLOW_ASKED_RECEIVER : 0);
	/* A pod to itself. */
	if (same_address(&work->judged.source, &work->judged.destination))
		return REASON_NONE;
	if (sender && !from_host) {
		if (!(sender->flags & ENDPOINT_IS_KNOWN))
			return REASON_UNKNOWN_ENDPOINT;
		reason = decide(skb, work, sender->egress, DIRECTION_EGRESS);
		if (reason)
			return reason;
	}
	/* The pod's own node may always reach it. */
	if (receiver && !from_host) {
		if (!(receiver->flags & ENDPOINT_IS_KNOWN))
			return REASON_UNKNOWN_ENDPOINT;
		reason = decide(skb, work, receiver->ingress, DIRECTION_INGRESS);
		if (reason)
			return reason;
	}
	return REASON_NONE;
}

#endif
