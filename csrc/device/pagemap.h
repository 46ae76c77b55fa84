/* SPDX-License-Identifier: MIT
 *
 * pagemap.h - the 8-byte entries that say where each page of the advertised capacity is.
 *
 * It does not know what a sector or a codec is. An entry and its 32-bit check word are the truth about a page; they
 * change only under the entry's lock bit.
 *
 *   bits  0..31  first   STORED, RAW: first sector. SAME: low half of the word. POISON: low half of the line mask.
 *   bits 32..43  length  STORED: bytes of stored form
 *   bits 44..46  state   enum cram_page_state
 *   bit  47      LOCK
 *   bit  48      BUSY    set while the sectors change: a holder that dies now leaves poison
 *   bit  49      DIRTY   a frame is newer than the media
 *   bit  50      RECORDED  the poison list holds records of this page
 *   bit  51      RUN     the sectors are consecutive: no links are kept
 *   bits 52..59  holder  client that holds LOCK
 *   bit  60      PADDED  STORED: the last two bytes of the stored form say how many of it are the codec's (a fault)
 *
 * The check word: STORED, RAW: checksum of the stored form and the page number. SAME: high half of the word.
 * POISON: high half of the line mask (a set bit is a poisoned line; the others read as zeros).
 */
#ifndef CRAM_PAGEMAP_H
#define CRAM_PAGEMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cram.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096u
#define LINE_SIZE 64u

#define ENTRY_LOCK (1ull << 47)
#define ENTRY_BUSY (1ull << 48)
#define ENTRY_DIRTY (1ull << 49)
#define ENTRY_RECORDED (1ull << 50)
#define ENTRY_RUN (1ull << 51)
#define ENTRY_PADDED (1ull << 60)
#define ENTRY_HOLDER_SHIFT 52
#define ENTRY_HOLDER (0xffull << ENTRY_HOLDER_SHIFT)

struct pagemap {
	_Atomic uint64_t *entries;
	_Atomic uint32_t *checks;
	uint64_t pages;
};

static inline uint64_t entry_make(enum cram_page_state state, uint32_t first, uint32_t length)
{
	return (uint64_t)state << 44 | (uint64_t)(length & 0xfff) << 32 | first;
}

static inline enum cram_page_state entry_state(uint64_t entry)
{
	return (enum cram_page_state)(entry >> 44 & 7);
}

static inline uint32_t entry_first(uint64_t entry)
{
	return (uint32_t)entry;
}

/* Bytes of stored form in the media. */
static inline uint32_t entry_length(uint64_t entry)
{
	if (entry_state(entry) == CRAM_PAGE_RAW)
		return PAGE_SIZE;
	return entry_state(entry) == CRAM_PAGE_STORED ? (uint32_t)(entry >> 32 & 0xfff) : 0;
}

static inline unsigned entry_holder(uint64_t entry)
{
	return (unsigned)((entry & ENTRY_HOLDER) >> ENTRY_HOLDER_SHIFT);
}

static inline uint32_t pagemap_check(const struct pagemap *map, uint64_t page)
{
	return atomic_load_explicit(&map->checks[page], memory_order_relaxed);
}

/* The 64-bit word of a SAME page, or the line mask of a POISON page. */
static inline uint64_t pagemap_word(const struct pagemap *map, uint64_t page, uint64_t entry)
{
	return (uint64_t)pagemap_check(map, page) << 32 | entry_first(entry);
}

static inline uint64_t pagemap_entry(const struct pagemap *map, uint64_t page)
{
	return atomic_load_explicit(&map->entries[page], memory_order_acquire);
}

/* Tries to take the page's lock bit for a client. */
static inline bool pagemap_trylock(struct pagemap *map, uint64_t page, unsigned client)
{
	uint64_t entry = atomic_load_explicit(&map->entries[page], memory_order_relaxed);

	if (entry & ENTRY_LOCK)
		return false;
	return atomic_compare_exchange_strong_explicit(
		&map->entries[page], &entry,
		(entry & ~ENTRY_HOLDER) | ENTRY_LOCK | (uint64_t)client << ENTRY_HOLDER_SHIFT,
		memory_order_acquire, memory_order_relaxed);
}

/* Unlocks, leaving the rest of the entry as it is. Only the holder calls this, and only the holder changes a locked
 * entry, so that a plain store is enough. */
static inline void pagemap_unlock(struct pagemap *map, uint64_t page)
{
	uint64_t entry = atomic_load_explicit(&map->entries[page], memory_order_relaxed);

	atomic_store_explicit(&map->entries[page], entry & ~(ENTRY_LOCK | ENTRY_BUSY | ENTRY_HOLDER),
			      memory_order_release);
}

/* Replaces flag bits of a locked entry. */
static inline void pagemap_change(struct pagemap *map, uint64_t page, uint64_t clear, uint64_t set)
{
	uint64_t entry = atomic_load_explicit(&map->entries[page], memory_order_relaxed);

	atomic_store_explicit(&map->entries[page], (entry & ~clear) | set, memory_order_release);
}

/* Publishes a locked page's new place; the lock and holder stay, BUSY and every flag not in entry go. The check word
 * is written first: a client that dies between leaves BUSY, and so poison. */
static inline void pagemap_publish(struct pagemap *map, uint64_t page, uint64_t entry, uint32_t check)
{
	uint64_t old = atomic_load_explicit(&map->entries[page], memory_order_relaxed);

	atomic_store_explicit(&map->checks[page], check, memory_order_relaxed);
	atomic_store_explicit(&map->entries[page], entry | (old & (ENTRY_LOCK | ENTRY_HOLDER)),
			      memory_order_release);
}

#endif
