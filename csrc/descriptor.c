/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "descriptor.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory.h"

/* The object, the fault descriptor, the eventfd, and what stands in for one of them for a moment. */
#define TAKEN_MAX 8u

static int least_number;
/* One more than the number; 0: free. Only kept where somebody asks. */
static _Atomic int taken[TAKEN_MAX];

void descriptors_from(int least)
{
	least_number = least;
}

int descriptor_take(int fd)
{
	int moved, none;

	if (fd < 0 || least_number == 0)
		return fd;
	moved = (int)memory_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, least_number, 0, 0, 0);
	if (moved >= 0) {
		close(fd);
		fd = moved;
	}
	for (unsigned i = 0; i < TAKEN_MAX; i++) {
		none = 0;
		if (atomic_compare_exchange_strong(&taken[i], &none, fd + 1))
			break;
	}
	return fd;
}

void descriptor_close(int fd)
{
	for (unsigned i = 0; i < TAKEN_MAX; i++) {
		int entry = fd + 1;

		if (atomic_compare_exchange_strong(&taken[i], &entry, 0))
			break;
	}
	close(fd);
}

int descriptor_highest(unsigned first, unsigned last)
{
	int highest = -1;

	for (unsigned i = 0; i < TAKEN_MAX; i++) {
		int fd = atomic_load(&taken[i]) - 1;

		if (fd > highest && (unsigned)fd >= first && (unsigned)fd <= last)
			highest = fd;
	}
	return highest;
}

bool descriptor_taken(int fd)
{
	return fd >= 0 && descriptor_highest((unsigned)fd, (unsigned)fd) == fd;
}
