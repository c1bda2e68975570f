/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Tells a network namespace's cookie where the kernel tells it to programs only (before 5.14): the agent attaches this
 * for a moment, opens a socket in the namespace and asks the map about it. Sockets of others pass.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PASS 1

/* The namespace's cookie by the socket's. Whatever others open meanwhile, the last ones are there. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} namespaces SEC(".maps");

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *ctx)
{
	__u64 socket = bpf_get_socket_cookie(ctx), network = bpf_get_netns_cookie(ctx);

	bpf_map_update_elem(&namespaces, &socket, &network, BPF_ANY);
	return PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
