/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_ADDRESS_H
#define SLUICE_ADDRESS_H

#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "tables.h"

static __always_inline bool is_v4(const struct address *address)
{
	return address->words[0] == 0 && address->words[1] == 0 && address->words[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_loopback(const struct address *address)
{
	if (is_v4(address))
		return (address->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return address->words[0] == 0 && address->words[1] == 0 && address->words[2] == 0 &&
	       address->words[3] == bpf_htonl(1);
}

static __always_inline bool is_unspecified(const struct address *address)
{
	return !address->words[0] && !address->words[1] && !address->words[3] &&
	       (!address->words[2] || is_v4(address));
}

static __always_inline bool same_address(const struct address *left, const struct address *right)
{
	return left->words[0] == right->words[0] && left->words[1] == right->words[1] &&
	       left->words[2] == right->words[2] && left->words[3] == right->words[3];
}

static __always_inline void copy(struct address *to, const struct address *from)
{
	__builtin_memcpy(to, from, sizeof(*to));
}

#endif
