/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "pager.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "error.h"
#include "memory.h"
#include "thread.h"
#include "uffd.h"

/* Victims of one eviction. Many, so that most faults find room: the sweep costs one in so many of them a pause. */
#define EVICT_BATCH 128u
/* Fewer frames than these, or fewer in a row, are not worth moving: each call costs an interrupt of the other CPUs. */
#define RECYCLE_MIN 8u
/* Pages protected and compressed together by a flush. */
#define FLUSH_BATCH 64u
/* A gap of so many pages between victims ends a range that is protected as one: walking it would cost more. */
#define PROTECT_GAP 512u

#define AGE_PERIOD_BITS 12u
#define AGE_PERIOD_MASK ((1u << AGE_PERIOD_BITS) - 1)
#define AGE_EXPONENT_MAX 6u
/* What the periodic write-back may cost the program: each page that it cleans and the program writes to again is a
 * fault of some 5 us, so that 4 of them a millisecond are 2 % of its time. */
#define CREDIT_PER_MS 4
#define CREDIT_MAX 4096

static uint64_t dpa_page(const struct pager *pager, uint64_t page)
{
	return pager->first + page;
}

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
	if (!sets || pager->referenced == NULL || pager->pinned == NULL || pager->age == NULL) {
		pager_deinit(pager);
		return cram_fail(CRAM_ENOMEM, "no memory for the tables of a mapping of %llu pages",
				 (unsigned long long)pager->pages);
	}
	pager->batch = pager->window / 8 < EVICT_BATCH ? (unsigned)(pager->window / 8) : EVICT_BATCH;
	return 0;
}

void pager_deinit(struct pager *pager)
{
	pageset_deinit(&pager->resident_set);
	pageset_deinit(&pager->dirty_set);
	if (pager->referenced != NULL)
		munmap(pager->referenced, bitmap_size(pager));
	if (pager->pinned != NULL)
		munmap(pager->pinned, bitmap_size(pager));
	if (pager->age != NULL)
		munmap(pager->age, pager->pages * sizeof(*pager->age));
}

static struct lane *lane_of(struct pager *pager, const struct op *op)
{
	return &pager->lanes[op->place];
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* What other processes see of this one's work. */
static void count_fault(struct pager *pager, _Atomic uint64_t *counter)
{
	count(counter, 1);
	count(&pager->device->self->faults, 1);
}

static void count_written_back(struct pager *pager, const struct op *op, uint64_t n)
{
	count(&lane_of(pager, op)->written_back, n);
	count(&pager->device->self->written_back, n);
}

static void give_frames_back(struct pager *pager, uint64_t n)
{
	atomic_fetch_sub(&pager->resident, n);
	atomic_fetch_sub_explicit(&pager->device->self->resident_frames, n, memory_order_relaxed);
}

static uint32_t self_name(const struct pager *pager)
{
	return futex_name(pager->device->client, thread_id());
}

static void lock(struct pager *pager, struct futex_lock *lock)
{
	futex_lock(lock, self_name(pager), clients_holder_dead, pager->device->clients);
}

/* ---- the bits of a locked page -------------------------------------------------------------------------- */

static void set_referenced(struct pager *pager, uint64_t page, bool on)
{
	uint64_t bit = 1ull << page % 64;
	_Atomic uint64_t *word = &pager->referenced[page / 64];

	if (on)
		atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
	else
		atomic_fetch_and_explicit(word, ~bit, memory_order_relaxed);
}

/* The referenced bit as it was, and clears it: the second chance. */
static bool spend_chance(struct pager *pager, uint64_t page)
{
	uint64_t bit = 1ull << page % 64;

	if (!(atomic_load_explicit(&pager->referenced[page / 64], memory_order_relaxed) & bit))
		return false;
	set_referenced(pager, page, false);
	return true;
}

static void note_dirty(struct pager *pager, struct op *op, uint64_t page)
{
	device_mark_dirty(op, dpa_page(pager, page), true);
	pageset_add(&pager->dirty_set, page);
	count(&pager->device->self->dirty_frames, 1);
	/* The periodic write-back sleeps without a timer while nothing is dirty. */
	if (atomic_fetch_add(&pager->dirty, 1) == 0 && pager->timed)
		client_ring(pager->device->self);
}

static void note_clean(struct pager *pager, struct op *op, uint64_t page)
{
	device_mark_dirty(op, dpa_page(pager, page), false);
	pageset_remove(&pager->dirty_set, page);
	atomic_fetch_sub(&pager->device->self->dirty_frames, 1);
	atomic_fetch_sub(&pager->dirty, 1);
}

static bool is_dirty(const struct pager *pager, uint64_t page)
{
	return pageset_has(&pager->dirty_set, page);
}

static void set_pinned(struct pager *pager, uint64_t page, bool on)
{
	uint64_t bit = 1ull << page % 64;

	if (on)
		atomic_fetch_or(&pager->pinned[page / 64], bit);
	else
		atomic_fetch_and(&pager->pinned[page / 64], ~bit);
}

/* Makes a resident page dirty, writable and pinned: from now on no range that is protected contains it. */
static void hold(struct pager *pager, struct op *op, uint64_t page)
{
	/* The page map hears of it before the first byte changes. */
	if (!is_dirty(pager, page))
		note_dirty(pager, op, page);
	set_pinned(pager, page, true);
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
		hold(pager, op, page);
	if (from != NULL)
		memcpy(pager_frame(pager, page), from, PAGE_SIZE);
	else
		memset(pager_frame(pager, page), 0, PAGE_SIZE);
	if (!pinned)
		set_pinned(pager, page, false);
}

/* ---- write-back ----------------------------------------------------------------------------------------- */

/* Locked pages in ascending order. */
struct batch {
	unsigned count;
	uint64_t page[EVICT_BATCH];
};

/* What does not fit a small signal stack; in op->work. */
struct work {
	struct batch chosen;
	struct batch failed;
	struct iovec ranges[EVICT_BATCH];
};
_Static_assert(sizeof(struct work) <= DEVICE_WORK, "the work fits");

static struct work *work_of(const struct op *op)
{
	return op->work;
}

static void unlock_batch(struct pager *pager, struct op *op, const struct batch *batch)
{
	for (unsigned i = 0; i < batch->count; i++)
		device_unlock_page(op, dpa_page(pager, batch->page[i]));
}

static bool pinned_between(const struct pager *pager, uint64_t first, uint64_t end)
{
	while (first < end && !pager_pinned(pager, first))
		first++;
	return first < end;
}

static void protect(struct pager *pager, uint64_t first, uint64_t end)
{
	if (end > first)
		uffd_protect(pager->uffd, pager_frame(pager, first), (end - first) << PAGE_SHIFT, true);
}

/* Protects the dirty pages among them, range by range: one call costs little more than one page, and a page between
 * them that is not ours only faults once for nothing. Pinned pages are left alone. */
static void protect_dirty(struct pager *pager, const struct op *op, const struct batch *batch)
{
	struct lane *lane = lane_of(pager, op);
	uint64_t from = 0, to = 0; /* the open range is [from, to) */

	atomic_store(&lane->protecting, true);
	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t page = batch->page[i];

		if (!is_dirty(pager, page) || pager_pinned(pager, page))
			continue;
		if (to == from || page - to > PROTECT_GAP || pinned_between(pager, to, page)) {
			protect(pager, from, to);
			from = page;
		}
		to = page + 1;
	}
	protect(pager, from, to);
	atomic_store(&lane->protecting, false);
}

/* A device write behind the page tables' back may still arrive in a pinned frame: store a snapshot, it stays dirty. */
static void store_snapshot(struct pager *pager, struct op *op, uint64_t page)
{
	memcpy(op->page, pager_frame(pager, page), PAGE_SIZE);
	device_store(op, dpa_page(pager, page), op->page);
}

/* Stores a dirty, protected page; false when the device had no room: the frame must go. */
static bool store_frame(struct pager *pager, struct op *op, uint64_t page)
{
	bool stored = device_store(op, dpa_page(pager, page), pager_frame(pager, page));

	note_clean(pager, op, page);
	return stored;
}

/* Drops the frames of n locked pages, which are clean, with one call for all. */
static void drop_frames(struct pager *pager, const struct op *op, const uint64_t *pages, unsigned n)
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
		return;
	}
	for (unsigned i = 0; i < n; i++)
		pageset_remove(&pager->resident_set, pages[i]);
	give_frames_back(pager, n);
}

static uint8_t *spares_of(const struct pager *pager, const struct op *op)
{
	return pager->spares + ((size_t)op->place * DEVICE_BATCH << PAGE_SHIFT);
}

/* Moves the frames of locked pages, which are clean, to the place's spare pages, as far as they come in long runs;
 * returns how many. They still count as resident: they are the caller's. */
static unsigned keep_frames(struct pager *pager, const struct op *op, const struct batch *batch)
{
	uint8_t *spares = spares_of(pager, op);
	unsigned kept = 0;

	while (kept < batch->count) {
		uint64_t first = batch->page[kept];
		unsigned n = 1, moved;
		size_t bytes;

		while (kept + n < batch->count && batch->page[kept + n] == first + n)
			n++;
		if (n < RECYCLE_MIN)
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

/* Drops the place's spare pages from first to end. */
static void drop_spares(struct pager *pager, const struct op *op, unsigned first, unsigned end)
{
	struct iovec range = { spares_of(pager, op) + ((size_t)first << PAGE_SHIFT), (size_t)(end - first) << PAGE_SHIFT };

	if (first < end)
		uffd_drop(&range, 1);
}

/* Writes back locked pages that stay resident, but those whose write the device dropped. Unlocks them all. */
static void clean_batch(struct pager *pager, struct op *op, const struct batch *batch)
{
	struct batch *failed = &work_of(op)->failed;
	unsigned written = 0;

	failed->count = 0;
	protect_dirty(pager, op, batch);
	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t page = batch->page[i];

		if (!is_dirty(pager, page))
			continue;
		written++;
		if (pager_pinned(pager, page))
			store_snapshot(pager, op, page);
		else if (!store_frame(pager, op, page))
			failed->page[failed->count++] = page;
	}
	if (failed->count > 0)
		drop_frames(pager, op, failed->page, failed->count);
	count_written_back(pager, op, written);
	unlock_batch(pager, op, batch);
}

/* What a fault has to put its pages into. */
struct supply {
	bool recycle;    /* it may move the frames of victims */
	bool alone;      /* no other thread touches the memory: see thread_alone() */
	unsigned frames; /* reserved in the window */
	unsigned spare;  /* so many of them lie in the first of the place's spare pages; 0: they are still to be made */
};

/* Asks for the first half of a frame that is looked at next: it has long left the caches, and the processor's own
 * prefetching begins anew with each page. */
static void expect_frame(const uint8_t *frame)
{
	for (unsigned i = 0; i < PAGE_SIZE / 2; i += 64)
		__builtin_prefetch(frame + i);
}

/* Writes back locked pages, none of them pinned, and drops their frames or makes them spare ones. Unlocks the pages. */
static void evict_batch(struct pager *pager, struct op *op, const struct batch *batch, struct supply *supply)
{
	unsigned written = 0;

	if (!supply->alone)
		protect_dirty(pager, op, batch);
	for (unsigned i = 0; i < batch->count; i++) {
		if (i + 1 < batch->count && is_dirty(pager, batch->page[i + 1]))
			expect_frame(pager_frame(pager, batch->page[i + 1]));
		if (is_dirty(pager, batch->page[i])) {
			store_frame(pager, op, batch->page[i]);
			written++;
		}
	}
	if (supply->recycle)
		supply->spare = supply->frames = keep_frames(pager, op, batch);
	drop_frames(pager, op, batch->page + supply->spare, batch->count - supply->spare);
	count_written_back(pager, op, written);
	count(&lane_of(pager, op)->evicted, batch->count);
	unlock_batch(pager, op, batch);
}

void pager_drop(struct pager *pager, struct op *op, uint64_t page, bool discard)
{
	struct iovec range = { pager_frame(pager, page), PAGE_SIZE };
	bool resident = pager_resident(pager, page);

	if (resident && is_dirty(pager, page)) {
		uffd_protect(pager->uffd, range.iov_base, PAGE_SIZE, true);
		if (discard)
			note_clean(pager, op, page);
		else
			store_frame(pager, op, page);
	}
	if (uffd_drop(&range, 1) == 0 && resident) {
		pageset_remove(&pager->resident_set, page);
		give_frames_back(pager, 1);
	}
}

/* ---- eviction ------------------------------------------------------------------------------------------- */

/* Recent installs, as far as they leave three quarters of the window to the sweep. */
struct recent {
	unsigned count;
	uint64_t first[PAGER_RECENT];
	uint64_t pages[PAGER_RECENT];
};

static void load_recent(const struct pager *pager, struct recent *recent)
{
	uint32_t newest = atomic_load(&pager->installs);
	uint64_t sum = 0;

	recent->count = 0;
	for (unsigned i = 1; i <= PAGER_RECENT; i++) {
		uint64_t install = atomic_load(&pager->recent[(newest - i) % PAGER_RECENT]);

		sum += install & 0xff;
		if (sum > pager->window / 4)
			break;
		recent->first[recent->count] = install >> 8;
		recent->pages[recent->count++] = install & 0xff;
	}
}

static bool is_recent(const struct recent *recent, uint64_t page)
{
	for (unsigned i = 0; i < recent->count; i++)
		if (page - recent->first[i] < recent->pages[i])
			return true;
	return false;
}

/* Moves the hand on and locks the pages that have had their second chance. A batch ends where the hand wraps, so that
 * it is in ascending order. */
static void choose_victims(struct pager *pager, struct op *op, unsigned most, struct batch *batch)
{
	/* Two laps spend the second chances; in a third, when hardly more is left than was just brought in (the rest
	 * may be pinned), that goes too. */
	uint64_t lap = atomic_load(&pager->resident) + 1;
	uint64_t left = 3 * lap;
	struct recent recent;

	load_recent(pager, &recent);
	batch->count = 0;
	lock(pager, &pager->hand_lock);
	while (batch->count < most && left-- > 0) {
		uint64_t page = pageset_next(&pager->resident_set, pager->hand);

		if (page == PAGESET_END) {
			pager->hand = 0;
			if (batch->count > 0)
				break;
			continue;
		}
		pager->hand = page + 1;
		if (pager_pinned(pager, page) || spend_chance(pager, page) || (left > lap && is_recent(&recent, page)))
			continue;
		/* A page that somebody works on is no victim. */
		if (!device_trylock_page(op, dpa_page(pager, page)))
			continue;
		if (pager_resident(pager, page) && !pager_pinned(pager, page))
			batch->page[batch->count++] = page;
		else
			device_unlock_page(op, dpa_page(pager, page));
	}
	futex_unlock(&pager->hand_lock);
}

/* Adds frames to the resident ones, if the window allows. Not add and undo: others would find it full who fit. */
static bool take_frames(struct pager *pager, unsigned n)
{
	uint64_t resident = atomic_load(&pager->resident);

	do {
		if (resident + n > pager->window)
			return false;
	} while (!atomic_compare_exchange_weak(&pager->resident, &resident, resident + n));
	count(&pager->device->self->resident_frames, n);
	return true;
}

/* May frames be moved to where a fault needs so many, and with what care? */
static struct supply plan_supply(const struct pager *pager, unsigned want, bool write)
{
	struct supply supply = { .recycle = pager->spares != NULL && want >= RECYCLE_MIN };

	/* The kernel's own accesses, which a monitor answers, come from no thread of ours. */
	supply.alone = supply.recycle && !pager->wake && thread_alone();
	/* The race: another thread writes to a page between its arrival, writable, and its protection; we would take
	 * it for clean. Pages brought in for writing are dirty and not protected. */
	supply.recycle = supply.recycle && (write || supply.alone);
	return supply;
}

/* Reserves up to want frames, at least one, evicting as needed. */
static void reserve_frames(struct pager *pager, struct op *op, unsigned want, struct supply *supply)
{
	struct batch *batch = &work_of(op)->chosen;

	while (!take_frames(pager, want)) {
		choose_victims(pager, op, supply->recycle ? want : pager->batch, batch);
		if (batch->count > 0) {
			evict_batch(pager, op, batch, supply);
			if (supply->spare > 0)
				return;
			continue;
		}
		/* All in other threads' hands, or pinned: take less, and let them go on. */
		want = 1;
		supply->recycle = false;
		place_park(pager->device->clients, pager->device->client, op->place);
		sleep_ns(20000);
		while (!place_unpark(pager->device->clients, pager->device->client, op->place))
			device_reap(pager->device, NULL);
	}
	supply->frames = want;
}

void pager_evict_all(struct pager *pager, struct op *op)
{
	uint64_t page = 0;

	while ((page = pageset_next(&pager->resident_set, page)) != PAGESET_END) {
		device_lock_page(op, dpa_page(pager, page));
		if (pager_resident(pager, page))
			pager_drop(pager, op, page, false);
		device_unlock_page(op, dpa_page(pager, page));
		page++;
	}
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

	note_dirty(pager, op, page);
	set_referenced(pager, page, true);
	while (end < page + stream->depth && end < pager->pages && device_trylock_page(op, dpa_page(pager, end))) {
		if (!pager_resident(pager, end) || is_dirty(pager, end)) {
			device_unlock_page(op, dpa_page(pager, end));
			break;
		}
		note_dirty(pager, op, end++);
	}
	uffd_protect(pager->uffd, pager_frame(pager, page), (end - page) << PAGE_SHIFT, false);
	stream->next = end;
	while (--end > page)
		device_unlock_page(op, dpa_page(pager, end));
}

/* A fault on a page that is there: its first write, or one that another thread has answered meanwhile. */
static void fault_resident(struct pager *pager, struct op *op, uint64_t page, bool write, struct stream *stream)
{
	if (write && !is_dirty(pager, page)) {
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

/* Reads the locked page and those that follow into `to`, locking them, as far as they are missing and whole; returns
 * how many, 0 when the page itself is poison. */
static unsigned gather(struct pager *pager, struct op *op, uint64_t page, unsigned most, uint8_t *to)
{
	unsigned n = 0;

	if (device_load(op, dpa_page(pager, page), to) != 0)
		return 0;
	for (n = 1; n < most && page + n < pager->pages; n++) {
		uint64_t next = dpa_page(pager, page + n);

		if (!device_trylock_page(op, next))
			break;
		if (pager_resident(pager, page + n) || device_poisoned(op, next) ||
		    device_load(op, next, to + n * PAGE_SIZE) != 0) {
			device_unlock_page(op, next);
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
			note_clean(pager, op, page + i);
	}
	give_frames_back(pager, n);
}

/* Moves n filled frames into place; *filled: the bytes that are there, also after a failure. */
static int move_frames(struct pager *pager, uint8_t *to, uint8_t *from, unsigned n, bool protect, size_t *filled)
{
	int code = uffd_move(pager->uffd, to, from, (size_t)n << PAGE_SHIFT, filled);

	/* Until here a write would go unnoticed: who moves frames that are to be protected is alone (plan_supply()). */
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
			note_dirty(pager, op, page + i);
		pageset_add(&pager->resident_set, page + i);
		/* What a stream brings in has yet to prove its use. */
		set_referenced(pager, page + i, n == 1);
	}
	if (move)
		code = move_frames(pager, to, from, n, !write, &filled);
	if (code != 0)
		code = uffd_copy(pager->uffd, to + filled, from + filled, ((size_t)n << PAGE_SHIFT) - filled, !write, &copied);
	if (move)
		drop_spares(pager, op, (unsigned)(filled >> PAGE_SHIFT), n);
	if (code != 0) {
		unsigned done = (unsigned)((filled + copied) >> PAGE_SHIFT);

		uninstall(pager, op, page + done, n - done, write);
		return done > 0 ? 0 : code;
	}
	return 0;
}

enum fault_result pager_fault(struct pager *pager, struct op *op, uint64_t page, bool write)
{
	struct lane *lane = lane_of(pager, op);
	struct stream *stream = find_stream(lane, page);
	unsigned want = stream->depth < pager->batch ? stream->depth : pager->batch;
	struct supply supply = plan_supply(pager, want, write);
	enum fault_result result = FAULT_DONE;
	uint8_t *frames;
	unsigned n = 0;

	reserve_frames(pager, op, want, &supply);
	frames = supply.spare > 0 ? spares_of(pager, op) : op->batch;
	device_lock_page(op, dpa_page(pager, page));
	stream->next = page + 1;
	if (pager_resident(pager, page)) {
		fault_resident(pager, op, page, write, stream);
	} else if (device_poisoned(op, dpa_page(pager, page)) ||
		   (n = gather(pager, op, page, supply.frames, frames)) == 0) {
		result = FAULT_POISON;
		/* Who sleeps on it in the kernel must be told there; SIGBUS delivery asks anew each time. */
		if (pager->wake)
			uffd_poison(pager->uffd, pager_frame(pager, page), PAGE_SIZE);
	} else {
		/* Counted before the program goes on, so that it finds its own faults counted. */
		count_fault(pager, write ? &lane->write_faults : &lane->read_faults);
		if (n > 1)
			count(&lane->prefetched, n - 1);
		stream->next = page + n;
		if (install(pager, op, page, n, write, frames, supply.spare > 0) != 0)
			result = FAULT_FAILED;
	}
	for (unsigned i = 1; i < n; i++)
		device_unlock_page(op, dpa_page(pager, page + i));
	device_unlock_page(op, dpa_page(pager, page));
	drop_spares(pager, op, n, supply.spare);
	if (supply.frames > n)
		give_frames_back(pager, supply.frames - n);
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
			if (batch->count == 0)
				device_lock_page(op, dpa_page(pager, page));
			else if (!device_trylock_page(op, dpa_page(pager, page)))
				break;
			if (is_dirty(pager, page))
				batch->page[batch->count++] = page;
			else
				device_unlock_page(op, dpa_page(pager, page));
			page++;
		}
		clean_batch(pager, op, batch);
	} while (page < end);
}

void pager_flush(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
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

/* ---- pins ----------------------------------------------------------------------------------------------- */

static bool pinned_by(const struct pager *pager, uint64_t page, unsigned except)
{
	for (unsigned i = 0; i < pager->pin_count; i++)
		if (i != except && page - pager->pins[i].first < pager->pins[i].count)
			return true;
	return false;
}

/* Unpins the pages of [first, first + count) that no other pin holds. Each under its lock: pager_write() relies on a
 * pinned page staying so, and pins pages for a moment itself, so that the bit alone does not say whose it is. */
static void release_pages(struct pager *pager, struct op *op, uint64_t first, uint64_t count, unsigned except)
{
	for (uint64_t page = first; page < first + count; page++) {
		if (pinned_by(pager, page, except))
			continue;
		device_lock_page(op, dpa_page(pager, page));
		set_pinned(pager, page, false);
		device_unlock_page(op, dpa_page(pager, page));
		pager->pinned_pages--;
	}
}

/* Makes one page resident, writable and pinned. */
static enum fault_result pin_page(struct pager *pager, struct op *op, uint64_t page)
{
	for (;;) {
		enum fault_result result;

		device_lock_page(op, dpa_page(pager, page));
		if (pager_resident(pager, page)) {
			hold(pager, op, page);
			device_unlock_page(op, dpa_page(pager, page));
			return FAULT_DONE;
		}
		device_unlock_page(op, dpa_page(pager, page));
		result = pager_fault(pager, op, page, true);
		if (result != FAULT_DONE)
			return result;
	}
}

static int pin_range(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	uint64_t room = pager->window - pager->batch;
	uint64_t fresh = 0;

	if (pager->pin_count == PAGER_PINS_MAX)
		return cram_fail(CRAM_ENOMEM, "%u ranges are pinned already", PAGER_PINS_MAX);
	for (uint64_t page = first; page < first + count; page++)
		fresh += !pinned_by(pager, page, PAGER_PINS_MAX);
	if (pager->pinned_pages + fresh > room)
		return cram_fail(CRAM_ENOMEM, "pinning %llu more pages, with %llu pinned, in a window that allows %llu",
				 (unsigned long long)fresh, (unsigned long long)pager->pinned_pages,
				 (unsigned long long)room);
	for (uint64_t page = first; page < first + count; page++) {
		enum fault_result result;

		if (pinned_by(pager, page, PAGER_PINS_MAX))
			continue;
		result = pin_page(pager, op, page);
		if (result == FAULT_DONE) {
			pager->pinned_pages++;
			continue;
		}
		release_pages(pager, op, first, page - first, PAGER_PINS_MAX);
		if (result == FAULT_POISON)
			return cram_fail(CRAM_EPOISON, "the page at offset 0x%llx is poisoned",
					 (unsigned long long)(page << PAGE_SHIFT));
		return cram_fail(CRAM_ENOMEM, "no memory for the frame at offset 0x%llx",
				 (unsigned long long)(page << PAGE_SHIFT));
	}
	pager->pins[pager->pin_count++] = (struct pin){ first, count };
	return 0;
}

int pager_pin(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	int code;

	lock(pager, &pager->pin_lock);
	code = pin_range(pager, op, first, count);
	futex_unlock(&pager->pin_lock);
	return code;
}

int pager_unpin(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	int code = CRAM_EINVAL;

	lock(pager, &pager->pin_lock);
	for (unsigned i = 0; i < pager->pin_count && code != 0; i++) {
		if (pager->pins[i].first != first || pager->pins[i].count != count)
			continue;
		release_pages(pager, op, first, count, i);
		pager->pins[i] = pager->pins[--pager->pin_count];
		code = 0;
	}
	futex_unlock(&pager->pin_lock);
	return code == 0 ? 0
			 : cram_fail(code, "offset 0x%llx, length 0x%llx is not a pinned range",
				     (unsigned long long)(first << PAGE_SHIFT), (unsigned long long)(count << PAGE_SHIFT));
}
