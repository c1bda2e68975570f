/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_REWRITE_H
#define SLUICE_REWRITE_H

#include "parse.h"

/*
 * Makes a packet have another tuple, checksums and all. Where the kernel keeps a sum over the whole packet
 * (CHECKSUM_COMPLETE), what changes has to add up to nothing: an IPv4 header does by its own checksum; of an IPv6 header
 * the kernel's sum is told by BPF_F_RECOMPUTE_CSUM, because bpf_l4_csum_replace takes off what the checksum changed by.
 */

/* Both addresses of `from` to those of `to`, as a difference of checksums. IPv4's first three words are the same. */
static __always_inline __s64 address_difference(struct tuple *from, struct tuple *to)
{
	return bpf_csum_diff((__be32 *)from, 2 * sizeof(struct address), (__be32 *)to, 2 * sizeof(struct address), 0);
}

static __always_inline int write_addresses(struct __sk_buff *skb, __u32 network, __u8 family, const struct tuple *to,
					   bool sums_up)
{
	if (family == FAMILY_V4) {
		__be32 both[2] = { to->source.words[3], to->destination.words[3] };

		return bpf_skb_store_bytes(skb, network + offsetof(struct iphdr, saddr), both, sizeof(both), 0);
	}
	return bpf_skb_store_bytes(skb, network + offsetof(struct ipv6hdr, saddr), to, 2 * sizeof(struct address),
				   sums_up ? 0 : BPF_F_RECOMPUTE_CSUM);
}

/* Where a transport's checksum is, and how the kernel is to treat it. */
static __always_inline bool find_checksum(const struct layer *layer, __u32 *offset, __u64 *pseudo_header, __u64 *flags)
{
	*flags = 0;
	*pseudo_header = BPF_F_PSEUDO_HDR;
	switch (layer->tuple.proto) {
	case IPPROTO_TCP:
		*offset = layer->transport + 16;
		return true;
	case IPPROTO_UDP:
		*offset = layer->transport + 6;
		*flags = BPF_F_MARK_MANGLED_0;
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		*offset = layer->transport + 2;
		*pseudo_header = layer->family == FAMILY_V6 ? BPF_F_PSEUDO_HDR : 0;
		return is_icmp(layer);
	default:
		return false;
	}
}

static __always_inline int write_port(struct __sk_buff *skb, __u32 offset, __u32 checksum, __u64 flags, __be16 from,
				      __be16 to)
{
	if (from == to)
		return 0;
	if (checksum && bpf_l4_csum_replace(skb, checksum, from, to, flags | sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, offset, &to, sizeof(to), 0);
}

/* An ICMP error: its own addresses, and the packet that it carries, which went the other way. */
static __always_inline int rewrite_error(struct __sk_buff *skb, struct work *work)
{
	const struct tuple *from = &work->packet.tuple, *to = &work->next;
	struct layer *about = &work->about;
	__u32 checksum = work->packet.transport + 2;
	struct tuple *outer = &work->outer_next, *inner = &work->inner_next;
	bool v4 = work->packet.family == FAMILY_V4;
	__s64 difference;

	/* A router on the way sends from its own address. */
	*outer = work->outer;
	if (same_address(&outer->source, &from->source))
		outer->source = to->source;
	outer->destination = to->destination;
	difference = address_difference(&work->outer, outer);
	if (v4) {
		if (bpf_l3_csum_replace(skb, work->packet.network + offsetof(struct iphdr, check), 0, difference, 0))
			return -1;
	} else if (bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR)) {
		return -1;
	}
	if (write_addresses(skb, work->packet.network, work->packet.family, outer, false))
		return -1;

	reverse(inner, to);
	difference = address_difference(&about->tuple, inner);
	if (v4) {
		if (bpf_l3_csum_replace(skb, about->network + offsetof(struct iphdr, check), 0, difference, 0))
			return -1;
	} else if (bpf_l4_csum_replace(skb, checksum, 0, difference, 0)) {
		return -1;
	}
	if (write_addresses(skb, about->network, about->family, inner, true))
		return -1;
	if (is_icmp(about))
		return write_port(skb, about->transport + 4, checksum, 0, echo_identifier(about, &about->tuple),
				  echo_identifier(about, inner));
	if (write_port(skb, about->transport, checksum, 0, about->tuple.source_port, inner->source_port))
		return -1;
	return write_port(skb, about->transport + 2, checksum, 0, about->tuple.destination_port,
			  inner->destination_port);
}

static __always_inline int rewrite_plain(struct __sk_buff *skb, struct work *work)
{
	struct layer *packet = &work->packet;
	struct tuple *from = &packet->tuple, *to = &work->next;
	__s64 difference = address_difference(from, to);
	__u64 pseudo_header, flags;
	__u32 checksum = 0;

	if (packet->family == FAMILY_V4 &&
	    bpf_l3_csum_replace(skb, packet->network + offsetof(struct iphdr, check), 0, difference, 0))
		return -1;
	if (write_addresses(skb, packet->network, packet->family, to, false))
		return -1;
	if (packet->fragment == FRAGMENT_LATER)
		return 0;
	if (!find_checksum(packet, &checksum, &pseudo_header, &flags))
		return 0;
	if (pseudo_header && bpf_l4_csum_replace(skb, checksum, 0, difference, pseudo_header | flags))
		return -1;
	if (is_icmp(packet)) {
		if (!is_echo(packet))
			return 0;
		return write_port(skb, packet->transport + 4, checksum, flags, echo_identifier(packet, from),
				  echo_identifier(packet, to));
	}
	if (write_port(skb, packet->transport, checksum, flags, from->source_port, to->source_port))
		return -1;
	return write_port(skb, packet->transport + 2, checksum, flags, from->destination_port, to->destination_port);
}

/* Gives the packet the tuple `work->next`. A reason where it cannot be written. */
static __noinline int rewrite(struct __sk_buff *skb, struct work *work)
{
	int failed;

	if (work->kind == PACKET_ERROR) {
		failed = rewrite_error(skb, work);
		work->outer = work->outer_next;
		work->about.tuple = work->inner_next;
	} else {
		failed = rewrite_plain(skb, work);
	}
	if (failed)
		return REASON_MALFORMED;
	work->packet.tuple = work->next;
	return REASON_NONE;
}

#endif
