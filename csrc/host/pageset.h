/* SPDX-License-Identifier: MIT
 *
 * pageset.h - a set of page numbers that threads add to, remove from and walk at the same time.
 *
 * A bitmap with two levels of summary above it, so that walking the few resident pages of a 1 TiB mapping does not
 * read 32 MiB. Untouched parts cost nothing. Atomic: a bit changes only under its page's lock, neighbours change at
 * any time. A summary bit says that there has been a member below: it is never cleared, because a walker beside the
 * one that clears it would miss a member that is added at that moment.
 */
#ifndef CRAM_PAGESET_H
#define CRAM_PAGESET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGESET_LEVELS 3u
#define PAGESET_END UINT64_MAX

struct pageset {
	uint64_t pages;
	_Atomic uint64_t *level[PAGESET_LEVELS]; /* [0]: a bit a page; above: a bit a word of the level below */
	uint64_t words[PAGESET_LEVELS];
	void *memory;
	uint64_t size;
};

/* Maps an empty set for pages 0..pages-1. False: no memory. */
bool pageset_init(struct pageset *set, uint64_t pages);
/* Accepts a set of zeros. */
void pageset_deinit(struct pageset *set);

static inline bool pageset_has(const struct pageset *set, uint64_t page)
{
	return atomic_load_explicit(&set->level[0][page / 64], memory_order_relaxed) >> page % 64 & 1;
}
void pageset_add(struct pageset *set, uint64_t page);
void pageset_remove(struct pageset *set, uint64_t page);
/* The first member at or after page, or PAGESET_END. One that is added or removed meanwhile may be missed or found; one
 * that was there before the call, and stays, is found. */
uint64_t pageset_next(struct pageset *set, uint64_t page);

#endif
