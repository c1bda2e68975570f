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
#define TABLE(NAME, KEY, VALUE, SIZE)                                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__uint(max_entries, SIZE);                                                                             \
		__type(key, KEY);                                                                                      \
		__type(value, VALUE);                                                                                  \
	} NAME SEC(".maps")

#define CACHE(NAME, KEY, VALUE, SIZE)                                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_LRU_HASH);                                                                   \
		__uint(max_entries, SIZE);                                                                             \
		__type(key, KEY);                                                                                      \
		__type(value, VALUE);                                                                                  \
	} NAME SEC(".maps")

TABLE(frontends, struct frontend_key, struct frontend, 1 << 17);
TABLE(sets, struct set_key, struct backend_set, 1 << 17);
TABLE(slots, struct slot_key, struct backend, 1 << 19);
TABLE(members, struct member_key, __u32, 1 << 19);
TABLE(node_addresses, struct address, __u32, 1 << 12);
/* By network namespace cookie. */
TABLE(clients, __u64, struct client, 1 << 14);

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16);
	__type(key, struct source_key);
	__type(value, __u32);
} sources SEC(".maps");

CACHE(affinities, struct affinity_key, struct affinity, 1 << 16);
/* By socket cookie. Not a cache: such a socket sends on for as long as it lives, and must be found when its backend goes. */
TABLE(connections, __u64, struct connection, 1 << 17);
/*
 * (Socket, real peer) -> what the socket was told: TCP connections, and datagrams to a peer each. (Socket, what it was
 * told) -> real peer, for the latter.
 */
CACHE(told_peers, struct peer_key, struct backend, 1 << 16);
CACHE(real_peers, struct peer_key, struct backend, 1 << 16);

#endif
