// Kernel and libc facts that Swift's Glibc module does not carry: namespaces, netlink families, a few macros.
#ifndef SLUICE_CLINUX_H
#define SLUICE_CLINUX_H
#include <netinet/in.h>  // first: linux/in.h clashes with it otherwise
#include <linux/fib_rules.h>
#include <linux/genetlink.h>
#include <linux/if_addr.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/tc_act/tc_mirred.h>
#include <linux/veth.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <sys/vfs.h>

/// setns(2), unshare(2) and pipe2(2): declared only under _GNU_SOURCE, which a shim header must not define.
int clinux_setns(int fd, int nstype);
int clinux_unshare(int flags);
int clinux_pipe2(int ends[2], int flags);
/// The same of spawn.h's, for its posix_spawn_file_actions_t: what is started has no descriptor from this one on.
int clinux_spawn_closefrom(void *actions, int first);
/// Starts a program with this process's environment and these descriptors as standard input and output; it is killed where this
/// thread ends before it. Returns 0 or an errno.
int clinux_spawn_filter(const char *path, int input, int output, pid_t *child);
/// Has a process of its own send `bytes` by `socket`, and stay while the kernel makes the sender wait. It does nothing else and has
/// no descriptor but these `kept` ones, which it closes after this process has ended, or five seconds later. Returns 0 or an errno.
int clinux_send_apart(int socket, const void *bytes, size_t length, const int *kept, size_t count);
/// memfd_create(2), closed where another program is started.
int clinux_memory_file(const char *name);

/// membarrier(2) in its global form: returns when every RCU reader that ran at the call has ended (10-30 ms).
int clinux_membarrier_global(void);

/// Gives freed memory back to the system: after a large load the heap keeps it otherwise.
void clinux_malloc_trim(void);

/// Takes the pages of the program's own file out of this process: most of what a start touches is never touched again. What
/// is comes back by itself.
void clinux_release_program_pages(void);
#endif
