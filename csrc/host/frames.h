/* SPDX-License-Identifier: MIT
 *
 * frames.h - the frames of pages that the caller has locked: their bits, and how they are protected, stored, moved and
 * dropped, one by one or in batches.
 *
 * It does not choose pages, and never waits for one. For the pager's own rooms (pager.c, evict.c, pins.c); what others
 * may do is in pager.h.
 */
#ifndef CRAM_FRAMES_H
#define CRAM_FRAMES_H

#include <sys/uio.h>

#include "pager.h"

/* Pages in a batch at most: the victims of one eviction. Many, so that most faults find room: the sweep costs one in so
 * many of them a pause. */
#define BATCH_MAX 128u
/* Fewer frames than these, or fewer in a row, are not worth moving: each call costs an interrupt of the other CPUs. */
#define FRAMES_MOVE_MIN 8u

/* Locked pages in ascending order. */
struct batch {
	unsigned count;
	uint64_t page[BATCH_MAX];
};

/* What does not fit a small signal stack; in op->work. */
struct work {
	struct batch chosen;
	struct batch failed;
	struct iovec ranges[BATCH_MAX];
};
_Static_assert(sizeof(struct work) <= DEVICE_WORK, "the work fits");

static inline struct work *work_of(const struct op *op)
{
	return op->work;
}
static inline struct lane *lane_of(struct pager *pager, const struct op *op)
{
	return &pager->lanes[op->place];
}
/* The place's spare pages, DEVICE_BATCH of them. */
static inline uint8_t *frames_spare(const struct pager *pager, const struct op *op)
{
	return pager->spares + ((size_t)op->place * DEVICE_BATCH << PAGE_SHIFT);
}

/* ---- counters, and what other processes see of them ------------------------------------------------------- */

static inline void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}
static inline void count_fault(struct pager *pager, _Atomic uint64_t *counter)
{
	count(counter, 1);
	count(&pager->device->self->faults, 1);
}
static inline void count_written_back(struct pager *pager, const struct op *op, uint64_t n)
{
	count(&lane_of(pager, op)->written_back, n);
	count(&pager->device->self->written_back, n);
}
static inline void frames_charge(struct pager *pager, int64_t n)
{
	if (pager->managed != NULL)
		memcg_charge_anon(&pager->managed->zswap->groups, pager->managed->group, n * (int64_t)PAGE_SIZE);
}
/* Counts frames that are there, whatever the window says. */
static inline void frames_take(struct pager *pager, uint64_t n)
{
	frames_charge(pager, (int64_t)n);
	atomic_fetch_add(&pager->resident, n);
	count(&pager->device->self->resident_frames, n);
}
/* Frames that were reserved in the window are free for others. */
static inline void frames_give_back(struct pager *pager, uint64_t n)
{
	frames_charge(pager, -(int64_t)n);
	atomic_fetch_sub(&pager->resident, n);
	atomic_fetch_sub_explicit(&pager->device->self->resident_frames, n, memory_order_relaxed);
}

/* Takes a lock of the pager's, over from a thread that has died if need be. */
static inline void take_lock(struct pager *pager, struct futex_lock *lock)
{
	futex_lock(lock, futex_name(pager->device->client, thread_id()), clients_holder_dead, pager->device->clients);
}

/* ---- a locked page --------------------------------------------------------------------------------------- */

static inline bool frame_dirty(const struct pager *pager, uint64_t page)
{
	return pageset_has(&pager->dirty_set, page);
}
void frame_set_referenced(struct pager *pager, uint64_t page, bool on);
/* The referenced bit as it was, and clears it: the second chance. */
bool frame_spend_chance(struct pager *pager, uint64_t page);
/* The page map and the counters hear that the frame may be newer than the media, before it is; and that it no longer is. */
void frame_dirtied(struct pager *pager, struct op *op, uint64_t page);
void frame_cleaned(struct pager *pager, struct op *op, uint64_t page);
void frame_set_pinned(struct pager *pager, uint64_t page, bool on);
/* Makes a resident page dirty, writable and pinned: from now on no range that is protected contains it. */
void frame_hold(struct pager *pager, struct op *op, uint64_t page);
/* Sees to it that nobody else has the page's device page, so that it may be written to: a fork's gets a new one, locked in
 * its place. Asked before a dirty page is stored. False: the device has none left; the frame must stay. */
bool frame_own(struct pager *pager, struct op *op, uint64_t page);
/* Stores a dirty, protected page; false when the device had no room: the frame must go. */
bool frame_store(struct pager *pager, struct op *op, uint64_t page);
/* A device write behind the page tables' back may still arrive in a pinned frame: stores a snapshot, it stays dirty. */
void frame_store_snapshot(struct pager *pager, struct op *op, uint64_t page);

/* ---- batches --------------------------------------------------------------------------------------------- */

/* Protects the dirty pages among them, range by range: one call costs little more than one page, and a page between
 * them that is not ours only faults once for nothing. Pinned pages are left alone. */
void frames_protect_dirty(struct pager *pager, const struct op *op, const struct batch *batch);
/* Stores the frame of a managed page, which is protected or cannot be touched; it still stands. False: nobody takes it, and it
 * stays. */
bool frame_demote(struct pager *pager, struct op *op, uint64_t page, enum store_why why);
/* Drops the frames of n locked pages, which are clean, with one call for all. */
void frames_drop(struct pager *pager, struct op *op, const uint64_t *pages, unsigned n);
/* Moves the frames of locked pages, which are clean, to the place's spare pages, as far as they come in long runs;
 * returns how many. They still count as resident: they are the caller's. */
unsigned frames_keep(struct pager *pager, const struct op *op, const struct batch *batch);
/* Drops the place's spare pages from first to end. */
void frames_drop_spares(struct pager *pager, const struct op *op, unsigned first, unsigned end);
void frames_unlock(struct pager *pager, struct op *op, const struct batch *batch);

#endif
