/* SPDX-License-Identifier: MIT
 *
 * shortcuts.c - the C library's functions for the calls that programs make most: answered without a trap, which costs more
 * than most of them.
 *
 * They are cancellation points, as the library's are (pthreads(7)).
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "shim.h"

static long answer(long number, long a, long b, long c, long d, long e, long f)
{
	long args[6] = { a, b, c, d, e, f }, result;
	int type;

	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
	result = calls_answer(number, args);
	pthread_setcanceltype(type, NULL);
	return shim_result(result);
}

/* What is not in the region is the library's to do. */
#define SHORTCUT(type, name, number, address, parameters, arguments, a, b, c, d, e, f)                                \
	EXPORT type name parameters                                                                                   \
	{                                                                                                             \
		if (!shim.inline_delivery || !in_region(address))                                                     \
			return NEXT(name) arguments;                                                                  \
		return (type)answer(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f));        \
	}

SHORTCUT(ssize_t, read, SYS_read, to, (int fd, void *to, size_t n), (fd, to, n), fd, to, n, 0, 0, 0)
SHORTCUT(ssize_t, write, SYS_write, from, (int fd, const void *from, size_t n), (fd, from, n), fd, from, n, 0, 0, 0)
SHORTCUT(ssize_t, pread, SYS_pread64, to, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), fd, to, n, at, 0, 0)
SHORTCUT(ssize_t, pread64, SYS_pread64, to, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at), fd, to, n, at, 0, 0)
SHORTCUT(ssize_t, pwrite, SYS_pwrite64, from, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at), fd, from, n,
	 at, 0, 0)
SHORTCUT(ssize_t, pwrite64, SYS_pwrite64, from, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at), fd,
	 from, n, at, 0, 0)
SHORTCUT(ssize_t, recv, SYS_recvfrom, to, (int fd, void *to, size_t n, int flags), (fd, to, n, flags), fd, to, n, flags, 0, 0)
SHORTCUT(ssize_t, send, SYS_sendto, from, (int fd, const void *from, size_t n, int flags), (fd, from, n, flags), fd, from, n,
	 flags, 0, 0)
SHORTCUT(int, epoll_wait, SYS_epoll_wait, events, (int fd, struct epoll_event *events, int n, int timeout),
	 (fd, events, n, timeout), fd, events, n, timeout, 0, 0)
SHORTCUT(int, poll, SYS_poll, fds, (struct pollfd *fds, nfds_t n, int timeout), (fds, n, timeout), fds, n, timeout, 0, 0, 0)
