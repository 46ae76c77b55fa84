/* SPDX-License-Identifier: MIT
 *
 * space.c - mmap() and its kin: anonymous private memory of some size is placed in the region; what happens to it there
 * looks to the program as elsewhere.
 *
 * Until the device is there, the region's memory is the kernel's own; the mapping takes it over (space_start()).
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "host/space.h"
#include "memory.h"
#include "ranges.h"
#include "shim.h"
#include "target.h"
#include "witness.h"

/* What the kernel will not do in the region, and nobody needs there. */
#define FLAGS_ELSEWHERE (MAP_STACK | MAP_GROWSDOWN | MAP_HUGETLB | MAP_32BIT)
#define ALL_PROTECTION (PROT_READ | PROT_WRITE | PROT_EXEC)
/* A reservation that takes more of the region than this is made elsewhere. */
#define RESERVE_MAX_SHARE 4

static uint64_t offset_of(const void *address)
{
	return (uint64_t)(uintptr_t)address - REGION_BASE;
}

static void *address_of(uint64_t offset)
{
	return (void *)(uintptr_t)(REGION_BASE + offset);
}

static long kernel_mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
{
	return memory_call(SYS_mmap, (long)address, (long)length, protection, flags, fd, offset);
}

/* ---- under the ranges' lock ------------------------------------------------------------------------------ */

static long protect(uint64_t offset, uint64_t length, int protection)
{
	if (shim.map != NULL)
		return space_protect(shim.map, offset, length, protection);
	return memory_protect(address_of(offset), length, protection);
}

static void discard(uint64_t offset, uint64_t length)
{
	if (shim.map != NULL)
		space_discard(shim.map, offset, length);
	else
		memory_advise(address_of(offset), length, MADV_DONTNEED);
}

/* Makes a hole the region's memory again, closed. */
static void fill_hole(uint64_t offset, uint64_t length)
{
	kernel_mmap(address_of(offset), length, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	memory_advise(address_of(offset), length, MADV_NOHUGEPAGE);
	if (shim.map != NULL)
		space_register(shim.map, offset, length);
}

/* Empties [start, end) and closes it. */
static void release(uint64_t start, uint64_t end)
{
	struct range part;

	for (uint64_t at = start; ranges_next(at, end, &part); at = part.end) {
		if (part.hole) {
			fill_hole(part.start, part.end - part.start);
			continue;
		}
		discard(part.start, part.end - part.start);
		if (part.protection != PROT_NONE)
			protect(part.start, part.end - part.start, PROT_NONE);
	}
	ranges_clear(start, end);
}

/* Makes [start, end), which is closed and empty, the program's. */
static long give(uint64_t start, uint64_t end, int protection)
{
	long code = 0;

	if (!ranges_set(start, end, protection, false))
		return -ENOMEM;
	if (protection != PROT_NONE)
		code = protect(start, end - start, protection);
	if (code != 0)
		ranges_clear(start, end);
	return code != 0 ? code : (long)(REGION_BASE + start);
}

/* ---- mmap ------------------------------------------------------------------------------------------------ */

static bool placeable(const void *address, size_t length, int protection, int flags)
{
	if (!shim.reserved || (flags & (MAP_PRIVATE | MAP_ANONYMOUS)) != (MAP_PRIVATE | MAP_ANONYMOUS) ||
	    (flags & FLAGS_ELSEWHERE) || (protection & PROT_EXEC) || length < shim.min_mmap)
		return false;
	/* A reservation with a wish for an address is one that compressed pointers must reach. */
	return protection != PROT_NONE || (address == NULL && length <= shim.end / RESERVE_MAX_SHARE);
}

static long place(size_t length, int protection)
{
	sigset_t before;
	uint64_t start;
	long result = -ENOMEM;

	length = page_up(length);
	ranges_lock(&before);
	start = ranges_find(length, shim.end);
	if (start != UINT64_MAX)
		result = give(start, start + length, protection);
	ranges_unlock(&before);
	return result;
}

/* MAP_FIXED within the region. */
static long map_fixed(void *address, size_t length, int protection, int flags, int fd, long offset)
{
	uint64_t start = offset_of(address), end = start + page_up(length);
	bool ours = (flags & (MAP_PRIVATE | MAP_ANONYMOUS)) == (MAP_PRIVATE | MAP_ANONYMOUS) &&
		    !(flags & FLAGS_ELSEWHERE) && !(protection & PROT_EXEC);
	sigset_t before;
	long result;

	if (!in_region(address) || start % SHIM_PAGE != 0 || end > shim.end || length == 0)
		return -EINVAL;
	ranges_lock(&before);
	if ((flags & MAP_FIXED_NOREPLACE) == MAP_FIXED_NOREPLACE && !ranges_free(start, end)) {
		result = -EEXIST;
	} else {
		release(start, end);
		if (ours) {
			result = give(start, end, protection);
		} else {
			/* The descriptor's hold on it ends with the memory it replaces. */
			result = kernel_mmap(address, length, protection, flags, fd, offset);
			if (result < 0 && result > -4096)
				fill_hole(start, end - start);
			else if (!ranges_set(start, end, protection, true))
				result = -ENOMEM;
		}
	}
	ranges_unlock(&before);
	return result;
}

long space_mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
{
	long result;

	if ((flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) && touches_region(address, length))
		return map_fixed(address, length, protection, flags, fd, offset);
	if (length >= shim.min_mmap)
		shim_reserve();
	if (!(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) && placeable(address, length, protection, flags)) {
		result = place(length, protection);
		if (result > 0)
			return result;
	}
	/* A wish for an address of ours is no more than a wish. */
	if (touches_region(address, length))
		address = NULL;
	return kernel_mmap(address, length, protection, flags, fd, offset);
}

/* ---- munmap, mprotect, madvise, mremap ------------------------------------------------------------------- */

/* Does a range lie within the region; if not, is it the kernel's alone? */
static bool all_ours(const void *address, size_t length)
{
	return in_region(address) && length <= REGION_END - (uint64_t)(uintptr_t)address;
}

long space_munmap(void *address, size_t length)
{
	sigset_t before;

	if (!touches_region(address, length))
		return memory_call(SYS_munmap, (long)address, (long)length, 0, 0, 0, 0);
	if (!all_ours(address, length) || offset_of(address) % SHIM_PAGE != 0 || length == 0)
		return -EINVAL;
	ranges_lock(&before);
	release(offset_of(address), offset_of(address) + page_up(length));
	witness_unmapped(address, length);
	ranges_unlock(&before);
	return 0;
}

long space_mprotect(void *address, size_t length, int protection)
{
	uint64_t start = offset_of(address), end = start + page_up(length), at = start;
	struct range part;
	sigset_t before;
	long result = 0;

	if (!touches_region(address, length))
		return memory_call(SYS_mprotect, (long)address, (long)length, protection, 0, 0, 0);
	if (!all_ours(address, length) || start % SHIM_PAGE != 0 || (protection & ~ALL_PROTECTION) != 0)
		return -EINVAL;
	ranges_lock(&before);
	if (!ranges_used(start, end))
		result = -ENOMEM;
	for (; result == 0 && ranges_next(at, end, &part); at = part.end) {
		if (part.hole)
			result = memory_protect(address_of(part.start), part.end - part.start, protection);
		else if (part.protection != protection)
			result = protect(part.start, part.end - part.start, protection);
		if (result == 0 && !ranges_set(part.start, part.end, protection, part.hole))
			result = -ENOMEM;
	}
	ranges_unlock(&before);
	return result;
}

static void discard_parts(uint64_t start, uint64_t end)
{
	struct range part;

	for (uint64_t at = start; ranges_next(at, end, &part); at = part.end) {
		if (part.hole)
			memory_advise(address_of(part.start), part.end - part.start, MADV_DONTNEED);
		else
			discard(part.start, part.end - part.start);
	}
}

long space_madvise(void *address, size_t length, int advice)
{
	uint64_t start = offset_of(address), end = start + page_up(length);
	sigset_t before;
	long result = 0;

	if (!touches_region(address, length))
		return memory_call(SYS_madvise, (long)address, (long)length, advice, 0, 0, 0);
	if (!all_ours(address, length) || start % SHIM_PAGE != 0)
		return -EINVAL;
	ranges_lock(&before);
	switch (advice) {
	case MADV_DONTNEED:
	case MADV_FREE: /* lazily, which at once is */
		discard_parts(start, end);
		if (!ranges_used(start, end))
			result = -ENOMEM;
		break;
	case MADV_DONTFORK:
	case MADV_WIPEONFORK:
	case MADV_REMOVE:
	case MADV_HWPOISON:
		result = -EINVAL;
		break;
	default:
		/* Hints. */
		break;
	}
	ranges_unlock(&before);
	return result;
}

/* Under the lock: grows [start, end) to new_end, in place or elsewhere. */
static long grow(uint64_t start, uint64_t end, uint64_t new_end, int protection, bool may_move)
{
	uint64_t to, size = new_end - start;
	long result;

	if (new_end <= shim.end && ranges_free(end, new_end)) {
		result = give(end, new_end, protection);
		return result < 0 ? result : (long)(REGION_BASE + start);
	}
	if (!may_move || shim.map == NULL)
		return -ENOMEM;
	to = ranges_find(size, shim.end);
	if (to == UINT64_MAX || !ranges_set(to, to + size, PROT_NONE, false))
		return -ENOMEM;
	protect(start, end - start, PROT_NONE);
	space_move(shim.map, start, to, end - start);
	ranges_clear(start, end);
	return give(to, to + size, protection);
}

long space_mremap(void *old, size_t old_size, size_t new_size, int flags, void *address)
{
	uint64_t start = offset_of(old), end = start + page_up(old_size), new_end = start + page_up(new_size);
	struct range part;
	sigset_t before;
	long result;

	if (!touches_region(old, old_size) && !((flags & MREMAP_FIXED) && touches_region(address, new_size)))
		return memory_call(SYS_mremap, (long)old, (long)old_size, (long)new_size, flags, (long)address, 0);
	/* To or from an address of the program's choice: not offered here. */
	if (!all_ours(old, old_size) || start % SHIM_PAGE != 0 || new_size == 0 || old_size == 0 ||
	    (flags & ~MREMAP_MAYMOVE) != 0)
		return -EINVAL;
	ranges_lock(&before);
	if (!ranges_next(start, end, &part) || part.start != start || part.end != end) {
		result = -EFAULT;
	} else if (part.hole) {
		result = -EINVAL;
	} else if (new_end <= end) {
		release(new_end, end);
		result = (long)(uintptr_t)old;
	} else {
		result = grow(start, end, new_end, part.protection, flags & MREMAP_MAYMOVE);
	}
	if (result > 0)
		witness_moved(old, (const void *)result, new_size);
	ranges_unlock(&before);
	return result;
}

/* ---- the start, and forks -------------------------------------------------------------------------------- */

int space_start(void)
{
	struct range part;
	int code = 0;

	for (uint64_t at = 0; code == 0 && ranges_next(at, shim.end, &part); at = part.end)
		if (!part.hole && part.protection != PROT_NONE)
			code = space_adopt(shim.map, part.start, part.end - part.start);
	return code;
}

void space_walk(cram_map *map, space_part_fn *fn)
{
	uint64_t at = 0;
	struct range part;

	for (uint64_t next = 0; ranges_next(next, shim.end, &part); next = part.end) {
		if (!part.hole)
			continue;
		if (part.start > at)
			fn(map, at, part.start - at);
		at = part.end;
	}
	if (at < shim.end)
		fn(map, at, shim.end - at);
}

/* ---- the C library's functions --------------------------------------------------------------------------- */

/* The heap is in the region, or nowhere: that tells whose a pointer is. */
static long map_for(const void *caller, void *address, size_t length, int protection, int flags, int fd, long offset)
{
	bool allocator = heap_is_allocator(caller);
	long result;

	if (shim.reserved && fd < 0 && !(flags & MAP_FIXED) && length > 0 && allocator)
		return place(length, protection);
	result = space_mmap(address, length, protection, flags, fd, offset);
	/* One within another is still the other's. */
	if (!allocator && in_region((void *)result) && !(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)))
		target_mapped((void *)result, witness_mapped((void *)result, length, caller), caller);
	return result;
}

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return (void *)shim_result(map_for(__builtin_return_address(0), address, length, protection, flags, fd, offset));
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
	return (void *)shim_result(map_for(__builtin_return_address(0), address, length, protection, flags, fd, offset));
}

EXPORT int munmap(void *address, size_t length)
{
	return (int)shim_result(space_munmap(address, length));
}

EXPORT int mprotect(void *address, size_t length, int protection)
{
	return (int)shim_result(space_mprotect(address, length, protection));
}

EXPORT int madvise(void *address, size_t length, int advice)
{
	return (int)shim_result(space_madvise(address, length, advice));
}

EXPORT int posix_madvise(void *address, size_t length, int advice)
{
	/* POSIX's DONTNEED keeps the contents, and so must not reach the kernel (glibc: posix_madvise.c). */
	return advice == POSIX_MADV_DONTNEED ? 0 : (int)-space_madvise(address, length, advice);
}

EXPORT void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	void *address = NULL;
	va_list list;

	if (flags & MREMAP_FIXED) {
		va_start(list, flags);
		address = va_arg(list, void *);
		va_end(list);
	}
	return (void *)shim_result(space_mremap(old, old_size, new_size, flags, address));
}
