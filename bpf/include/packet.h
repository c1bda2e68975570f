/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_PACKET_H
#define SLUICE_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>

#include "address.h"
#include "packet_maps.h"

/* What a program knows of the packet that it looks at, and its working memory: more than the stack holds. */

#define NEXT_PROGRAM TC_ACT_UNSPEC

enum fragment_place { FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER };

enum packet_kind {
	PACKET_PLAIN,
	/* An ICMP error: its tuple is that of an answer to the packet it is about. */
	PACKET_ERROR,
};

/* One IP header and what follows it. Offsets are from the frame's start. */
struct layer {
	struct tuple tuple;
	__u32 network;
	__u32 transport;
	/* Behind its last byte: frames can be longer. */
	__u32 end;
	__u32 fragment_id;
	__u8 family;
	__u8 hops;
	__u8 fragment;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 pad[3];
};

struct work {
	/* When the program began: `rough_time`. */
	__u64 now;
	struct layer packet;
	/* Of an ICMP error: the packet it is about. */
	struct layer about;
	/* An ICMP error's own addresses, and what it and the packet it is about will have. */
	struct tuple outer;
	struct tuple outer_next;
	struct tuple inner_next;
	/* What the flow is known by, and whether the packet's source is its second end. */
	struct tuple key;
	__u32 from_second;
	__u32 kind;
	/* An ICMP error's flow was found under the tuple that it is translated to. */
	__u32 is_translated;
	/* What the packet will be. */
	struct tuple next;
	/* The flow as its first packet had it, between destination translation and masquerade: what policy judges. */
	struct tuple judged;
	/* FLOW_ASKED_ flags of whom `judge` has asked, and whether the flow was allowed before. */
	__u32 asked;
	__u32 is_live;
	/* Of a balanced packet: where its backend was chosen from. */
	struct set_key set;
	/* A look-up's key. */
	struct tuple lookup;
	struct translation translation;
	/* Whether the flow is one that nobody has answered, and whether one that somebody has, dead or alive, has its key. */
	__u32 is_attempt;
	__u32 has_flow;
	/* The packet's tuple, as it came, is what another connection of its sender was translated to. */
	__u32 is_taken;
	struct flow flow;
	struct event event;
};

MAP(memory, BPF_MAP_TYPE_PERCPU_ARRAY, 0, __u32, struct work, 1);

static __always_inline struct work *working_memory(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&memory, &zero);
}

/* Linux 5.11 has it. */
const volatile bool has_coarse_clock = false;

/*
 * Nanoseconds of the monotonic clock, as of the last tick: some milliseconds late. All that is compared with it are seconds,
 * and to read the clock itself costs as much as a look-up.
 */
static __always_inline __u64 rough_time(void)
{
	return has_coarse_clock ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

static __always_inline __u32 current_state(__u32 index)
{
	__u32 *value = bpf_map_lookup_elem(&state, &index);

	return value ? *value : 0;
}

static __always_inline void reverse(struct tuple *to, const struct tuple *from)
{
	to->source = from->destination;
	to->destination = from->source;
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
	to->proto = from->proto;
	to->step = 0;
	to->pad = 0;
}

static __always_inline __u32 address_flags(const struct address *address)
{
	__u32 *flags = bpf_map_lookup_elem(&addresses, address);

	return flags ? *flags : 0;
}

static __always_inline bool is_in_range(__u32 table, const struct address *address)
{
	struct range_key key = { .prefix_length = 32 + 128, .table = table, .address = *address };

	return bpf_map_lookup_elem(&ranges, &key) != NULL;
}

static __always_inline struct endpoint *endpoint_with(const struct address *address)
{
	struct pod_device *device = bpf_map_lookup_elem(&pod_devices, address);

	return device ? bpf_map_lookup_elem(&endpoints, &device->device) : NULL;
}

#define LINEAR_BYTES 256

/*
 * Reads from the packet into TO, a structure. Directly where the bytes are in the packet's linear part, as headers mostly
 * are: to call a helper costs more than what it does here. Not 0 where the packet ends before.
 */
#define READ(SKB, AT, TO)                                                                                              \
	({                                                                                                             \
		__u32 at_ = (AT);                                                                                      \
		int failed_ = 0;                                                                                       \
		void *from_ = (void *)(long)(SKB)->data + (at_ & (LINEAR_BYTES - 1));                                  \
                                                                                                                       \
		if (at_ < LINEAR_BYTES && from_ + sizeof(TO) <= (void *)(long)(SKB)->data_end)                         \
			(TO) = *(typeof(TO) *)from_;                                                                   \
		else                                                                                                   \
			failed_ = bpf_skb_load_bytes(SKB, at_, &(TO), sizeof(TO));                                     \
		failed_;                                                                                               \
	})

#endif
