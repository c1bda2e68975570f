/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_TABLES_H
#define SLUICE_TABLES_H

/*
 * The tables as maps: keys and values, each of the same layout in Sources/BPFLoader/Layouts.swift (a test compares
 * both by BTF). Numbers are in host order; addresses and ports as on the wire. No implicit padding: hash maps compare
 * every byte.
 */

#include <linux/types.h>

/* IPv4 as ::ffff:a.b.c.d: one map for both families. */
struct address {
	__u32 words[4];
};

enum scope { SCOPE_CLUSTER, SCOPE_LOCAL };

enum family { FAMILY_V4 = 4, FAMILY_V6 = 6 };

/* In the order in which claims to one address and port win. */
enum frontend_kind { KIND_CLUSTER_IP, KIND_NODE_PORT, KIND_LOAD_BALANCER, KIND_EXTERNAL_IP };

enum empty_action { EMPTY_REJECT, EMPTY_DROP };

/* Address 0 (of IPv4: ::ffff:0.0.0.0): this node's addresses that NodePorts listen on. */
struct frontend_key {
	struct address address;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct frontend {
	__u32 service;
	/* Number of the list of sources that may use it; 0: anyone. */
	__u32 source_list;
	__u8 kind;
	/* The set for this node's pods and processes, and for everybody else. */
	__u8 node_scope;
	__u8 outside_scope;
	__u8 masquerade;
};

struct set_key {
	__u32 service;
	__u8 scope;
	__u8 family;
	__u16 pad;
};

struct backend_set {
	/* Slots 0..<count are in use. */
	__u32 count;
	/* Seconds that a client sticks to a backend; 0: no affinity. */
	__u32 affinity;
	__u8 empty_action;
	__u8 pad[3];
};

struct slot_key {
	struct set_key set;
	__u32 slot;
};

struct backend {
	struct address address;
	__be16 port;
	__u16 pad;
};

/* Backends that may serve a client of the set, and whether they take new flows: of UDP, some only drain. */
enum { MEMBER_DRAINS, MEMBER_TAKES_FLOWS };

struct member_key {
	struct set_key set;
	struct backend backend;
};

/* A source list's ranges, by prefix. */
struct source_key {
	/* Bits that count, of all that follow. */
	__u32 prefix_length;
	__u32 list;
	struct address address;
};

enum { CLIENT_IS_HOST = 1 };

/* Whose sockets a network namespace has. */
struct client {
	struct address v4;
	struct address v6;
	__u32 flags;
	__u32 pad;
};

struct affinity_key {
	struct address client;
	__u32 service;
};

struct affinity {
	struct backend backend;
	__u32 pad;
	/* Nanoseconds of the monotonic clock. */
	__u64 used;
};

/* What a socket was told, behind what it really talks to; and back. */
struct peer_key {
	__u64 cookie;
	struct backend peer;
	__u32 pad;
};

/* A datagram socket that is connected: whom its program asked for, and whom it talks to. */
struct connection {
	struct backend told;
	struct backend real;
};

#endif
