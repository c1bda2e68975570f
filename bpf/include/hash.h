/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_HASH_H
#define SLUICE_HASH_H

#include "address.h"

/*
 * The hash of a client, by which a Maglev table's slot is chosen: that of the kernel's include/linux/jhash.h, over words as
 * they lie in memory, so that nftables' `jhash` and MaglevTable.slot (Sources/DataplaneModel/MaglevTable.swift) agree.
 */

struct hash {
	__u32 a;
	__u32 b;
	__u32 c;
};

static __always_inline __u32 rotated(__u32 word, __u32 bits)
{
	return word << bits | word >> (32 - bits);
}

static __always_inline void hash_mix(struct hash *hash)
{
	__u32 a = hash->a, b = hash->b, c = hash->c;

	a = (a - c) ^ rotated(c, 4);
	c += b;
	b = (b - a) ^ rotated(a, 6);
	a += c;
	c = (c - b) ^ rotated(b, 8);
	b += a;
	a = (a - c) ^ rotated(c, 16);
	c += b;
	b = (b - a) ^ rotated(a, 19);
	a += c;
	c = (c - b) ^ rotated(b, 4);
	b += a;
	*hash = (struct hash){ a, b, c };
}

static __always_inline __u32 hash_finish(const struct hash *hash)
{
	__u32 a = hash->a, b = hash->b, c = hash->c;

	c = (c ^ b) - rotated(b, 14);
	a = (a ^ c) - rotated(c, 11);
	b = (b ^ a) - rotated(a, 25);
	c = (c ^ b) - rotated(b, 16);
	a = (a ^ c) - rotated(c, 4);
	b = (b ^ a) - rotated(a, 14);
	return (c ^ b) - rotated(b, 24);
}

/* Of a mapped address only its IPv4 part counts. */
static __always_inline __u32 client_hash(const struct address *client, __be16 port)
{
	bool is_short = is_v4(client);
	__u32 start = 0xdeadbeef + (is_short ? 8 : 20) + MAGLEV_SEED;
	struct hash hash = { start, start, start };

	if (!is_short) {
		hash.a += client->words[0];
		hash.b += client->words[1];
		hash.c += client->words[2];
		hash_mix(&hash);
	}
	hash.a += client->words[3];
	hash.b += port;
	return hash_finish(&hash);
}

#endif
