/* SPDX-License-Identifier: MIT */
#include "dpas.h"

/* While recounting: it had references before. */
#define KNOWN 0x80u

void dpas_init(struct dpas *dpas, void *references, void *tables, uint64_t pages)
{
	dpas->references = references;
	dpas->tables = tables;
	dpas->pages = pages;
	atomic_store(&dpas->cursor, 0);
}

struct dpa_table dpas_table(const struct dpas *dpas, unsigned client)
{
	return (struct dpa_table){ (_Atomic uint32_t *)(dpas->tables + client * dpas_table_size(dpas->pages)),
				   dpas->pages * DPAS_SPAN };
}

uint64_t dpas_take(struct dpas *dpas)
{
	for (uint64_t tries = 0; tries < dpas->pages; tries++) {
		uint64_t page = atomic_fetch_add_explicit(&dpas->cursor, 1, memory_order_relaxed) % dpas->pages;
		uint8_t none = 0;

		if (atomic_load_explicit(&dpas->references[page], memory_order_relaxed) == 0 &&
		    atomic_compare_exchange_strong(&dpas->references[page], &none, 1))
			return page;
	}
	return UINT64_MAX;
}

unsigned dpas_get(struct dpas *dpas, uint64_t page)
{
	return atomic_fetch_add(&dpas->references[page], 1) + 1u;
}

unsigned dpas_put(struct dpas *dpas, uint64_t page)
{
	return atomic_fetch_sub(&dpas->references[page], 1) - 1u;
}

/* ---- recounting ------------------------------------------------------------------------------------------ */

void dpas_forget(struct dpas *dpas, uint64_t first, uint64_t n)
{
	for (uint64_t page = first; page < first + n && page < dpas->pages; page++)
		if (dpas_taken(dpas, page))
			atomic_store(&dpas->references[page], KNOWN);
}

void dpas_count(struct dpas *dpas, struct dpa_table table, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n && i < table.pages; i++) {
		uint32_t entry = atomic_load(&table.entries[i]);

		/* A damaged entry is refused, not followed. */
		if (entry > dpas->pages)
			atomic_store(&table.entries[i], 0);
		else if (entry != 0)
			dpas_get(dpas, entry - 1);
	}
}

bool dpas_settle(struct dpas *dpas, uint64_t page)
{
	return atomic_fetch_and(&dpas->references[page], (uint8_t)~KNOWN) == KNOWN;
}
