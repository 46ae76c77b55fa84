/* SPDX-License-Identifier: MIT
 *
 * numbers.c - close and its kin: a program that closes or replaces all descriptors means its own. Ours are as if they were not
 * there: EBADF.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/close_range.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptor.h"
#include "shim.h"

static int refuse(int error)
{
	errno = error;
	return -1;
}

EXPORT int close(int fd)
{
	return descriptor_taken(fd) ? refuse(EBADF) : NEXT(close)(fd);
}

EXPORT int dup2(int from, int to)
{
	/* As the kernel has it while somebody else is about to get that number. */
	return descriptor_taken(to) ? refuse(EBUSY) : NEXT(dup2)(from, to);
}

EXPORT int dup3(int from, int to, int flags)
{
	return descriptor_taken(to) ? refuse(EBUSY) : NEXT(dup3)(from, to, flags);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	int ours;

	/* Ours are closed at exec already. */
	if (first > last || (flags & CLOSE_RANGE_CLOEXEC))
		return (int)shim_result(gate_call(SYS_close_range, first, last, flags, 0, 0, 0));
	while ((ours = descriptor_highest(first, last)) >= 0) {
		if ((unsigned)ours < last) {
			long result = gate_call(SYS_close_range, ours + 1, last, flags, 0, 0, 0);

			if (result < 0)
				return (int)shim_result(result);
		}
		if ((unsigned)ours == first)
			return 0;
		last = (unsigned)ours - 1;
	}
	return (int)shim_result(gate_call(SYS_close_range, first, last, flags, 0, 0, 0));
}

EXPORT void closefrom(int least)
{
	close_range(least > 0 ? (unsigned)least : 0, ~0u, 0);
}

/* ---- a promise of sockets that a copy cannot keep -------------------------------------------------------- */

/* The kernel would read the memory long after the call. Programs have a way without it. */
EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
	if (level == SOL_SOCKET && name == SO_ZEROCOPY && shim.inline_delivery)
		return refuse(EOPNOTSUPP);
	return NEXT(setsockopt)(fd, level, name, value, length);
}
