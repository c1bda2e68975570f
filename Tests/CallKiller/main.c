// Runs a program and kills it as it enters its nth system call, counted over all its threads (strace counts each thread's own).
//
//   call-killer N PROGRAM ARGUMENT...
//
// With N = 0 it lets the program end, and writes each call to descriptor 2: the thread's number (0 is the first), a blank, the
// call's name. Its own end is the program's: the same exit code, or the same signal. Processes that the program starts are
// left alone.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
// After sys/ptrace.h, whose names it would take.
#include <linux/ptrace.h>

enum { THREADS = 256, NO_THREAD = -1 };

static const char *const names[] = {
#define CALL(name) [SYS_##name] = #name,
	CALL(bind) CALL(brk) CALL(clone) CALL(clone3) CALL(close_range) CALL(close) CALL(connect) CALL(dup) CALL(execve)
	CALL(exit) CALL(exit_group) CALL(fchmod) CALL(fchownat) CALL(fcntl) CALL(fdatasync) CALL(flock) CALL(fstat) CALL(fstatfs)
	CALL(fsync) CALL(ftruncate) CALL(futex) CALL(getdents64) CALL(getpid) CALL(getrandom) CALL(getsockname) CALL(getsockopt)
	CALL(gettid) CALL(ioctl) CALL(linkat) CALL(lseek) CALL(madvise) CALL(memfd_create) CALL(mmap) CALL(mprotect)
	CALL(munmap) CALL(clock_nanosleep) CALL(newfstatat) CALL(openat) CALL(pipe2) CALL(prctl)
	CALL(prlimit64) CALL(pwrite64) CALL(read) CALL(recvfrom) CALL(recvmsg) CALL(rseq) CALL(rt_sigaction)
	CALL(rt_sigprocmask) CALL(sched_getaffinity) CALL(sendmsg) CALL(sendto) CALL(setns) CALL(set_robust_list)
	CALL(set_tid_address) CALL(setsockopt) CALL(socket) CALL(unlinkat) CALL(wait4) CALL(waitid) CALL(write)
#ifdef __x86_64__  // Later ones have newer calls for these.
	CALL(access) CALL(arch_prctl) CALL(link) CALL(mkdir) CALL(open) CALL(poll) CALL(readlink) CALL(rename) CALL(unlink) CALL(vfork)
#endif
#undef CALL
};

// Those that live; the kernel may give the number of one that has ended to another.
static struct {
	pid_t thread;
	int number;
} living[THREADS];
static int thread_count;

static int number_of(pid_t thread)
{
	for (int i = 0; i < THREADS; i++)
		if (living[i].thread == thread)
			return living[i].number;
	return NO_THREAD;
}

static int add(pid_t thread)
{
	for (int i = 0; i < THREADS; i++) {
		if (living[i].thread)
			continue;
		living[i].thread = thread;
		living[i].number = thread_count;
		return thread_count++;
	}
	fprintf(stderr, "call-killer: more than %d threads\n", THREADS);
	exit(125);
}

static void forget(pid_t thread)
{
	for (int i = 0; i < THREADS; i++)
		if (living[i].thread == thread)
			living[i].thread = 0;
}

static void fail(const char *what)
{
	perror(what);
	exit(125);
}

static void end_as(int status)
{
	if (WIFEXITED(status))
		exit(WEXITSTATUS(status));
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	signal(WTERMSIG(status), SIG_DFL);
	raise(WTERMSIG(status));
	exit(125);
}

static void tell(int thread, unsigned long long call)
{
	const char *name = call < sizeof names / sizeof *names ? names[call] : NULL;

	if (name)
		fprintf(stderr, "%d %s\n", thread, name);
	else
		fprintf(stderr, "%d #%llu\n", thread, call);
}

int main(int count, char **arguments)
{
	if (count < 3) {
		fprintf(stderr, "usage: call-killer N PROGRAM ARGUMENT...\n");
		return 125;
	}
	long last = strtol(arguments[1], NULL, 10);
	long calls = 0;
	int is_running = 0;
	int status;
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (child == 0) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			fail("ptrace");
		raise(SIGSTOP);
		execv(arguments[2], arguments + 2);
		fail(arguments[2]);
	}
	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
		fail("waitpid");
	add(child);
	if (ptrace(PTRACE_SETOPTIONS, child, NULL,
		   PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL))
		fail("ptrace");
	ptrace(PTRACE_SYSCALL, child, NULL, NULL);
	for (;;) {
		pid_t thread = waitpid(-1, &status, __WALL);
		int signal = 0;

		if (thread < 0) {
			if (errno == EINTR)
				continue;
			fail("waitpid");
		}
		if (!WIFSTOPPED(status)) {
			if (thread == child)
				end_as(status);
			forget(thread);
			continue;
		}
		int number = number_of(thread);
		int is_new = number == NO_THREAD;

		if (is_new)
			number = add(thread);
		if (status >> 16 == PTRACE_EVENT_EXEC) {
			is_running = 1;
		} else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			struct ptrace_syscall_info info;

			if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0 && is_running &&
			    info.op == PTRACE_SYSCALL_INFO_ENTRY) {
				calls++;
				if (last == 0)
					tell(number, info.entry.nr);
				else if (calls == last)
					kill(child, SIGKILL);
			}
		} else if (status >> 16 == 0 && !(is_new && WSTOPSIG(status) == SIGSTOP)) {
			signal = WSTOPSIG(status);
		}
		ptrace(PTRACE_SYSCALL, thread, NULL, signal);
	}
}
