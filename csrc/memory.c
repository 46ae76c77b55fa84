/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

void *memory_map(uint64_t size, int fd)
{
	int flags = MAP_NORESERVE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
	/* In a program that locks its future memory, mapping fills it at once, unless it may not be touched; unlocked
	 * before it may be, it stays sparse (mm/mlock.c, mm/mprotect.c). */
	void *memory = mmap(NULL, size, PROT_NONE, flags, fd, 0);

	if (memory == MAP_FAILED)
		return NULL;
	munlock(memory, size);
	if (mprotect(memory, size, PROT_READ | PROT_WRITE) != 0) {
		int error = errno;

		munmap(memory, size);
		errno = error;
		return NULL;
	}
	return memory;
}
