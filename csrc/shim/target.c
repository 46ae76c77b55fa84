/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "target.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "device/clients.h"
#include "error.h"
#include "host/space.h"
#include "host/thread.h"
#include "library.h"
#include "ranges.h"
#include "shim.h"
#include "witness.h"

#define NAME_MAX_BYTES 200u
/* So often a thread of ours asks whether it is due, and tries again what was refused. */
#define PERIOD_NS 5000000

static struct {
	enum { NONE, HEAP, MMAP, CALLER } kind;
	double percent;
	unsigned number;
	uint64_t offset;
	char function[NAME_MAX_BYTES];
} target;

/* Nobody has struck yet, as far as this process knows. */
static _Atomic bool open_target;
/* What could not be struck when it was tried: the thread's, from then on; 0: nothing. */
static _Atomic uint64_t refused;
/* Of those that are counted by their callers; and what the right one is, until it is freed. */
static _Atomic unsigned counted;
static _Atomic uint64_t chosen_block;

bool target_wanted(void)
{
	return target.kind != NONE;
}

/* ---- the strike ------------------------------------------------------------------------------------------ */

/* Makes this process the one that tries; false: it has been done, or another one is trying. The race: who was killed while
 * it tried would keep all others from it; it may have struck and not told, then there is poison twice. */
static bool take_turn(void)
{
	uint32_t taken = 0;

	while (!atomic_compare_exchange_strong(&book->taken, &taken, (uint32_t)getpid())) {
		if (taken == BOOK_STRUCK || (taken != 0 && !process_dead(taken, 0)))
			return false;
	}
	return true;
}

/* Once in a run. A refusal may pass: under a manager the device takes the page as soon as its driver says that it is safe. */
static void strike(const void *address)
{
	char text[BOOK_LINE];
	uint64_t dpa;

	if (!take_turn()) {
		if (atomic_load(&book->taken) == BOOK_STRUCK)
			atomic_store(&open_target, false);
		else
			atomic_store(&refused, (uint64_t)(uintptr_t)address);
		return;
	}
	witness_describe(address, text, sizeof(text));
	if (space_poison(shim.map, (uint64_t)(uintptr_t)address - REGION_BASE, &dpa) == 0) {
		atomic_store(&open_target, false);
		witness_write("struck\t%d\t%p\t%s\t0x%llx", getpid(), address, text, (unsigned long long)dpa);
		atomic_store(&book->taken, BOOK_STRUCK);
		return;
	}
	if (atomic_exchange(&refused, (uint64_t)(uintptr_t)address) == 0)
		witness_write("failed\t%d\t%p\t%s\t%s", getpid(), address, text, cram_error_detail());
	atomic_store(&book->taken, 0);
}

/* The page at that rank of those of the heap that are in use, or how many there are. */
static uint64_t walk_heap(uint64_t rank, const void **found)
{
	uint64_t n = 0, at = 0;
	struct range part;
	sigset_t before;

	ranges_lock(&before);
	while (ranges_next(at, shim.end, &part)) {
		for (uint64_t page = part.start; page < part.end && !part.hole; page += SHIM_PAGE) {
			const void *memory;

			if (!witness_in_use((const void *)(REGION_BASE + page), &memory))
				continue;
			if (n++ == rank && found != NULL)
				*found = memory;
		}
		at = part.end;
	}
	ranges_unlock(&before);
	return n;
}

static const void *find_in_heap(void)
{
	const void *found = (const void *)atomic_load(&refused);
	uint64_t pages, rank;

	/* To look through all of it costs too much to do so again and again. */
	if (found != NULL && witness_in_use(found, &found))
		return found;
	pages = walk_heap(UINT64_MAX, NULL);
	rank = (uint64_t)((double)pages * target.percent / 100);
	found = NULL;
	if (pages > 0)
		walk_heap(rank < pages ? rank : pages - 1, &found);
	return found;
}

static const void *find_in_mapping(void)
{
	const void *start;
	size_t length;

	if (!witness_mapping(target.number, &start, &length) || target.offset >= length)
		return NULL;
	start = (const uint8_t *)start + target.offset;
	return ranges_accessible((uint64_t)(uintptr_t)start - REGION_BASE, 1, false) == 1 ? start : NULL;
}

/* Strikes if it is due, and there is such a thing. */
static void try(void)
{
	const void *address = NULL;

	if (!atomic_load(&open_target) || shim.map == NULL || atomic_load(&book->due) == 0)
		return;
	if (target.kind == HEAP)
		address = find_in_heap();
	else if (target.kind == MMAP)
		address = find_in_mapping();
	else
		address = (const void *)atomic_load(&chosen_block);
	if (address != NULL)
		strike(address);
}

/* made: what there was before it was due, and nobody will make anew, is looked for too. */
static void *wait_for_due(void *made)
{
	const struct timespec period = { 0, PERIOD_NS };
	bool look = made != NULL;

	while (atomic_load(&open_target) && atomic_load(&book->taken) != BOOK_STRUCK) {
		if (atomic_load(&book->due) != 0 && (look || atomic_load(&refused) != 0)) {
			look = false;
			try();
		}
		clock_nanosleep(CLOCK_MONOTONIC, 0, &period, NULL);
	}
	return NULL;
}

static bool start_waiting(void)
{
	pthread_t thread;

	if (thread_start(&thread, wait_for_due, atomic_load(&book->due) == 0 ? &target : NULL, "poison") != 0)
		return false;
	pthread_detach(thread);
	return true;
}

/* ---- what is told ---------------------------------------------------------------------------------------- */

/* Callers that have been looked up: address << 1, and 1 if it is in the function. */
#define KNOWN 1024u
static _Atomic uint64_t known[KNOWN];

static bool in_function(const void *caller)
{
	uint64_t address = (uint64_t)(uintptr_t)caller;
	_Atomic uint64_t *entry = &known[(address ^ address >> 10) % KNOWN];
	uint64_t seen = atomic_load_explicit(entry, memory_order_relaxed);
	struct library library = { 0 };
	Dl_info info;
	bool in;

	if (seen >> 1 == address)
		return seen & 1;
	library_find(NULL, (const void *)(address - 1), &library);
	/* By its address: the linker may know it by another name. */
	in = dladdr((const void *)(address - 1), &info) != 0 && info.dli_saddr != NULL &&
	     info.dli_saddr == library_symbol(&library, target.function);
	atomic_store_explicit(entry, address << 1 | in, memory_order_relaxed);
	return in;
}

/* For the report: how near it came. */
static void tell_reached(uint32_t n)
{
	uint32_t most = atomic_load(&book->reached);

	while (most < n && !atomic_compare_exchange_weak(&book->reached, &most, n))
		;
}

bool target_is_next(const void *caller)
{
	unsigned n;

	if (target.kind != CALLER || !atomic_load(&open_target) || !in_function(caller))
		return false;
	atomic_store(&book->found, 1);
	n = atomic_fetch_add(&counted, 1) + 1;
	tell_reached(n);
	return n == target.number;
}

void target_allocated(const void *memory, bool chosen)
{
	if (chosen)
		atomic_store(&chosen_block, (uint64_t)(uintptr_t)memory);
	if ((chosen || target.kind == HEAP) && atomic_load(&refused) == 0)
		try();
}

bool target_freed(const void *memory)
{
	uint64_t block = (uint64_t)(uintptr_t)memory;

	return atomic_compare_exchange_strong(&chosen_block, &block, 0);
}

void target_mapped(const void *memory, unsigned number, const void *caller)
{
	if (!atomic_load(&open_target))
		return;
	if (target.kind == CALLER) {
		target_allocated(memory, target_is_next(caller));
	} else if (target.kind == MMAP) {
		tell_reached(number);
		if (number == target.number && atomic_load(&refused) == 0)
			try();
	}
}

/* ---- the start ------------------------------------------------------------------------------------------- */

static bool parse(const char *text)
{
	const char *hash = strrchr(text, '#');
	char *end = (char *)text;

	if (strncmp(text, "heap:", 5) == 0) {
		target.kind = HEAP;
		target.percent = strtod(text + 5, &end);
	} else if (strncmp(text, "mmap:", 5) == 0) {
		target.kind = MMAP;
		target.number = (unsigned)strtoul(text + 5, &end, 10);
		target.offset = *end == '+' ? strtoull(end + 1, &end, 10) : 0;
	} else if (strncmp(text, "caller:", 7) == 0 && hash != NULL && hash < text + 7 + NAME_MAX_BYTES) {
		target.kind = CALLER;
		memcpy(target.function, text + 7, (size_t)(hash - text - 7));
		target.number = (unsigned)strtoul(hash + 1, &end, 10);
	}
	return target.kind != NONE && *end == 0;
}

bool target_start(const char *text)
{
	if (strcmp(text, "-") == 0)
		return true;
	if (book == NULL || !parse(text) || !witness_allocations())
		return false;
	if (target.kind == CALLER && dlsym(RTLD_DEFAULT, target.function) != NULL)
		atomic_store(&book->found, 1);
	dlerror();
	atomic_store(&open_target, atomic_load(&book->taken) != BOOK_STRUCK);
	return start_waiting();
}

void target_forked(void)
{
	/* It ends with the first that strikes, and none has to. */
	if (atomic_load(&open_target))
		start_waiting();
}
