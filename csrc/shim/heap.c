/* SPDX-License-Identifier: MIT
 *
 * heap.c - whose memory an allocation is: the program's comes from mimalloc, and so from the region; what the C library and
 * the dynamic linker ask for themselves comes from glibc, in ordinary memory.
 *
 * glibc looks at what it has allocated while all signals are blocked (a new thread's locale and thread-local storage:
 * nptl/pthread_create.c, start_thread()), in children that share the memory but not the handlers (posix_spawn), and in a
 * child of fork before anybody else: a fault there would kill.
 *
 * Where a pointer belongs is told by its address: mimalloc has no memory but the region's. Who has asked for it is told on, but
 * only where somebody wants to know (target.h).
 */
#define _GNU_SOURCE
#include <link.h>
#include <string.h>

#include "library.h"
#include "shim.h"
#include "target.h"
#include "witness.h"

/* Preloaded behind us. */
extern void *mi_malloc(size_t size) __attribute__((weak));
extern void *mi_calloc(size_t count, size_t size) __attribute__((weak));
extern void *mi_realloc(void *memory, size_t size) __attribute__((weak));
extern void mi_free(void *memory) __attribute__((weak));
extern size_t mi_usable_size(const void *memory) __attribute__((weak));
extern void *mi_malloc_aligned(size_t size, size_t alignment) __attribute__((weak));
extern void *mi_zalloc_aligned(size_t size, size_t alignment) __attribute__((weak));
extern int mi_posix_memalign(void **memory, size_t alignment, size_t size) __attribute__((weak));
extern void *mi_memalign(size_t alignment, size_t size) __attribute__((weak));
extern void *mi_aligned_alloc(size_t alignment, size_t size) __attribute__((weak));
extern void *mi_new(size_t size) __attribute__((weak));

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
/* That, or somebody is to be told: what an allocation looks at. And how one of the program's is freed. */
static bool special;
static void (*release)(void *memory) = mi_free;

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
	special = all_glibc = mi_malloc == NULL || !shim.reserved;
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

static inline bool is_special(const void *caller)
{
	if (__builtin_expect(!started, 0))
		start();
	return library_has(&libc, caller) || library_has(&linker, caller) || special;
}

/* ---- allocations that are told --------------------------------------------------------------------------- */

/* What mimalloc gives without being asked for more. */
#define ALIGNMENT 16u

/* The one that the target means has pages of its own, so that nothing else is met there. */
static void *allocate_told(size_t size, size_t alignment, bool zeros, bool chosen, const void *caller)
{
	void *memory;

	if (chosen) {
		alignment = alignment < SHIM_PAGE ? SHIM_PAGE : alignment;
		size = size <= SIZE_MAX - SHIM_PAGE ? page_up(size != 0 ? size : 1) : size;
	}
	memory = zeros ? mi_zalloc_aligned(size, alignment) : mi_malloc_aligned(size, alignment);
	if (memory == NULL)
		return NULL;
	witness_allocated(memory, size, caller);
	target_allocated(memory, chosen);
	return memory;
}

static void *allocate_special(size_t size, bool zeros, const void *caller)
{
	if (!for_glibc(caller))
		return allocate_told(size, ALIGNMENT, zeros, target_is_next(caller), caller);
	return zeros ? glibc.calloc(1, size) : glibc.malloc(size);
}

static void release_told(void *memory)
{
	target_freed(memory);
	witness_freed(memory, mi_usable_size(memory));
	mi_free(memory);
}

static void *reallocate_told(void *memory, size_t size, const void *caller)
{
	size_t before = memory != NULL ? mi_usable_size(memory) : 0;
	/* What has been chosen stays so, wherever it goes. */
	bool chosen = target_is_next(caller) || (memory != NULL && target_freed(memory));
	void *result;

	if (memory == NULL || chosen) {
		result = allocate_told(size, ALIGNMENT, false, chosen, caller);
		if (result == NULL || memory == NULL)
			return result;
		memcpy(result, memory, size < before ? size : before);
		release_told(memory);
		return result;
	}
	witness_freed(memory, before);
	result = mi_realloc(memory, size);
	if (result == NULL) {
		witness_allocated(memory, before, caller);
		return NULL;
	}
	witness_allocated(result, size, caller);
	target_allocated(result, false);
	return result;
}

void heap_tell(void)
{
	if (mi_malloc == NULL)
		return;
	special = true;
	release = release_told;
}

/* ---- the C library's functions --------------------------------------------------------------------------- */

EXPORT void *malloc(size_t size)
{
	if (__builtin_expect(is_special(__builtin_return_address(0)), 0))
		return allocate_special(size, false, __builtin_return_address(0));
	return mi_malloc(size);
}

EXPORT void *calloc(size_t count, size_t size)
{
	size_t total;

	if (__builtin_expect(!is_special(__builtin_return_address(0)), 1))
		return mi_calloc(count, size);
	if (__builtin_mul_overflow(count, size, &total)) {
		errno = ENOMEM;
		return NULL;
	}
	return allocate_special(total, true, __builtin_return_address(0));
}

EXPORT void free(void *memory)
{
	if (__builtin_expect(in_region(memory), 1))
		release(memory);
	else
		glibc.free(memory);
}

EXPORT void cfree(void *memory)
{
	free(memory);
}

static void *reallocate(void *memory, size_t size, const void *caller)
{
	if (memory == NULL ? for_glibc(caller) : !in_region(memory))
		return glibc.realloc(memory, size);
	return special ? reallocate_told(memory, size, caller) : mi_realloc(memory, size);
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

/* mimalloc's own, but for those that are told. */

static void *align_told(size_t alignment, size_t size, const void *caller)
{
	return allocate_told(size, alignment, false, target_is_next(caller), caller);
}

EXPORT int posix_memalign(void **memory, size_t alignment, size_t size)
{
	void *result;

	if (!target_wanted())
		return all_glibc ? NEXT(posix_memalign)(memory, alignment, size) : mi_posix_memalign(memory, alignment, size);
	if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0)
		return EINVAL;
	result = align_told(alignment, size, __builtin_return_address(0));
	if (result == NULL)
		return ENOMEM;
	*memory = result;
	return 0;
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
	if (!target_wanted())
		return all_glibc ? NEXT(aligned_alloc)(alignment, size) : mi_aligned_alloc(alignment, size);
	return align_told(alignment, size, __builtin_return_address(0));
}

extern void *memalign(size_t alignment, size_t size);

EXPORT void *memalign(size_t alignment, size_t size)
{
	if (!target_wanted())
		return all_glibc ? NEXT(memalign)(alignment, size) : mi_memalign(alignment, size);
	return align_told(alignment, size, __builtin_return_address(0));
}

/* C++'s new and new[], by their names in the Itanium ABI; what they do without memory is mimalloc's to know. */
extern void *_Znwm(size_t size);
extern void *_Znam(size_t size);

static void *new_told(size_t size, const void *caller)
{
	void *memory = align_told(ALIGNMENT, size, caller);

	return memory != NULL ? memory : mi_new(size);
}

EXPORT void *_Znwm(size_t size)
{
	if (!target_wanted())
		return all_glibc ? NEXT(_Znwm)(size) : mi_new(size);
	return new_told(size, __builtin_return_address(0));
}

EXPORT void *_Znam(size_t size)
{
	if (!target_wanted())
		return all_glibc ? NEXT(_Znam)(size) : mi_new(size);
	return new_told(size, __builtin_return_address(0));
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
