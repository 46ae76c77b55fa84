/* SPDX-License-Identifier: MIT
 *
 * anonymous.c - how a page is locked, whose device page may yet have to be found, and what mmap's kin do to the pages of
 * anonymous memory; for pager.h.
 */
#include "frames.h"

/* ---- locking --------------------------------------------------------------------------------------------- */

#define MANAGED_SPINS 100
#define MANAGED_NAP_NS 2000

/* Every managed page has an entry to lock. */
static bool lock_managed(struct pager *pager, struct op *op, uint64_t page, bool wait)
{
	for (int i = 0; !swaptable_trylock(&pager->managed->table, page); i++) {
		if (!wait)
			return false;
		if (i < MANAGED_SPINS)
			__builtin_ia32_pause();
		else
			device_nap(op, MANAGED_NAP_NS);
	}
	return true;
}

bool pager_lock_known(struct pager *pager, struct op *op, uint64_t page, bool wait)
{
	if (pager->managed != NULL)
		return lock_managed(pager, op, page, wait);
	for (;;) {
		uint32_t entry = pager->table == NULL ? (uint32_t)(pager->first + page) + 1
						      : atomic_load(&pager->table[page]);

		if (entry == 0)
			return false;
		if (wait)
			device_lock_page(op, entry - 1);
		else if (!device_trylock_page(op, entry - 1))
			return false;
		/* The race: the page has got another device page, or lost its own, before we had the lock. */
		if (pager->table == NULL || atomic_load(&pager->table[page]) == entry)
			return true;
		device_unlock_page(op, entry - 1);
	}
}

/* Gives a page that has none a device page, locked. False: another thread has been quicker; *full: there is none. */
static bool give_page(struct pager *pager, struct op *op, uint64_t page, bool *full)
{
	uint64_t dpa = device_take_page(op);
	uint32_t none = 0;

	*full = dpa == DEVICE_NO_PAGE;
	if (*full)
		return false;
	if (atomic_compare_exchange_strong(&pager->table[page], &none, (uint32_t)dpa + 1))
		return true;
	device_put_page(op, dpa);
	device_unlock_page(op, dpa);
	return false;
}

static bool lock(struct pager *pager, struct op *op, uint64_t page, bool wait)
{
	bool full = false;

	if (pager->managed != NULL)
		return lock_managed(pager, op, page, wait);
	do {
		if (pager->table == NULL || atomic_load(&pager->table[page]) != 0) {
			if (pager_lock_known(pager, op, page, wait))
				return true;
			if (!wait)
				return false;
		}
		if (give_page(pager, op, page, &full))
			return true;
	} while (!full);
	return false;
}

bool pager_lock(struct pager *pager, struct op *op, uint64_t page)
{
	return lock(pager, op, page, true);
}

bool pager_trylock(struct pager *pager, struct op *op, uint64_t page)
{
	return lock(pager, op, page, false);
}

void pager_unlock(struct pager *pager, struct op *op, uint64_t page)
{
	if (pager->managed != NULL)
		swaptable_unlock(&pager->managed->table, page);
	else
		device_unlock_page(op, pager_dpa(pager, page));
}

bool pager_poisoned(const struct pager *pager, const struct op *op, uint64_t page)
{
	if (pager->managed != NULL)
		return zswap_poisoned(pager->managed, page);
	return device_poisoned(op, pager_dpa(pager, page));
}

/* ---- ranges ---------------------------------------------------------------------------------------------- */

/* The next page of [page, end) that has a device page, or, managed, a frame or an entry; or end. */
static uint64_t next_known(struct pager *pager, uint64_t page, uint64_t end)
{
	bool skip = true;

	if (pager->managed != NULL) {
		uint64_t frame = pageset_next(&pager->resident_set, page);
		uint64_t entry = pageset_next(&pager->managed->table.held, page);

		page = frame < entry ? frame : entry;
		return page < end ? page : end;
	}
	/* The table is sparse: at each page of its own, skip what is not there. */
	for (; page < end; page++, skip = page % (PAGE_SIZE / sizeof(uint32_t)) == 0) {
		if (skip)
			page = device_next_entry(pager->device, &pager->table[page]);
		if (page >= end || atomic_load_explicit(&pager->table[page], memory_order_relaxed) != 0)
			break;
	}
	return page < end ? page : end;
}

uint64_t pager_find(struct pager *pager, uint64_t page, uint64_t dpa)
{
	while ((page = next_known(pager, page, pager->pages)) < pager->pages) {
		if (pager_dpa(pager, page) == dpa)
			return page;
		page++;
	}
	return UINT64_MAX;
}

/* Under monitor delivery a poisoned page that somebody has touched has a mark in the page table: it must not outlive what it
 * stands for. */
static void drop_mark(struct pager *pager, struct op *op, uint64_t page)
{
	if (pager->wake && !pager_resident(pager, page) && pager_poisoned(pager, op, page))
		pager_drop(pager, op, page, true);
}

/* Forgets the pages of a batch: their frames, without a look at them, and their device pages. */
static void forget_batch(struct pager *pager, struct op *op, const struct batch *batch)
{
	struct batch *frames = &work_of(op)->failed;

	frames->count = 0;
	for (unsigned i = 0; i < batch->count; i++) {
		drop_mark(pager, op, batch->page[i]);
		if (!pager_resident(pager, batch->page[i]))
			continue;
		if (frame_dirty(pager, batch->page[i]))
			frame_cleaned(pager, op, batch->page[i]);
		frames->page[frames->count++] = batch->page[i];
	}
	if (frames->count > 0)
		frames_drop(pager, op, frames->page, frames->count);
	for (unsigned i = 0; i < batch->count && pager->managed != NULL; i++) {
		zswap_invalidate(pager->managed, op, batch->page[i], false);
		pager_unlock(pager, op, batch->page[i]);
	}
	for (unsigned i = 0; i < batch->count && pager->managed == NULL; i++) {
		uint64_t dpa = pager_dpa(pager, batch->page[i]);

		atomic_store(&pager->table[batch->page[i]], 0);
		device_put_page(op, dpa);
		device_unlock_page(op, dpa);
	}
}

void pager_discard(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	struct batch *batch = &work_of(op)->chosen;
	uint64_t page = first, end = first + count;

	do {
		batch->count = 0;
		while (batch->count < BATCH_MAX && (page = next_known(pager, page, end)) < end) {
			/* As a flush does: it waits for the first page only. */
			if (pager_lock_known(pager, op, page, batch->count == 0))
				batch->page[batch->count++] = page++;
			else if (batch->count > 0)
				break;
		}
		forget_batch(pager, op, batch);
	} while (page < end);
}

static void set_opened(struct pager *pager, uint64_t first, uint64_t count, bool on)
{
	for (uint64_t page = first; page < first + count;) {
		uint64_t n = 64 - page % 64 < first + count - page ? 64 - page % 64 : first + count - page;
		uint64_t mask = (n == 64 ? ~0ull : (1ull << n) - 1) << page % 64;

		if (on)
			atomic_fetch_or(&pager->opened[page / 64], mask);
		else
			atomic_fetch_and(&pager->opened[page / 64], ~mask);
		page += n;
	}
}

void pager_close(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	uint64_t page = first;

	set_opened(pager, first, count, false);
	/* Who locks a page from now on sees it closed; who has one locked may yet give it a frame. */
	for (; (page = next_known(pager, page, first + count)) < first + count; page++) {
		if (!pager_lock_known(pager, op, page, true))
			continue;
		if (pager_resident(pager, page))
			pager_drop(pager, op, page, false);
		pager_unlock(pager, op, page);
	}
}

void pager_open(struct pager *pager, uint64_t first, uint64_t count)
{
	set_opened(pager, first, count, true);
}

/* The target is closed and has nothing: who has it locked only finds that out, and waits for nobody. */
static void move_managed(struct pager *pager, struct op *op, uint64_t from, uint64_t to)
{
	lock_managed(pager, op, to, true);
	zswap_move(pager->managed, from, to);
	pager_unlock(pager, op, to);
	pager_unlock(pager, op, from);
}

void pager_move(struct pager *pager, struct op *op, uint64_t from, uint64_t to, uint64_t count)
{
	uint64_t page = from;

	for (; (page = next_known(pager, page, from + count)) < from + count; page++) {
		uint32_t entry;

		if (!pager_lock_known(pager, op, page, true))
			continue;
		drop_mark(pager, op, page);
		if (pager->managed != NULL) {
			move_managed(pager, op, page, to + (page - from));
			continue;
		}
		entry = atomic_load(&pager->table[page]);
		/* Named twice for a moment: a death in between frees it all the same. */
		atomic_store(&pager->table[to + (page - from)], entry);
		atomic_store(&pager->table[page], 0);
		device_unlock_page(op, entry - 1);
	}
}

bool pager_adopt(struct pager *pager, struct op *op, uint64_t page)
{
	if (!pager_lock(pager, op, page))
		return false;
	if (!pager_resident(pager, page)) {
		frame_dirtied(pager, op, page);
		pageset_add(&pager->resident_set, page);
		frame_set_referenced(pager, page, true);
		frames_take(pager, 1);
		/* As after a fault: who removes the device may have looked for frames before. */
		if (pager_removed(pager))
			pager_drop(pager, op, page, true);
	}
	pager_unlock(pager, op, page);
	return true;
}
