/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SLUICE_SOCKET_MAPS_H
#define SLUICE_SOCKET_MAPS_H

#include "maps.h"

/* By network namespace cookie. */
TABLE(clients, __u64, struct client, 1 << 14);
/* By socket cookie. Not a cache: such a socket sends on for as long as it lives, and must be found when its backend goes. */
TABLE(connections, __u64, struct connection, 1 << 17);
/*
 * (Socket, real peer) -> what the socket was told: TCP connections, and datagrams to a peer each. (Socket, what it was
 * told) -> real peer, for the latter.
 */
CACHE(told_peers, struct peer_key, struct backend, 1 << 16);
CACHE(real_peers, struct peer_key, struct backend, 1 << 16);

#endif
