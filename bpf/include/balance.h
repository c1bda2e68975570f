/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_BALANCE_H
#define SLUICE_BALANCE_H

#include "address.h"
#include "hash.h"
#include "maps.h"

/* Choosing a backend for a new flow: what `walk` says of the tables (Sources/DataplaneModel/Walk.swift). */

#define NANOSECONDS 1000000000ull

/* Who asks for a Service. */
enum origin { ORIGIN_POD, ORIGIN_HOST, ORIGIN_OUTSIDE };

enum decision {
	NO_FRONTEND,
	CHOSEN,
	/* No endpoint anywhere. */
	REFUSED,
	OUTSIDE_SOURCE_RANGES,
	NO_LOCAL_ENDPOINT,
	/* A look-up failed that cannot fail while tables are whole. */
	LOST,
};

static __always_inline bool same_backend(const struct backend *left, const struct backend *right)
{
	return same_address(&left->address, &right->address) && left->port == right->port;
}

/* An address of this node that some Service also claims: the order of claims decides. */
static __always_inline struct frontend *find_frontend(const struct backend *to, __u8 proto, bool from_host)
{
	struct frontend_key key = { .address = to->address, .port = to->port, .proto = proto };
	struct frontend *by_address;
	struct frontend *node_port;

	/* To connect there means localhost; as a key it means all of this node's addresses. */
	if (is_unspecified(&to->address))
		return NULL;
	by_address = bpf_map_lookup_elem(&frontends, &key);
	if (!bpf_map_lookup_elem(&node_addresses, &to->address) && !(from_host && is_loopback(&to->address)))
		return by_address;
	if (is_v4(&to->address))
		key.address.words[3] = 0;
	else
		__builtin_memset(&key.address, 0, sizeof(key.address));
	node_port = bpf_map_lookup_elem(&frontends, &key);
	if (!node_port || (by_address && by_address->kind < node_port->kind))
		return by_address;
	return node_port;
}

static __always_inline bool may_use(const struct frontend *frontend, const struct address *client)
{
	struct source_key key = { .prefix_length = 32 + 128, .list = frontend->source_list };

	if (!frontend->source_list)
		return true;
	copy(&key.address, client);
	return bpf_map_lookup_elem(&sources, &key) != NULL;
}

static __always_inline bool is_member(const struct set_key *set, const struct backend *backend, bool takes_flows)
{
	struct member_key key = { .set = *set, .backend = *backend };
	__u32 *state = bpf_map_lookup_elem(&members, &key);

	return state && (!takes_flows || *state == MEMBER_TAKES_FLOWS);
}

/*
 * Chooses where a client's flow to `to` goes. `port` is the client's; 0: a socket that has none yet. `previous` may name what the socket talked to last: it stays there while
 * the set has it. `set_key` says where it was chosen from, `frontend` by what; NULL where there is none.
 */
static __always_inline enum decision balance(enum origin origin, const struct address *client, __be16 port,
					     const struct backend *to, __u8 proto, const struct backend *previous, struct backend *chosen,
					     struct set_key *set_key, struct frontend **used)
{
	struct frontend *frontend = find_frontend(to, proto, origin == ORIGIN_HOST);
	struct affinity_key affinity_key = {};
	struct slot_key slot_key = {};
	struct affinity *stuck = NULL;
	struct backend_set *set;
	struct backend *backend;

	*used = frontend;
	if (!frontend)
		return NO_FRONTEND;
	copy(&affinity_key.client, client);
	if (!may_use(frontend, &affinity_key.client))
		return OUTSIDE_SOURCE_RANGES;
	slot_key.set.service = frontend->service;
	slot_key.set.scope = origin == ORIGIN_OUTSIDE ? frontend->outside_scope : frontend->node_scope;
	slot_key.set.family = is_v4(&to->address) ? FAMILY_V4 : FAMILY_V6;
	*set_key = slot_key.set;
	set = bpf_map_lookup_elem(&sets, &slot_key.set);
	if (!set)
		return LOST;
	if (!set->count)
		return set->empty_action == EMPTY_REJECT ? REFUSED : NO_LOCAL_ENDPOINT;

	/*
	 * Each is copied and only then looked up as a member: the kernel may give a deleted element's memory to another one
	 * while we read it.
	 */
	if (previous) {
		*chosen = *previous;
		if (is_member(&slot_key.set, chosen, false))
			return CHOSEN;
	}
	if (set->affinity) {
		__u64 now = bpf_ktime_get_ns();

		affinity_key.service = frontend->service;
		stuck = bpf_map_lookup_elem(&affinities, &affinity_key);
		/* Another processor may have stored a later time than ours. */
		if (stuck && now < stuck->used + set->affinity * NANOSECONDS) {
			*chosen = stuck->backend;
			if (is_member(&slot_key.set, chosen, true)) {
				stuck->used = now;
				return CHOSEN;
			}
		}
	}
	if (set->is_hashed && port)
		slot_key.slot = (__u64)client_hash(client, port) * set->count >> 32;
	else
		slot_key.slot = bpf_get_prandom_u32() % set->count;
	backend = bpf_map_lookup_elem(&slots, &slot_key);
	if (!backend)
		return LOST;
	*chosen = *backend;
	if (!is_member(&slot_key.set, chosen, true))
		return LOST;
	if (set->affinity) {
		struct affinity fresh = { .backend = *chosen, .used = bpf_ktime_get_ns() };

		bpf_map_update_elem(&affinities, &affinity_key, &fresh, BPF_ANY);
	}
	return CHOSEN;
}

#endif
