/* SPDX-License-Identifier: MIT
 *
 * swaptable.h - where each page of managed memory is while it has no frame: 8 bytes a page.
 *
 * It does not know what a node, a pool or a swap file is, nor free what an entry names. The entries are the truth about
 * managed memory, and of this process alone: a child of fork has a copy.
 *
 *   bits  0..2   tag     enum swap_tag
 *   bit   3      LOCK    of the page, frame or not; the entry changes only under it
 *   bit   4      REFERENCED  the shrinker's second chance
 *   bits  5..17  size    bytes that are charged for it: POOL its compressed length, DIRECT what its charge was
 *   bits 18..63  value   DIRECT: node and device page; POOL: handle; SWAP: slot
 */
#ifndef CRAM_SWAPTABLE_H
#define CRAM_SWAPTABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pageset.h"

enum swap_tag {
	SWAP_NONE = 0, /* a frame has it, or it was never touched */
	SWAP_ZERO = 1, /* the zeromap's: a page of zeros */
	SWAP_DIRECT = 2,
	SWAP_POOL = 3,
	SWAP_FILE = 4,
	SWAP_POISON = 5, /* its data is lost; whoever reads it gets SIGBUS */
};

#define SWAP_LOCK (1ull << 3)
#define SWAP_REFERENCED (1ull << 4)
#define SWAP_SIZE_SHIFT 5
#define SWAP_SIZE_MASK 0x1fffull
#define SWAP_VALUE_SHIFT 18
#define SWAP_DPA_BITS 40

struct swaptable {
	_Atomic uint64_t *entries;
	uint64_t pages;
	struct pageset held; /* pages whose tag is not NONE */
};

static inline uint64_t swap_make(enum swap_tag tag, uint64_t value, uint32_t size)
{
	return value << SWAP_VALUE_SHIFT | (uint64_t)size << SWAP_SIZE_SHIFT | tag;
}
static inline enum swap_tag swap_tag(uint64_t entry)
{
	return (enum swap_tag)(entry & 7);
}
static inline uint32_t swap_size(uint64_t entry)
{
	return (uint32_t)(entry >> SWAP_SIZE_SHIFT & SWAP_SIZE_MASK);
}
static inline uint64_t swap_value(uint64_t entry)
{
	return entry >> SWAP_VALUE_SHIFT;
}
static inline unsigned swap_node(uint64_t entry)
{
	return (unsigned)(swap_value(entry) >> SWAP_DPA_BITS);
}
static inline uint64_t swap_dpa(uint64_t entry)
{
	return swap_value(entry) & ((1ull << SWAP_DPA_BITS) - 1);
}

/* A table of NONE. False: no memory. */
bool swaptable_init(struct swaptable *table, uint64_t pages);
/* Accepts a table of zeros. */
void swaptable_deinit(struct swaptable *table);

/* The entry, without its lock bit. Exact while the caller holds the lock. */
static inline uint64_t swaptable_get(const struct swaptable *table, uint64_t page)
{
	return atomic_load_explicit(&table->entries[page], memory_order_acquire) & ~SWAP_LOCK;
}
bool swaptable_trylock(struct swaptable *table, uint64_t page);
void swaptable_unlock(struct swaptable *table, uint64_t page);
/* Of a locked page, which stays locked. */
void swaptable_set(struct swaptable *table, uint64_t page, uint64_t entry);

#endif
