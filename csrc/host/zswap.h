/* SPDX-License-Identifier: MIT
 *
 * zswap.h - what becomes of a page that loses its frame, and how it comes back: mm/zswap.c with devices.
 *
 *   store   zeros: the zeromap. Else a node that is safe: a copy there. Else compressed, in the pool; what does not shrink as
 *           it is, where it may be written back. Else the swap file.
 *   load    exclusive: once the page has a frame, its entry and what it names are gone.
 *
 * It does not choose pages: the pager's sweep does. Callers hold the page's lock in the swap table, and are in an op of the
 * home device, which gives threads their places and their memory to work in. A store copies before it lets go: a failure,
 * wherever it comes, leaves the page readable.
 *
 * Lock order: a page's lock (blocking only while none is held) - a class of the pool - device pages - what nodes.c has.
 */
#ifndef CRAM_ZSWAP_H
#define CRAM_ZSWAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "board.h"
#include "memcg.h"
#include "nodes.h"
#include "swapfile.h"
#include "swaptable.h"
#include "zpool.h"

struct zswap {
	struct cram_device *home;
	struct codec codec;         /* of the pool */
	uint8_t *spaces;            /* its workspaces, one a place; opened at their first use */
	size_t space_size;
	struct codec_space opened[PLACES_MAX];
	struct zpool pool;
	struct swapfile swap;
	struct memcgs groups;
	struct node nodes[NODES_MAX];
	struct board *board;
	struct board_row *row;      /* ours, to count in */
	int board_fd;               /* -1: it is not ours to give */
	bool shared;                /* the board has others' rows too */
	/* Who wants to hear: see cram_zswap_wait(). */
	_Atomic uint32_t bell;
	_Atomic uint32_t listeners;    /* 1: somebody has waited */
	_Atomic uint32_t wanted;       /* enum cram_zswap_work */
	struct futex_lock notes_lock;
	_Atomic uint64_t notes_head, notes_tail;
	_Atomic uint32_t notes_kinds;  /* a bit a kind that somebody asked for */
	struct cram_zswap_note notes[CRAM_ZSWAP_NOTES];
};

/* One memory's view: what a page is looked up in, and charged to. */
struct zswap_memory {
	struct zswap *zswap;
	struct swaptable table;
	uint32_t number;               /* among the home device's mappings */
	uint32_t group;                /* memcg */
};

static inline uint64_t zswap_setting(const struct zswap *zswap, enum cram_zswap_setting setting)
{
	return atomic_load_explicit(&zswap->board->settings[setting], memory_order_relaxed);
}
static inline void zswap_count(struct zswap *zswap, enum cram_zswap_counter counter, int64_t n)
{
	atomic_fetch_add_explicit(&zswap->row->counters[counter], (uint64_t)n, memory_order_relaxed);
}

enum store_why {
	STORE_FAULT,   /* reclaim inside a fault, which cannot wait for a driver to approve of a page */
	STORE_RECLAIM, /* reclaim elsewhere: on a node whose driver approves of pages, one that he has approved of */
	STORE_FORCED,  /* a frame that must go: past every limit but the machine's, and past drivers, where there is no other way */
};

/* CRAM_ENOMEM, CRAM_EINVAL. Zeroed before. board: of another process, and the settings are its; NULL: a new one. */
int zswap_init(struct zswap *zswap, struct cram_device *home, const struct cram_zswap_params *params, struct board *board);
void zswap_deinit(struct zswap *zswap);

/* Stores a page that has no entry, from a frame that does not change meanwhile. False: nobody takes it, and nothing has changed. */
bool zswap_store(struct zswap_memory *memory, struct op *op, uint64_t page, const uint8_t *frame, enum store_why why);
/* The page's bytes; its entry stays. False: poison. A page without an entry reads as zeros. */
bool zswap_load(struct zswap_memory *memory, struct op *op, uint64_t page, uint8_t *to);
/* Is it poison, as far as can be told without loading it? */
bool zswap_poisoned(struct zswap_memory *memory, uint64_t page);
/* The device of a locked page tells that this process has met its poison, if it is on one. */
void zswap_consumed(struct zswap_memory *memory, uint64_t page);
/* Frees what the page's entry names, and the entry. promoted: because it has a frame now. */
void zswap_invalidate(struct zswap_memory *memory, struct op *op, uint64_t page, bool promoted);
/* The entry, and what it names, becomes another page's, which has none; both are locked. */
void zswap_move(struct zswap_memory *memory, uint64_t from, uint64_t to);

/* One step of the shrinker: writes the page back to the swap file if it is in the pool and has had its second chance. True: it
 * was written. */
bool zswap_write_back(struct zswap_memory *memory, struct op *op, uint64_t page);
/* Moves a page off a node that is leaving. False: nobody takes it. */
bool zswap_leave_node(struct zswap_memory *memory, struct op *op, uint64_t page, unsigned node);

/* Poisons a line of a page that has no frame, on a node: it is moved there if it is elsewhere. *dpa: the line's. CRAM_EBUSY:
 * no node takes it, or the poison list is full; CRAM_EPOISON: it is already. */
int zswap_poison(struct zswap_memory *memory, struct op *op, uint64_t page, unsigned line, uint64_t *dpa);

/* total_pages of mm/zswap.c, of all processes that share the manager, with the direct ones as the setting has it; and the
 * limit. */
uint64_t zswap_total_pages(const struct zswap *zswap, enum cram_direct_limit direct);
uint64_t zswap_max_pages(const struct zswap *zswap);

/* In a child of fork, whose parent saw to it that no thread was at work here, and whose home device, as which it takes the
 * parent's over, is the one node. False: it cannot. */
bool zswap_forked(struct zswap *zswap, struct dpa_table table);

/* Tells the board how large the pool is, when it may have changed. */
void zswap_publish_pool(struct zswap *zswap);

/* Has whoever waits look after it. */
void zswap_want(struct zswap *zswap, enum cram_zswap_work work);

#endif
