/* SPDX-License-Identifier: MIT
 *
 * visit.h - what this process keeps of a device and of its mappings, and how a thread visits them.
 *
 * The functions of cram.h are in host.c (lifetime, the service's work), plane.c (pages), control.c (registers,
 * interrupts) and mapping.c; each call is a visit. There, and nowhere below, signals are blocked around work on pages.
 */
#ifndef CRAM_VISIT_H
#define CRAM_VISIT_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "delivery.h"
#include "device/device.h"
#include "pager.h"
#include "service.h"

struct cram_map {
	struct cram_device *owner;
	struct pager pager;
	struct delivery delivery;
	struct zswap_memory managed; /* where pager.managed points, if it does */
	_Atomic uint64_t shrink_hand; /* where the shrinker goes on */
	int claim;
	bool closed;         /* under the owner's maps_lock */
	uint64_t period_ns;  /* of the write-back; 0: off */
	uint64_t next_ns;    /* when it is due; service thread only. 0: nothing was dirty */
};

struct cram_device {
	struct device device;
	struct cram_params params;
	struct service service;
	uint32_t fork_generation;
	/* Held, with signals blocked, by whoever works on the device; for writing, by who changes what is open. Taken
	 * before any op. */
	pthread_rwlock_t maps_lock;
	_Atomic bool closing;           /* changes under maps_lock */
	_Atomic uint32_t used_as_node;  /* by managers of this process: it does not close */
	_Atomic bool orphaned;          /* cram_free() has come before the last of them let go */
	_Atomic uint32_t waiters;       /* threads in cram_event_wait() */
	struct cram_map *maps[CLAIMS_MAX];
};

/* cram_map_create(), in memory that the caller has reserved for it; NULL: in new memory. Of anonymous memory no page may be
 * accessed yet (pager_open()), and children of fork inherit what the caller has reserved. zswap: its manager, of which device is
 * the home, and its memory cgroup there; NULL: it has none. */
int map_create(cram_device *device, const struct cram_map_params *params, void *memory, struct zswap *zswap, uint32_t group,
	       cram_map **map);
/* In a child of fork that takes the device over: its own service thread. */
int host_restart_service(cram_device *device);
/* A manager lets the device go, which may have been the last to want it. */
void host_release_node(cram_device *device);
/* Gives a mapping that can move frames its spare pages. */
void map_spares(struct pager *pager, bool move);

/* Makes a new handle one that can be visited, by this process. */
void visits_init(cram_device *device);
/* Has the core hear of forks from now on (fork.c). */
void fork_watch(void);
/* In a child of fork: what was opened before cannot be visited. */
void visits_forget(void);
void visits_deinit(cram_device *device);
/* Was the device opened before the fork that made this process? */
bool host_forked(const cram_device *device);
/* May this process work on the device? Under maps_lock, except for the question of fork. */
int host_check(const cram_device *device);

void host_block_signals(sigset_t *before);
void host_restore_signals(const sigset_t *before);

/* One stay of an ordinary thread in the device; op is NULL for one that works on no page. */
struct visit {
	sigset_t before;
	struct cram_device *device;
	struct op *op;
};

/* Opens a visit without an op, reading or writing; fails, and there is none, on a device that is closed. */
int visit_begin_at(const cram_device *device, struct visit *visit, bool write);
int visit_begin(const cram_device *device, struct visit *visit);
int visit_begin_op(cram_device *device, struct visit *visit);
void visit_end(struct visit *visit);

#endif
