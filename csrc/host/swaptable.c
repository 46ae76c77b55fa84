/* SPDX-License-Identifier: MIT */
#include "swaptable.h"

#include <stddef.h>

#include "memory.h"

bool swaptable_init(struct swaptable *table, uint64_t pages)
{
	table->pages = pages;
	table->entries = memory_map(pages * sizeof(*table->entries), -1);
	if (table->entries != NULL && pageset_init(&table->held, pages))
		return true;
	swaptable_deinit(table);
	return false;
}

void swaptable_deinit(struct swaptable *table)
{
	if (table->entries != NULL)
		memory_unmap(table->entries, table->pages * sizeof(*table->entries));
	table->entries = NULL;
	pageset_deinit(&table->held);
}

bool swaptable_trylock(struct swaptable *table, uint64_t page)
{
	uint64_t entry = atomic_load_explicit(&table->entries[page], memory_order_relaxed);

	return !(entry & SWAP_LOCK) &&
	       atomic_compare_exchange_strong_explicit(&table->entries[page], &entry, entry | SWAP_LOCK,
						       memory_order_acquire, memory_order_relaxed);
}

/* Only the holder changes a locked entry. */
void swaptable_unlock(struct swaptable *table, uint64_t page)
{
	uint64_t entry = atomic_load_explicit(&table->entries[page], memory_order_relaxed);

	atomic_store_explicit(&table->entries[page], entry & ~SWAP_LOCK, memory_order_release);
}

void swaptable_set(struct swaptable *table, uint64_t page, uint64_t entry)
{
	enum swap_tag before = swap_tag(atomic_load_explicit(&table->entries[page], memory_order_relaxed));

	/* Whoever walks the set may meet a page that has nothing, and never misses one that has. */
	if (before == SWAP_NONE && swap_tag(entry) != SWAP_NONE)
		pageset_add(&table->held, page);
	atomic_store_explicit(&table->entries[page], entry | SWAP_LOCK, memory_order_release);
	if (before != SWAP_NONE && swap_tag(entry) == SWAP_NONE)
		pageset_remove(&table->held, page);
}
