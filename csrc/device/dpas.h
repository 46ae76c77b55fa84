/* SPDX-License-Identifier: MIT
 *
 * dpas.h - which device pages anonymous memory has: a table for each client, and how many tables name each page.
 *
 * It does not lock pages, nor know what is in them. Everything here lies in the device object. The tables are the truth;
 * the references are counted anew from them when a client has died.
 */
#ifndef CRAM_DPAS_H
#define CRAM_DPAS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* A client's memory may have so many times the pages of the device: programs reserve more than they use. */
#define DPAS_SPAN 4u

/* Entry: the number of a device page + 1; 0: none. */
struct dpa_table {
	_Atomic uint32_t *entries;
	uint64_t pages;
};

struct dpas {
	_Atomic uint8_t *references; /* by device page: tables that name it; at most one entry of each does */
	uint8_t *tables;
	uint64_t pages;
	_Atomic uint64_t cursor;     /* this process's: where the next search begins */
};

/* Bytes of one client's table on a device of so many pages: whole pages of the object. */
static inline uint64_t dpas_table_size(uint64_t pages)
{
	return (pages * DPAS_SPAN * sizeof(uint32_t) + 4095) & ~4095ull;
}

void dpas_init(struct dpas *dpas, void *references, void *tables, uint64_t pages);
struct dpa_table dpas_table(const struct dpas *dpas, unsigned client);

static inline bool dpas_taken(const struct dpas *dpas, uint64_t page)
{
	return atomic_load(&dpas->references[page]) != 0;
}
/* Takes a page that no table names, with one reference; UINT64_MAX when a whole lap has found none. It may be a
 * mapping's, or hold something: then give it back, and ask again. */
uint64_t dpas_take(struct dpas *dpas);
/* One reference more, or less; returns how many there are then. */
unsigned dpas_get(struct dpas *dpas, uint64_t page);
unsigned dpas_put(struct dpas *dpas, uint64_t page);

/* Recounting, while nobody else works on the tables: first forget what is known, then count the entries of each living
 * client's table, then settle. Each for n pages, or entries, from the first on: the caller skips what is not there. */
void dpas_forget(struct dpas *dpas, uint64_t first, uint64_t n);
void dpas_count(struct dpas *dpas, struct dpa_table table, uint64_t first, uint64_t n);
/* True: the page had references, and has none now. */
bool dpas_settle(struct dpas *dpas, uint64_t page);

#endif
