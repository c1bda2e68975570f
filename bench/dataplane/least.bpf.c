/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The least that a program at a pod's device can do, to know what no engine can be quicker than: `bench/dataplane/run
 * --least`. It sends TCP by IPv4 straight into the other pod. Where it tracks connections, it also looks at the sender's
 * addresses and keeps one element per connection: no policy, no Service, no counter, nothing made safe against processors
 * that do the same at the same time. What is missing here can only cost more.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile _Bool tracks = 0;

struct pod {
	__u32 device;
	__be32 address;
	__u8 mac[ETH_ALEN];
	__u8 gateway_mac[ETH_ALEN];
};

struct connection_key {
	__be32 low, high;
	__be16 low_port, high_port;
};

enum state { OPENING, OPEN, CLOSED };

struct connection {
	__u64 seen;
	__u8 state;
	__u8 began_high;
	__u8 closed;
	__u8 pad[5];
};

#define TABLE(NAME, TYPE, FLAGS, KEY, VALUE, SIZE)                                                                     \
	struct {                                                                                                       \
		__uint(type, TYPE);                                                                                    \
		__uint(map_flags, FLAGS);                                                                              \
		__uint(max_entries, SIZE);                                                                             \
		__type(key, KEY);                                                                                      \
		__type(value, VALUE);                                                                                  \
	} NAME SEC(".maps")

TABLE(pods_by_device, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __u32, struct pod, 64);
TABLE(pods_by_address, BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, __be32, struct pod, 64);
TABLE(connections, BPF_MAP_TYPE_LRU_HASH, 0, struct connection_key, struct connection, 1 << 18);

static __always_inline _Bool track(struct __sk_buff *skb, const struct ethhdr *frame, const struct iphdr *ip,
				   const struct tcphdr *tcp)
{
	__u8 from_high = bpf_ntohl(ip->saddr) > bpf_ntohl(ip->daddr);
	struct connection_key key = {
		.low = from_high ? ip->daddr : ip->saddr,
		.high = from_high ? ip->saddr : ip->daddr,
		.low_port = from_high ? tcp->dest : tcp->source,
		.high_port = from_high ? tcp->source : tcp->dest,
	};
	struct connection fresh = { .began_high = from_high };
	__u64 now = bpf_ktime_get_ns();
	__u32 device = skb->ifindex;
	struct pod *own = bpf_map_lookup_elem(&pods_by_device, &device);
	struct connection *connection;
	__u8 closed;

	if (!own || own->address != ip->saddr || __builtin_memcmp(frame->h_source, own->mac, ETH_ALEN))
		return 0;
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection) {
		fresh.seen = now;
		return tcp->syn && !tcp->ack && !bpf_map_update_elem(&connections, &key, &fresh, BPF_ANY);
	}
	if (tcp->syn && !tcp->ack && connection->state == CLOSED) {
		fresh.seen = now;
		*connection = fresh;
		return 1;
	}
	closed = connection->closed | (tcp->fin ? 1 << from_high : 0);
	if (closed != connection->closed)
		connection->closed = closed;
	if (tcp->rst || closed == 3)
		connection->state = CLOSED;
	else if (connection->state == OPENING && connection->began_high != from_high)
		connection->state = OPEN;
	if (connection->seen + 1000000000 < now)
		connection->seen = now;
	return 1;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct ethhdr *frame = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(frame + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct pod *to;
	__u32 sum;

	if ((void *)(tcp + 1) > (void *)(long)skb->data_end || frame->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 ||
	    ip->protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	to = bpf_map_lookup_elem(&pods_by_address, &ip->daddr);
	if (!to)
		return TC_ACT_UNSPEC;
	if (tracks && !track(skb, frame, ip, tcp))
		return TC_ACT_SHOT;
	ip->ttl--;
	sum = (__u32)ip->check + bpf_htons(0x0100);
	ip->check = sum + (sum >= 0xffff);
	__builtin_memcpy(frame->h_dest, to->mac, ETH_ALEN);
	__builtin_memcpy(frame->h_source, to->gateway_mac, ETH_ALEN);
	return bpf_redirect_peer(to->device, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
