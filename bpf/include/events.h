/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_EVENTS_H
#define SLUICE_EVENTS_H

#include "packet.h"

/* Who listens learns each decision; what finds no room is counted. */

enum { DIRECTION_INGRESS, DIRECTION_EGRESS, DIRECTION_NONE };

/* Of a packet of which nothing is known yet. */
static __always_inline void begin_work(struct work *work, __u32 network)
{
	__builtin_memset(&work->packet, 0, sizeof(work->packet));
	__builtin_memset(&work->next, 0, sizeof(work->next));
	work->now = rough_time();
	work->packet.network = network;
	work->kind = PACKET_PLAIN;
	work->event.attribution = 0;
	work->event.clause = 0;
	work->event.identity = 0;
	work->event.direction = DIRECTION_NONE;
	work->event.is_answer = 0;
}

/* What is dropped, or would be, is always told. */
static __always_inline bool is_heard(enum event_kind kind)
{
	return kind == EVENT_DROP || kind == EVENT_AUDIT || current_state(STATE_EVENTS) & 1u << kind;
}

/* What policy decides of a flow's first packet it decides of its backend, not of the Service that the packet is still for. */
static __always_inline bool is_about_judged(const struct work *work)
{
	const struct event *event = &work->event;

	if (event->kind != EVENT_VERDICT && event->kind != EVENT_AUDIT &&
	    (event->kind != EVENT_DROP || event->reason != REASON_POLICY_DENIED))
		return false;
	return event->direction != DIRECTION_NONE &&
	       same_address(&work->judged.source, &work->packet.tuple.source) &&
	       work->judged.source_port == work->packet.tuple.source_port;
}

static __noinline int tell(struct __sk_buff *skb, struct work *work, __u32 kind_and_reason, __u32 file_and_line)
{
	struct event *event = &work->event;
	__u32 zero = 0;

	event->kind = kind_and_reason >> 8;
	event->reason = kind_and_reason;
	event->time = bpf_ktime_get_ns();
	event->file = file_and_line >> 16;
	event->line = file_and_line & 0xffff;
	event->revision = current_state(STATE_REVISION);
	event->device = skb->ifindex;
	event->length = skb->len - work->packet.network;
	event->tuple = is_about_judged(work) ? work->judged : work->packet.tuple;
	event->other = work->next;
	event->tcp_flags = work->packet.tcp_flags;
	event->icmp_type = work->packet.icmp_type;
	if (bpf_ringbuf_output(&events, event, sizeof(*event), 0)) {
		struct counter *lost = bpf_map_lookup_elem(&lost_events, &zero);

		if (lost)
			lost->packets++;
	}
	return 0;
}

static __noinline int drop_packet(struct __sk_buff *skb, struct work *work, __u32 reason, __u32 file_and_line)
{
	__u32 index = reason == REASON_POLICY_DENIED && work->event.direction != DIRECTION_NONE ?
			      REASON_COUNT + work->event.direction :
			      reason;
	struct counter *counter = bpf_map_lookup_elem(&drops, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len - work->packet.network;
	}
	tell(skb, work, EVENT_DROP << 8 | reason, file_and_line);
	return TC_ACT_SHOT;
}

#define HERE(FILE) ((FILE) << 16 | __LINE__)
#define TELL(SKB, WORK, KIND, FILE)                                                                                    \
	do {                                                                                                           \
		if (is_heard(KIND))                                                                                    \
			tell(SKB, WORK, (KIND) << 8, HERE(FILE));                                                      \
	} while (0)
#define DROP(SKB, WORK, REASON, FILE) drop_packet(SKB, WORK, REASON, HERE(FILE))

#endif
