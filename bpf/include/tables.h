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
enum frontend_kind { KIND_CLUSTER_IP, KIND_NODE_PORT, KIND_LOAD_BALANCER, KIND_EXTERNAL_IP, KIND_HOST_PORT };

/* Whose flows get this node's address as their source. */
enum masquerade_rule { MASQUERADE_EXCEPT_PODS, MASQUERADE_ALWAYS, MASQUERADE_HOST_ONLY };

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
	/* Slots are a Maglev table: a flow's is chosen by a hash of its client. */
	__u8 is_hashed;
	__u8 pad[2];
};

/* Part of the hash, for all engines and nodes. */
enum { MAGLEV_SEED = 0x534c5543 };

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

/* -- Packets: who is who, what they may, and the flows that packets belong to -- */

/* A local pod, by the index of its device on the node. */
enum { ENDPOINT_IS_KNOWN = 1, ENDPOINT_IS_SHAPED = 2 };

struct endpoint {
	/* Its side of policy for each direction; 0: no policy selects it. */
	__u32 ingress;
	__u32 egress;
	__u32 flags;
	/* The pod's own hardware address. */
	__u8 mac[6];
	__u8 pad[2];
	/* The pod's first address of IPv4 and of IPv6; zero: none. */
	struct address v4;
	struct address v6;
};

/* Where a packet for a local pod goes, by the pod's address. */
struct pod_device {
	__u32 device;
	/* The endpoint's. */
	__u32 flags;
	/* Of a frame into the pod: to the pod's own hardware address, from that of the node's end. */
	__u8 mac[6];
	__u8 gateway_mac[6];
};

enum {
	/* This node sends from it. */
	ADDRESS_IS_OWN = 1,
	/* A Service's, whose undefined ports are refused. */
	ADDRESS_IS_SERVICE = 2,
	/* A Service's that another proxy serves. */
	ADDRESS_IS_ANOTHERS = 4,
	/* Pods reach this node by it. */
	ADDRESS_IS_NODES = 8,
};

enum range_kind { RANGE_CLUSTER = 1, RANGE_SERVICE = 2, RANGE_POD = 3 };

/* Prefixes of several tables in one map: which table, then the address. */
struct range_key {
	/* Bits that count, of all that follow. */
	__u32 prefix_length;
	/* A range_kind, or a block table's number. */
	__u32 table;
	struct address address;
};

struct pair_key {
	__u32 subject;
	/* 0: the subject's wildcard. */
	__u32 identity;
};

struct pair {
	__u32 port_set;
	__u32 attribution;
};

/* Also a prefix: of protocol and port, 24 bits in this order. */
struct port_key {
	__u32 prefix_length;
	__u32 port_set;
	__u8 proto;
	__u8 port[2];
	__u8 pad;
};

struct clause_key {
	__u32 attribution;
	__u32 clause;
};

enum { CLAUSE_ALLOW, CLAUSE_NOT_ISOLATED, CLAUSE_DEFAULT_DENY, CLAUSE_AUDIT_DENY, CLAUSE_OVER_LIMIT };

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* In array `state`. */
enum {
	/* Flows carry the revision that they were judged under; never 0. */
	STATE_REVISION,
	/* The block table in force, by family. */
	STATE_BLOCKS_V4,
	STATE_BLOCKS_V6,
	/* Families of which anything is masqueraded: 1 is IPv4, 2 is IPv6. */
	STATE_MASQUERADE,
	/* EVENT_ kinds that somebody listens to, by bit; drops and audits always. */
	STATE_EVENTS,
	/* 0: programs do what they are for. Else see `enum mode`. */
	STATE_MODE,
	STATE_SIZE,
};

/*
 * While engines change. Bit 0: another engine has the packet path, let everything pass to it. The others are a time,
 * in 2^24 ns of the monotonic clock: until then what pods send and get, and what comes for Services, is held back. 0:
 * nothing is.
 */
enum mode { MODE_ASIDE = 1 };
#define MODE_TIME_SHIFT 24

/* What a step does to a packet: where it goes to, or where it comes from. */
enum step { STEP_NONE, STEP_DESTINATION, STEP_SOURCE };

struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 proto;
	/* Of translations; 0 of flows. */
	__u8 step;
	__u16 pad;
};

enum flow_state { FLOW_OPENING, FLOW_OPEN, FLOW_CLOSING };

enum {
	/* Of the key's two ends the second began it. */
	FLOW_FROM_SECOND = 1,
	/* A process of this node began it. */
	FLOW_FROM_HOST = 2,
	/* Its destination was a Service: answers get that as their source. */
	FLOW_BALANCED = 4,
	FLOW_MASQUERADED = 8,
	/* Whose policies have been asked under the flow's revision: a pod can take an address that a live flow goes to. */
	FLOW_ASKED_SENDER = 64,
	FLOW_ASKED_RECEIVER = 128,
};

/* Of a TCP flow's ends: that it has sent a FIN, or a reset. */
enum {
	FLOW_FIRST_CLOSED = 1,
	FLOW_SECOND_CLOSED = 2,
	FLOW_BOTH_CLOSED = 3,
	FLOW_FIRST_RESET = 4,
	FLOW_SECOND_RESET = 8,
};

/* By its tuple between destination translation and masquerade, the lower end first. */
struct flow {
	/* Nanoseconds of the monotonic clock. */
	__u64 seen;
	__u32 revision;
	__u8 state;
	__u8 flags;
	__u8 closed;
	__u8 pad;
};

/* What a packet's tuple becomes. */
struct translation {
	struct tuple to;
	/* Of a balanced flow: where its backend was chosen from. */
	struct set_key set;
	__u32 is_masquerade;
};

/* A packet's later fragments have no ports, and of IPv6 may not name its protocol either. */
struct fragment_key {
	struct address source;
	struct address destination;
	__u32 id;
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
	__u8 proto;
	__u8 pad[3];
};

/* A device by which packets leave this node, and their source where they are masqueraded. */
struct uplink {
	struct address v4;
	struct address v6;
	/* Bytes of a frame before its IP header: 14 of Ethernet, 0 of tunnels without one. */
	__u32 header_length;
};

/* Drop reasons, in the order of `DropReason` (Sources/DataplaneModel/Reasons.swift); 0: none. */
enum reason {
	REASON_NONE,
	REASON_SOURCE_RANGE,
	REASON_NO_LOCAL_ENDPOINT,
	REASON_UNALLOCATED,
	REASON_FORGED_SOURCE,
	REASON_FORGED_ADVERTISEMENT,
	REASON_POLICY_DENIED,
	REASON_UNKNOWN_ENDPOINT,
	REASON_NO_VERDICT,
	REASON_MALFORMED,
	REASON_FRAGMENT,
	REASON_MASQUERADE_PORTS,
	REASON_UNSUPPORTED,
	REASON_NO_ROOM,
	REASON_NO_CONNECTION,
	REASON_ENGINE_SWITCH,
	REASON_COUNT,
};

/* `drops` counts denials by direction, behind all reasons. */
#define DROPS_SIZE (REASON_COUNT + 2)

enum event_kind { EVENT_DROP, EVENT_VERDICT, EVENT_AUDIT, EVENT_TRANSLATION, EVENT_REJECT, EVENT_TRACE };

/* Which file of bpf/ told it, in the order of `PacketEvent.files`. */
enum source_file { FILE_ENDPOINT, FILE_UPLINK, FILE_POLICY, FILE_NAT, FILE_PATH };

struct event {
	__u64 time;
	__u8 kind;
	__u8 reason;
	__u8 file;
	/* 0 of ingress policy, 1 of egress policy, 2 of neither. */
	__u8 direction;
	__u32 line;
	__u32 attribution;
	__u32 clause;
	__u32 revision;
	/* The peer's, as policy saw it. */
	__u32 identity;
	__u32 device;
	/* Bytes from the IP header on. */
	__u32 length;
	struct tuple tuple;
	/* Of a translation: what it became. */
	struct tuple other;
	__u8 tcp_flags;
	__u8 icmp_type;
	/* Of a trace: whoever got the flow's first packet sent this one. */
	__u8 is_answer;
	__u8 pad[5];
};

#endif
