/* SPDX-License-Identifier: MIT */
#include "frames.h"

#include <string.h>

#include "uffd.h"

/* A gap of so many pages ends a range that is protected as one: walking it would cost more. */
#define PROTECT_GAP 512u

/* ---- the bits of a locked page -------------------------------------------------------------------------- */

void frame_set_referenced(struct pager *pager, uint64_t page, bool on)
{
	uint64_t bit = 1ull << page % 64;
	_Atomic uint64_t *word = &pager->referenced[page / 64];

	if (on)
		atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
	else
		atomic_fetch_and_explicit(word, ~bit, memory_order_relaxed);
}

bool frame_spend_chance(struct pager *pager, uint64_t page)
{
	uint64_t bit = 1ull << page % 64;

	if (!(atomic_load_explicit(&pager->referenced[page / 64], memory_order_relaxed) & bit))
		return false;
	frame_set_referenced(pager, page, false);
	return true;
}

void frame_dirtied(struct pager *pager, struct op *op, uint64_t page)
{
	/* Anonymous memory dies with its client, and others may have the same device page. */
	if (!pager_anonymous(pager))
		device_mark_dirty(op, pager_dpa(pager, page), true);
	pageset_add(&pager->dirty_set, page);
	count(&pager->device->self->dirty_frames, 1);
	/* The periodic write-back sleeps without a timer while nothing is dirty. */
	if (atomic_fetch_add(&pager->dirty, 1) == 0 && pager->timed)
		client_ring(pager->device->self);
}

void frame_cleaned(struct pager *pager, struct op *op, uint64_t page)
{
	if (!pager_anonymous(pager))
		device_mark_dirty(op, pager_dpa(pager, page), false);
	pageset_remove(&pager->dirty_set, page);
	atomic_fetch_sub(&pager->device->self->dirty_frames, 1);
	atomic_fetch_sub(&pager->dirty, 1);
}

void frame_set_pinned(struct pager *pager, uint64_t page, bool on)
{
	uint64_t bit = 1ull << page % 64;

	if (on)
		atomic_fetch_or(&pager->pinned[page / 64], bit);
	else
		atomic_fetch_and(&pager->pinned[page / 64], ~bit);
}

void frame_hold(struct pager *pager, struct op *op, uint64_t page)
{
	/* The page map hears of it before the first byte changes. */
	if (!frame_dirty(pager, page))
		frame_dirtied(pager, op, page);
	frame_set_pinned(pager, page, true);
	/* The race: who looked before that may yet protect a range around it. Whoever looks later sees the bit, so
	 * that each lane need be seen out of it once. Nobody in there waits for a page. */
	for (unsigned i = 0; i < PLACES_MAX; i++)
		while (atomic_load(&pager->lanes[i].protecting))
			sleep_ns(1000);
	uffd_protect(pager->uffd, pager_frame(pager, page), PAGE_SIZE, false);
}

void pager_write(struct pager *pager, struct op *op, uint64_t page, const void *from)
{
	bool pinned = pager_pinned(pager, page);

	/* Held: a fault of our own, on a page that we have locked, would wait for ever. */
	if (!pinned)
		frame_hold(pager, op, page);
	if (from != NULL)
		memcpy(pager_frame(pager, page), from, PAGE_SIZE);
	else
		memset(pager_frame(pager, page), 0, PAGE_SIZE);
	if (!pinned)
		frame_set_pinned(pager, page, false);
}

/* ---- batches -------------------------------------------------------------------------------------------- */

void frames_unlock(struct pager *pager, struct op *op, const struct batch *batch)
{
	for (unsigned i = 0; i < batch->count; i++)
		pager_unlock(pager, op, batch->page[i]);
}

/* Is there a page that must not be protected, or whose memory may not be ours? */
static bool barred_between(const struct pager *pager, uint64_t first, uint64_t end)
{
	while (first < end && !pager_pinned(pager, first) && !pager_closed(pager, first))
		first++;
	return first < end;
}

static void protect(struct pager *pager, uint64_t first, uint64_t end)
{
	if (end > first)
		uffd_protect(pager->uffd, pager_frame(pager, first), (end - first) << PAGE_SHIFT, true);
}

void frames_protect_dirty(struct pager *pager, const struct op *op, const struct batch *batch)
{
	struct lane *lane = lane_of(pager, op);
	uint64_t from = 0, to = 0; /* the open range is [from, to) */

	atomic_store(&lane->protecting, true);
	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t page = batch->page[i];

		if (!frame_dirty(pager, page) || pager_pinned(pager, page))
			continue;
		if (to == from || page - to > PROTECT_GAP || barred_between(pager, to, page)) {
			protect(pager, from, to);
			from = page;
		}
		to = page + 1;
	}
	protect(pager, from, to);
	atomic_store(&lane->protecting, false);
}

bool frame_own(struct pager *pager, struct op *op, uint64_t page)
{
	uint64_t old = pager_dpa(pager, page), new;

	if (pager->table == NULL || !frame_dirty(pager, page) || !device_shared(op, old))
		return true;
	new = device_take_page(op);
	if (new == DEVICE_NO_PAGE)
		return false;
	/* What the old one holds is the others'; the frame is the truth about ours. */
	atomic_store(&pager->table[page], (uint32_t)new + 1);
	device_put_page(op, old);
	device_unlock_page(op, old);
	return true;
}

void frame_store_snapshot(struct pager *pager, struct op *op, uint64_t page)
{
	memcpy(op->page, pager_frame(pager, page), PAGE_SIZE);
	device_store(op, pager_dpa(pager, page), op->page);
}

bool frame_store(struct pager *pager, struct op *op, uint64_t page)
{
	bool stored = device_store(op, pager_dpa(pager, page), pager_frame(pager, page));

	frame_cleaned(pager, op, page);
	return stored;
}

bool frame_demote(struct pager *pager, struct op *op, uint64_t page, enum store_why why)
{
	if (!zswap_store(pager->managed, op, page, pager_frame(pager, page), why))
		return false;
	frame_cleaned(pager, op, page);
	return true;
}

/* A frame that should have gone and did not (it is locked in memory) is the truth again. */
static void keep_frames(struct pager *pager, struct op *op, const uint64_t *pages, unsigned n)
{
	for (unsigned i = 0; i < n && pager->managed != NULL; i++) {
		zswap_invalidate(pager->managed, op, pages[i], false);
		frame_dirtied(pager, op, pages[i]);
	}
}

void frames_drop(struct pager *pager, struct op *op, const uint64_t *pages, unsigned n)
{
	struct iovec *ranges = work_of(op)->ranges;
	int runs = 0;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *frame = pager_frame(pager, pages[i]);

		if (runs > 0 && (uint8_t *)ranges[runs - 1].iov_base + ranges[runs - 1].iov_len == frame)
			ranges[runs - 1].iov_len += PAGE_SIZE;
		else
			ranges[runs++] = (struct iovec){ frame, PAGE_SIZE };
	}
	if (runs == 0)
		return;
	if (uffd_drop(ranges, runs) != 0) {
		/* They stay: frames that hold the right bytes, and are protected as clean ones must be. */
		for (int i = 0; i < runs; i++)
			uffd_protect(pager->uffd, ranges[i].iov_base, ranges[i].iov_len, true);
		keep_frames(pager, op, pages, n);
		return;
	}
	for (unsigned i = 0; i < n; i++)
		pageset_remove(&pager->resident_set, pages[i]);
	frames_give_back(pager, n);
}

unsigned frames_keep(struct pager *pager, const struct op *op, const struct batch *batch)
{
	uint8_t *spares = frames_spare(pager, op);
	unsigned kept = 0;

	while (kept < batch->count) {
		uint64_t first = batch->page[kept];
		unsigned n = 1, moved;
		size_t bytes;

		while (kept + n < batch->count && batch->page[kept + n] == first + n)
			n++;
		if (n < FRAMES_MOVE_MIN)
			break;
		uffd_move(pager->uffd, spares + ((size_t)kept << PAGE_SHIFT), pager_frame(pager, first),
			  (size_t)n << PAGE_SHIFT, &bytes);
		moved = (unsigned)(bytes >> PAGE_SHIFT);
		for (unsigned i = 0; i < moved; i++)
			pageset_remove(&pager->resident_set, first + i);
		kept += moved;
		if (moved < n)
			break;
	}
	return kept;
}

void frames_drop_spares(struct pager *pager, const struct op *op, unsigned first, unsigned end)
{
	struct iovec range = { frames_spare(pager, op) + ((size_t)first << PAGE_SHIFT), (size_t)(end - first) << PAGE_SHIFT };

	if (first < end)
		uffd_drop(&range, 1);
}

void pager_drop(struct pager *pager, struct op *op, uint64_t page, bool discard)
{
	struct iovec range = { pager_frame(pager, page), PAGE_SIZE };
	bool resident = pager_resident(pager, page);

	if (resident && !discard && !frame_own(pager, op, page))
		return;
	if (resident && frame_dirty(pager, page)) {
		uffd_protect(pager->uffd, range.iov_base, PAGE_SIZE, true);
		if (discard)
			frame_cleaned(pager, op, page);
		else if (pager->managed == NULL)
			frame_store(pager, op, page);
		else if (!frame_demote(pager, op, page, STORE_FORCED))
			return;
	}
	if (resident)
		frames_drop(pager, op, &page, 1);
	else
		uffd_drop(&range, 1);
}
