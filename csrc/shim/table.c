/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "table.h"

#include <errno.h>
#include <sys/syscall.h>

#define A(i) (1u << (i))

#define NONE(name) [SYS_##name] = { .listed = true }
#define PIN(name, mask) [SYS_##name] = { .listed = true, .addresses = (mask), .kind = CALL_PIN }
#define KIND(name, mask, what) [SYS_##name] = { .listed = true, .addresses = (mask), .kind = (what) }
#define COPY(name, mask, n, ...) \
	[SYS_##name] = { .listed = true, .addresses = (mask), .kind = CALL_COPY, .count = (n), .parts = { __VA_ARGS__ } }

/* Parts. in, out: a buffer of as many bytes as an argument says; got: of which the result says how many were written. */
#define in(i, n) { (i), PART_IN | PART_COUNTED, (n), 1 }
#define out(i, n) { (i), PART_OUT | PART_COUNTED, (n), 1 }
#define got(i, n) { (i), PART_OUT | PART_COUNTED | PART_RESULT, (n), 1 }
#define in_items(i, n, size) { (i), PART_IN | PART_COUNTED, (n), (size) }
#define both_items(i, n, size) { (i), PART_IN | PART_OUT | PART_COUNTED, (n), (size) }
#define got_items(i, n, size) { (i), PART_OUT | PART_COUNTED | PART_RESULT, (n), (size) }
#define in_struct(i, size) { (i), PART_IN, 0, (size) / PART_UNIT }
#define out_struct(i, size) { (i), PART_OUT, 0, (size) / PART_UNIT }
#define both_struct(i, size) { (i), PART_IN | PART_OUT, 0, (size) / PART_UNIT }
#define address(i, n) { (i), PART_IN | PART_OUT | PART_COUNTED | PART_LENGTH, (n), 1 }
#define fds(i) { (i), PART_IN | PART_OUT | PART_FDS, 0, 0 }
#define string(i) { (i), PART_IN | PART_STRING, 0, 0 }

static const struct call calls[TABLE_NUMBERS] = {
	/* Data. */
	COPY(read, A(1), 1, got(1, 2)),
	COPY(write, A(1), 1, in(1, 2)),
	COPY(pread64, A(1), 1, got(1, 2)),
	COPY(pwrite64, A(1), 1, in(1, 2)),
	COPY(sendto, A(1) | A(4), 2, in(1, 2), in(4, 5)),
	/* The address first: how much there is of it is in the length. */
	COPY(recvfrom, A(1) | A(4) | A(5), 3, got(1, 2), address(4, 5), both_struct(5, 4)),
	COPY(getrandom, A(0), 1, got(0, 1)),
	COPY(getdents64, A(1), 1, got(1, 2)),
	COPY(mq_timedsend, A(1) | A(4), 2, in(1, 2), in_struct(4, 16)),
	COPY(mq_timedreceive, A(1) | A(3) | A(4), 3, got(1, 2), out_struct(3, 4), in_struct(4, 16)),
	COPY(setxattr, A(0) | A(1) | A(2), 3, string(0), string(1), in(2, 3)),
	COPY(lsetxattr, A(0) | A(1) | A(2), 3, string(0), string(1), in(2, 3)),
	COPY(fsetxattr, A(1) | A(2), 2, string(1), in(2, 3)),
	COPY(getxattr, A(0) | A(1) | A(2), 3, string(0), string(1), got(2, 3)),
	COPY(lgetxattr, A(0) | A(1) | A(2), 3, string(0), string(1), got(2, 3)),
	COPY(fgetxattr, A(1) | A(2), 2, string(1), got(2, 3)),
	COPY(listxattr, A(0) | A(1), 2, string(0), got(1, 2)),
	COPY(llistxattr, A(0) | A(1), 2, string(0), got(1, 2)),
	COPY(flistxattr, A(1), 1, got(1, 2)),
	COPY(syslog, A(1), 1, got(1, 2)),
	KIND(readv, A(1), CALL_VECTOR),
	KIND(writev, A(1), CALL_VECTOR),
	KIND(preadv, A(1), CALL_VECTOR),
	KIND(pwritev, A(1), CALL_VECTOR),
	KIND(preadv2, A(1), CALL_VECTOR),
	KIND(pwritev2, A(1), CALL_VECTOR),
	KIND(sendmsg, A(1), CALL_MESSAGE),
	KIND(recvmsg, A(1), CALL_MESSAGE),
	KIND(sendmmsg, A(1), CALL_MESSAGE),
	KIND(recvmmsg, A(1) | A(4), CALL_MESSAGE),
	KIND(vmsplice, A(1), CALL_REFUSE),

	/* Calls that may block. */
	KIND(futex, A(0) | A(3) | A(4), CALL_FUTEX),
	COPY(poll, A(0), 1, both_items(0, 1, 8)),
	COPY(ppoll, A(0) | A(2) | A(3), 3, both_items(0, 1, 8), both_struct(2, 16), in_struct(3, 8)),
	COPY(select, A(1) | A(2) | A(3) | A(4), 4, fds(1), fds(2), fds(3),
	     both_struct(4, 16)),
	COPY(pselect6, A(1) | A(2) | A(3) | A(4), 4, fds(1), fds(2), fds(3),
	     both_struct(4, 16)),
	COPY(epoll_wait, A(1), 1, got_items(1, 2, 12)),
	COPY(epoll_pwait, A(1) | A(4), 2, got_items(1, 2, 12), in_struct(4, 8)),
	COPY(epoll_pwait2, A(1) | A(3) | A(4), 3, got_items(1, 2, 12), in_struct(3, 16), in_struct(4, 8)),
	COPY(nanosleep, A(0) | A(1), 2, in_struct(0, 16), out_struct(1, 16)),
	COPY(clock_nanosleep, A(2) | A(3), 2, in_struct(2, 16), out_struct(3, 16)),
	COPY(wait4, A(1) | A(3), 2, out_struct(1, 4), out_struct(3, 144)),
	COPY(waitid, A(2) | A(4), 2, out_struct(2, 128), out_struct(4, 144)),
	COPY(connect, A(1), 1, in(1, 2)),
	COPY(accept, A(1) | A(2), 2, address(1, 2), both_struct(2, 4)),
	COPY(accept4, A(1) | A(2), 2, address(1, 2), both_struct(2, 4)),
	COPY(rt_sigtimedwait, A(0) | A(1) | A(2), 3, in_struct(0, 8), out_struct(1, 128), in_struct(2, 16)),
	COPY(rt_sigsuspend, A(0), 1, in_struct(0, 8)),
	COPY(semop, A(1), 1, in_items(1, 2, 6)),
	COPY(semtimedop, A(1) | A(3), 2, in_items(1, 2, 6), in_struct(3, 16)),
	COPY(open, A(0), 1, string(0)),
	COPY(openat, A(1), 1, string(1)),
	COPY(fcntl, A(2), 1, both_struct(2, 32)),

	/* The address space, programs, processes. */
	KIND(mmap, A(0), CALL_SPACE),
	KIND(munmap, A(0), CALL_SPACE),
	KIND(mprotect, A(0), CALL_SPACE),
	KIND(madvise, A(0), CALL_SPACE),
	KIND(mremap, A(0) | A(4), CALL_SPACE),
	KIND(mlock, A(0), CALL_SPACE),
	KIND(mlock2, A(0), CALL_SPACE),
	KIND(munlock, A(0), CALL_SPACE),
	KIND(execve, A(0) | A(1) | A(2), CALL_EXEC),
	KIND(execveat, A(1) | A(2) | A(3), CALL_EXEC),
	/* The kernel looks at them at a thread's end, or writes what nobody misses. */
	NONE(clone), NONE(clone3), NONE(vfork), NONE(fork), NONE(set_robust_list), NONE(set_tid_address), NONE(rseq),
	/* Always: the registers are the interrupted program's. */
	NONE(rt_sigreturn), NONE(restart_syscall), NONE(exit), NONE(exit_group),

	/* No address among the arguments. */
	NONE(close), NONE(close_range), NONE(lseek), NONE(brk), NONE(sched_yield), NONE(dup), NONE(dup2), NONE(dup3),
	NONE(pause), NONE(alarm), NONE(getpid), NONE(gettid), NONE(getppid), NONE(socket), NONE(shutdown), NONE(listen),
	NONE(kill), NONE(tkill), NONE(tgkill), NONE(flock), NONE(fsync), NONE(fdatasync), NONE(ftruncate),
	NONE(fchdir), NONE(fchmod), NONE(fchown), NONE(umask), NONE(getuid), NONE(getgid), NONE(setuid), NONE(setgid),
	NONE(geteuid), NONE(getegid), NONE(setpgid), NONE(getpgrp), NONE(setsid), NONE(setreuid), NONE(setregid),
	NONE(setresuid), NONE(setresgid), NONE(getpgid), NONE(setfsuid), NONE(setfsgid), NONE(getsid), NONE(personality),
	NONE(getpriority), NONE(setpriority), NONE(mlockall), NONE(munlockall), NONE(sync), NONE(syncfs),
	NONE(fadvise64), NONE(readahead), NONE(fallocate), NONE(epoll_create), NONE(epoll_create1), NONE(eventfd),
	NONE(eventfd2), NONE(timerfd_create), NONE(inotify_init), NONE(inotify_init1), NONE(inotify_rm_watch),
	NONE(sync_file_range), NONE(tee), NONE(msync), NONE(shmget), NONE(shmdt), NONE(semget),
	NONE(msgget), NONE(timer_delete), NONE(timer_getoverrun), NONE(pidfd_open), NONE(pidfd_getfd),
	NONE(pidfd_send_signal), NONE(membarrier), NONE(userfaultfd), NONE(memfd_secret), NONE(sched_getscheduler),
	NONE(sched_get_priority_max), NONE(sched_get_priority_min), NONE(ioprio_set), NONE(ioprio_get), NONE(setns),
	NONE(unshare),

	/* The first address is the only one, or the others are at known places. */
	PIN(mincore, A(2)), PIN(stat, A(0) | A(1)), PIN(fstat, A(1)), PIN(lstat, A(0) | A(1)), PIN(newfstatat, A(1) | A(2)),
	PIN(statx, A(1) | A(4)), PIN(access, A(0)), PIN(faccessat, A(1)), PIN(faccessat2, A(1)), PIN(readlink, A(0) | A(1)),
	PIN(readlinkat, A(1) | A(2)), PIN(unlink, A(0)), PIN(unlinkat, A(1)), PIN(mkdir, A(0)), PIN(mkdirat, A(1)),
	PIN(rmdir, A(0)), PIN(rename, A(0) | A(1)), PIN(renameat, A(1) | A(3)), PIN(renameat2, A(1) | A(3)),
	PIN(chdir, A(0)), PIN(getcwd, A(0)), PIN(statfs, A(0) | A(1)), PIN(fstatfs, A(1)), PIN(truncate, A(0)),
	PIN(chmod, A(0)), PIN(chown, A(0)), PIN(lchown, A(0)), PIN(ioctl, A(2)), PIN(pipe, A(0)), PIN(pipe2, A(0)),
	PIN(uname, A(0)), PIN(gettimeofday, A(0) | A(1)), PIN(clock_gettime, A(1)), PIN(clock_getres, A(1)),
	PIN(time, A(0)), PIN(getrlimit, A(1)), PIN(setrlimit, A(1)), PIN(prlimit64, A(2) | A(3)), PIN(getrusage, A(1)),
	PIN(times, A(0)), PIN(sysinfo, A(0)), PIN(bind, A(1)), PIN(getsockname, A(1) | A(2)), PIN(getpeername, A(1) | A(2)),
	PIN(getsockopt, A(3) | A(4)), PIN(setsockopt, A(3)), PIN(socketpair, A(3)), PIN(epoll_ctl, A(3)),
	PIN(rt_sigaction, A(1) | A(2)), PIN(rt_sigprocmask, A(1) | A(2)), PIN(sigaltstack, A(0) | A(1)),
	PIN(memfd_create, A(0)), PIN(sendfile, A(2)), PIN(splice, A(1) | A(3)), PIN(copy_file_range, A(1) | A(3)),
	PIN(sched_getaffinity, A(2)), PIN(sched_setaffinity, A(2)), PIN(getcpu, A(0) | A(1)), PIN(prctl, A(1)),
	PIN(signalfd, A(1)), PIN(signalfd4, A(1)), PIN(timerfd_settime, A(2) | A(3)), PIN(timerfd_gettime, A(1)),
	PIN(setgroups, A(1)), PIN(getgroups, A(1)), PIN(getresuid, A(0) | A(1) | A(2)), PIN(getresgid, A(0) | A(1) | A(2)),
	PIN(capget, A(0) | A(1)), PIN(capset, A(0) | A(1)), PIN(setitimer, A(1) | A(2)), PIN(getitimer, A(1)), PIN(inotify_add_watch, A(1)), PIN(utimensat, A(1) | A(2)),
};

const struct call *table_find(long number)
{
	return number >= 0 && number < TABLE_NUMBERS && calls[number].listed ? &calls[number] : NULL;
}

int table_error(long number)
{
	/* What they make the kernel do later, nobody could look after. */
	return number == SYS_io_uring_setup || number == SYS_io_setup ? ENOSYS : 0;
}
