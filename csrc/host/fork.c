/* SPDX-License-Identifier: MIT
 *
 * fork.c - what becomes of the core in a child of fork(2): it knows of nothing, but for one anonymous mapping that may be
 * inherited (space.h).
 *
 * The mapping's pages are shared as swap entries are (kernel: mm/memory.c, copy_nonpresent_pte()): the child is a client of
 * its own, whose table is a copy of the parent's, made while no thread of the parent works on a page. Frames are shared
 * by the kernel, copy on write; the child protects them all, and so hears of its first write to each. Of managed memory the
 * swap table, the pool and the frames are copied by the kernel, on write; only device pages are shared.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "space.h"
#include "thread.h"
#include "uffd.h"
#include "visit.h"

static struct {
	cram_map *map;
	space_walk_fn *walk;
	/* From before the fork to after it; the map's lock is held. */
	sigset_t before;
	struct device_fork fork;
	int code;
} inherited;

static _Thread_local struct device_fork last_fork __attribute__((tls_model("initial-exec")));
static _Thread_local int forked __attribute__((tls_model("initial-exec")));

void space_fork_prepare(void)
{
	cram_map *map = inherited.map;
	sigset_t before;

	if (map == NULL || host_forked(map->owner))
		return;
	host_block_signals(&before);
	pthread_rwlock_wrlock(&map->owner->maps_lock);
	delivery_pause();
	inherited.before = before;
	inherited.code = device_fork(&map->owner->device, &inherited.fork);
}

void space_fork_parent(void)
{
	cram_map *map = inherited.map;
	sigset_t before = inherited.before;

	if (map == NULL || host_forked(map->owner))
		return;
	last_fork = inherited.fork;
	forked = inherited.code == 0;
	delivery_resume();
	pthread_rwlock_unlock(&map->owner->maps_lock);
	host_restore_signals(&before);
}

bool space_can_fork(void)
{
	cram_map *map = inherited.map;
	int saved = errno;
	sigset_t before;
	bool can = true;

	if (map == NULL || host_forked(map->owner))
		return true;
	host_block_signals(&before);
	can = device_can_fork(&map->owner->device) == 0;
	host_restore_signals(&before);
	errno = saved;
	return can;
}

void space_forked(int pid)
{
	int errno_before = errno;

	if (inherited.map != NULL && forked) {
		/* Of a fork that failed nobody becomes the client: it is one that has never lived. */
		device_forked(&inherited.map->owner->device, &last_fork, pid > 0 ? (uint32_t)pid : UINT32_MAX >> 1);
		forked = 0;
	}
	errno = errno_before;
}

/* ---- the child ------------------------------------------------------------------------------------------- */

static void serve_part(cram_map *map, uint64_t offset, uint64_t length)
{
	space_drop_strays(map, offset, length);
	if (space_register(map, offset, length) != 0)
		inherited.code = CRAM_ENOMEM;
	/* Managed frames share nothing with the parent's that a write would have to undo. */
	else if (map->pager.managed == NULL && uffd_protect(map->pager.uffd, map->pager.base + offset, length, true) != 0)
		inherited.code = CRAM_ENOMEM;
}

/* No other thread is there: what they held, they hold no more. */
static void forget_holders(struct pager *pager)
{
	atomic_store(&pager->hand_lock.word, 0);
	atomic_store(&pager->pin_lock.word, 0);
	for (unsigned i = 0; i < PLACES_MAX; i++)
		atomic_store(&pager->lanes[i].protecting, false);
}

/* Has a new descriptor serve the memory. */
static int serve(cram_map *map, bool sigbus, bool *move)
{
	if (uffd_open(sigbus, &map->pager.uffd, move) != 0)
		return CRAM_EPERM;
	inherited.walk(map, serve_part);
	return inherited.code;
}

/* A thread cannot be started before its memory is served: so inline first, and then by the monitor. Between the two nobody
 * touches it; closing the first descriptor gives the memory up. */
static int change_to_monitor(cram_map *map, bool *move)
{
	int before = map->pager.uffd, fd, code;

	if (uffd_open(false, &fd, move) != 0)
		return CRAM_EPERM;
	code = delivery_monitor(&map->delivery, fd);
	if (code != 0)
		return code;
	descriptor_close(before);
	map->pager.uffd = fd;
	map->pager.wake = true;
	map->delivery.monitored = true;
	inherited.walk(map, serve_part);
	return inherited.code;
}

static int take_over(cram_map *map)
{
	struct cram_device *device = map->owner;
	struct pager *pager = &map->pager;
	struct dpa_table table;
	int code = inherited.code;
	bool monitored = map->delivery.monitored, move;

	if (code == 0)
		code = device_become(&device->device, &inherited.fork, &table);
	if (code != 0)
		return code;
	visits_init(device);
	forget_holders(pager);
	if (pager->managed == NULL)
		pager->table = table.entries;
	else if (!zswap_forked(pager->managed->zswap, table))
		return CRAM_EBUSY;
	atomic_store(&device->device.self->resident_frames, atomic_load(&pager->resident));
	atomic_store(&device->device.self->dirty_frames, atomic_load(&pager->dirty));
	descriptor_close(pager->uffd);
	pager->wake = false;
	code = serve(map, true, &move);
	if (code == 0)
		code = delivery_start(&map->delivery, pager, false);
	if (code == 0)
		code = host_restart_service(device);
	if (code == 0 && pager->managed != NULL)
		board_keep_row(pager->managed->zswap->row, atomic_load(&device->device.self->keeper));
	if (code == 0 && monitored)
		code = change_to_monitor(map, &move);
	if (code == 0)
		map_spares(pager, move && pager->spares != NULL);
	return code;
}

void space_fork_child(void)
{
	static const char text[] = "cram_emu: a child of fork could not take its memory over, and ends\n";
	ssize_t ignored;

	visits_forget();
	delivery_forget();
	threads_forget();
	forked = 0;
	if (inherited.map == NULL)
		return;
	if (take_over(inherited.map) != 0) {
		ignored = write(STDERR_FILENO, text, sizeof(text) - 1);
		(void)ignored;
		abort();
	}
	host_restore_signals(&inherited.before);
}

static void watch(void)
{
	pthread_atfork(space_fork_prepare, space_fork_parent, space_fork_child);
}

void fork_watch(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, watch);
}

void space_inherit(cram_map *map, space_walk_fn *walk)
{
	inherited.walk = walk;
	inherited.map = map;
}
