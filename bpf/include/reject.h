/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_REJECT_H
#define SLUICE_REJECT_H

#include <linux/tcp.h>

#include "parse.h"

/*
 * Makes of a packet the answer that refuses it, to be sent back where it came from: a reset for TCP, for all else ICMP's
 * port unreachable. Both come from the address that was asked.
 */

struct reset_v4 {
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset_v6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 unused;
};

/* As much of the refused packet as identifies it: its header without options or extensions, and 8 bytes. */
struct unreachable_v4 {
	struct iphdr ip;
	struct icmp_header icmp;
	struct {
		struct iphdr ip;
		__u8 transport[8];
	} quote;
};

struct unreachable_v6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
	struct {
		struct ipv6hdr ip;
		__u8 transport[8];
	} quote;
};

#define ANSWER_HOPS 64

static __always_inline __sum16 fold(__s64 sum)
{
	__u32 folded = (__u32)sum;

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* The sum of addresses, length and protocol that precedes a transport's own bytes. */
static __always_inline __u32 pseudo_header(const struct tuple *answer, __u8 family, __u8 proto, __u32 length)
{
	struct {
		__be32 addresses[8];
		__be32 length;
		__be32 proto;
	} header = { .length = bpf_htonl(length), .proto = bpf_htonl(proto) };

	if (family == FAMILY_V4) {
		header.addresses[0] = answer->source.words[3];
		header.addresses[1] = answer->destination.words[3];
	} else {
		__builtin_memcpy(header.addresses, answer, sizeof(header.addresses));
	}
	return bpf_csum_diff(NULL, 0, (__be32 *)&header, sizeof(header), 0);
}

static __always_inline void begin_v4(struct iphdr *ip, const struct tuple *answer, __u8 proto, __u32 length)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(length);
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = ANSWER_HOPS;
	ip->protocol = proto;
	ip->saddr = answer->source.words[3];
	ip->daddr = answer->destination.words[3];
	ip->check = fold(bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void begin_v6(struct ipv6hdr *ip, const struct tuple *answer, __u8 proto, __u32 length)
{
	ip->version = 6;
	ip->payload_len = bpf_htons(length - sizeof(*ip));
	ip->nexthdr = proto;
	ip->hop_limit = ANSWER_HOPS;
	__builtin_memcpy(&ip->saddr, &answer->source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &answer->destination, sizeof(ip->daddr));
}

/* RFC 9293, 3.10.7.1: the reset that a closed port sends. */
static __always_inline int make_reset(struct __sk_buff *skb, struct work *work, struct tcphdr *reset)
{
	struct tcphdr asked;
	__u32 segment;

	if (bpf_skb_load_bytes(skb, work->packet.transport, &asked, sizeof(asked)))
		return REASON_MALFORMED;
	reset->source = asked.dest;
	reset->dest = asked.source;
	reset->doff = sizeof(*reset) / 4;
	reset->rst = 1;
	if (asked.ack) {
		reset->seq = asked.ack_seq;
		return REASON_NONE;
	}
	segment = work->packet.end - work->packet.transport - asked.doff * 4 + asked.syn + asked.fin;
	reset->ack = 1;
	reset->ack_seq = bpf_htonl(bpf_ntohl(asked.seq) + segment);
	return REASON_NONE;
}

static __noinline int refuse_tcp_v4(struct __sk_buff *skb, struct work *work)
{
	struct reset_v4 answer = {};

	if (make_reset(skb, work, &answer.tcp))
		return REASON_MALFORMED;
	begin_v4(&answer.ip, &work->next, IPPROTO_TCP, sizeof(answer));
	answer.tcp.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.tcp, sizeof(answer.tcp),
					      pseudo_header(&work->next, FAMILY_V4, IPPROTO_TCP, sizeof(answer.tcp))));
	if (bpf_skb_change_tail(skb, work->packet.network + sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, work->packet.network, &answer, sizeof(answer), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

static __noinline int refuse_tcp_v6(struct __sk_buff *skb, struct work *work)
{
	struct reset_v6 answer = {};

	if (make_reset(skb, work, &answer.tcp))
		return REASON_MALFORMED;
	begin_v6(&answer.ip, &work->next, IPPROTO_TCP, sizeof(answer));
	answer.tcp.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.tcp, sizeof(answer.tcp),
					      pseudo_header(&work->next, FAMILY_V6, IPPROTO_TCP, sizeof(answer.tcp))));
	if (bpf_skb_change_tail(skb, work->packet.network + sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, work->packet.network, &answer, sizeof(answer), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

static __noinline int refuse_other_v4(struct __sk_buff *skb, struct work *work)
{
	struct unreachable_v4 answer = {};

	if (bpf_skb_load_bytes(skb, work->packet.network, &answer.quote.ip, sizeof(answer.quote.ip)) ||
	    bpf_skb_load_bytes(skb, work->packet.transport, answer.quote.transport, sizeof(answer.quote.transport)))
		return REASON_MALFORMED;
	answer.quote.ip.ihl = 5;
	answer.quote.ip.tot_len = bpf_htons(work->packet.end - work->packet.transport + sizeof(answer.quote.ip));
	answer.quote.ip.check = 0;
	answer.quote.ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.quote.ip, sizeof(answer.quote.ip), 0));
	begin_v4(&answer.ip, &work->next, IPPROTO_ICMP, sizeof(answer));
	answer.icmp.type = ICMP_DEST_UNREACH;
	answer.icmp.code = ICMP_PORT_UNREACH;
	answer.icmp.checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer) - sizeof(answer.ip), 0));
	if (bpf_skb_change_tail(skb, work->packet.network + sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, work->packet.network, &answer, sizeof(answer), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

static __noinline int refuse_other_v6(struct __sk_buff *skb, struct work *work)
{
	struct unreachable_v6 answer = {};
	__u32 length = sizeof(answer) - sizeof(answer.ip);

	if (bpf_skb_load_bytes(skb, work->packet.network, &answer.quote.ip, sizeof(answer.quote.ip)) ||
	    bpf_skb_load_bytes(skb, work->packet.transport, answer.quote.transport, sizeof(answer.quote.transport)))
		return REASON_MALFORMED;
	answer.quote.ip.payload_len = bpf_htons(work->packet.end - work->packet.transport);
	answer.quote.ip.nexthdr = work->packet.tuple.proto;
	begin_v6(&answer.ip, &work->next, IPPROTO_ICMPV6, sizeof(answer));
	answer.icmp.type = ICMPV6_DEST_UNREACH;
	answer.icmp.code = ICMPV6_PORT_UNREACH;
	answer.icmp.checksum = fold(bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, length,
						     pseudo_header(&work->next, FAMILY_V6, IPPROTO_ICMPV6, length)));
	if (bpf_skb_change_tail(skb, work->packet.network + sizeof(answer), 0) ||
	    bpf_skb_store_bytes(skb, work->packet.network, &answer, sizeof(answer), 0))
		return REASON_MALFORMED;
	return REASON_NONE;
}

static __always_inline int swap_macs(struct __sk_buff *skb)
{
	__u8 macs[12];

	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return -1;
	return bpf_skb_store_bytes(skb, 0, macs + 6, 6, 0) || bpf_skb_store_bytes(skb, 6, macs, 6, 0);
}

/* A reason where no answer is possible: to a later fragment, and to any ICMP but an echo. */
static __noinline int refuse(struct __sk_buff *skb, struct work *work)
{
	const struct layer *packet = &work->packet;
	bool tcp = packet->tuple.proto == IPPROTO_TCP;

	if (packet->fragment == FRAGMENT_LATER || (is_icmp(packet) && !is_echo(packet)))
		return REASON_UNSUPPORTED;
	reverse(&work->next, &packet->tuple);
	if (swap_macs(skb))
		return REASON_MALFORMED;
	if (packet->family == FAMILY_V4)
		return tcp ? refuse_tcp_v4(skb, work) : refuse_other_v4(skb, work);
	return tcp ? refuse_tcp_v6(skb, work) : refuse_other_v6(skb, work);
}

#endif
