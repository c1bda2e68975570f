/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_SERVICES_H
#define SLUICE_SERVICES_H

#include "nat.h"
#include "policy.h"
#include "socket_maps.h"

/* What `walk` says of a flow's first packet (Sources/DataplaneModel/Walk.swift). */

#define REJECT_PACKET -1

static __always_inline bool is_link_local_or_multicast(const struct address *address)
{
	if (is_v4(address)) {
		__u32 number = bpf_ntohl(address->words[3]);

		return number >> 16 == 0xa9fe || number >> 28 == 0xe;
	}
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       (address->words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* A pod's packet to somebody who has no route back to it. */
static __always_inline bool leaves_cluster(const struct layer *packet, const struct address *destination,
					   __u32 destination_flags)
{
	if (!(current_state(STATE_MASQUERADE) & (packet->family == FAMILY_V4 ? 1 : 2)))
		return false;
	return !(destination_flags & ADDRESS_IS_NODES) && !is_link_local_or_multicast(destination) &&
	       !is_in_range(RANGE_CLUSTER, destination);
}

static __always_inline bool is_masqueraded(const struct work *work, enum origin origin, const struct frontend *frontend)
{
	const struct address *backend = &work->next.destination;
	__u32 backend_flags = address_flags(backend);

	/* A pod in this node's network: the flow ends here, and what only passes through is translated. */
	if (backend_flags & ADDRESS_IS_NODES)
		return false;
	if (origin == ORIGIN_POD && same_address(&work->packet.tuple.source, backend))
		return true;
	if (frontend->masquerade == MASQUERADE_ALWAYS ||
	    (frontend->masquerade == MASQUERADE_EXCEPT_PODS && origin == ORIGIN_OUTSIDE))
		return true;
	return origin == ORIGIN_POD && leaves_cluster(&work->packet, backend, backend_flags);
}

/*
 * The first packet of a process of this node, which leaves by `device`: whether its source must be another. The kernel
 * itself chooses one for the backend that a socket was led to; one that the process has bound stays, and the backend may
 * have no way back to it.
 */
static __always_inline bool has_bound_source(struct __sk_buff *skb, struct work *work, __u32 device)
{
	const struct tuple *tuple = &work->packet.tuple;
	struct peer_key key = { .cookie = bpf_get_socket_cookie(skb) };
	struct connection *connection;
	struct address own;

	if (!masquerade_address(device, work->packet.family, &own) || same_address(&own, &tuple->source))
		return false;
	key.peer.address = tuple->destination;
	key.peer.port = tuple->destination_port;
	if (bpf_map_lookup_elem(&told_peers, &key))
		return true;
	connection = bpf_map_lookup_elem(&connections, &key.cookie);
	return connection && same_backend(&connection->real, &key.peer);
}

/* What says that a connection has ended is answered by nobody. */
static __always_inline int rejection(const struct layer *packet)
{
	bool resets = packet->tuple.proto == IPPROTO_TCP && packet->fragment != FRAGMENT_LATER &&
		      packet->tcp_flags & TCP_RST;

	return resets || (is_icmp(packet) && is_error(packet)) ? REASON_NO_CONNECTION : REJECT_PACKET;
}

/*
 * What the tables say of a packet that no flow has: 0 where it may go on, as `work->next`, with `flow_flags`;
 * REJECT_PACKET; or a drop reason.
 */
static __noinline int find_service(struct work *work, enum origin origin, __u32 *flow_flags)
{
	const struct layer *packet = &work->packet;
	struct backend to = { .address = packet->tuple.destination, .port = packet->tuple.destination_port };
	struct backend chosen = {};
	struct frontend *frontend;
	__u32 kind;

	*flow_flags = 0;
	work->next = packet->tuple;
	if (has_ports(packet->tuple.proto) && to.port) {
		switch (balance(origin, &packet->tuple.source, packet->tuple.source_port, &to, packet->tuple.proto, NULL,
				&chosen, &work->set, &frontend)) {
		case NO_FRONTEND:
			break;
		case CHOSEN:
			/* Its checksum cannot be computed anew here. */
			if (packet->tuple.proto == IPPROTO_SCTP && chosen.port != to.port)
				return REASON_UNSUPPORTED;
			/* It would be another than its connection had: better that the client learns that it is gone. */
			if (packet->tuple.proto == IPPROTO_TCP && !begins_connection(packet))
				return rejection(packet);
			work->next.destination = chosen.address;
			work->next.destination_port = chosen.port;
			*flow_flags = FLOW_BALANCED;
			if (frontend && is_masqueraded(work, origin, frontend))
				*flow_flags |= FLOW_MASQUERADED;
			return REASON_NONE;
		case REFUSED:
			return rejection(packet);
		case OUTSIDE_SOURCE_RANGES:
			return REASON_SOURCE_RANGE;
		case NO_LOCAL_ENDPOINT:
			return REASON_NO_LOCAL_ENDPOINT;
		case LOST:
			return REASON_NO_VERDICT;
		}
	}
	kind = address_flags(&to.address);
	if (kind & ADDRESS_IS_SERVICE)
		return rejection(packet);
	if (!(kind & ADDRESS_IS_ANOTHERS) && is_in_range(RANGE_SERVICE, &to.address))
		return REASON_UNALLOCATED;
	if (origin == ORIGIN_POD && leaves_cluster(packet, &to.address, kind))
		*flow_flags = FLOW_MASQUERADED;
	return REASON_NONE;
}

#endif
