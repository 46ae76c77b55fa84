/* SPDX-License-Identifier: MIT */
#include "memcg.h"

static void set_up(struct memcg *group, uint32_t parent)
{
	group->parent = parent;
	atomic_store(&group->max, MEMCG_UNLIMITED);
	atomic_store(&group->zswap_max, MEMCG_UNLIMITED);
	atomic_store(&group->writeback, 1);
	atomic_store(&group->used, 1);
}

void memcg_init(struct memcgs *groups)
{
	set_up(&groups->group[0], 0);
}

int memcg_create(struct memcgs *groups, uint32_t parent)
{
	for (uint32_t i = 1; i < MEMCG_MAX; i++) {
		if (atomic_load(&groups->group[i].used))
			continue;
		set_up(&groups->group[i], parent);
		return (int)i;
	}
	return -1;
}

void memcg_charge_anon(struct memcgs *groups, uint32_t group, int64_t bytes)
{
	memcg_count(groups, group, anon, (uint64_t)bytes);
}

void memcg_charge_zswap(struct memcgs *groups, uint32_t group, int64_t bytes, int64_t pages)
{
	memcg_count(groups, group, zswap, (uint64_t)bytes);
	memcg_count(groups, group, zswapped, (uint64_t)pages);
}

uint32_t memcg_over(const struct memcgs *groups, uint32_t group, uint64_t bytes)
{
	for (;; group = groups->group[group].parent) {
		const struct memcg *row = &groups->group[group];
		uint64_t max = atomic_load_explicit(&row->max, memory_order_relaxed);

		if (max != MEMCG_UNLIMITED && memcg_current(row) + bytes > max)
			return group;
		if (group == 0)
			return MEMCG_NONE;
	}
}

bool memcg_limited(const struct memcgs *groups, uint32_t group)
{
	for (;; group = groups->group[group].parent) {
		if (atomic_load_explicit(&groups->group[group].max, memory_order_relaxed) != MEMCG_UNLIMITED)
			return true;
		if (group == 0)
			return false;
	}
}

uint32_t memcg_zswap_over(const struct memcgs *groups, uint32_t group)
{
	for (;; group = groups->group[group].parent) {
		const struct memcg *row = &groups->group[group];
		uint64_t max = atomic_load_explicit(&row->zswap_max, memory_order_relaxed);

		if (max != MEMCG_UNLIMITED && atomic_load_explicit(&row->zswap, memory_order_relaxed) >= max)
			return group;
		if (group == 0)
			return MEMCG_NONE;
	}
}

bool memcg_may_write_back(const struct memcgs *groups, uint32_t group)
{
	for (;; group = groups->group[group].parent) {
		if (!atomic_load_explicit(&groups->group[group].writeback, memory_order_relaxed))
			return false;
		if (group == 0)
			return true;
	}
}
