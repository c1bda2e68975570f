/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_FLOWS_H
#define SLUICE_FLOWS_H

#include "parse.h"

/*
 * Connection tracking. A flow is known by its tuple between destination translation and masquerade, the same for both
 * of its directions.
 */

#define SECONDS 1000000000ull

/* How long a flow may be silent, in seconds; netfilter's values, and kube-proxy's for established TCP. */
const volatile __u32 tcp_opening_seconds = 60;
const volatile __u32 tcp_open_seconds = 86400;
const volatile __u32 tcp_closing_seconds = 60;
const volatile __u32 datagram_attempt_seconds = 30;
const volatile __u32 datagram_flow_seconds = 120;
const volatile __u32 icmp_seconds = 30;
const volatile __u32 other_seconds = 600;

static __always_inline bool comes_after(const struct tuple *tuple)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		if (tuple->source.words[i] != tuple->destination.words[i])
			return tuple->source.words[i] > tuple->destination.words[i];
	}
	return tuple->source_port > tuple->destination_port;
}

/* The key of the flow that a packet with this tuple belongs to; whether its source is the second end. */
static __always_inline bool order(struct tuple *key, const struct tuple *tuple)
{
	if (comes_after(tuple)) {
		reverse(key, tuple);
		return true;
	}
	*key = *tuple;
	key->step = 0;
	return false;
}

static __always_inline __u64 lifetime(__u8 proto, const struct flow *flow)
{
	__u32 seconds = other_seconds;

	switch (proto) {
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
		seconds = flow->state == FLOW_OPEN      ? tcp_open_seconds
			  : flow->state == FLOW_OPENING ? tcp_opening_seconds
							: tcp_closing_seconds;
		break;
	case IPPROTO_UDP:
		seconds = flow->state == FLOW_OPENING ? datagram_attempt_seconds : datagram_flow_seconds;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		seconds = icmp_seconds;
		break;
	}
	return seconds * SECONDS;
}

static __always_inline bool begins_connection(const struct layer *packet)
{
	return packet->tuple.proto == IPPROTO_TCP && packet->fragment != FRAGMENT_LATER &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/*
 * The live flow of `tuple`: its key and a copy of it in working memory. A copy, because a cache may give an element's
 * memory to another flow while we look at it.
 */
static __always_inline bool find_flow(struct work *work, const struct tuple *tuple)
{
	struct flow *flow;

	work->from_second = order(&work->key, tuple);
	work->is_attempt = 0;
	flow = bpf_map_lookup_elem(&flows, &work->key);
	work->has_flow = !!flow;
	if (!flow) {
		work->is_attempt = 1;
		flow = bpf_map_lookup_elem(&attempts, &work->key);
	}
	if (!flow)
		return false;
	work->flow = *flow;
	/* Another processor may have seen it later than our clock was read. */
	if (work->now > work->flow.seen + lifetime(work->key.proto, &work->flow))
		return false;
	/* Ports are used again. */
	return !(work->flow.state == FLOW_CLOSING && work->kind == PACKET_PLAIN && begins_connection(&work->packet));
}

/* What was changed of a flow that was found; one that has gone meanwhile does not come back. */
static __always_inline void save_flow(struct work *work)
{
	if (work->is_attempt)
		bpf_map_update_elem(&attempts, &work->key, &work->flow, BPF_EXIST);
	else
		bpf_map_update_elem(&flows, &work->key, &work->flow, BPF_EXIST);
}

/*
 * How far a flow is, in place: a fifth of what an update costs. A cache may give the element's memory to another flow in
 * the middle of it; that one's next packets put right what is written here, and what policy said of it is not touched.
 */
static __always_inline void save_progress(struct work *work)
{
	struct flow *flow = work->is_attempt ? bpf_map_lookup_elem(&attempts, &work->key) :
					       bpf_map_lookup_elem(&flows, &work->key);

	if (!flow)
		return;
	flow->seen = work->flow.seen;
	flow->state = work->flow.state;
	flow->closed = work->flow.closed;
}

static __always_inline bool is_answer(const struct work *work)
{
	return !!(work->flow.flags & FLOW_FROM_SECOND) != !!work->from_second;
}

/* The flow's tuple as who began it sent it. */
static __always_inline void original_tuple(struct tuple *to, const struct work *work)
{
	if (work->flow.flags & FLOW_FROM_SECOND)
		reverse(to, &work->key);
	else
		*to = work->key;
}

/*
 * Whether a dead flow of the same tuple begins again where it is: one of whom policy was asked the same. A client that
 * talks to one server uses its ports again all the time, and each element that a cache gives away and takes back costs
 * more than all look-ups of a packet. As in `save_progress`, what policy said is not touched.
 */
static __always_inline bool reopen_flow(struct work *work)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, &work->key);

	if (!flow || flow->revision != work->flow.revision || flow->flags != work->flow.flags)
		return false;
	flow->seen = work->flow.seen;
	flow->state = FLOW_OPENING;
	flow->closed = 0;
	work->is_attempt = 0;
	return true;
}

/* A new flow of the packet's tuple. It takes the place of a dead one. A reason where there is no room. */
static __always_inline int begin_flow(struct work *work, __u32 flags, __u32 revision)
{
	struct flow *flow = &work->flow;

	__builtin_memset(flow, 0, sizeof(*flow));
	work->from_second = order(&work->key, &work->packet.tuple);
	work->is_attempt = 1;
	flow->seen = work->now;
	flow->revision = revision;
	flow->flags = flags | (work->from_second ? FLOW_FROM_SECOND : 0);
	flow->state = FLOW_OPENING;
	if (work->has_flow) {
		if (reopen_flow(work))
			return REASON_NONE;
		bpf_map_delete_elem(&flows, &work->key);
	}
	return bpf_map_update_elem(&attempts, &work->key, flow, BPF_ANY) ? REASON_NO_ROOM : REASON_NONE;
}

/*
 * What a packet that was let through says of its flow. Times are written once a second: whoever writes takes the line
 * from all other processors.
 */
static __always_inline void follow_flow(struct work *work)
{
	const struct layer *packet = &work->packet;
	struct flow *flow = &work->flow;
	__u8 state = flow->state, closed = flow->closed;

	/* An error proves nothing. */
	if (work->kind == PACKET_ERROR)
		return;
	if (packet->tuple.proto == IPPROTO_TCP && packet->fragment != FRAGMENT_LATER) {
		__u8 own_reset = work->from_second ? FLOW_SECOND_RESET : FLOW_FIRST_RESET;

		if (packet->tcp_flags & TCP_FIN)
			flow->closed |= work->from_second ? FLOW_SECOND_CLOSED : FLOW_FIRST_CLOSED;
		if (packet->tcp_flags & TCP_RST) {
			flow->closed |= own_reset;
			flow->state = FLOW_CLOSING;
		} else if ((flow->closed & FLOW_BOTH_CLOSED) == FLOW_BOTH_CLOSED) {
			flow->state = FLOW_CLOSING;
		} else if (state == FLOW_CLOSING && flow->closed & own_reset && !(packet->tcp_flags & TCP_SYN)) {
			/*
			 * Who goes on after a reset has not sent it. What the other end sends proves nothing: it may have been on its
			 * way.
			 */
			flow->closed &= ~own_reset;
			if (!(flow->closed & (FLOW_FIRST_RESET | FLOW_SECOND_RESET)))
				flow->state = work->is_attempt ? FLOW_OPENING : FLOW_OPEN;
		}
	}
	if (flow->state == FLOW_OPENING && is_answer(work)) {
		flow->state = FLOW_OPEN;
		flow->seen = work->now;
		if (!work->is_attempt) {
			save_progress(work);
		} else if (!bpf_map_update_elem(&flows, &work->key, flow, BPF_ANY)) {
			bpf_map_delete_elem(&attempts, &work->key);
			work->is_attempt = 0;
		}
		/* Else there is no room: it stays an attempt, one that has been answered. */
	} else if (flow->seen + SECONDS < work->now || flow->state != state || flow->closed != closed) {
		flow->seen = work->now;
		save_progress(work);
	}
}

#endif
