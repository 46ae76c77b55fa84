/* SPDX-License-Identifier: MIT */
#include "pager.h"

#include <errno.h>
#include <string.h>

#include "error.h"
#include "evict.h"
#include "memory.h"
#include "uffd.h"

/* Pages protected and compressed together by a flush. */
#define FLUSH_BATCH 64u

/* Background reclaim keeps so much of the window free: it begins with the lesser share left, and ends with the greater. */
#define HIGH_SHARE 32u
#define LOW_SHARE 16u

#define AGE_PERIOD_BITS 12u
#define AGE_PERIOD_MASK ((1u << AGE_PERIOD_BITS) - 1)
#define AGE_EXPONENT_MAX 6u
/* What the periodic write-back may cost the program: each page that it cleans and the program writes to again is a
 * fault of some 5 us, so that 4 of them a millisecond are 2 % of its time. */
#define CREDIT_PER_MS 4
#define CREDIT_MAX 4096

static uint64_t bitmap_size(const struct pager *pager)
{
	return (pager->pages + 63) / 64 * 8;
}

int pager_init(struct pager *pager)
{
	bool sets = pageset_init(&pager->resident_set, pager->pages) && pageset_init(&pager->dirty_set, pager->pages);

	pager->referenced = memory_map(bitmap_size(pager), -1);
	pager->pinned = memory_map(bitmap_size(pager), -1);
	pager->age = memory_map(pager->pages * sizeof(*pager->age), -1);
	if (pager_anonymous(pager))
		pager->opened = memory_map(bitmap_size(pager), -1);
	if (!sets || (pager_anonymous(pager) && pager->opened == NULL) || pager->referenced == NULL || pager->pinned == NULL || pager->age == NULL) {
		pager_deinit(pager);
		return cram_fail(CRAM_ENOMEM, "no memory for the tables of a mapping of %llu pages",
				 (unsigned long long)pager->pages);
	}
	pager->batch = pager->window / 8 < BATCH_MAX ? (unsigned)(pager->window / 8) : BATCH_MAX;
	pager->high = pager->window - pager->window / HIGH_SHARE;
	pager->low = pager->window - pager->window / LOW_SHARE;
	return 0;
}

void pager_deinit(struct pager *pager)
{
	pageset_deinit(&pager->resident_set);
	pageset_deinit(&pager->dirty_set);
	if (pager->referenced != NULL)
		memory_unmap(pager->referenced, bitmap_size(pager));
	if (pager->pinned != NULL)
		memory_unmap(pager->pinned, bitmap_size(pager));
	if (pager->opened != NULL)
		memory_unmap(pager->opened, bitmap_size(pager));
	if (pager->age != NULL)
		memory_unmap(pager->age, pager->pages * sizeof(*pager->age));
}

/* Writes back locked pages that stay resident, but those whose write the device dropped. Unlocks them all. */
static void clean_batch(struct pager *pager, struct op *op, const struct batch *batch)
{
	struct batch *failed = &work_of(op)->failed;
	unsigned written = 0;

	failed->count = 0;
	frames_protect_dirty(pager, op, batch);
	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t page = batch->page[i];

		if (!frame_dirty(pager, page))
			continue;
		written++;
		if (pager_pinned(pager, page))
			frame_store_snapshot(pager, op, page);
		else if (!frame_store(pager, op, page))
			failed->page[failed->count++] = page;
	}
	if (failed->count > 0)
		frames_drop(pager, op, failed->page, failed->count);
	count_written_back(pager, op, written);
	frames_unlock(pager, op, batch);
}

/* ---- faults --------------------------------------------------------------------------------------------- */

/* The stream that a fault goes on with, or a new one; its depth, the pages that this fault should bring in, doubles
 * while the stream goes on. */
static struct stream *find_stream(struct lane *lane, uint64_t page)
{
	struct stream *stream;

	for (unsigned i = 0; i < STREAMS; i++) {
		stream = &lane->streams[i];
		if (stream->depth == 0 || page != stream->next)
			continue;
		if (stream->depth < DEVICE_BATCH)
			stream->depth *= 2;
		return stream;
	}
	stream = &lane->streams[lane->oldest++ % STREAMS];
	stream->depth = 1;
	return stream;
}

/* Makes the pages that follow a resident page writable with it, as far as they are resident and clean. */
static void write_fault_around(struct pager *pager, struct op *op, uint64_t page, struct stream *stream)
{
	uint64_t end = page + 1;

	frame_dirtied(pager, op, page);
	frame_set_referenced(pager, page, true);
	while (end < page + stream->depth && end < pager->pages && pager_lock_known(pager, op, end, false)) {
		if (!pager_resident(pager, end) || frame_dirty(pager, end)) {
			pager_unlock(pager, op, end);
			break;
		}
		frame_dirtied(pager, op, end++);
	}
	uffd_protect(pager->uffd, pager_frame(pager, page), (end - page) << PAGE_SHIFT, false);
	stream->next = end;
	while (--end > page)
		pager_unlock(pager, op, end);
}

/* A fault on a page that is there: its first write, or one that another thread has answered meanwhile. */
static void fault_resident(struct pager *pager, struct op *op, uint64_t page, bool write, struct stream *stream)
{
	if (write && !frame_dirty(pager, page)) {
		count_fault(pager, &lane_of(pager, op)->protect_faults);
		if (atomic_load_explicit(&pager->age[page], memory_order_relaxed) != 0)
			count(&lane_of(pager, op)->redirtied, 1);
		write_fault_around(pager, op, page, stream);
	} else if (write) {
		uffd_protect(pager->uffd, pager_frame(pager, page), PAGE_SIZE, false);
	} else if (pager->wake) {
		uffd_wake(pager->uffd, pager_frame(pager, page), PAGE_SIZE);
	}
}

/* A locked page's bytes; false: it is poison. */
static bool load(struct pager *pager, struct op *op, uint64_t page, uint8_t *to)
{
	if (pager->managed != NULL)
		return zswap_load(pager->managed, op, page, to);
	return device_load(op, pager_dpa(pager, page), to) == 0;
}

/* Reads the locked page and those that follow into `to`, locking them, as far as they are missing and whole; returns
 * how many, 0 when the page itself is poison. */
static unsigned gather(struct pager *pager, struct op *op, uint64_t page, unsigned most, uint8_t *to)
{
	unsigned n = 0;

	if (!load(pager, op, page, to))
		return 0;
	for (n = 1; n < most && page + n < pager->pages; n++) {
		if (pager_closed(pager, page + n) || !pager_trylock(pager, op, page + n))
			break;
		if (pager_resident(pager, page + n) || pager_poisoned(pager, op, page + n) ||
		    !load(pager, op, page + n, to + n * PAGE_SIZE)) {
			pager_unlock(pager, op, page + n);
			break;
		}
	}
	return n;
}

/* Takes back what install() said of pages that the kernel did not fill. */
static void uninstall(struct pager *pager, struct op *op, uint64_t page, unsigned n, bool write)
{
	for (unsigned i = 0; i < n; i++) {
		pageset_remove(&pager->resident_set, page + i);
		if (write)
			frame_cleaned(pager, op, page + i);
	}
	frames_give_back(pager, n);
}

/* Moves n filled frames into place; *filled: the bytes that are there, also after a failure. */
static int move_frames(struct pager *pager, uint8_t *to, uint8_t *from, unsigned n, bool protect, size_t *filled)
{
	int code = uffd_move(pager->uffd, to, from, (size_t)n << PAGE_SHIFT, filled);

	/* Until here a write would go unnoticed: who moves frames that are to be protected is alone (evict_plan()). */
	if (protect && *filled > 0)
		uffd_protect(pager->uffd, to, *filled, true);
	return code;
}

/* Gives n locked, missing pages their frames, from copies or by moving. Brought in for writing they all count as dirty,
 * so that a sequential writer faults once for many. */
static int install(struct pager *pager, struct op *op, uint64_t page, unsigned n, bool write, uint8_t *from, bool move)
{
	uint32_t number = atomic_fetch_add(&pager->installs, 1);
	uint8_t *to = pager_frame(pager, page);
	size_t filled = 0, copied = 0;
	int code = -EBUSY;

	atomic_store(&pager->recent[number % PAGER_RECENT], page << 8 | n);
	for (unsigned i = 0; i < n; i++) {
		/* Before the frame can be written to. */
		if (write)
			frame_dirtied(pager, op, page + i);
		pageset_add(&pager->resident_set, page + i);
		/* What a stream brings in has yet to prove its use. */
		frame_set_referenced(pager, page + i, n == 1);
	}
	if (move)
		code = move_frames(pager, to, from, n, !write, &filled);
	if (code != 0)
		code = uffd_copy(pager->uffd, to + filled, from + filled, ((size_t)n << PAGE_SHIFT) - filled, !write, &copied);
	/* The program has given a part of them another protection: the kernel fills one mapping a call. */
	if (code == -ENOENT && n > 1 && filled + copied == 0)
		uffd_copy(pager->uffd, to, from, PAGE_SIZE, !write, &copied);
	if (move)
		frames_drop_spares(pager, op, (unsigned)(filled >> PAGE_SHIFT), n);
	if (code != 0) {
		unsigned done = (unsigned)((filled + copied) >> PAGE_SHIFT);

		uninstall(pager, op, page + done, n - done, write);
		return done > 0 ? 0 : code;
	}
	return 0;
}

/* Pages that have come: what the manager kept of them goes, now that their frames are the truth. */
static void promote(struct pager *pager, struct op *op, uint64_t page, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (pager_resident(pager, page + i))
			zswap_invalidate(pager->managed, op, page + i, true);
}

/* The race: the device is removed, and its frames dropped, between our load and our install. Who removes it says so before any
 * frame is looked for; ours are in the set before we look here: one of us sees the other. (A reset waits for us.) */
static void follow_removal(struct pager *pager, struct op *op, uint64_t page, unsigned n)
{
	for (unsigned i = 0; i < n && pager_removed(pager); i++)
		if (pager_resident(pager, page + i))
			pager_drop(pager, op, page + i, true);
}

/* A fault on a page that has a frame, which needs none. False: it has none, or is about to be closed.
 *
 * Not after reclaim, which leaves what nobody takes protected: of two pages that one instruction writes to, the fault on either
 * would protect the other, for ever. */
static bool reopen(struct pager *pager, struct op *op, uint64_t page, bool write, struct stream *stream)
{
	bool there;

	if (!pager_resident(pager, page) || !pager_lock_known(pager, op, page, true))
		return false;
	there = pager_resident(pager, page) && !pager_closed(pager, page);
	if (there) {
		stream->next = page + 1;
		fault_resident(pager, op, page, write, stream);
	}
	pager_unlock(pager, op, page);
	return there;
}

/* The page is poison. Who sleeps on it in the kernel must be told there; SIGBUS delivery asks anew each time. */
static enum fault_result meet_poison(struct pager *pager, uint64_t page)
{
	if (pager->wake)
		uffd_poison(pager->uffd, pager_frame(pager, page), PAGE_SIZE);
	return FAULT_POISON;
}

enum fault_result pager_fault(struct pager *pager, struct op *op, uint64_t page, bool write)
{
	struct lane *lane = lane_of(pager, op);
	struct stream *stream = find_stream(lane, page);
	unsigned want = stream->depth < pager->batch ? stream->depth : pager->batch;
	/* A managed page that has a frame is nowhere else. */
	bool dirty = write || pager->managed != NULL;
	struct supply supply;
	enum fault_result result = FAULT_DONE;
	uint8_t *frames;
	unsigned n = 0;

	if (reopen(pager, op, page, write, stream))
		return FAULT_DONE;
	supply = evict_plan(pager, want, dirty);
	evict_reserve(pager, op, want, &supply);
	frames = supply.spare > 0 ? frames_spare(pager, op) : op->batch;
	if (!pager_lock(pager, op, page)) {
		frames_drop_spares(pager, op, 0, supply.spare);
		frames_give_back(pager, supply.frames);
		return pager_removed(pager) ? meet_poison(pager, page) : FAULT_FAILED;
	}
	stream->next = page + 1;
	/* About to be closed, or just opened: the access finds out. */
	if (pager_closed(pager, page)) {
		result = FAULT_DONE;
	} else if (pager_resident(pager, page)) {
		fault_resident(pager, op, page, write, stream);
	} else if (pager_poisoned(pager, op, page) ||
		   (n = gather(pager, op, page, supply.frames, frames)) == 0) {
		result = meet_poison(pager, page);
	} else {
		/* Counted before the program goes on, so that it finds its own faults counted. */
		count_fault(pager, write ? &lane->write_faults : &lane->read_faults);
		if (n > 1)
			count(&lane->prefetched, n - 1);
		stream->next = page + n;
		if (install(pager, op, page, n, dirty, frames, supply.spare > 0) != 0)
			result = FAULT_FAILED;
		else if (pager->managed != NULL)
			promote(pager, op, page, n);
		follow_removal(pager, op, page, n);
	}
	for (unsigned i = 1; i < n; i++)
		pager_unlock(pager, op, page + i);
	pager_unlock(pager, op, page);
	frames_drop_spares(pager, op, n, supply.spare);
	if (supply.frames > n)
		frames_give_back(pager, supply.frames - n);
	return result;
}

/* ---- flush and periodic write-back ---------------------------------------------------------------------- */

typedef bool choose_fn(struct pager *pager, uint64_t page);

/* Writes back the dirty pages of [first, end) that `choose` accepts, in batches in address order. */
static void flush(struct pager *pager, struct op *op, uint64_t first, uint64_t end, choose_fn *choose)
{
	uint64_t page = first;
	struct batch *batch = &work_of(op)->chosen;

	do {
		batch->count = 0;
		while (batch->count < FLUSH_BATCH) {
			page = pageset_next(&pager->dirty_set, page);
			if (page >= end)
				break;
			if (choose != NULL && !choose(pager, page)) {
				page++;
				continue;
			}
			/* Waits for the first page of a batch only: never with pages in hand. */
			if (!pager_lock_known(pager, op, page, batch->count == 0)) {
				if (batch->count > 0)
					break;
				page++;
				continue;
			}
			if (frame_dirty(pager, page) && frame_own(pager, op, page))
				batch->page[batch->count++] = page;
			else
				pager_unlock(pager, op, page);
			page++;
		}
		clean_batch(pager, op, batch);
	} while (page < end);
}

void pager_flush(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	if (pager->managed == NULL)
		flush(pager, op, first, first + count, NULL);
}

/* Is the page due? One that was dirtied again within its waiting time waits twice as long the next time. */
static bool due(struct pager *pager, uint64_t page)
{
	uint32_t now = pager->period & AGE_PERIOD_MASK;
	uint32_t age = atomic_load_explicit(&pager->age[page], memory_order_relaxed);
	uint32_t exponent = age >> AGE_PERIOD_BITS;
	uint32_t since = (now - age) & AGE_PERIOD_MASK;

	if (pager->budget <= 0 || pager_pinned(pager, page) || since < 1u << exponent)
		return false;
	if (--pager->budget == 0)
		pager->next_due = page + 1;
	if (since > 2u << exponent)
		exponent = 0;
	else if (exponent < AGE_EXPONENT_MAX)
		exponent++;
	atomic_store_explicit(&pager->age[page], (uint16_t)(exponent << AGE_PERIOD_BITS | now), memory_order_relaxed);
	return true;
}

static uint64_t count_redirtied(const struct pager *pager)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < PLACES_MAX; i++)
		sum += atomic_load_explicit(&pager->lanes[i].redirtied, memory_order_relaxed);
	return sum;
}

void pager_write_back_due(struct pager *pager, struct op *op, uint64_t ms)
{
	uint64_t redirtied = count_redirtied(pager);
	uint64_t from;

	/* A page that is cleaned and left alone costs the program nothing: only faults use the credit up. */
	pager->credit += CREDIT_PER_MS * (int64_t)ms - (int64_t)(redirtied - pager->redirtied);
	if (pager->credit > CREDIT_MAX)
		pager->credit = CREDIT_MAX;
	pager->budget = pager->credit;
	pager->redirtied = redirtied;
	pager->period++;
	from = pager->next_due;
	flush(pager, op, from, pager->pages, due);
	flush(pager, op, 0, from, due);
}
