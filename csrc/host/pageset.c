/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "pageset.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

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
	set->memory = mmap(NULL, set->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (set->memory == MAP_FAILED) {
		set->memory = NULL;
		return false;
	}
	for (unsigned i = 0; i < PAGESET_LEVELS; i++)
		set->level[i] = (_Atomic uint64_t *)((char *)set->memory + offset[i]);
	return true;
}

void pageset_deinit(struct pageset *set)
{
	if (set->memory != NULL)
		munmap(set->memory, set->size);
	set->memory = NULL;
}

void pageset_add(struct pageset *set, uint64_t page)
{
	for (unsigned i = 0; i < PAGESET_LEVELS; i++, page /= 64) {
		uint64_t bit = 1ull << page % 64;

		/* A summary bit that is seen set stays: who clears one looks at the word below afterwards. */
		if (atomic_load(&set->level[i][page / 64]) & bit)
			continue;
		atomic_fetch_or(&set->level[i][page / 64], bit);
	}
}

void pageset_remove(struct pageset *set, uint64_t page)
{
	/* The summaries stay behind until a walk finds the word below empty. */
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
		if (bits == 0 && level + 1 < PAGESET_LEVELS) {
			_Atomic uint64_t *summary = &set->level[level + 1][word / 64];
			uint64_t mark = 1ull << word % 64;

			/* The race: an add between our look and our clearing. Look again, and put the bit back. */
			atomic_fetch_and(summary, ~mark);
			if (atomic_load(&set->level[level][word]) != 0)
				atomic_fetch_or(summary, mark);
		}
	}
	return word * 64 + (uint64_t)__builtin_ctzll(bits);
}

uint64_t pageset_next(struct pageset *set, uint64_t page)
{
	return next_on(set, 0, page);
}
