/* SPDX-License-Identifier: MIT */
#include "evict.h"

#include "thread.h"

/* Batches that reclaim may take without progress: mm/memcontrol.c, MAX_RECLAIM_RETRIES. */
#define RECLAIM_RETRIES 16u

/* Asks for the first half of a frame that is looked at next: it has long left the caches, and the processor's own
 * prefetching begins anew with each page. */
static void expect_frame(const uint8_t *frame)
{
	for (unsigned i = 0; i < PAGE_SIZE / 2; i += 64)
		__builtin_prefetch(frame + i);
}

/* Stores the locked pages of a managed memory; those that nobody takes leave the batch. */
static void demote_batch(struct pager *pager, struct op *op, struct batch *batch, enum store_why why)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < batch->count; i++) {
		if (i + 1 < batch->count)
			expect_frame(pager_frame(pager, batch->page[i + 1]));
		if (frame_demote(pager, op, batch->page[i], why))
			batch->page[kept++] = batch->page[i];
		else
			pager_unlock(pager, op, batch->page[i]);
	}
	batch->count = kept;
}

/* Writes back locked pages, none of them pinned, and drops their frames or makes them spare ones. Unlocks the pages; how many
 * frames were freed. */
static unsigned evict_batch(struct pager *pager, struct op *op, struct batch *batch, struct supply *supply)
{
	unsigned written = 0;

	if (!supply->alone)
		frames_protect_dirty(pager, op, batch);
	if (pager->managed != NULL) {
		demote_batch(pager, op, batch, supply->why);
		written = batch->count;
	}
	for (unsigned i = 0; i < batch->count && pager->managed == NULL; i++) {
		if (i + 1 < batch->count && frame_dirty(pager, batch->page[i + 1]))
			expect_frame(pager_frame(pager, batch->page[i + 1]));
		if (frame_dirty(pager, batch->page[i])) {
			frame_store(pager, op, batch->page[i]);
			written++;
		}
	}
	if (supply->recycle)
		supply->spare = supply->frames = frames_keep(pager, op, batch);
	frames_drop(pager, op, batch->page + supply->spare, batch->count - supply->spare);
	count_written_back(pager, op, written);
	count(&lane_of(pager, op)->evicted, batch->count);
	frames_unlock(pager, op, batch);
	return batch->count;
}

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

/* Lets those go that cannot be stored, if they are dirty: false when that is all of them. Not below the hand's lock: to free
 * what the dead have, all others must stand at a page boundary. */
static bool own_batch(struct pager *pager, struct op *op, struct batch *batch)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < batch->count; i++) {
		if (frame_own(pager, op, batch->page[i]))
			batch->page[kept++] = batch->page[i];
		else
			pager_unlock(pager, op, batch->page[i]);
	}
	batch->count = kept;
	return kept > 0;
}

/* Moves the hand on and locks the pages that have had their second chance. A batch ends where the hand wraps, so that
 * it is in ascending order. False: there is none, because the device has no page left to store one in. */
static bool choose_victims(struct pager *pager, struct op *op, unsigned most, struct batch *batch)
{
	/* Two laps spend the second chances; in a third, when hardly more is left than was just brought in (the rest
	 * may be pinned), that goes too. */
	uint64_t lap = atomic_load(&pager->resident) + 1;
	uint64_t left = 3 * lap;
	struct recent recent;

	load_recent(pager, &recent);
	batch->count = 0;
	take_lock(pager, &pager->hand_lock);
	while (batch->count < most && left-- > 0) {
		uint64_t page = pageset_next(&pager->resident_set, pager->hand);

		if (page == PAGESET_END) {
			pager->hand = 0;
			if (batch->count > 0)
				break;
			continue;
		}
		pager->hand = page + 1;
		if (pager_pinned(pager, page) || frame_spend_chance(pager, page) || (left > lap && is_recent(&recent, page)))
			continue;
		/* A page that somebody works on is no victim. */
		if (!pager_lock_known(pager, op, page, false))
			continue;
		/* A frame that nobody may read, and that could not go when it was closed, stays. */
		if (pager_resident(pager, page) && !pager_pinned(pager, page) && !pager_closed(pager, page))
			batch->page[batch->count++] = page;
		else
			pager_unlock(pager, op, page);
	}
	futex_unlock(&pager->hand_lock);
	return batch->count == 0 || own_batch(pager, op, batch);
}

/* The nearest group that n frames more of the memory would take past its limit, or MEMCG_NONE. Threads that ask at once may
 * take it past it together. */
static uint32_t group_over(const struct pager *pager, unsigned n)
{
	const struct zswap_memory *memory = pager->managed;

	if (memory == NULL)
		return MEMCG_NONE;
	return memcg_over(&memory->zswap->groups, memory->group, n * (uint64_t)PAGE_SIZE);
}

/* Counts that a group's limit was met; what is charged to it. 0: there is no such group. */
static uint64_t meet_limit(const struct pager *pager, uint32_t group)
{
	struct memcgs *groups;

	if (group == MEMCG_NONE)
		return 0;
	groups = &pager->managed->zswap->groups;
	memcg_count(groups, group, max_events, 1);
	return memcg_current(&groups->group[group]);
}

/* Is the memory's group over its limit, and charged as much as before? */
static bool no_progress(const struct pager *pager, uint64_t before)
{
	uint32_t group = group_over(pager, 1);

	return group != MEMCG_NONE && memcg_current(&pager->managed->zswap->groups.group[group]) >= before;
}

/* Does nobody in the group have a frame? */
static bool no_frames(const struct pager *pager, uint32_t group)
{
	return atomic_load(&pager->managed->zswap->groups.group[group].anon) == 0;
}

/* Reclaim could not help. */
static void count_oom(const struct pager *pager)
{
	uint32_t group = group_over(pager, 1);

	if (group != MEMCG_NONE)
		memcg_count(&pager->managed->zswap->groups, group, oom, 1);
}

/* Adds frames to the resident ones, if the window allows, or all the same. Not add and undo: others would find it full
 * who fit. */
static bool take_frames(struct pager *pager, unsigned n, bool anyway)
{
	uint64_t resident = atomic_load(&pager->resident);

	if (!anyway && group_over(pager, n) != MEMCG_NONE)
		return false;
	do {
		if (resident + n > pager->window && !anyway)
			return false;
	} while (!atomic_compare_exchange_weak(&pager->resident, &resident, resident + n));
	count(&pager->device->self->resident_frames, n);
	frames_charge(pager, n);
	if (pager->managed != NULL && resident + n > pager->high)
		zswap_want(pager->managed->zswap, CRAM_WORK_RECLAIM);
	return true;
}

struct supply evict_plan(const struct pager *pager, unsigned want, bool write)
{
	struct supply supply = { .why = STORE_FAULT, .recycle = pager->spares != NULL && want >= FRAMES_MOVE_MIN };

	/* Frames that change hands are charged to nobody anew: where a group has a limit, it is asked. */
	if (pager->managed != NULL && memcg_limited(&pager->managed->zswap->groups, pager->managed->group))
		supply.recycle = false;
	/* The kernel's own accesses, which a monitor answers, come from no thread of ours. */
	supply.alone = supply.recycle && !pager->wake && thread_alone();
	/* The race: another thread writes to a page between its arrival, writable, and its protection; we would take
	 * it for clean. Pages brought in for writing are dirty and not protected. */
	supply.recycle = supply.recycle && (write || supply.alone);
	return supply;
}

void evict_reserve(struct pager *pager, struct op *op, unsigned want, struct supply *supply)
{
	struct batch *batch = &work_of(op)->chosen;
	unsigned tries = 0;
	bool anyway = false;

	while (!take_frames(pager, want, anyway)) {
		uint32_t over = group_over(pager, want);
		uint64_t charged = meet_limit(pager, over);

		/* A device without a free page takes nothing more: what was shared by forks, and written to, stays. */
		anyway = !choose_victims(pager, op, supply->recycle ? want : pager->batch, batch);
		if (batch->count > 0) {
			unsigned freed = evict_batch(pager, op, batch, supply);

			if (supply->spare > 0)
				return;
			if (pager->managed == NULL)
				continue;
			zswap_count(pager->managed->zswap, CRAM_ZSWAP_DIRECT_RECLAIM, freed);
			/* The manager's thread asks the devices, which fill. */
			zswap_want(pager->managed->zswap, CRAM_WORK_RECLAIM);
			/* Nobody takes a page, or what is stored is charged as what was freed: no progress. The limit
			 * gives way, for a page, and what is in memory stays readable; the kernel would kill. It would
			 * first go on for as long as anything is reclaimed, until the group has no page left: threads
			 * that reclaim from each other in faults would never be done. */
			if ((freed == 0 || no_progress(pager, charged)) && ++tries == RECLAIM_RETRIES) {
				anyway = true;
				want = 1;
				count_oom(pager);
			}
			continue;
		}
		if (over != MEMCG_NONE) {
			/* The group's other memories have it all, which are not ours to reclaim from in a fault, or it is
			 * charged for what is stored, and waiting would not help. */
			zswap_want(pager->managed->zswap, CRAM_WORK_RECLAIM);
			anyway = no_frames(pager, over) || ++tries == RECLAIM_RETRIES;
			if (anyway)
				count_oom(pager);
		}
		/* All in other threads' hands, or pinned: take less, and let them go on. */
		want = 1;
		supply->recycle = false;
		if (!anyway)
			device_nap(op, 20000);
	}
	supply->frames = want;
}

unsigned pager_reclaim(struct pager *pager, struct op *op, uint64_t pages)
{
	struct batch *batch = &work_of(op)->chosen;
	struct supply supply = { .why = STORE_RECLAIM };

	choose_victims(pager, op, pages < pager->batch ? (unsigned)pages : pager->batch, batch);
	return batch->count == 0 ? 0 : evict_batch(pager, op, batch, &supply);
}

/* Drops the frames of locked pages without a look at them, and unlocks the pages. */
static void lose_batch(struct pager *pager, struct op *op, const struct batch *batch)
{
	for (unsigned i = 0; i < batch->count; i++) {
		uint64_t page = batch->page[i];

		if (!frame_dirty(pager, page))
			continue;
		/* The media first: a death before the frame's turn leaves DIRTY, and so poison. */
		device_lose(op, pager_dpa(pager, page));
		frame_cleaned(pager, op, page);
	}
	frames_drop(pager, op, batch->page, batch->count);
	frames_unlock(pager, op, batch);
}

void pager_lose(struct pager *pager, struct op *op)
{
	struct batch *batch = &work_of(op)->chosen;
	uint64_t page = 0;

	while (page != PAGESET_END) {
		batch->count = 0;
		while (batch->count < BATCH_MAX && (page = pageset_next(&pager->resident_set, page)) != PAGESET_END) {
			/* As a flush does: it waits for the first page only. */
			if (!pager_lock_known(pager, op, page, batch->count == 0)) {
				if (batch->count > 0)
					break;
			} else if (pager_resident(pager, page)) {
				batch->page[batch->count++] = page;
			} else {
				pager_unlock(pager, op, page);
			}
			page++;
		}
		lose_batch(pager, op, batch);
	}
}

void pager_evict_all(struct pager *pager, struct op *op)
{
	pager_evict(pager, op, 0, pager->pages);
}

void pager_evict(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	uint64_t page = first;

	for (; (page = pageset_next(&pager->resident_set, page)) < first + count; page++) {
		if (!pager_lock_known(pager, op, page, true))
			continue;
		if (pager_resident(pager, page))
			pager_drop(pager, op, page, false);
		pager_unlock(pager, op, page);
	}
}
