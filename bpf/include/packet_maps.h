/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_PACKET_MAPS_H
#define SLUICE_PACKET_MAPS_H

#include "maps.h"

/* Who is who. */

TABLE(endpoints, __u32, struct endpoint, 1 << 12);
TABLE(pod_devices, struct address, struct pod_device, 1 << 12);
/* ADDRESS_ flags. */
TABLE(addresses, struct address, __u32, 1 << 17);
PREFIXES(ranges, struct range_key, 1 << 14);
TABLE(uplinks, __u32, struct uplink, 1 << 8);
/* The source of masqueraded flows towards local pods: index 0 is IPv4's, 1 is IPv6's; zero: there is none. */
MAP(internal_addresses, BPF_MAP_TYPE_ARRAY, 0, __u32, struct address, 2);
MAP(state, BPF_MAP_TYPE_ARRAY, 0, __u32, __u32, STATE_SIZE);

/* Policy. */

TABLE(identities, struct address, __u32, 1 << 20);
PREFIXES(blocks, struct range_key, 1 << 19);
TABLE(pairs, struct pair_key, struct pair, 1 << 20);
TABLE(ports, struct port_key, __u32, 1 << 18);
PREFIXES(port_ranges, struct port_key, 1 << 18);
/* Of a port set's clauses with an attribution. One that is not here denies: tables are damaged. */
MAP(clauses, BPF_MAP_TYPE_PERCPU_HASH, BPF_F_NO_PREALLOC, struct clause_key, struct counter, 1 << 17);

/* Flows. Those that nobody has answered have a map of their own: a flood of them pushes out no other. */

CACHE(flows, struct tuple, struct flow, 1 << 18);
CACHE(attempts, struct tuple, struct flow, 1 << 16);
CACHE(translations, struct tuple, struct translation, 1 << 18);
CACHE(fragments, struct fragment_key, struct fragment, 1 << 14);

/* What happened. */

MAP(drops, BPF_MAP_TYPE_PERCPU_ARRAY, 0, __u32, struct counter, DROPS_SIZE);
/* Events that found no room: packets of index 0. */
MAP(lost_events, BPF_MAP_TYPE_PERCPU_ARRAY, 0, __u32, struct counter, 1);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

#endif
