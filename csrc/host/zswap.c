/* SPDX-License-Identifier: MIT */
#include "zswap.h"

#include <string.h>

#include "descriptor.h"
#include "error.h"
#include "memory.h"
#include "visit.h"

_Static_assert(sizeof(((struct cram_zswap_params *)NULL)->settings) / 8 == CRAM_ZSWAP_SETTINGS, "cram.h counts them");
_Static_assert(sizeof(((struct cram_zswap_stats *)NULL)->counters) / 8 == CRAM_ZSWAP_COUNTERS, "cram.h counts them");
_Static_assert(sizeof(((struct cram_node_stats *)NULL)->refused) / 8 == CRAM_REFUSALS, "cram.h counts them");

/* ---- limits ---------------------------------------------------------------------------------------------- */

static uint64_t counter(const struct zswap *zswap, enum cram_zswap_counter number)
{
	return atomic_load_explicit(&zswap->row->counters[number], memory_order_relaxed);
}

/* What the other processes have: limits are of all together. Who has been killed may count for 10 ms more. */
static uint64_t others(const struct zswap *zswap, enum cram_zswap_counter gauge)
{
	return zswap->shared ? board_sum_others(zswap->board, zswap->row, gauge) : 0;
}

static uint64_t direct_pages(const struct zswap *zswap)
{
	return counter(zswap, CRAM_ZSWAP_STORED_DIRECT) + others(zswap, CRAM_ZSWAP_STORED_DIRECT);
}

static uint64_t in_media(const struct zswap *zswap, unsigned node, uint64_t pages)
{
	return pages * atomic_load_explicit(&zswap->board->views[node].page_size, memory_order_relaxed) / PAGE_SIZE;
}

uint64_t zswap_total_pages(const struct zswap *zswap, enum cram_direct_limit direct)
{
	uint64_t pages = zpool_pages(&zswap->pool) + others(zswap, CRAM_ZSWAP_POOL_PAGES);

	if (direct == CRAM_DIRECT_PAGE)
		return pages + direct_pages(zswap);
	if (direct == CRAM_DIRECT_NONE)
		return pages;
	for (unsigned i = 0; i < NODES_MAX; i++)
		pages += in_media(zswap, i, atomic_load_explicit(&zswap->nodes[i].stored, memory_order_relaxed));
	/* A program that attaches has one node, the first. */
	return pages + in_media(zswap, 0, others(zswap, CRAM_ZSWAP_STORED_DIRECT));
}

static uint64_t percent_of_ram(const struct zswap *zswap, enum cram_zswap_setting percent)
{
	return (zswap_setting(zswap, CRAM_ZSWAP_RAM) >> PAGE_SHIFT) * zswap_setting(zswap, percent) / 100;
}

uint64_t zswap_max_pages(const struct zswap *zswap)
{
	return percent_of_ram(zswap, CRAM_ZSWAP_MAX_POOL_PERCENT);
}

/* mm/zswap.c, zswap_check_limits(): two thresholds, or a pool at its limit would take and refuse in turns. */
static bool check_limits(struct zswap *zswap)
{
	enum cram_direct_limit direct = (enum cram_direct_limit)zswap_setting(zswap, CRAM_ZSWAP_DIRECT_LIMIT);
	uint64_t pages = zswap_total_pages(zswap, direct), max = zswap_max_pages(zswap);
	uint64_t accept = max * zswap_setting(zswap, CRAM_ZSWAP_ACCEPT_THRESHOLD_PERCENT) / 100;
	bool full = atomic_load_explicit(&zswap->board->pool_full, memory_order_relaxed);

	/* Who is dead is asked only where it matters. */
	if (zswap->shared && (pages >= max || (full && pages > accept)) && board_find_dead(zswap->board, false))
		pages = zswap_total_pages(zswap, direct);
	if (pages >= max) {
		zswap_count(zswap, CRAM_ZSWAP_POOL_LIMIT_HIT, 1);
		full = true;
	} else if (pages <= accept) {
		full = false;
	}
	/* Others read the same line: it is written when it changes. */
	if (full != atomic_load_explicit(&zswap->board->pool_full, memory_order_relaxed))
		atomic_store_explicit(&zswap->board->pool_full, full, memory_order_relaxed);
	return full;
}

/* Do the pages on nodes leave room for one more? */
static bool direct_allowed(const struct zswap *zswap)
{
	uint64_t limit = percent_of_ram(zswap, CRAM_ZSWAP_MAX_DIRECT_PERCENT);

	return limit == 0 || direct_pages(zswap) < limit ||
	       (zswap->shared && board_find_dead(zswap->board, false) && direct_pages(zswap) < limit);
}

void zswap_want(struct zswap *zswap, enum cram_zswap_work work)
{
	if ((atomic_load(&zswap->wanted) & work) || (atomic_fetch_or(&zswap->wanted, work) & work))
		return;
	/* Who has not waited yet finds it. */
	if (atomic_load(&zswap->listeners) == 0)
		return;
	atomic_fetch_add(&zswap->bell, 1);
	futex_wake_all(&zswap->bell);
}

/* ---- notes for the policy -------------------------------------------------------------------------------- */

static void note(struct zswap_memory *memory, uint64_t page, uint64_t entry, enum cram_zswap_note_kind kind)
{
	struct zswap *zswap = memory->zswap;
	uint64_t head;

	if (!(atomic_load_explicit(&zswap->notes_kinds, memory_order_relaxed) >> kind & 1))
		return;
	futex_lock_private(&zswap->notes_lock);
	head = atomic_load(&zswap->notes_head);
	if (head - atomic_load(&zswap->notes_tail) == CRAM_ZSWAP_NOTES) {
		zswap_count(zswap, CRAM_ZSWAP_NOTES_LOST, 1);
	} else {
		zswap->notes[head % CRAM_ZSWAP_NOTES] = (struct cram_zswap_note){
			.page = page, .dpa = swap_dpa(entry) << PAGE_SHIFT, .memory = memory->number,
			.node = (uint16_t)swap_node(entry), .kind = kind,
		};
		atomic_store(&zswap->notes_head, head + 1);
	}
	futex_unlock(&zswap->notes_lock);
	zswap_want(zswap, CRAM_WORK_NOTES);
}

/* ---- where a page can go --------------------------------------------------------------------------------- */

static bool is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return first == 0 && memcmp(page, page + sizeof(first), PAGE_SIZE - sizeof(first)) == 0;
}

static uint64_t put_zero(struct zswap *zswap)
{
	zswap_count(zswap, CRAM_ZSWAP_STORED_ZERO, 1);
	zswap_count(zswap, CRAM_ZSWAP_SWPOUT_ZERO, 1);
	return swap_make(SWAP_ZERO, 0, 0);
}

static uint32_t charge_of(struct zswap *zswap, struct node *node, struct op *op, uint64_t dpa)
{
	switch (zswap_setting(zswap, CRAM_ZSWAP_CHARGING)) {
	case CRAM_CHARGE_SIZE:
		return node_size(node, op, dpa);
	case CRAM_CHARGE_FUZZY:
		return atomic_load_explicit(&node->view->page_size, memory_order_relaxed);
	default:
		return PAGE_SIZE;
	}
}

/* The first node that takes it; except is one that does not. 0: none. */
static uint64_t put_direct(struct zswap *zswap, struct op *op, const uint8_t *frame, unsigned except, bool unasked)
{
	for (unsigned i = 0; i < NODES_MAX; i++) {
		struct node *node = &zswap->nodes[i];
		uint64_t dpa;

		if (i == except || atomic_load(&node->state) != NODE_ONLINE)
			continue;
		if (!direct_allowed(zswap)) {
			atomic_fetch_add_explicit(&node->refused[CRAM_REFUSED_LIMIT], 1, memory_order_relaxed);
			continue;
		}
		if (node_may_take(node) != CRAM_TAKEN)
			continue;
		dpa = node_store(node, op, frame, unasked);
		if (dpa != DEVICE_NO_PAGE) {
			uint32_t charge = charge_of(zswap, node, op, dpa);

			zswap_count(zswap, CRAM_ZSWAP_STORED_DIRECT, 1);
			zswap_count(zswap, CRAM_ZSWAP_CHARGED_DIRECT, charge);
			return swap_make(SWAP_DIRECT, (uint64_t)i << SWAP_DPA_BITS | dpa, charge);
		}
	}
	return 0;
}

void zswap_publish_pool(struct zswap *zswap)
{
	atomic_store_explicit(&zswap->row->counters[CRAM_ZSWAP_POOL_PAGES], zpool_pages(&zswap->pool), memory_order_relaxed);
}

/* Into the pool, as it has been compressed. 0: no room for it. */
static uint64_t put_pool(struct zswap_memory *memory, uint64_t page, const uint8_t *form, uint32_t length)
{
	struct zswap *zswap = memory->zswap;
	zpool_handle handle = zpool_alloc(&zswap->pool, length, (uint64_t)memory->number << SWAP_DPA_BITS | page);

	if (handle == 0) {
		zswap_count(zswap, CRAM_ZSWAP_REJECT_ALLOC_FAIL, 1);
		return 0;
	}
	zpool_write(&zswap->pool, handle, form, length);
	zswap_publish_pool(zswap);
	zswap_count(zswap, CRAM_ZSWAP_STORED_POOL, 1);
	zswap_count(zswap, CRAM_ZSWAP_STORED_BYTES, length);
	if (length == PAGE_SIZE)
		zswap_count(zswap, CRAM_ZSWAP_STORED_INCOMPRESSIBLE, 1);
	return swap_make(SWAP_POOL, handle, length) | SWAP_REFERENCED;
}

/* The place's workspace, one thread's while it is in its op. */
static struct codec_space *space_of(struct zswap *zswap, const struct op *op)
{
	struct codec_space *space = &zswap->opened[op->place];

	if (space->compress == NULL)
		codec_open_space(&zswap->codec, zswap->spaces + op->place * zswap->space_size, space);
	return space;
}

/* Compressed, or, what does not shrink, as it is, where it may go on to the swap file later. 0: not here. */
static uint64_t compress_to_pool(struct zswap_memory *memory, struct op *op, uint64_t page, const uint8_t *frame, bool force)
{
	struct zswap *zswap = memory->zswap;
	uint32_t length = codec_compress_page(&zswap->codec, space_of(zswap, op), frame, op->form);

	if (length != 0 && length < PAGE_SIZE)
		return put_pool(memory, page, op->form, length);
	if (!force && !memcg_may_write_back(&zswap->groups, memory->group)) {
		/* zswap_compress() makes it -EINVAL, a failure; poor is what a compressor itself calls -ENOSPC. */
		zswap_count(zswap, CRAM_ZSWAP_REJECT_COMPRESS_FAIL, 1);
		return 0;
	}
	return put_pool(memory, page, frame, PAGE_SIZE);
}

static uint64_t put_file(struct zswap_memory *memory, const uint8_t *frame)
{
	struct zswap *zswap = memory->zswap;
	uint64_t slot;

	if (!memcg_may_write_back(&zswap->groups, memory->group))
		return 0;
	slot = swapfile_write(&zswap->swap, frame);
	if (slot == SWAPFILE_NO_SLOT)
		return 0;
	zswap_count(zswap, CRAM_ZSWAP_STORED_FILE, 1);
	/* Of what is written back too: mm/page_io.c, count_swpout_vm_event(). */
	zswap_count(zswap, CRAM_ZSWAP_PSWPOUT, 1);
	return swap_make(SWAP_FILE, slot, 0);
}

/* Has a group of the memory's met its memory.zswap.max? zswap_store() has such a group write a page back first, and refuses only
 * where that fails. We hold a page, and may not wait for others: this one is refused, and the manager's thread writes back. */
static bool over_zswap_max(struct zswap_memory *memory)
{
	struct zswap *zswap = memory->zswap;
	uint32_t group = memcg_zswap_over(&zswap->groups, memory->group);

	if (group == MEMCG_NONE)
		return false;
	zswap_count(zswap, CRAM_ZSWAP_REJECT_MEMCG, 1);
	/* Only where that can do something: it looks at all that is stored. */
	if (atomic_load_explicit(&zswap->groups.group[group].zswap, memory_order_relaxed) > 0 &&
	    memcg_may_write_back(&zswap->groups, memory->group) && atomic_load(&zswap->swap.used) < zswap->swap.slots)
		zswap_want(zswap, CRAM_WORK_ZSWAP_MAX);
	return true;
}

/* zswap proper: a node, or the pool. 0: neither. */
static uint64_t put_zswap(struct zswap_memory *memory, struct op *op, uint64_t page, const uint8_t *frame, unsigned except,
			  enum store_why why)
{
	struct zswap *zswap = memory->zswap;
	bool counted = zswap_setting(zswap, CRAM_ZSWAP_DIRECT_LIMIT) != CRAM_DIRECT_NONE, full;
	bool force = why == STORE_FORCED;
	uint64_t entry = 0;

	if (!force && !zswap_setting(zswap, CRAM_ZSWAP_ENABLED))
		return 0;
	if (!force && over_zswap_max(memory))
		return 0;
	/* Direct pages that do not count against the limit do not ask for it either. */
	full = counted && !force && check_limits(zswap);
	if (!full)
		entry = put_direct(zswap, op, frame, except, why != STORE_RECLAIM);
	if (entry == 0 && !counted && !force)
		full = check_limits(zswap);
	if (entry == 0 && !full)
		entry = compress_to_pool(memory, op, page, frame, force);
	if (full)
		zswap_want(zswap, CRAM_WORK_SHRINK);
	return entry;
}

static void charge(struct zswap_memory *memory, uint64_t entry, int sign)
{
	if (swap_tag(entry) == SWAP_DIRECT || swap_tag(entry) == SWAP_POOL)
		memcg_charge_zswap(&memory->zswap->groups, memory->group, sign * (int64_t)swap_size(entry), sign);
}

bool zswap_store(struct zswap_memory *memory, struct op *op, uint64_t page, const uint8_t *frame, enum store_why why)
{
	struct zswap *zswap = memory->zswap;
	enum store_why first = why == STORE_FAULT ? STORE_FAULT : STORE_RECLAIM;
	uint64_t entry;

	if (is_zero(frame)) {
		entry = put_zero(zswap);
	} else if ((entry = put_zswap(memory, op, page, frame, NODE_NONE, first)) != 0) {
		zswap_count(zswap, CRAM_ZSWAP_ZSWPOUT, 1);
		memcg_count(&zswap->groups, memory->group, zswpout, 1);
	} else if ((entry = put_file(memory, frame)) == 0 && why == STORE_FORCED) {
		entry = put_zswap(memory, op, page, frame, NODE_NONE, STORE_FORCED);
	}
	if (entry == 0) {
		zswap_count(zswap, CRAM_ZSWAP_RECLAIM_FAIL, 1);
		return false;
	}
	charge(memory, entry, 1);
	swaptable_set(&memory->table, page, entry);
	return true;
}

/* ---- the way back ---------------------------------------------------------------------------------------- */

/* A page whose data cannot be had any more. */
static void lose(struct zswap_memory *memory, struct op *op, uint64_t page)
{
	zswap_invalidate(memory, op, page, false);
	swaptable_set(&memory->table, page, swap_make(SWAP_POISON, 0, 0));
}

static bool load_pool(struct zswap_memory *memory, struct op *op, uint64_t entry, uint8_t *to)
{
	struct zswap *zswap = memory->zswap;
	const void *form = zpool_read(&zswap->pool, swap_value(entry), swap_size(entry), op->form);

	if (swap_size(entry) == PAGE_SIZE) {
		memcpy(to, form, PAGE_SIZE);
		return true;
	}
	return codec_decode(&zswap->codec, space_of(zswap, op), form, swap_size(entry), to) == 0;
}

bool zswap_load(struct zswap_memory *memory, struct op *op, uint64_t page, uint8_t *to)
{
	struct zswap *zswap = memory->zswap;
	uint64_t entry = swaptable_get(&memory->table, page);

	switch (swap_tag(entry)) {
	case SWAP_NONE:
	case SWAP_ZERO:
		memset(to, 0, PAGE_SIZE);
		return true;
	case SWAP_DIRECT:
		if (node_load(&zswap->nodes[swap_node(entry)], op, swap_dpa(entry), to) == 0)
			return true;
		atomic_fetch_add_explicit(&zswap->nodes[swap_node(entry)].poisoned, 1, memory_order_relaxed);
		return false;
	case SWAP_POOL:
		if (load_pool(memory, op, entry, to))
			return true;
		zswap_count(zswap, CRAM_ZSWAP_DECOMPRESS_FAIL, 1);
		lose(memory, op, page);
		return false;
	case SWAP_FILE:
		if (swapfile_read(&zswap->swap, swap_value(entry), to))
			return true;
		lose(memory, op, page);
		return false;
	case SWAP_POISON:
		break;
	}
	return false;
}

bool zswap_poisoned(struct zswap_memory *memory, uint64_t page)
{
	uint64_t entry = swaptable_get(&memory->table, page);

	return swap_tag(entry) == SWAP_POISON ||
	       (swap_tag(entry) == SWAP_DIRECT && node_poisoned(&memory->zswap->nodes[swap_node(entry)], swap_dpa(entry)));
}

void zswap_consumed(struct zswap_memory *memory, uint64_t page)
{
	uint64_t entry = swaptable_get(&memory->table, page);

	if (swap_tag(entry) == SWAP_DIRECT)
		device_consumed(memory->zswap->nodes[swap_node(entry)].device, swap_dpa(entry));
}

/* Frees what an entry names. */
static void release(struct zswap_memory *memory, struct op *op, uint64_t page, uint64_t entry, bool promoted)
{
	struct zswap *zswap = memory->zswap;

	charge(memory, entry, -1);
	switch (swap_tag(entry)) {
	case SWAP_ZERO:
		zswap_count(zswap, CRAM_ZSWAP_STORED_ZERO, -1);
		break;
	case SWAP_DIRECT: {
		struct node *node = &zswap->nodes[swap_node(entry)];

		zswap_count(zswap, CRAM_ZSWAP_STORED_DIRECT, -1);
		zswap_count(zswap, CRAM_ZSWAP_CHARGED_DIRECT, -(int64_t)swap_size(entry));
		if (promoted) {
			atomic_fetch_add_explicit(&node->promoted, 1, memory_order_relaxed);
			note(memory, page, entry, CRAM_NOTE_PROMOTED);
		}
		node_release(node, op, swap_dpa(entry));
		if (atomic_load_explicit(&node->trims.count, memory_order_relaxed) > 0)
			zswap_want(zswap, CRAM_WORK_TRIM);
		note(memory, page, entry, CRAM_NOTE_FREED);
		/* Last: who removes the node waits for this, and its notes must be queued by then. */
		atomic_fetch_sub(&node->stored, 1);
		break;
	}
	case SWAP_POOL:
		zswap_count(zswap, CRAM_ZSWAP_STORED_POOL, -1);
		zswap_count(zswap, CRAM_ZSWAP_STORED_BYTES, -(int64_t)swap_size(entry));
		if (swap_size(entry) == PAGE_SIZE)
			zswap_count(zswap, CRAM_ZSWAP_STORED_INCOMPRESSIBLE, -1);
		zpool_free(&zswap->pool, swap_value(entry));
		zswap_publish_pool(zswap);
		break;
	case SWAP_FILE:
		zswap_count(zswap, CRAM_ZSWAP_STORED_FILE, -1);
		swapfile_free(&zswap->swap, swap_value(entry));
		break;
	case SWAP_NONE:
	case SWAP_POISON:
		break;
	}
}

static void count_in(struct zswap_memory *memory, enum swap_tag tag)
{
	struct zswap *zswap = memory->zswap;

	if (tag == SWAP_DIRECT || tag == SWAP_POOL) {
		zswap_count(zswap, CRAM_ZSWAP_ZSWPIN, 1);
		memcg_count(&zswap->groups, memory->group, zswpin, 1);
	} else if (tag == SWAP_FILE) {
		zswap_count(zswap, CRAM_ZSWAP_PSWPIN, 1);
	} else if (tag == SWAP_ZERO) {
		zswap_count(zswap, CRAM_ZSWAP_SWPIN_ZERO, 1);
	}
}

void zswap_invalidate(struct zswap_memory *memory, struct op *op, uint64_t page, bool promoted)
{
	uint64_t entry = swaptable_get(&memory->table, page);

	if (swap_tag(entry) == SWAP_NONE)
		return;
	/* The entry first: what it named may be another page's at once. */
	swaptable_set(&memory->table, page, 0);
	release(memory, op, page, entry, promoted);
	if (promoted)
		count_in(memory, swap_tag(entry));
}

void zswap_move(struct zswap_memory *memory, uint64_t from, uint64_t to)
{
	uint64_t entry = swaptable_get(&memory->table, from);

	if (swap_tag(entry) == SWAP_POOL)
		zpool_set_owner(&memory->zswap->pool, swap_value(entry), (uint64_t)memory->number << SWAP_DPA_BITS | to);
	swaptable_set(&memory->table, to, entry);
	swaptable_set(&memory->table, from, 0);
}

/* ---- shrinking, leaving ---------------------------------------------------------------------------------- */

/* The page is elsewhere now. */
static void replace(struct zswap_memory *memory, struct op *op, uint64_t page, uint64_t entry, uint64_t moved)
{
	swaptable_set(&memory->table, page, moved);
	charge(memory, moved, 1);
	release(memory, op, page, entry, false);
}

bool zswap_write_back(struct zswap_memory *memory, struct op *op, uint64_t page)
{
	struct zswap *zswap = memory->zswap;
	uint64_t entry = swaptable_get(&memory->table, page), written;

	if (swap_tag(entry) != SWAP_POOL)
		return false;
	if (entry & SWAP_REFERENCED) {
		swaptable_set(&memory->table, page, entry & ~SWAP_REFERENCED);
		return false;
	}
	/* shrink_memcg(): where there is no write-back, none fails. */
	if (zswap->swap.slots == 0 || !memcg_may_write_back(&zswap->groups, memory->group))
		return false;
	if (!zswap_load(memory, op, page, op->page) || (written = put_file(memory, op->page)) == 0) {
		zswap_count(zswap, CRAM_ZSWAP_REJECT_RECLAIM_FAIL, 1);
		return false;
	}
	replace(memory, op, page, entry, written);
	zswap_count(zswap, CRAM_ZSWAP_WRITTEN_BACK, 1);
	zswap_count(zswap, CRAM_ZSWAP_ZSWPWB, 1);
	memcg_count(&zswap->groups, memory->group, zswpwb, 1);
	return true;
}

bool zswap_leave_node(struct zswap_memory *memory, struct op *op, uint64_t page, unsigned node)
{
	uint64_t entry = swaptable_get(&memory->table, page), moved;

	if (swap_tag(entry) != SWAP_DIRECT || swap_node(entry) != node)
		return true;
	if (!zswap_load(memory, op, page, op->page)) {
		/* What it held is lost with or without the node. */
		lose(memory, op, page);
		return true;
	}
	moved = put_zswap(memory, op, page, op->page, node, STORE_RECLAIM);
	if (moved == 0)
		moved = put_file(memory, op->page);
	if (moved == 0)
		return false;
	replace(memory, op, page, entry, moved);
	return true;
}

int zswap_poison(struct zswap_memory *memory, struct op *op, uint64_t page, unsigned line, uint64_t *dpa)
{
	uint64_t entry = swaptable_get(&memory->table, page), moved = entry;

	if (swap_tag(entry) != SWAP_DIRECT) {
		if (!zswap_load(memory, op, page, op->page))
			return cram_fail(CRAM_EPOISON, "it is poison already");
		moved = put_direct(memory->zswap, op, op->page, NODE_NONE, false);
		if (moved == 0)
			return cram_fail(CRAM_EBUSY, "its driver lets the node take no page now");
		replace(memory, op, page, entry, moved);
	}
	*dpa = (swap_dpa(moved) << PAGE_SHIFT) + line * LINE_SIZE;
	if (node_poison(&memory->zswap->nodes[swap_node(moved)], op, swap_dpa(moved), line) != 0)
		return cram_fail(CRAM_EBUSY, "the poison list is full");
	return 0;
}

/* ---- lifetime -------------------------------------------------------------------------------------------- */

/* The board: another's, or a new one with the settings as they are given. */
static int open_board(struct zswap *zswap, const struct cram_device *home, const struct cram_zswap_params *params,
		      struct board *board)
{
	zswap->board_fd = -1;
	zswap->shared = board != NULL || params->shared;
	zswap->board = board != NULL ? board : board_create(params->shared ? &zswap->board_fd : NULL);
	if (zswap->board == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for a manager's board");
	zswap->row = board_take_row(zswap->board);
	if (zswap->row == NULL)
		return cram_fail(CRAM_EBUSY, "%u processes share this manager already", BOARD_ROWS);
	board_keep_row(zswap->row, atomic_load(&home->device.self->keeper));
	if (board != NULL)
		return 0;
	for (unsigned i = 0; i < CRAM_ZSWAP_SETTINGS; i++)
		atomic_store(&zswap->board->settings[i], params->settings[i]);
	for (unsigned i = 0; i < NODES_MAX; i++) {
		atomic_store(&zswap->board->views[i].allowed, 1);
		atomic_store(&zswap->board->views[i].page_size, PAGE_SIZE);
	}
	return 0;
}

int zswap_init(struct zswap *zswap, struct cram_device *home, const struct cram_zswap_params *params, struct board *board)
{
	struct cram_params codec = { .codec = params->codec, .level = params->level, .block = PAGE_SIZE, .largest_stored = PAGE_SIZE };
	int code = open_board(zswap, home, params, board);

	if (code != 0) {
		zswap_deinit(zswap);
		return code;
	}
	zswap->home = home;
	memcg_init(&zswap->groups);
	codec_init(&zswap->codec, &codec);
	zswap->space_size = zswap->codec.compress_space + zswap->codec.decompress_space;
	zswap->spaces = memory_map(zswap->space_size * PLACES_MAX, -1);
	code = zswap->spaces != NULL ? 0 : cram_fail(CRAM_ENOMEM, "no memory for the compressor's workspaces");
	if (code == 0)
		code = zpool_init(&zswap->pool, zswap_setting(zswap, CRAM_ZSWAP_RAM) >> PAGE_SHIFT, params->chain);
	if (code == 0 && params->swap_fd >= 0)
		code = swapfile_open(&zswap->swap, params->swap_fd, params->swap_size >> PAGE_SHIFT);
	if (code != 0)
		zswap_deinit(zswap);
	return code;
}

void zswap_deinit(struct zswap *zswap)
{
	swapfile_close(&zswap->swap);
	zpool_deinit(&zswap->pool);
	if (zswap->spaces != NULL)
		memory_unmap(zswap->spaces, zswap->space_size * PLACES_MAX);
	zswap->spaces = NULL;
	if (zswap->row != NULL)
		board_leave_row(zswap->board, zswap->row);
	zswap->row = NULL;
	if (zswap->board_fd >= 0)
		descriptor_close(zswap->board_fd);
	board_detach(zswap->board);
	zswap->board = NULL;
}

bool zswap_forked(struct zswap *zswap, struct dpa_table table)
{
	struct board_row *row = board_fork_row(zswap->board, zswap->row);

	zpool_forked(&zswap->pool);
	atomic_store(&zswap->notes_lock.word, 0);
	node_forked(&zswap->nodes[0], table);
	if (row != NULL)
		zswap->row = row;
	return row != NULL;
}
