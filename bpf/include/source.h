/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_SOURCE_H
#define SLUICE_SOURCE_H

#include "events.h"
#include "parse.h"

/* A pod sends with its own hardware and IP address only, and claims no other by ARP or neighbour discovery. */

/* linux/if_arp.h needs a C library's headers. */
enum { ARP_HARDWARE_ETHERNET = 1, ARP_REQUEST = 1 };

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

static __always_inline bool same_mac(const __u8 *left, const __u8 *right)
{
#pragma unroll
	for (int i = 0; i < 6; i++) {
		if (left[i] != right[i])
			return false;
	}
	return true;
}

static __always_inline bool is_address_of(__u32 device, const struct address *address)
{
	struct pod_device *owner = bpf_map_lookup_elem(&pod_devices, address);

	return owner && owner->device == device;
}

static __always_inline bool is_link_local(const struct address *address)
{
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __noinline int check_arp(struct __sk_buff *skb, const struct endpoint *endpoint)
{
	struct address sender = {};
	struct arp arp;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return REASON_MALFORMED;
	if (arp.hardware != bpf_htons(ARP_HARDWARE_ETHERNET) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_length != 6 || arp.protocol_length != 4)
		return REASON_MALFORMED;
	if (!same_mac(arp.sender_mac, endpoint->mac))
		return REASON_FORGED_SOURCE;
	/* A probe: who asks whether an address is free claims none. */
	if (!arp.sender && arp.operation == bpf_htons(ARP_REQUEST))
		return REASON_NONE;
	sender.words[2] = bpf_htonl(0xffff);
	sender.words[3] = arp.sender;
	return is_address_of(skb->ifindex, &sender) ? REASON_NONE : REASON_FORGED_SOURCE;
}

#define NEIGHBOUR_OPTIONS 4


/* The hardware address that a neighbour discovery message names must be the pod's own. */
static __always_inline int check_options(struct __sk_buff *skb, const struct endpoint *endpoint, __u32 at)
{
	struct {
		__u8 type;
		__u8 length;
		__u8 mac[6];
	} option;

	for (int i = 0; i < NEIGHBOUR_OPTIONS; i++) {
		if (at + sizeof(option) > skb->len || bpf_skb_load_bytes(skb, at, &option, sizeof(option)))
			return REASON_NONE;
		if (!option.length)
			return REASON_MALFORMED;
		if ((option.type == 1 || option.type == 2) && !same_mac(option.mac, endpoint->mac))
			return REASON_FORGED_SOURCE;
		at += option.length * 8;
	}
	return REASON_UNSUPPORTED;
}

/* Of a packet that `is_neighbour_discovery`. */
static __noinline int check_neighbour_discovery(struct __sk_buff *skb, struct work *work,
						const struct endpoint *endpoint)
{
	const struct layer *packet = &work->packet;
	struct address target;
	__u32 options = packet->transport + 8;

	if (packet->icmp_type == ND_ROUTER_ADVERTISEMENT || packet->icmp_type == ND_REDIRECT)
		return REASON_FORGED_ADVERTISEMENT;
	/* From further away than the next hop. In fragments nobody sends these. */
	if (packet->hops != 255 || packet->fragment != FRAGMENT_NONE)
		return REASON_FORGED_SOURCE;
	if (packet->icmp_type != ND_ROUTER_SOLICITATION) {
		options += sizeof(target);
		if (bpf_skb_load_bytes(skb, packet->transport + 8, &target, sizeof(target)))
			return REASON_MALFORMED;
		if (packet->icmp_type == ND_NEIGHBOUR_ADVERTISEMENT && !is_link_local(&target) &&
		    !is_address_of(skb->ifindex, &target))
			return REASON_FORGED_SOURCE;
	}
	return check_options(skb, endpoint, options);
}

static __always_inline bool is_multicast_v6(const struct address *address)
{
	return (address->words[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* Link-local and unspecified IPv6 sources are the link's: nothing that has one goes further. */
static __always_inline bool is_own_source(struct __sk_buff *skb, const struct layer *packet,
					  const struct endpoint *endpoint)
{
	const struct address *source = &packet->tuple.source, *destination = &packet->tuple.destination;

	if (packet->family == FAMILY_V6) {
		if (is_link_local(source))
			return is_link_local(destination) || is_multicast_v6(destination);
		if (!(source->words[0] | source->words[1] | source->words[2] | source->words[3]))
			return is_multicast_v6(destination);
	}
	return same_address(source, packet->family == FAMILY_V4 ? &endpoint->v4 : &endpoint->v6) ||
	       is_address_of(skb->ifindex, source);
}

/* What no policy is asked about must not get beyond the link. */
static __always_inline bool stays_on_link(const struct layer *packet)
{
	const struct address *destination = &packet->tuple.destination;

	if (is_listener_report(packet))
		return packet->hops == 1 && is_multicast_v6(destination);
	return is_link_local(destination) || is_multicast_v6(destination) ||
	       (address_flags(destination) & ADDRESS_IS_OWN);
}

#endif
