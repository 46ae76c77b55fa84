/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "recovery.h"

#include <string.h>
#include <sys/mman.h>

#include "error.h"
#include "inner.h"
#include "layout.h"
#include "memory.h"

#define STILL_TIMEOUT_NS 2000000000ull

int recovery_lock(struct device *device)
{
	int code = 0;

	/* A dead owner may have left the gate up over half a rebuild: nobody else works until it is done again. */
	if (futex_lock(&device->clients->lock, futex_name(device->client, thread_id()), clients_holder_dead,
		       device->clients) ||
	    atomic_load(&device->clients->gate) != 0) {
		code = recovery_run(device, NULL);
		if (code != 0)
			recovery_unlock(device);
	}
	return code;
}

void recovery_unlock(struct device *device)
{
	futex_unlock(&device->clients->lock);
}

/* Zeroes a part of the object by giving its memory back. */
static void clear_part(struct device *device, uint64_t from, uint64_t to)
{
	if (memory_advise(device->base + from, to - from, MADV_REMOVE) != 0)
		memset(device->base + from, 0, to - from);
}

/* What a page that lost its data becomes. A death before the last store leaves BUSY, and so the page to the next rebuild:
 * the entry of before with the check word of now would be another content. */
static void lose(struct device *device, uint64_t page, enum cram_poison_source source, uint64_t keep)
{
	bool recorded;

	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	poison_remove(device->poison, page << PAGE_SHIFT, PAGE_SIZE);
	recorded = poison_add(device->poison, page << PAGE_SHIFT, PAGE_SIZE, source);
	atomic_store(&device->map.checks[page], UINT32_MAX);
	atomic_store(&device->map.entries[page], entry_make(CRAM_PAGE_POISON, UINT32_MAX, 0) | keep |
							 (recorded ? ENTRY_RECORDED : 0));
	if (source == CRAM_POISON_LOST)
		atomic_fetch_add(&device->super->lost_pages, 1);
	else
		atomic_fetch_add(&device->super->media_errors, 1);
}

/* Claims the sectors of a page; false when its chain is broken. */
static bool claim_chain(struct device *device, uint64_t page, uint64_t entry)
{
	uint32_t count = media_sectors_for(&device->media, entry_length(entry));

	return count == 0 || media_chain_claim(&device->media, entry_first(entry), count, entry & ENTRY_RUN,
					       (uint32_t)page);
}

static bool record_of_page(const struct device *device, uint64_t page)
{
	for (uint32_t i = 0; i < device->poison->count; i++)
		if (device->poison->records[i].dpa >> PAGE_SHIFT == page)
			return true;
	return false;
}

static void count_page(struct device *device, uint64_t page)
{
	struct stripe *sum = &device->super->stripes[0];
	uint64_t entry = pagemap_entry(&device->map, page);
	enum cram_page_state state = entry_state(entry);

	if ((entry & ENTRY_RECORDED) && !record_of_page(device, page)) {
		entry &= ~ENTRY_RECORDED;
		atomic_store(&device->map.entries[page], entry);
	}
	if (state != CRAM_PAGE_EMPTY)
		sum->pages[state] += 1;
	sum->payload += entry_length(entry);
	if (state == CRAM_PAGE_POISON || (entry & ENTRY_RECORDED))
		sum->poisoned += 1;
	if (state == CRAM_PAGE_POISON && !(entry & ENTRY_RECORDED))
		device->super->poison_overflow += 1;
}

static bool gone(const struct device *device, uint64_t dead, int client)
{
	return client < 0 || client >= (int)CLIENTS_MAX || (dead >> client & 1) ||
	       !(atomic_load(&device->clients->attached) >> client & 1);
}

static void rebuild_page(struct device *device, uint64_t page, uint64_t dead)
{
	uint64_t entry = pagemap_entry(&device->map, page);
	/* Nobody parks in the middle of a change, so that it was one who died, be it in a rebuild or a reset. */
	bool lost = entry & ENTRY_BUSY;
	uint64_t keep;

	if (entry == 0)
		return;
	/* All stand still: who holds a page is parked, and who is not parked holds none, whatever a damaged entry says. */
	if ((entry & ENTRY_LOCK) && (gone(device, dead, (int)entry_holder(entry)) ||
				     !client_parked(&device->clients->table[entry_holder(entry)])))
		entry &= ~(ENTRY_LOCK | ENTRY_HOLDER);
	if ((entry & ENTRY_DIRTY) && gone(device, dead, clients_owner(device->clients, page))) {
		lost = true;
		entry &= ~ENTRY_DIRTY;
	}
	keep = entry & (ENTRY_LOCK | ENTRY_DIRTY | ENTRY_HOLDER);
	/* Without DIRTY the entry says that what it has is newest: BUSY, until lose() is done, says that it is not. */
	atomic_store(&device->map.entries[page], lost ? entry | ENTRY_BUSY : entry);
	if (lost)
		lose(device, page, CRAM_POISON_LOST, keep);
	else if (entry_state(entry) > CRAM_PAGE_POISON || !claim_chain(device, page, entry))
		lose(device, page, CRAM_POISON_MEDIA, keep);
	count_page(device, page);
}

static void rebuild_pages(struct device *device, uint64_t dead)
{
	/* The page map is sparse: at each of its own pages, skip what is not there. */
	for (uint64_t page = 0; page < device->map.pages; page++) {
		if (page % (PAGE_SIZE / sizeof(uint64_t)) == 0)
			page = device_next_used(device, page);
		if (page < device->map.pages)
			rebuild_page(device, page, dead);
	}
}

/* ---- anonymous memory ------------------------------------------------------------------------------------ */

typedef void part_fn(struct device *device, uint64_t first, uint64_t n, unsigned client);

/* Calls fn for each page of a part of the object that is there: the items in it, of item bytes each. */
static void walk_part(struct device *device, uint64_t from, uint64_t to, size_t item, part_fn *fn, unsigned client)
{
	for (uint64_t at = from; (at = device_next_data(device, at)) < to; at += PAGE_SIZE)
		fn(device, (at - from) / item, PAGE_SIZE / item, client);
}

static void forget_some(struct device *device, uint64_t first, uint64_t n, unsigned client)
{
	(void)client;
	dpas_forget(&device->dpas, first, n);
}

static void count_some(struct device *device, uint64_t first, uint64_t n, unsigned client)
{
	dpas_count(&device->dpas, dpas_table(&device->dpas, client), first, n);
}

/* Pages that nobody's memory has any more go, with what is in them. */
static void settle_some(struct device *device, uint64_t first, uint64_t n, unsigned client)
{
	(void)client;
	for (uint64_t page = first; page < first + n && page < device->map.pages; page++)
		if (dpas_settle(&device->dpas, page))
			atomic_store(&device->map.entries[page], 0);
}

static uint64_t table_offset(const struct device *device, unsigned client)
{
	return device->super->geometry.tables + client * dpas_table_size(device->map.pages);
}

void recovery_clear_table(struct device *device, unsigned client)
{
	clear_part(device, table_offset(device, client), table_offset(device, client + 1));
}

/* What the dead had is theirs no more. Before the page map is read: it says what the pages are, not whose. */
static void recount_tables(struct device *device, uint64_t dead)
{
	uint64_t references = device->super->geometry.references;
	uint64_t end = references + device->map.pages;

	walk_part(device, references, end, 1, forget_some, 0);
	for (uint64_t left = atomic_load(&device->clients->attached); left != 0; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);

		if (!atomic_load(&device->clients->table[i].anonymous))
			continue;
		if (dead >> i & 1)
			recovery_clear_table(device, i);
		else
			walk_part(device, table_offset(device, i), table_offset(device, i + 1), sizeof(uint32_t),
				  count_some, i);
	}
	walk_part(device, references, end, 1, settle_some, 0);
}

/* ---- the poison list, locks, all of it ------------------------------------------------------------------- */

/* Records of pages that are not poisoned, or stand twice. */
static void prune_records(struct device *device)
{
	struct poison_list *list = device->poison;

	if (list->count > POISON_RECORDS_MAX)
		list->count = 0;
	for (uint32_t i = 0; i < list->count;) {
		uint64_t page = list->records[i].dpa >> PAGE_SHIFT;
		bool whole = list->records[i].length == PAGE_SIZE;
		uint64_t entry = page < device->map.pages ? pagemap_entry(&device->map, page) : 0;

		/* A power cycle leaves a page without data the records of its lines. */
		if ((entry & ENTRY_RECORDED) && (!whole || entry_state(entry) == CRAM_PAGE_POISON))
			i++;
		else
			list->records[i] = list->records[--list->count];
	}
	poison_dedupe(list);
}

static void break_locks(struct device *device, uint64_t dead)
{
	clients_break_lock(&device->super->poison_lock, dead);
	clients_break_lock(&device->super->alert_lock, dead);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		clients_break_lock(&device->clients->table[i].mailbox.lock, dead);
}

int recovery_run(struct device *device, uint32_t *dead)
{
	const struct geometry *geometry = &device->super->geometry;
	struct superblock *super = device->super;
	uint64_t gone_clients;
	bool was_raised = atomic_load(&device->clients->gate) != 0;

	gate_raise(device->clients);
	if (!places_still(device->clients, STILL_TIMEOUT_NS)) {
		/* Over a rebuild that another began, the gate stays: its half must not be used. */
		if (!was_raised)
			gate_lower(device->clients);
		return cram_fail(CRAM_ETIMEDOUT, "a stopped process is in the middle of a page of this device");
	}
	gone_clients = clients_dead(device->clients);
	atomic_store(&super->used, 0);
	clear_part(device, geometry->bitmap, geometry->map);
	memset((void *)super->stripes, 0, sizeof(super->stripes));
	atomic_store(&super->poison_overflow, 0);
	recount_tables(device, gone_clients);
	prune_records(device);
	rebuild_pages(device, gone_clients);
	/* Capacity that a fault has taken is not to be found in the page map. */
	atomic_fetch_add(&super->used, atomic_load(&super->lost));
	break_locks(device, gone_clients);
	for (uint64_t left = gone_clients; left != 0; left &= left - 1)
		clients_leave(device->clients, (unsigned)__builtin_ctzll(left));
	atomic_store(&super->suspect, 0);
	gate_lower(device->clients);
	device_evaluate_alerts(device);
	if (dead != NULL)
		*dead = (uint32_t)__builtin_popcountll(gone_clients);
	return 0;
}

/* ---- reset ----------------------------------------------------------------------------------------------- */

/* A page that held something holds poison now; who holds its lock, and that a frame is newer, stays. */
static void lose_contents(struct device *device, uint64_t page, bool keep_list)
{
	uint64_t entry = pagemap_entry(&device->map, page);
	uint64_t keep = entry & (ENTRY_LOCK | ENTRY_HOLDER | ENTRY_DIRTY);
	uint64_t recorded = keep_list ? entry & ENTRY_RECORDED : 0;

	/* What nobody has written holds nothing, but that a line of it may be poisoned. */
	if (entry_state(entry) == CRAM_PAGE_EMPTY && !(entry & (ENTRY_DIRTY | ENTRY_BUSY))) {
		atomic_store(&device->map.entries[page], keep | recorded);
		count_page(device, page);
		return;
	}
	/* Where a frame is newer its holder, who loses that, counts the page; or who cleans up after him. */
	if (entry_state(entry) != CRAM_PAGE_POISON && !(entry & ENTRY_DIRTY))
		atomic_fetch_add(&device->super->lost_pages, 1);
	/* A death before the last store: as in lose(). */
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	if (!recorded && poison_add(device->poison, page << PAGE_SHIFT, PAGE_SIZE, CRAM_POISON_LOST))
		recorded = ENTRY_RECORDED;
	atomic_store(&device->map.checks[page], UINT32_MAX);
	atomic_store(&device->map.entries[page], entry_make(CRAM_PAGE_POISON, UINT32_MAX, 0) | keep | recorded);
	count_page(device, page);
}

/* The registers as a new device has them; what was counted stays counted. Nobody is told by an interrupt. */
static void reset_registers(struct device *device)
{
	const struct cram_params *params = device_params(device);

	device_lock(device, &device->super->alert_lock);
	alert_set(device->alert, device->media.sectors, params->sector, params->low_remaining, params->high_remaining,
		  params->low_ratio, params->high_ratio);
	atomic_store(&device->alert->latches, 0);
	atomic_store(&device->alert->pressure, 0);
	atomic_store(&device->alert->no_alloc, 0);
	atomic_store(&device->super->told_at, 0);
	futex_unlock(&device->super->alert_lock);
}

int recovery_reset(struct device *device, enum cram_fault fault, uint64_t page_struck)
{
	const bool keep_list = fault == CRAM_FAULT_POWER_CYCLE;
	const struct geometry *geometry = &device->super->geometry;
	struct superblock *super = device->super;

	gate_raise(device->clients);
	if (!places_still(device->clients, STILL_TIMEOUT_NS)) {
		gate_lower(device->clients);
		return cram_fail(CRAM_ETIMEDOUT, "a stopped process is in the middle of a page of this device");
	}
	fault_announce(device, fault, page_struck);
	/* A death from here on leaves the gate up over half a reset; the rebuild that then comes finds pages with data whose
	 * sectors nobody has taken since, and pages without. */
	atomic_fetch_add(&device->clients->losses, 1);
	atomic_store(&super->used, atomic_load(&super->lost));
	clear_part(device, geometry->bitmap, geometry->map);
	memset((void *)super->stripes, 0, sizeof(super->stripes));
	atomic_store(&super->poison_overflow, 0);
	/* Who lists poison is in no op. */
	device_lock(device, &super->poison_lock);
	if (!keep_list)
		__atomic_store_n(&device->poison->count, 0, __ATOMIC_RELEASE);
	for (uint64_t page = 0; page < device->map.pages; page++) {
		if (page % (PAGE_SIZE / sizeof(uint64_t)) == 0)
			page = device_next_used(device, page);
		if (page < device->map.pages && pagemap_entry(&device->map, page) != 0)
			lose_contents(device, page, keep_list);
	}
	futex_unlock(&super->poison_lock);
	reset_registers(device);
	gate_lower(device->clients);
	device_evaluate_alerts(device);
	return 0;
}
