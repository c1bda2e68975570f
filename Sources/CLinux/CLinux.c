#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <link.h>
#include <linux/membarrier.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int clinux_setns(int fd, int nstype) { return setns(fd, nstype); }
int clinux_unshare(int flags) { return unshare(flags); }
int clinux_pipe2(int ends[2], int flags) { return pipe2(ends, flags); }
int clinux_spawn_closefrom(void *actions, int first) {
  return posix_spawn_file_actions_addclosefrom_np(actions, first);
}

int clinux_spawn_filter(const char *path, int input, int output, pid_t *child) {
  char *arguments[] = {(char *)path, NULL};
  pid_t parent = getpid();
  // Written by the child, which shares our memory until it is another program.
  volatile int code = 0;
  pid_t started = vfork();
  if (started == 0) {
    errno = ESRCH;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent && dup2(input, STDIN_FILENO) >= 0 &&
        dup2(output, STDOUT_FILENO) >= 0)
      execv(path, arguments);
    code = errno;
    _exit(127);
  }
  if (started < 0) return errno;
  if (code) {
    waitpid(started, NULL, 0);
    return code;
  }
  *child = started;
  return 0;
}

static int is_among(int descriptor, const int *kept, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (kept[i] == descriptor) return 1;
  return 0;
}

static const int patience_milliseconds = 5000;
// While the kernel forgets chains of nf_tables that were deleted, some 20 ms, to close a socket is to lock out whoever changes others,
// and with them whoever removes links. Afterwards it costs nothing.
static const int forgetting_milliseconds = 100;

int clinux_send_apart(int socket, const void *bytes, size_t length, const int *kept, size_t count) {
  int parent = count > 0 ? (int)syscall(SYS_pidfd_open, getpid(), 0) : -1;
  pid_t child = fork();
  if (child != 0) {
    int code = child < 0 ? errno : 0;
    if (parent >= 0) close(parent);
    return code;
  }
  // Standard output among them: who has started us reads until nobody has that any more.
  int last = parent > socket ? parent : socket;
  for (size_t i = 0; i < count; i++)
    if (kept[i] > last) last = kept[i];
  for (int descriptor = 0; descriptor <= last; descriptor++)
    if (descriptor != socket && descriptor != parent && !is_among(descriptor, kept, count)) close(descriptor);
  close_range((unsigned)last + 1, ~0u, 0);
  while (send(socket, bytes, length, 0) < 0 && errno == EINTR) continue;
  // Who closes a descriptor last is who waits. The parent has closed all of them once this one can be read.
  struct pollfd ended = {.fd = parent, .events = POLLIN};
  if (parent >= 0) {
    poll(&ended, 1, patience_milliseconds);
    poll(NULL, 0, forgetting_milliseconds);
  }
  _exit(0);
}

int clinux_memory_file(const char *name) { return memfd_create(name, MFD_CLOEXEC); }

int clinux_membarrier_global(void) { return (int)syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0); }

void clinux_malloc_trim(void) { malloc_trim(0); }

static int release_part_pages(struct dl_phdr_info *info, size_t size, void *page_size) {
  (void)size;
  uintptr_t page = *(uintptr_t *)page_size;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *part = &info->dlpi_phdr[i];
    if (part->p_type != PT_LOAD || (part->p_flags & PF_W)) continue;
    uintptr_t begin = (info->dlpi_addr + part->p_vaddr + page - 1) & ~(page - 1);
    uintptr_t end = (info->dlpi_addr + part->p_vaddr + part->p_filesz) & ~(page - 1);
    // Pages of the file, never written to: what is needed again comes back from the page cache.
    if (begin < end) madvise((void *)begin, end - begin, MADV_DONTNEED);
  }
  // The program itself stands first; libraries are other programs' too.
  return 1;
}

void clinux_release_program_pages(void) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  dl_iterate_phdr(release_part_pages, &page);
}
