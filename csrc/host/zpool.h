/* SPDX-License-Identifier: MIT
 *
 * zpool.h - memory for compressed pages, by the design of zsmalloc (kernel: mm/zsmalloc.c): zspages, size classes,
 * compaction; in this process's private memory.
 *
 * It does not compress, does not know what an owner is, has no limit but the arena's size, and does not compact unless it
 * is asked to. A handle is where the object is, not an entry of a table: what compaction moves, its owner is told of.
 *
 * What it costs beyond the objects: 8 bytes in each object but the huge ones; 16 bytes of descriptor for each page of
 * the arena that has ever been in use (0.4 %); the classes. An arena that is not used costs address space.
 *
 * Threads: an owner has a lock of the caller's. It is held from zpool_alloc() until the handle is recorded as the owner's,
 * and for zpool_write(), zpool_read() as long as its bytes are used, and zpool_free(). Lock order: the owner, then a class;
 * or the owner, then the arena. Compaction holds a class and asks for owners: it may only try them.
 *
 * All but init and deinit are async-signal-safe; callers block signals, or are in a handler that does.
 */
#ifndef CRAM_ZPOOL_H
#define CRAM_ZPOOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device/futex.h"

/* Where an object is: bits 11..39 the page of the arena in which it begins, bits 0..10 its index in the zspage. 0: none. */
typedef uint64_t zpool_handle;
#define ZPOOL_HANDLE_BITS 40u
#define ZPOOL_PAGES_MAX ((1ull << 29) - 1)
/* Owners are below 2^63: the header of an object needs a bit. */
#define ZPOOL_OWNER_BITS 63u

#define ZPOOL_SIZES 255u /* before classes merge */
#define ZPOOL_CHAIN_MAX 16u
/* Free pages that keep their host memory, at most; the oldest half goes back to the host when there would be more. */
#define ZPOOL_CACHED_MAX 64u

/* Fullness groups: empty, under 10 %, under 20 % ... under 100 %, full. No zspage stays empty. */
#define ZPOOL_GROUPS 12u
#define ZPOOL_FULL (ZPOOL_GROUPS - 1)

struct zpdesc;
struct size_class;

struct zpool {
	void *memory;
	uint64_t size;
	struct size_class *classes;
	struct zpdesc *zpdescs;         /* [page] */
	uint8_t *arena;                 /* page 0 is none, and never touched */
	unsigned class_count;
	uint8_t class_of[ZPOOL_SIZES];
	/* The free pages, under the lock: cached, returned to the host (a list through the descriptors), never used. */
	struct futex_lock lock;
	uint32_t last;                  /* page of the arena */
	uint32_t used_to;               /* the pages above have never been used */
	uint32_t returned, returned_count;
	uint32_t cached_pages[ZPOOL_CACHED_MAX];
	_Atomic uint32_t cached;        /* how many these are; read anywhere */
	_Atomic uint64_t pages;         /* in zspages; read anywhere */
};

/* An arena of so many pages, and zspages of at most chain of them: 4, 8 (as kernels are configured) or 16. CRAM_EINVAL:
 * neither, or no page, or over ZPOOL_PAGES_MAX. CRAM_ENOMEM. After a failure the pool may be given to zpool_deinit(). */
int zpool_init(struct zpool *pool, uint64_t pages, unsigned chain);
/* Accepts a pool of zeros. */
void zpool_deinit(struct zpool *pool);

/* Room for 1..4096 bytes, whatever is in it. 0: the arena has no pages for another zspage; nothing has changed. */
zpool_handle zpool_alloc(struct zpool *pool, uint32_t size, uint64_t owner);
/* The first size bytes of the object, at most what was asked for. */
void zpool_write(struct zpool *pool, zpool_handle handle, const void *from, uint32_t size);
/* Where they are: in the pool if they lie in one piece, else in the buffer, of at least size bytes. */
const void *zpool_read(const struct zpool *pool, zpool_handle handle, uint32_t size, void *buffer);
void zpool_free(struct zpool *pool, zpool_handle handle);
/* The object is another owner's from now on; both are locked. */
void zpool_set_owner(struct zpool *pool, zpool_handle handle, uint64_t owner);

/* Called by compaction, which holds a class's lock: they may not wait, nor call anything here but zpool_read(). */
struct zpool_mover {
	/* May the object move? The owner is locked then, until end(). False, and the object stays: the owner is locked by
	 * somebody else, or has another handle than this one. */
	bool (*begin)(void *arg, uint64_t owner, zpool_handle from);
	/* It has moved: to is the owner's handle from now on. */
	void (*end)(void *arg, uint64_t owner, zpool_handle to);
	void *arg;
};
/* Empties the sparse zspages into the others, each at most once; returns how many pages that freed. */
uint64_t zpool_compact(struct zpool *pool, const struct zpool_mover *mover);

/* Pages in zspages: zswap's pool_total_size over the page size. Free pages, cached or not, are not among them. */
static inline uint64_t zpool_pages(const struct zpool *pool)
{
	return atomic_load_explicit(&pool->pages, memory_order_relaxed);
}

/* Free pages that keep their host memory. */
static inline uint64_t zpool_cached(const struct zpool *pool)
{
	return atomic_load_explicit(&pool->cached, memory_order_relaxed);
}

/* A line of debugfs' zsmalloc/POOL/classes. */
struct zpool_class {
	unsigned index;                  /* of ZPOOL_SIZES: the largest size that merged into it */
	uint32_t size;                   /* of an object with its header */
	uint32_t pages_per_zspage;
	uint32_t objects_per_zspage;
	uint64_t zspages[ZPOOL_GROUPS];  /* by fullness group */
	uint64_t obj_allocated, obj_used;
	uint64_t pages_used;
	uint64_t freeable;               /* pages that compaction can free if nobody refuses */
};
/* The i-th class, by size, at one moment. False: there are no more. */
bool zpool_class_at(struct zpool *pool, unsigned i, struct zpool_class *out);

/* In a child of fork, whose parent saw to it that no thread was in a call here: what is locked was locked by nobody. */
void zpool_forked(struct zpool *pool);

#endif
