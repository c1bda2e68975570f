/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_PARSE_H
#define SLUICE_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "packet.h"

/* From a frame to a tuple. What cannot be understood has a drop reason: no packet passes unread. */

/* linux/icmp.h needs a C library's headers. */
enum {
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMP_PORT_UNREACH = 3,

	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_PORT_UNREACH = 4,
};

enum {
	ND_ROUTER_SOLICITATION = 133,
	ND_ROUTER_ADVERTISEMENT = 134,
	ND_NEIGHBOUR_SOLICITATION = 135,
	ND_NEIGHBOUR_ADVERTISEMENT = 136,
	ND_REDIRECT = 137,
};

enum { MLD_QUERY = 130, MLD_REPORT = 131, MLD_DONE = 132, MLD_REPORT_2 = 143 };

#define MORE_FRAGMENTS 0x2000
#define FRAGMENT_OFFSET 0x1fff
#define EXTENSION_HEADERS 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline enum reason read_v4(struct __sk_buff *skb, struct layer *layer)
{
	struct iphdr header;
	__u32 offset;

	if (READ(skb, layer->network, header))
		return REASON_MALFORMED;
	if (header.version != 4 || header.ihl < 5 || (header.tot_len && bpf_ntohs(header.tot_len) < header.ihl * 4))
		return REASON_MALFORMED;
	layer->family = FAMILY_V4;
	layer->tuple.source.words[2] = bpf_htonl(0xffff);
	layer->tuple.source.words[3] = header.saddr;
	layer->tuple.destination.words[2] = bpf_htonl(0xffff);
	layer->tuple.destination.words[3] = header.daddr;
	layer->tuple.proto = header.protocol;
	layer->transport = layer->network + header.ihl * 4;
	/* A segment over 64 KiB that is cut up later cannot say how long it is. */
	layer->end = header.tot_len ? layer->network + bpf_ntohs(header.tot_len) : skb->len;
	layer->hops = header.ttl;
	layer->fragment_id = header.id;
	offset = bpf_ntohs(header.frag_off);
	if (offset & FRAGMENT_OFFSET)
		layer->fragment = FRAGMENT_LATER;
	else if (offset & MORE_FRAGMENTS)
		layer->fragment = FRAGMENT_FIRST;
	return REASON_NONE;
}

/* Type, length and the six bytes after them: as much of an extension header as is needed here. */
struct extension {
	__u8 next;
	__u8 length;
	__u8 routing_type;
	__u8 segments_left;
	__be32 fragment_id;
};

static __always_inline enum reason read_v6(struct __sk_buff *skb, struct layer *layer, bool is_whole)
{
	struct extension extension;
	struct ipv6hdr header;
	__u32 at;
	__u8 next;
	int i;

	if (READ(skb, layer->network, header) || header.version != 6)
		return REASON_MALFORMED;
	layer->family = FAMILY_V6;
	__builtin_memcpy(&layer->tuple.source, &header.saddr, sizeof(struct address));
	__builtin_memcpy(&layer->tuple.destination, &header.daddr, sizeof(struct address));
	/* Such addresses are on no wire, and would be taken for IPv4's. */
	if (is_v4(&layer->tuple.source) || is_v4(&layer->tuple.destination))
		return REASON_MALFORMED;
	layer->end = header.payload_len ? layer->network + sizeof(header) + bpf_ntohs(header.payload_len) : skb->len;
	layer->hops = header.hop_limit;
	next = header.nexthdr;
	at = layer->network + sizeof(header);
	for (i = 0; i < EXTENSION_HEADERS; i++) {
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT && next != IPPROTO_AH)
			break;
		/* What follows the packet in its frame is not the packet's. */
		if ((is_whole && at + sizeof(extension) > layer->end) ||
		    bpf_skb_load_bytes(skb, at, &extension, sizeof(extension)))
			return REASON_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			/* Where length and type of others are: zero, and the offset with its flags. */
			__u16 offset = (__u16)extension.routing_type << 8 | extension.segments_left;

			layer->fragment_id = extension.fragment_id;
			if (offset & 0xfff8)
				layer->fragment = FRAGMENT_LATER;
			else if (offset & 1)
				layer->fragment = FRAGMENT_FIRST;
			at += 8;
		} else if (next == IPPROTO_AH) {
			at += (extension.length + 2) * 4;
		} else {
			/* It would go on to somebody that policy has not seen. */
			if (next == IPPROTO_ROUTING && extension.segments_left)
				return REASON_UNSUPPORTED;
			at += (extension.length + 1) * 8;
		}
		next = extension.next;
		/* A later fragment has no more headers. */
		if (layer->fragment == FRAGMENT_LATER)
			break;
	}
	if (i == EXTENSION_HEADERS)
		return REASON_UNSUPPORTED;
	layer->tuple.proto = next;
	layer->transport = at;
	return REASON_NONE;
}

static __always_inline bool is_icmp(const struct layer *layer)
{
	return layer->tuple.proto == (layer->family == FAMILY_V4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline bool is_echo(const struct layer *layer)
{
	if (layer->family == FAMILY_V4)
		return layer->icmp_type == ICMP_ECHO || layer->icmp_type == ICMP_ECHOREPLY;
	return layer->icmp_type == ICMPV6_ECHO_REQUEST || layer->icmp_type == ICMPV6_ECHO_REPLY;
}

static __always_inline bool is_error(const struct layer *layer)
{
	if (layer->family == FAMILY_V4)
		return layer->icmp_type == ICMP_DEST_UNREACH || layer->icmp_type == ICMP_TIME_EXCEEDED ||
		       layer->icmp_type == ICMP_PARAMETERPROB;
	return layer->icmp_type >= ICMPV6_DEST_UNREACH && layer->icmp_type <= ICMPV6_PARAMPROB;
}

static __always_inline bool is_neighbour_discovery(const struct layer *packet)
{
	return packet->tuple.proto == IPPROTO_ICMPV6 && packet->family == FAMILY_V6 &&
	       packet->icmp_type >= ND_ROUTER_SOLICITATION && packet->icmp_type <= ND_REDIRECT;
}

static __always_inline bool is_listener_report(const struct layer *packet)
{
	return packet->tuple.proto == IPPROTO_ICMPV6 && packet->family == FAMILY_V6 &&
	       (packet->icmp_type == MLD_REPORT || packet->icmp_type == MLD_DONE || packet->icmp_type == MLD_REPORT_2);
}

static __always_inline bool is_echo_request(const struct layer *layer)
{
	return layer->icmp_type == (layer->family == FAMILY_V4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST);
}

/* Where in the tuple of an echo its identifier stands. */
static __always_inline __be16 echo_identifier(const struct layer *layer, const struct tuple *tuple)
{
	return is_echo_request(layer) ? tuple->source_port : tuple->destination_port;
}

/*
 * An echo's identifier is the port of who asks: two that ask each other with one identifier have two flows. Other messages
 * of ICMP have no ports.
 */
static __always_inline enum reason read_transport(struct __sk_buff *skb, struct layer *layer, bool is_whole)
{
	struct {
		__u8 length;
		__u8 flags;
	} tcp;
	struct {
		__be16 source;
		__be16 destination;
	} ports;
	__u32 needed = 0;

	switch (layer->tuple.proto) {
	case IPPROTO_TCP:
		/* What an error tells of a segment may end before its flags. */
		if (!is_whole)
			break;
		if (READ(skb, layer->transport + 12, tcp))
			return REASON_MALFORMED;
		needed = (tcp.length >> 4) * 4;
		layer->tcp_flags = tcp.flags;
		if (needed < 20)
			return REASON_MALFORMED;
		break;
	case IPPROTO_UDP:
		needed = 8;
		break;
	case IPPROTO_SCTP:
		needed = 12;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (!is_icmp(layer))
			return REASON_NONE;
		if ((is_whole && layer->transport + 8 > layer->end) ||
		    bpf_skb_load_bytes(skb, layer->transport, &layer->icmp_type, 1))
			return REASON_MALFORMED;
		if (is_echo(layer)) {
			__be16 identifier;

			if (bpf_skb_load_bytes(skb, layer->transport + 4, &identifier, sizeof(identifier)))
				return REASON_MALFORMED;
			if (is_echo_request(layer))
				layer->tuple.source_port = identifier;
			else
				layer->tuple.destination_port = identifier;
		}
		return REASON_NONE;
	default:
		return REASON_NONE;
	}
	if ((is_whole && layer->transport + needed > layer->end) || READ(skb, layer->transport, ports))
		return REASON_MALFORMED;
	layer->tuple.source_port = ports.source;
	layer->tuple.destination_port = ports.destination;
	return REASON_NONE;
}

static __always_inline void fragment_key(struct fragment_key *key, const struct layer *layer)
{
	key->source = layer->tuple.source;
	key->destination = layer->tuple.destination;
	key->id = layer->fragment_id;
}

/* Later fragments are of the flow whose ports their first one had: one that overtakes it is dropped. */
static __always_inline enum reason follow_fragments(struct layer *layer)
{
	struct fragment_key key = {};
	struct fragment *first;

	fragment_key(&key, layer);
	first = bpf_map_lookup_elem(&fragments, &key);
	if (!first)
		return REASON_FRAGMENT;
	layer->tuple.proto = first->proto;
	layer->tuple.source_port = first->source_port;
	layer->tuple.destination_port = first->destination_port;
	return REASON_NONE;
}

/* Of a packet whose source is true: nobody else's fragments are touched by what one sends. */
static __always_inline void remember_fragment(const struct layer *layer)
{
	struct fragment_key key = {};
	struct fragment first = {
		.source_port = layer->tuple.source_port,
		.destination_port = layer->tuple.destination_port,
		.proto = layer->tuple.proto,
	};

	if (layer->fragment != FRAGMENT_FIRST)
		return;
	fragment_key(&key, layer);
	bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
}

/* Reads the IP packet that `begin_work` was told of into working memory. */
static __always_inline int parse(struct __sk_buff *skb, struct work *work)
{
	struct layer *packet = &work->packet;
	enum reason reason;

	reason = skb->protocol == bpf_htons(ETH_P_IP) ? read_v4(skb, packet) : read_v6(skb, packet, true);
	if (reason)
		return reason;
	if (packet->fragment == FRAGMENT_LATER)
		return follow_fragments(packet);
	return read_transport(skb, packet, true);
}

/* Reads the packet that an ICMP error is about; a reason where there is none to read. */
static __noinline int parse_about(struct __sk_buff *skb, struct work *work)
{
	struct layer *about = &work->about;
	enum reason reason;

	if (!is_icmp(&work->packet) || !is_error(&work->packet) || work->packet.fragment != FRAGMENT_NONE)
		return REASON_UNSUPPORTED;
	__builtin_memset(about, 0, sizeof(*about));
	about->network = work->packet.transport + 8;
	reason = work->packet.family == FAMILY_V4 ? read_v4(skb, about) : read_v6(skb, about, false);
	if (reason)
		return reason;
	if (about->fragment == FRAGMENT_LATER)
		return REASON_FRAGMENT;
	/* No error is about an error. */
	reason = read_transport(skb, about, false);
	if (!reason && is_icmp(about) && !is_echo(about))
		return REASON_UNSUPPORTED;
	return reason;
}

#endif
