/* SPDX-License-Identifier: MIT
 *
 * memcg.h - memory cgroups: who is charged how many bytes, and up to what limit.
 *
 * It reclaims nothing, and does not know what a page is charged: its callers do. A charge goes to a group and to all its
 * parents. All functions are async-signal-safe; counters are atomics, read one after another while others charge.
 *
 * Names and rules: Documentation/admin-guide/cgroup-v2.rst, memory.current, .max, .stat, .zswap.{current,max,writeback}.
 */
#ifndef CRAM_MEMCG_H
#define CRAM_MEMCG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MEMCG_MAX 64u
#define MEMCG_UNLIMITED UINT64_MAX
#define MEMCG_NONE UINT32_MAX

struct memcg {
	_Atomic uint32_t used;      /* 0: a free row */
	uint32_t parent;            /* itself: the root, row 0 */
	_Atomic uint64_t max;       /* bytes */
	_Atomic uint64_t zswap_max; /* bytes */
	_Atomic uint32_t writeback; /* 0: nothing of it goes to the swap file */
	_Atomic uint64_t anon;      /* bytes of frames */
	_Atomic uint64_t zswap;     /* bytes charged for what is stored */
	_Atomic uint64_t zswapped;  /* pages that are stored */
	_Atomic uint64_t zswpin, zswpout, zswpwb; /* pages */
	_Atomic uint64_t max_events; /* so often the limit was met */
	_Atomic uint64_t oom;       /* so often reclaim could not get below it */
};

struct memcgs {
	struct memcg group[MEMCG_MAX];
};

/* One group, the root, without limits. */
void memcg_init(struct memcgs *groups);
/* A new group below that parent: its number, or -1 when there are too many. Callers take turns. */
int memcg_create(struct memcgs *groups, uint32_t parent);

static inline uint64_t memcg_current(const struct memcg *group)
{
	return atomic_load_explicit(&group->anon, memory_order_relaxed) +
	       atomic_load_explicit(&group->zswap, memory_order_relaxed);
}
static inline bool memcg_within(const struct memcgs *groups, uint32_t group, uint32_t ancestor)
{
	while (group != ancestor && group != 0)
		group = groups->group[group].parent;
	return group == ancestor;
}

/* Charges frames, or gives them back: bytes may be negative. */
void memcg_charge_anon(struct memcgs *groups, uint32_t group, int64_t bytes);
/* The same for stored pages. */
void memcg_charge_zswap(struct memcgs *groups, uint32_t group, int64_t bytes, int64_t pages);
/* Would so many bytes more be within all limits? MEMCG_NONE, or the nearest group that is over. */
uint32_t memcg_over(const struct memcgs *groups, uint32_t group, uint64_t bytes);
/* Has the group, or one above it, a limit? */
bool memcg_limited(const struct memcgs *groups, uint32_t group);
/* mm/memcontrol.c, obj_cgroup_may_zswap(): the nearest group that has met its memory.zswap.max, or MEMCG_NONE. */
uint32_t memcg_zswap_over(const struct memcgs *groups, uint32_t group);
/* mem_cgroup_zswap_writeback_enabled(). */
bool memcg_may_write_back(const struct memcgs *groups, uint32_t group);
/* One of zswpin, zswpout, zswpwb, max_events, oom, for a group and its parents. */
#define memcg_count(groups, number, counter, n)                                                            \
	do {                                                                                               \
		uint32_t memcg_row = (number);                                                             \
		for (;;) {                                                                                 \
			atomic_fetch_add_explicit(&(groups)->group[memcg_row].counter, (n), memory_order_relaxed); \
			if (memcg_row == 0)                                                                \
				break;                                                                     \
			memcg_row = (groups)->group[memcg_row].parent;                                     \
		}                                                                                          \
	} while (0)

#endif
