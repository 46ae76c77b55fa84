/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long call_kernel(long number, long a, long b, long c, long d, long e, long f)
{
	int saved = errno;
	long result = syscall(number, a, b, c, d, e, f);

	if (result == -1)
		result = -errno;
	errno = saved;
	return result;
}

memory_call_fn *memory_call = call_kernel;

/* Thread sanitizer learns of new memory from the library's function alone. */
#ifdef __SANITIZE_THREAD__
#define CALL_MMAP(address, size, flags, fd) (long)mmap(address, size, PROT_NONE, flags, fd, 0)
#else
#define CALL_MMAP(address, size, flags, fd) memory_call(SYS_mmap, (long)(address), (long)(size), PROT_NONE, flags, fd, 0)
#endif

static void *map(void *address, uint64_t size, int flags, int fd)
{
	long result = CALL_MMAP(address, size, flags, fd);

	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return NULL;
	}
	return (void *)result;
}

void *memory_map(uint64_t size, int fd)
{
	int flags = MAP_NORESERVE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
	/* In a program that locks its future memory, mapping fills it at once, unless it may not be touched; unlocked
	 * before it may be, it stays sparse (mm/mlock.c, mm/mprotect.c). */
	void *memory = map(NULL, size, flags, fd);
	int code;

	if (memory == NULL)
		return NULL;
	memory_call(SYS_munlock, (long)memory, (long)size, 0, 0, 0, 0);
	code = memory_protect(memory, size, PROT_READ | PROT_WRITE);
	if (code != 0) {
		memory_unmap(memory, size);
		errno = -code;
		return NULL;
	}
	return memory;
}

void *memory_reserve(void *address, uint64_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

	return map(address, size, address != NULL ? flags | MAP_FIXED_NOREPLACE : flags, -1);
}

void memory_unmap(void *memory, uint64_t size)
{
	memory_call(SYS_munmap, (long)memory, (long)size, 0, 0, 0, 0);
}

int memory_advise(void *memory, uint64_t size, int advice)
{
	return (int)memory_call(SYS_madvise, (long)memory, (long)size, advice, 0, 0, 0);
}

int memory_protect(void *memory, uint64_t size, int protection)
{
	return (int)memory_call(SYS_mprotect, (long)memory, (long)size, protection, 0, 0, 0);
}
