/* SPDX-License-Identifier: MIT */
#include "pageset.h"

#include <stddef.h>
#include <string.h>

#include "memory.h"

bool pageset_init(struct pageset *set, uint64_t pages)
{
	uint64_t words = pages;
	uint64_t offset[PAGESET_LEVELS];

	memset(set, 0, sizeof(*set));
	set->pages = pages;
	for (unsigned i = 0; i < PAGESET_LEVELS; i++) {
		words = (words + 63) / 64;
		set->words[i] = words;
		offset[i] = set->size;
		set->size += (words * 8 + 4095) & ~4095ull;
	}
	set->memory = memory_map(set->size, -1);
	if (set->memory == NULL)
		return false;
	for (unsigned i = 0; i < PAGESET_LEVELS; i++)
		set->level[i] = (_Atomic uint64_t *)((char *)set->memory + offset[i]);
	return true;
}

void pageset_deinit(struct pageset *set)
{
	if (set->memory != NULL)
		memory_unmap(set->memory, set->size);
	set->memory = NULL;
}

void pageset_add(struct pageset *set, uint64_t page)
{
	for (unsigned i = 0; i < PAGESET_LEVELS; i++, page /= 64) {
		uint64_t bit = 1ull << page % 64;

		/* Read first: most additions find the summaries set, and need not own their cache lines. */
		if (!(atomic_load(&set->level[i][page / 64]) & bit))
			atomic_fetch_or(&set->level[i][page / 64], bit);
	}
}

void pageset_remove(struct pageset *set, uint64_t page)
{
	atomic_fetch_and(&set->level[0][page / 64], ~(1ull << page % 64));
}

/* The first set bit at or after `at` on a level, or PAGESET_END. */
static uint64_t next_on(struct pageset *set, unsigned level, uint64_t at)
{
	uint64_t word = at / 64;
	uint64_t bits;

	if (word >= set->words[level])
		return PAGESET_END;
	bits = atomic_load(&set->level[level][word]) & (~0ull << at % 64);
	while (bits == 0) {
		/* This word has no more; the level above says which has, the top level is walked. */
		if (level + 1 < PAGESET_LEVELS) {
			word = next_on(set, level + 1, word + 1);
			if (word == PAGESET_END)
				return PAGESET_END;
		} else if (++word >= set->words[level]) {
			return PAGESET_END;
		}
		bits = atomic_load(&set->level[level][word]);
	}
	return word * 64 + (uint64_t)__builtin_ctzll(bits);
}

uint64_t pageset_next(struct pageset *set, uint64_t page)
{
	return next_on(set, 0, page);
}
