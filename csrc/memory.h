/* SPDX-License-Identifier: MIT
 *
 * memory.h - address space that costs nothing until it is touched, and what the kernel is asked to do with it.
 *
 * Not an allocator. It calls the kernel past the C library: a preloaded library that stands in front of mmap() and its
 * kin, ours (shim.h) or another, must not see what the core does for itself. All keep errno unless they fail.
 */
#ifndef CRAM_MEMORY_H
#define CRAM_MEMORY_H

#include <stdint.h>

/* Makes a system call; returns what the kernel does, -errno for a failure. For the shim to put another in its place, whose
 * calls its own filter lets pass. */
typedef long memory_call_fn(long number, long a, long b, long c, long d, long e, long f);
extern memory_call_fn *memory_call;

/* Maps size bytes, readable and writable: of the file fd, shared, or with fd -1 private zeros. Keeps
 * mlockall(MCL_FUTURE) from filling what must stay sparse. NULL, with errno set, when there is no room. */
void *memory_map(uint64_t size, int fd);
/* The same, private and not accessible, at an address that nothing has, or NULL: EEXIST when something does. */
void *memory_reserve(void *address, uint64_t size);
void memory_unmap(void *memory, uint64_t size);
/* madvise(2), mprotect(2): 0 or -errno. */
int memory_advise(void *memory, uint64_t size, int advice);
int memory_protect(void *memory, uint64_t size, int protection);

#endif
