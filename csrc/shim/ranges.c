/* SPDX-License-Identifier: MIT */
#include "ranges.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "host/visit.h"
#include "memory.h"

/* The kernel allows a process 65,530 mappings (vm.max_map_count); ours need no more. */
#define RANGES_MAX 65536u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range *ranges; /* RANGES_MAX of them, of which count are in use */
static unsigned count;
/* Odd while they change: who reads without the lock then reads again (a sequence lock). */
static _Atomic unsigned changes;

void ranges_lock(sigset_t *before)
{
	host_block_signals(before);
	pthread_mutex_lock(&lock);
}

void ranges_unlock(const sigset_t *before)
{
	pthread_mutex_unlock(&lock);
	host_restore_signals(before);
}

void ranges_reset_lock(void)
{
	pthread_mutex_init(&lock, NULL);
}

/* The first range that ends after an offset. */
static unsigned first_after(uint64_t offset)
{
	unsigned low = 0, high = count;

	while (low < high) {
		unsigned middle = (low + high) / 2;

		if (ranges[middle].end <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

uint64_t ranges_find(uint64_t length, uint64_t limit)
{
	uint64_t free = 0;

	for (unsigned i = 0; i <= count; i++) {
		uint64_t end = i < count ? ranges[i].start : limit;

		if (end > free && end - free >= length)
			return free;
		if (i < count)
			free = ranges[i].end;
	}
	return UINT64_MAX;
}

bool ranges_free(uint64_t start, uint64_t end)
{
	unsigned i = first_after(start);

	return i == count || ranges[i].start >= end;
}

bool ranges_used(uint64_t start, uint64_t end)
{
	for (unsigned i = first_after(start); start < end; i++) {
		if (i == count || ranges[i].start > start)
			return false;
		start = ranges[i].end;
	}
	return true;
}

bool ranges_next(uint64_t start, uint64_t end, struct range *part)
{
	unsigned i = first_after(start);

	if (start >= end || i == count || ranges[i].start >= end)
		return false;
	*part = ranges[i];
	if (part->start < start)
		part->start = start;
	if (part->end > end)
		part->end = end;
	return true;
}

static void insert(unsigned at, struct range range)
{
	memmove(&ranges[at + 1], &ranges[at], (count - at) * sizeof(ranges[0]));
	ranges[at] = range;
	count++;
}

static bool clear(uint64_t start, uint64_t end)
{
	unsigned first = first_after(start), last = first;

	if (ranges == NULL || first == count || ranges[first].start >= end)
		return true;
	if (ranges[first].start < start) {
		struct range *range = &ranges[first];

		if (range->end > end) {
			struct range rest = *range;

			if (count == RANGES_MAX)
				return false;
			rest.start = end;
			range->end = start;
			insert(first + 1, rest);
			return true;
		}
		range->end = start;
		first++;
	}
	for (last = first; last < count && ranges[last].end <= end; last++)
		;
	if (last < count && ranges[last].start < end)
		ranges[last].start = end;
	memmove(&ranges[first], &ranges[last], (count - last) * sizeof(ranges[0]));
	count -= last - first;
	return true;
}

bool ranges_clear(uint64_t start, uint64_t end)
{
	bool cleared;

	atomic_fetch_add(&changes, 1);
	cleared = clear(start, end);
	atomic_fetch_add(&changes, 1);
	return cleared;
}

static bool set(uint64_t start, uint64_t end, int protection, bool hole)
{
	struct range range = { start, end, protection, hole };
	unsigned at;

	if (ranges == NULL)
		ranges = memory_map(RANGES_MAX * sizeof(ranges[0]), -1);
	/* Clearing the middle of a range makes one more, and this is another. */
	if (ranges == NULL || count + 2 > RANGES_MAX)
		return false;
	clear(start, end);
	at = first_after(start);
	if (at > 0 && ranges[at - 1].end == start && ranges[at - 1].protection == protection &&
	    ranges[at - 1].hole == hole) {
		ranges[at - 1].end = end;
		return true;
	}
	insert(at, range);
	return true;
}

bool ranges_set(uint64_t start, uint64_t end, int protection, bool hole)
{
	bool done;

	atomic_fetch_add(&changes, 1);
	done = set(start, end, protection, hole);
	atomic_fetch_add(&changes, 1);
	return done;
}

static uint64_t accessible(uint64_t start, uint64_t length, bool write)
{
	uint64_t at = start, end = start + length;
	struct range part;

	while (at < end && ranges_next(at, end, &part) && part.start == at && part.end > at &&
	       (part.protection & (write ? PROT_WRITE : PROT_READ)))
		at = part.end;
	return at - start;
}

uint64_t ranges_accessible(uint64_t start, uint64_t length, bool write)
{
	unsigned seen;
	uint64_t found;

	/* The race: somebody changes them meanwhile. What is read then may be anything, but lies in the table. */
	do {
		seen = atomic_load(&changes);
		found = accessible(start, length, write);
		atomic_thread_fence(memory_order_acquire);
	} while (seen % 2 != 0 || atomic_load(&changes) != seen);
	return found;
}
