/* SPDX-License-Identifier: MIT
 *
 * pager.h - frames under a budget: memory whose pages are a range of the device, one to one, or anonymous: each gets a
 * device page of its own at its first touch, which forks share until one of them writes; or managed: where a page without a
 * frame is, a manager decides (zswap.h).
 *
 * It does not know how a fault arrives (delivery.h), nor who else has the device open. Pages are numbered from the
 * mapping's start. Per page it keeps bits (resident, dirty, referenced, pinned) and 16 bits of write-back age.
 *
 * A page's bits, its protection and its frame change only under the device's lock of that page, by a thread in an op
 * with signals blocked. The invariants, whenever nobody holds the lock:
 *   not resident   no page table entry, or a poison mark: the first access faults
 *   pinned         resident, dirty, and never protected
 *   resident       clean: write-protected, the media has the same bytes
 *                  dirty: the frame is the truth, and the page map's entry says DIRTY. It may be protected all the
 *                         same (a sweep protects whole ranges): the next write faults and finds it dirty
 *                  managed: always dirty, and without an entry in the swap table
 * Eviction takes victims by trylock, so that it never waits with a page in hand.
 */
#ifndef CRAM_PAGER_H
#define CRAM_PAGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/device.h"
#include "pageset.h"
#include "zswap.h"

#define PAGER_PINS_MAX 256u
#define PAGER_RECENT 8u

/* One run of faults, each where the one before it ended. */
struct stream {
	uint64_t next;  /* the page after those of its last fault */
	uint32_t depth; /* pages that its last fault brought in; 0: no stream yet */
};

/* A copy reads one and writes another; a monitor answers several threads. */
#define STREAMS 4u

/* What one thread (place) did here last, and its counters. */
struct lane {
	_Alignas(64) struct stream streams[STREAMS];
	uint32_t oldest;            /* the stream that a fault elsewhere replaces */
	_Atomic bool protecting;    /* it protects ranges, having looked for pinned pages in them */
	_Atomic uint64_t read_faults, write_faults, protect_faults, prefetched, evicted, written_back;
	_Atomic uint64_t redirtied; /* faults on pages that the periodic write-back had cleaned */
};

struct pin {
	uint64_t first, count;
};

struct pager {
	struct device *device;
	uint8_t *base;
	uint64_t pages;
	uint64_t first;       /* DPA of the first page, in pages; one to one */
	_Atomic uint32_t *table; /* the device page of each page (dpas.h); NULL: one to one, or managed */
	struct zswap_memory *managed; /* NULL: the device's own; else device is but the home (zswap.h) */
	_Atomic uint64_t *opened; /* bitmap, anonymous: pages that may be accessed; others never get a frame */
	int uffd;
	uint8_t *spares;      /* DEVICE_BATCH pages a place, empty but during an eviction; NULL: frames cannot be moved */
	bool wake;            /* somebody may sleep on a page that turns out to be there (monitor delivery) */
	bool timed;           /* a periodic write-back wants to hear of the first dirty frame */
	uint64_t window;      /* frames at most */
	uint64_t low, high;   /* managed: reclaim in the background begins above high, and ends at low */
	unsigned batch;       /* frames that an eviction frees */
	_Alignas(64) _Atomic uint64_t resident;
	_Alignas(64) _Atomic uint64_t dirty;
	struct pageset resident_set;
	struct pageset dirty_set;
	_Atomic uint64_t *referenced; /* bitmaps */
	_Atomic uint64_t *pinned;
	/* The last installs, all threads: first page << 8 | pages. An instruction may need several pages at once, and a
	 * copy goes back to where it began; a sweep that has caught up must not take what was just brought in. */
	_Atomic uint64_t recent[PAGER_RECENT];
	_Atomic uint32_t installs;
	_Atomic uint16_t *age;                /* bits 0..11: period of the last write-back, 12..15: back-off exponent */
	uint32_t period;
	/* The periodic write-back's; service thread only. */
	int64_t credit;               /* faults that it may still cause */
	int64_t budget;               /* pages that it may still clean in this period */
	uint64_t redirtied;           /* faults that it had caused by the last period */
	uint64_t next_due;            /* where it goes on: a budget that runs out must not favour low addresses */
	struct futex_lock hand_lock;  /* the sweep's position */
	uint64_t hand;
	struct futex_lock pin_lock;
	uint64_t pinned_pages;
	unsigned pin_count;
	struct pin pins[PAGER_PINS_MAX];
	struct lane lanes[PLACES_MAX];
};

#define PAGER_SPARES ((size_t)PLACES_MAX * DEVICE_BATCH << PAGE_SHIFT)

/* Sets up the tables of a mapping; base, uffd and spares (PAGER_SPARES bytes, registered) are the caller's. CRAM_ENOMEM. pager must be zeroed. */
int pager_init(struct pager *pager);
void pager_deinit(struct pager *pager);

enum fault_result {
	FAULT_DONE,   /* try the access again */
	FAULT_POISON, /* the page has a poisoned line */
	FAULT_FAILED, /* no frame could be had: the kernel is out of memory */
};

/* Makes a page accessible. */
enum fault_result pager_fault(struct pager *pager, struct op *op, uint64_t page, bool write);

/* Writes back the pages of [first, first + count) that are dirty at the call. */
void pager_flush(struct pager *pager, struct op *op, uint64_t first, uint64_t count);
/* One period of the write-back, ms after the last one: pages that are due, as many as the faults that it causes (pages
 * written to again) allow. */
void pager_write_back_due(struct pager *pager, struct op *op, uint64_t ms);
/* The device has lost its contents, and the frames, which are its own, go with them, pinned ones too: what was dirty is poison. */
void pager_lose(struct pager *pager, struct op *op);
/* Is the device gone, whose pages these are? */
static inline bool pager_removed(const struct pager *pager)
{
	return pager->managed == NULL && device_removed(pager->device);
}
/* Writes everything back and drops every frame; for the end, when nothing can fault any more. */
void pager_evict_all(struct pager *pager, struct op *op);

/* CRAM_ENOMEM, CRAM_EPOISON, CRAM_EINVAL: see cram_pin(). */
int pager_pin(struct pager *pager, struct op *op, uint64_t first, uint64_t count);
int pager_unpin(struct pager *pager, struct op *op, uint64_t first, uint64_t count);

/* Takes frames from a managed memory and stores them, at most one batch: how many of `pages`; 0 when none is to be had. */
unsigned pager_reclaim(struct pager *pager, struct op *op, uint64_t pages);

/* Anonymous memory, managed or not: */

/* Drops the pages of a range and gives their device pages back: they read as zeros. */
void pager_discard(struct pager *pager, struct op *op, uint64_t first, uint64_t count);
/* Writes back and drops the frames of a range. */
void pager_evict(struct pager *pager, struct op *op, uint64_t first, uint64_t count);
/* Whether the pages of a range may get frames: at first they may not. Closing drops those they have. */
void pager_close(struct pager *pager, struct op *op, uint64_t first, uint64_t count);
void pager_open(struct pager *pager, uint64_t first, uint64_t count);
/* Moves the pages of a range, both closed, to another that has none. */
void pager_move(struct pager *pager, struct op *op, uint64_t from, uint64_t to, uint64_t count);
/* Takes a page over that the kernel has filled before anybody watched: a dirty frame. False: the device has no page. */
bool pager_adopt(struct pager *pager, struct op *op, uint64_t page);
/* The page, at or after this one, whose device page is dpa; UINT64_MAX when none is. A walk through the table. */
uint64_t pager_find(struct pager *pager, uint64_t page, uint64_t dpa);

/* Locks a page: its device page, for which anonymous memory may have to take one. False: the device has none left. */
bool pager_lock(struct pager *pager, struct op *op, uint64_t page);
/* The same without waiting. */
bool pager_trylock(struct pager *pager, struct op *op, uint64_t page);
/* Locks a page, waiting or not, if it has a device page. */
bool pager_lock_known(struct pager *pager, struct op *op, uint64_t page, bool wait);
void pager_unlock(struct pager *pager, struct op *op, uint64_t page);

/* On a page that op has locked: */

/* Has it a poisoned line, as far as can be told without loading it? */
bool pager_poisoned(const struct pager *pager, const struct op *op, uint64_t page);
/* The page's device page. */
static inline uint64_t pager_dpa(const struct pager *pager, uint64_t page)
{
	return pager->table == NULL ? pager->first + page : atomic_load_explicit(&pager->table[page], memory_order_relaxed) - 1;
}
static inline bool pager_anonymous(const struct pager *pager)
{
	return pager->table != NULL || pager->managed != NULL;
}
static inline bool pager_closed(const struct pager *pager, uint64_t page)
{
	return pager->opened != NULL && !(atomic_load_explicit(&pager->opened[page / 64], memory_order_relaxed) >> page % 64 & 1);
}

static inline bool pager_resident(const struct pager *pager, uint64_t page)
{
	return pageset_has(&pager->resident_set, page);
}
static inline bool pager_pinned(const struct pager *pager, uint64_t page)
{
	return atomic_load_explicit(&pager->pinned[page / 64], memory_order_relaxed) >> page % 64 & 1;
}
static inline uint8_t *pager_frame(const struct pager *pager, uint64_t page)
{
	return pager->base + (page << PAGE_SHIFT);
}
/* Writes to a resident page through its frame; from NULL writes zeros. */
void pager_write(struct pager *pager, struct op *op, uint64_t page, const void *from);
/* Writes the page back if it is dirty, or not (discard), and drops its frame or poison mark. A managed page goes wherever there
 * is room, past all limits; it stays where the machine has none. */
void pager_drop(struct pager *pager, struct op *op, uint64_t page, bool discard);

#endif
