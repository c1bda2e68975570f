/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_MAPS_H
#define SLUICE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "tables.h"

/*
 * Sizes are bounds: elements are allocated when they are added. But a hash map has a bucket of 16 bytes for each element it
 * may have, and LRU maps are allocated whole: some 40 MB in all.
 */
#define MAP(NAME, TYPE, FLAGS, KEY, VALUE, SIZE)                                                                       \
	struct {                                                                                                       \
		__uint(type, TYPE);                                                                                    \
		__uint(map_flags, FLAGS);                                                                              \
		__uint(max_entries, SIZE);                                                                             \
		__type(key, KEY);                                                                                      \
		__type(value, VALUE);                                                                                  \
	} NAME SEC(".maps")

#define TABLE(NAME, KEY, VALUE, SIZE) MAP(NAME, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, KEY, VALUE, SIZE)
#define PREFIXES(NAME, KEY, SIZE) MAP(NAME, BPF_MAP_TYPE_LPM_TRIE, BPF_F_NO_PREALLOC, KEY, __u32, SIZE)
#define CACHE(NAME, KEY, VALUE, SIZE) MAP(NAME, BPF_MAP_TYPE_LRU_HASH, 0, KEY, VALUE, SIZE)

/* Services: what sockets and packets share. */

TABLE(frontends, struct frontend_key, struct frontend, 1 << 17);
TABLE(sets, struct set_key, struct backend_set, 1 << 17);
TABLE(slots, struct slot_key, struct backend, 1 << 19);
TABLE(members, struct member_key, __u32, 1 << 19);
TABLE(node_addresses, struct address, __u32, 1 << 12);
PREFIXES(sources, struct source_key, 1 << 16);
CACHE(affinities, struct affinity_key, struct affinity, 1 << 16);

#endif
