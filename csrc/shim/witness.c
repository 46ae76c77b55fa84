/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "witness.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"
#include "shim.h"

/* ---- the book -------------------------------------------------------------------------------------------- */

/* A handler that goes on may meet poison at each access: the first ones tell enough. */
#define MEETINGS_MAX 16u

struct book *book;
static _Atomic uint32_t meetings;

bool witness_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return false;
	book = memory_map(sizeof(*book), fd);
	close(fd);
	return book != NULL;
}

void witness_write(const char *format, ...)
{
	va_list list;
	uint32_t i;

	if (book == NULL || (i = atomic_fetch_add(&book->lines, 1)) >= BOOK_LINES)
		return;
	va_start(list, format);
	vsnprintf(book->line[i], BOOK_LINE, format, list);
	va_end(list);
}

void witness_met(const void *address)
{
	char text[BOOK_LINE];
	struct timespec now;

	if (book == NULL || !in_region(address) || atomic_fetch_add(&meetings, 1) >= MEETINGS_MAX)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	witness_describe(address, text, sizeof(text));
	witness_write("met\t%d\t%p\t%s\t%lld.%09ld\t%.15s", getpid(), address, text, (long long)now.tv_sec, now.tv_nsec,
		      program_invocation_short_name);
}

void witness_forked(void)
{
	atomic_store(&meetings, 0);
}

/* ---- mappings -------------------------------------------------------------------------------------------- */

/* The last ones that the program has made; an older one is forgotten. Who reads one while it changes may be told something
 * wrong: a line in a report. */
#define MAPPINGS_MAX 4096u

struct mapping {
	_Atomic uint64_t first;      /* where it began: offsets are told from there */
	_Atomic uint64_t start, end; /* as far as it is there; end <= start: gone */
	_Atomic uint64_t caller;
	_Atomic uint32_t number;
};

static struct mapping mappings[MAPPINGS_MAX];
static _Atomic uint32_t mapped;

static uint64_t number_of(const void *address)
{
	return (uint64_t)(uintptr_t)address;
}

static uint32_t mappings_kept(void)
{
	uint32_t n = atomic_load(&mapped);

	return n < MAPPINGS_MAX ? n : MAPPINGS_MAX;
}

uint32_t witness_mapped(const void *start, size_t length, const void *caller)
{
	uint32_t n = atomic_fetch_add(&mapped, 1);
	struct mapping *mapping = &mappings[n % MAPPINGS_MAX];

	atomic_store(&mapping->end, 0);
	atomic_store(&mapping->first, number_of(start));
	atomic_store(&mapping->caller, number_of(caller));
	atomic_store(&mapping->number, n + 1);
	atomic_store(&mapping->start, number_of(start));
	atomic_store(&mapping->end, number_of(start) + page_up(length));
	return n + 1;
}

void witness_unmapped(const void *memory, size_t length)
{
	uint64_t from = number_of(memory), to = from + page_up(length);

	for (uint32_t i = 0; i < mappings_kept(); i++) {
		uint64_t start = atomic_load(&mappings[i].start), end = atomic_load(&mappings[i].end);

		if (to <= start || from >= end)
			continue;
		/* With a hole in its middle it stays one. */
		if (from <= start)
			atomic_store(&mappings[i].start, to);
		else if (to >= end)
			atomic_store(&mappings[i].end, from);
	}
}

static struct mapping *find_mapping(uint64_t address)
{
	for (uint32_t i = 0; i < mappings_kept(); i++)
		if (address >= atomic_load(&mappings[i].start) && address < atomic_load(&mappings[i].end))
			return &mappings[i];
	return NULL;
}

void witness_moved(const void *from, const void *to, size_t length)
{
	struct mapping *mapping = find_mapping(number_of(from));

	if (mapping == NULL)
		return;
	if (from != to)
		atomic_store(&mapping->first, number_of(to));
	atomic_store(&mapping->end, 0);
	atomic_store(&mapping->start, number_of(to));
	atomic_store(&mapping->end, number_of(to) + page_up(length));
}

bool witness_mapping(uint32_t number, const void **start, size_t *length)
{
	const struct mapping *mapping = &mappings[(number - 1) % MAPPINGS_MAX];
	uint64_t first = atomic_load(&mapping->first), end = atomic_load(&mapping->end);

	if (atomic_load(&mapping->number) != number || end <= atomic_load(&mapping->start))
		return false;
	*start = (const void *)first;
	*length = end - first;
	return true;
}

/* ---- allocations ----------------------------------------------------------------------------------------- */

/* mimalloc's blocks begin at multiples of it. */
#define GRANULE 16u
#define GRANULES (SHIM_PAGE / GRANULE)
/* Blocks of this size or more are told by their pages, which nothing else shares with them but at their ends. mimalloc gives
 * no smaller one twice the room. */
#define LARGE (64u << 10)

/* Who has allocated what lies there, of which a page is all one large block's, or has several; 0: nobody. */
static _Atomic uint64_t *by_granule, *by_page;

bool witness_allocations(void)
{
	by_granule = memory_map(shim.end / GRANULE * sizeof(*by_granule), -1);
	by_page = memory_map(shim.end / SHIM_PAGE * sizeof(*by_page), -1);
	return by_granule != NULL && by_page != NULL;
}

static void tell_range(_Atomic uint64_t *table, uint64_t first, uint64_t last, uint64_t caller)
{
	for (uint64_t i = first; i <= last; i++)
		atomic_store_explicit(&table[i], caller, memory_order_relaxed);
}

void witness_allocated(const void *memory, size_t size, const void *caller)
{
	uint64_t start = number_of(memory) - REGION_BASE, end = start + size;

	if (by_page == NULL || !in_region(memory) || end > shim.end || size == 0)
		return;
	if (size >= LARGE)
		tell_range(by_page, start / SHIM_PAGE, (end - 1) / SHIM_PAGE, number_of(caller));
	else
		tell_range(by_granule, start / GRANULE, (end - 1) / GRANULE, number_of(caller));
}

void witness_freed(const void *memory, size_t room)
{
	uint64_t start = number_of(memory) - REGION_BASE, end = start + room;

	if (by_page == NULL || !in_region(memory) || end > shim.end || room == 0)
		return;
	if (room >= LARGE)
		tell_range(by_page, start / SHIM_PAGE, (end - 1) / SHIM_PAGE, 0);
	if (room < 2 * LARGE)
		tell_range(by_granule, start / GRANULE, (end - 1) / GRANULE, 0);
}

static uint64_t allocated_by(uint64_t offset)
{
	uint64_t caller;

	if (by_page == NULL || offset >= shim.end)
		return 0;
	caller = atomic_load_explicit(&by_page[offset / SHIM_PAGE], memory_order_relaxed);
	return caller != 0 ? caller : atomic_load_explicit(&by_granule[offset / GRANULE], memory_order_relaxed);
}

bool witness_in_use(const void *page, const void **memory)
{
	uint64_t offset = (number_of(page) - REGION_BASE) & ~(SHIM_PAGE - 1);

	for (uint64_t i = 0; i < GRANULES; i++) {
		if (allocated_by(offset + i * GRANULE) == 0)
			continue;
		*memory = (const void *)(REGION_BASE + offset + i * GRANULE);
		return true;
	}
	return false;
}

/* ---- words ----------------------------------------------------------------------------------------------- */

static const char *name_of_file(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash != NULL ? slash + 1 : path;
}

/* Names are cut so that a line of the book has all its words. */
static void describe_caller(uint64_t caller, char *text, size_t size)
{
	Dl_info info;

	text[0] = 0;
	/* The call's own address is before the one to which it returns, which may be the next function's. */
	if (caller == 0 || dladdr((void *)(caller - 1), &info) == 0)
		return;
	if (info.dli_sname != NULL)
		snprintf(text, size, "%.80s+0x%llx (%.40s)", info.dli_sname,
			 (unsigned long long)(caller - number_of(info.dli_saddr)), name_of_file(info.dli_fname));
	else
		snprintf(text, size, "%.40s+0x%llx", name_of_file(info.dli_fname),
			 (unsigned long long)(caller - number_of(info.dli_fbase)));
}

void witness_describe(const void *address, char *text, size_t size)
{
	const struct mapping *mapping = find_mapping(number_of(address));
	char caller[200];

	if (mapping == NULL) {
		describe_caller(allocated_by(number_of(address) - REGION_BASE), caller, sizeof(caller));
		snprintf(text, size, "heap\t%s", caller);
		return;
	}
	describe_caller(atomic_load(&mapping->caller), caller, sizeof(caller));
	snprintf(text, size, "mmap #%u + %llu\t%s", atomic_load(&mapping->number),
		 (unsigned long long)(number_of(address) - atomic_load(&mapping->first)), caller);
}
