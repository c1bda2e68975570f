/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Service translation at the socket: connect(2), sendmsg(2), recvmsg(2) and getpeername(2) of every process in a
 * cgroup. A balanced connection then costs nothing per packet. What these hooks leave alone, packets meet later: an
 * endpoint that is not known, SCTP, raw sockets, source ranges, drops.
 */
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balance.h"
#include "socket_maps.h"

/* linux/errno.h and the C library's differ by target; the number does not. */
#define REFUSED_ERROR 111

#define PASS 1
#define FAIL 0

/* Whether the hook can choose the error that the caller gets (6.1). Else packets are rejected. */
const volatile bool can_set_error = false;

static __always_inline const struct client *client_of(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	return bpf_map_lookup_elem(&clients, &cookie);
}

/* Whether `to` was a Service that takes this client; else it is left to packets, which have more to say. */
static __always_inline enum decision choose(const struct client *client, const struct backend *to, __u8 proto,
					    const struct backend *previous, struct backend *chosen)
{
	struct set_key set_key = {};
	struct frontend *frontend;

	return balance(client->flags & CLIENT_IS_HOST ? ORIGIN_HOST : ORIGIN_POD,
		       is_v4(&to->address) ? &client->v4 : &client->v6, 0, to, proto, previous, chosen, &set_key,
		       &frontend);
}

/* Reading and writing the address that the caller named, by family. */

static __always_inline void read_v4(struct bpf_sock_addr *ctx, struct backend *to)
{
	to->address.words[2] = bpf_htonl(0xffff);
	to->address.words[3] = ctx->user_ip4;
	to->port = ctx->user_port;
}

static __always_inline void write_v4(struct bpf_sock_addr *ctx, const struct backend *to)
{
	ctx->user_ip4 = to->address.words[3];
	ctx->user_port = to->port;
}

static __always_inline void read_v6(struct bpf_sock_addr *ctx, struct backend *to)
{
	to->address.words[0] = ctx->user_ip6[0];
	to->address.words[1] = ctx->user_ip6[1];
	to->address.words[2] = ctx->user_ip6[2];
	to->address.words[3] = ctx->user_ip6[3];
	to->port = ctx->user_port;
}

static __always_inline void write_v6(struct bpf_sock_addr *ctx, const struct backend *to)
{
	ctx->user_ip6[0] = to->address.words[0];
	ctx->user_ip6[1] = to->address.words[1];
	ctx->user_ip6[2] = to->address.words[2];
	ctx->user_ip6[3] = to->address.words[3];
	ctx->user_port = to->port;
}

/* Where the connection goes that asks for `to`; overwrites it. */
static __always_inline enum decision redirect_connection(struct bpf_sock_addr *ctx, struct backend *to)
{
	const struct client *client = client_of(ctx);
	struct connection connection = {};
	enum decision decision;
	__u64 cookie;

	if (!client || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP))
		return NO_FRONTEND;
	cookie = bpf_get_socket_cookie(ctx);
	connection.told = *to;
	decision = choose(client, to, ctx->protocol, NULL, &connection.real);
	if (ctx->protocol == IPPROTO_UDP) {
		if (decision != CHOSEN) {
			/* It may have been connected to a Service before. */
			bpf_map_delete_elem(&connections, &cookie);
			return decision;
		}
		/* One that nobody could find when its backend goes is better left to packets. */
		if (bpf_map_update_elem(&connections, &cookie, &connection, BPF_ANY))
			return NO_FRONTEND;
	} else if (decision == CHOSEN) {
		struct peer_key key = { .cookie = cookie, .peer = connection.real };

		bpf_map_update_elem(&told_peers, &key, &connection.told, BPF_ANY);
	}
	if (decision == CHOSEN)
		*to = connection.real;
	return decision;
}

/* The same for a datagram of a socket that is not connected. */
static __always_inline bool redirect_datagram(struct bpf_sock_addr *ctx, struct backend *to)
{
	const struct client *client = client_of(ctx);
	struct peer_key key = { .peer = *to };
	struct backend *previous, *told;
	struct backend chosen = {};

	if (!client || ctx->protocol != IPPROTO_UDP)
		return false;
	key.cookie = bpf_get_socket_cookie(ctx);
	previous = bpf_map_lookup_elem(&real_peers, &key);
	if (choose(client, to, IPPROTO_UDP, previous, &chosen) != CHOSEN) {
		/* What was a backend for it may be a peer of its own now. */
		bpf_map_delete_elem(&told_peers, &key);
		return false;
	}
	if (!previous || !same_backend(previous, &chosen))
		bpf_map_update_elem(&real_peers, &key, &chosen, BPF_ANY);
	key.peer = chosen;
	told = bpf_map_lookup_elem(&told_peers, &key);
	if (!told || !same_backend(told, to))
		bpf_map_update_elem(&told_peers, &key, to, BPF_ANY);
	*to = chosen;
	return true;
}

/* connect(2) reports a Service without endpoints at once. */
static __always_inline int refuse(enum decision decision)
{
	if (decision != REFUSED || !can_set_error)
		return PASS;
	bpf_set_retval(-REFUSED_ERROR);
	return FAIL;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct backend to = {};
	enum decision decision;

	read_v4(ctx, &to);
	decision = redirect_connection(ctx, &to);
	if (decision == CHOSEN)
		write_v4(ctx, &to);
	return refuse(decision);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct backend to = {};
	enum decision decision;

	read_v6(ctx, &to);
	decision = redirect_connection(ctx, &to);
	if (decision == CHOSEN)
		write_v6(ctx, &to);
	return refuse(decision);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct backend to = {};

	read_v4(ctx, &to);
	if (redirect_datagram(ctx, &to))
		write_v4(ctx, &to);
	return PASS;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct backend to = {};

	read_v6(ctx, &to);
	if (redirect_datagram(ctx, &to))
		write_v6(ctx, &to);
	return PASS;
}

/* The peer as the socket knows it: a sender's or connection's address back to what was asked for. */
static __always_inline bool recall(struct bpf_sock_addr *ctx, struct backend *peer)
{
	struct peer_key key = { .cookie = bpf_get_socket_cookie(ctx), .peer = *peer };
	struct connection *connection;
	struct backend *told;

	if (ctx->protocol == IPPROTO_UDP) {
		connection = bpf_map_lookup_elem(&connections, &key.cookie);
		if (connection && same_backend(&connection->real, peer)) {
			*peer = connection->told;
			return true;
		}
	}
	told = bpf_map_lookup_elem(&told_peers, &key);
	if (!told)
		return false;
	*peer = *told;
	return true;
}

static __always_inline int restore_v4(struct bpf_sock_addr *ctx)
{
	struct backend peer = {};

	read_v4(ctx, &peer);
	if (recall(ctx, &peer))
		write_v4(ctx, &peer);
	return PASS;
}

static __always_inline int restore_v6(struct bpf_sock_addr *ctx)
{
	struct backend peer = {};

	read_v6(ctx, &peer);
	if (recall(ctx, &peer))
		write_v6(ctx, &peer);
	return PASS;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	return restore_v4(ctx);
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore_v6(ctx);
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	return restore_v4(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return restore_v6(ctx);
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	if (ctx->protocol == IPPROTO_UDP) {
		__u64 cookie = bpf_get_socket_cookie(ctx);

		bpf_map_delete_elem(&connections, &cookie);
	}
	return PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
