#define _GNU_SOURCE
#include "CLinux.h"

#include <linux/membarrier.h>
#include <malloc.h>
#include <sched.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <unistd.h>

int clinux_setns(int fd, int nstype) { return setns(fd, nstype); }
int clinux_unshare(int flags) { return unshare(flags); }
int clinux_pipe2(int ends[2], int flags) { return pipe2(ends, flags); }

int clinux_membarrier_global(void) { return (int)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0); }

void clinux_malloc_trim(void) { malloc_trim(0); }
