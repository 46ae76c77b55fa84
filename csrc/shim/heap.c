/* SPDX-License-Identifier: MIT
 *
 * heap.c - whose memory an allocation is: the program's comes from mimalloc, and so from the region; what the C library and
 * the dynamic linker ask for themselves comes from glibc, in ordinary memory.
 *
 * glibc looks at what it has allocated while all signals are blocked (a new thread's locale and thread-local storage:
 * nptl/pthread_create.c, start_thread()), in children that share the memory but not the handlers (posix_spawn), and in a
 * child of fork before anybody else: a fault there would kill.
 *
 * Where a pointer belongs is told by its address: mimalloc has no memory but the region's.
 */
#define _GNU_SOURCE
#include <link.h>
#include <string.h>

#include "library.h"
#include "shim.h"

/* Preloaded behind us. */
extern void *mi_malloc(size_t size) __attribute__((weak));
extern void *mi_calloc(size_t count, size_t size) __attribute__((weak));
extern void *mi_realloc(void *memory, size_t size) __attribute__((weak));
extern void mi_free(void *memory) __attribute__((weak));
extern size_t mi_usable_size(const void *memory) __attribute__((weak));

/* glibc's own, past mimalloc's, which has them under every name that they have. */
static struct {
	void *(*malloc)(size_t size);
	void *(*calloc)(size_t count, size_t size);
	void *(*realloc)(void *memory, size_t size);
	void (*free)(void *memory);
} glibc;

static struct library libc, linker, allocator;
static bool started;
/* There is no region, or no mimalloc: everything is glibc's. */
static bool all_glibc;

/* At the first allocation, which the linker makes before any thread can be there. */
static void start(void)
{
	started = true;
	library_find("libc.so.6", NULL, &libc);
	library_find(NULL, (void *)_r_debug.r_ldbase, &linker);
	if (mi_malloc != NULL)
		library_find(NULL, mi_malloc, &allocator);
	glibc.malloc = library_symbol(&libc, "__libc_malloc");
	glibc.calloc = library_symbol(&libc, "__libc_calloc");
	glibc.realloc = library_symbol(&libc, "__libc_realloc");
	glibc.free = library_symbol(&libc, "__libc_free");
	shim_reserve();
	all_glibc = mi_malloc == NULL || !shim.reserved;
}

bool heap_is_allocator(const void *caller)
{
	return library_has(&allocator, caller);
}

static inline bool for_glibc(const void *caller)
{
	if (__builtin_expect(!started, 0))
		start();
	return library_has(&libc, caller) || library_has(&linker, caller) || all_glibc;
}

EXPORT void *malloc(size_t size)
{
	if (__builtin_expect(for_glibc(__builtin_return_address(0)), 0))
		return glibc.malloc(size);
	return mi_malloc(size);
}

EXPORT void *calloc(size_t count, size_t size)
{
	if (__builtin_expect(for_glibc(__builtin_return_address(0)), 0))
		return glibc.calloc(count, size);
	return mi_calloc(count, size);
}

EXPORT void free(void *memory)
{
	if (__builtin_expect(in_region(memory), 1))
		mi_free(memory);
	else
		glibc.free(memory);
}

EXPORT void cfree(void *memory)
{
	free(memory);
}

static void *reallocate(void *memory, size_t size, const void *caller)
{
	if (memory == NULL ? !for_glibc(caller) : in_region(memory))
		return mi_realloc(memory, size);
	return glibc.realloc(memory, size);
}

EXPORT void *realloc(void *memory, size_t size)
{
	return reallocate(memory, size, __builtin_return_address(0));
}

EXPORT void *reallocarray(void *memory, size_t count, size_t size)
{
	size_t total;

	if (__builtin_mul_overflow(count, size, &total)) {
		errno = ENOMEM;
		return NULL;
	}
	return reallocate(memory, total, __builtin_return_address(0));
}

EXPORT size_t malloc_usable_size(void *memory)
{
	size_t chunk;

	if (memory == NULL || in_region(memory))
		return memory == NULL ? 0 : mi_usable_size(memory);
	/* glibc has no other name for its own: malloc/malloc.c, struct malloc_chunk. Bit 1: mapped by itself. */
	chunk = ((const size_t *)memory)[-1];
	return (chunk & ~(size_t)7) - (chunk & 2 ? 2 : 1) * sizeof(size_t);
}

/* The C library makes these with malloc(), for the program. */

static char *duplicate(const char *string, size_t length)
{
	/* Not ours by another name: a program may have a malloc() of its own, and free() this by it. */
	char *copy = malloc(length + 1);

	if (copy != NULL) {
		memcpy(copy, string, length);
		copy[length] = 0;
	}
	return copy;
}

EXPORT char *strdup(const char *string)
{
	return duplicate(string, strlen(string));
}

EXPORT char *strndup(const char *string, size_t most)
{
	return duplicate(string, strnlen(string, most));
}
