/* SPDX-License-Identifier: MIT
 *
 * host.c - the lifetime of a device in this process, for the functions of cram.h, and what its service thread does.
 */
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "memory.h"
#include "plane.h"
#include "visit.h"

/* ---- the service's work ---------------------------------------------------------------------------------- */

static int serve_request(void *owner, enum request_kind kind, uint64_t dpa)
{
	struct cram_device *device = owner;
	struct visit visit;
	int code = visit_begin_op(device, &visit);

	if (code != 0)
		return code;
	code = plane_command(device, visit.op, kind, dpa);
	visit_end(&visit);
	return code;
}

/* When the map's next write-back is due, having done the one that is (*done): UINT64_MAX when nothing is dirty. */
static uint64_t write_back_map(struct cram_map *map, struct op *op, uint64_t now, bool *done)
{
	if (map->period_ns == 0 || atomic_load(&map->pager.dirty) == 0) {
		map->next_ns = 0;
		return UINT64_MAX;
	}
	if (map->next_ns == 0) {
		map->next_ns = now + map->period_ns;
	} else if (now >= map->next_ns) {
		pager_write_back_due(&map->pager, op, map->period_ns / 1000000);
		*done = true;
		/* From the end of the work: a write-back that takes longer than its period does not run all the time. */
		map->next_ns = now_ns() + map->period_ns;
	}
	return map->next_ns;
}

static int write_back_maps(void *owner, uint64_t now)
{
	struct cram_device *device = owner;
	uint64_t next = UINT64_MAX;
	bool worked = false, done = false;

	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		struct visit visit;
		struct cram_map *map;

		if (visit_begin_op(device, &visit) != 0)
			return -1;
		map = device->maps[i];
		if (map != NULL) {
			uint64_t due = write_back_map(map, visit.op, now, &done);

			worked |= due != UINT64_MAX;
			next = due < next ? due : next;
		}
		visit_end(&visit);
	}
	if (!worked)
		return -1;
	/* Not whenever somebody wakes us: poison that is met does, and then the program's own handler may have given way to the one
	 * before it, to die of that. */
	if (done)
		delivery_reassert();
	now = now_ns();
	return next <= now ? 0 : (int)((next - now) / 1000000) + 1;
}

/* Managed memory has frames of the host's own, which stay. */
static void follow_losses(void *owner)
{
	struct cram_device *device = owner;
	struct client *self = device->device.self;
	struct visit visit;
	uint32_t losses;

	if (visit_begin_op(device, &visit) != 0)
		return;
	/* Before looking: what is lost meanwhile is followed the next time. */
	losses = atomic_load(&device->device.clients->losses);
	for (unsigned i = 0; i < CLAIMS_MAX; i++)
		if (device->maps[i] != NULL && device->maps[i]->pager.managed == NULL)
			pager_lose(&device->maps[i]->pager, visit.op);
	/* In the visit: a fork copies the frames together with how far they have followed. */
	atomic_store(&self->followed, losses);
	futex_wake_all(&self->followed);
	visit_end(&visit);
}

static const struct service_ops service_ops = {
	.request = serve_request,
	.follow = follow_losses,
	.write_back = write_back_maps,
};

/* ---- lifetime -------------------------------------------------------------------------------------------- */

typedef int open_fn(const char *path, const struct cram_params *params, struct device *device);

static int open_existing(const char *path, const struct cram_params *params, struct device *device)
{
	(void)params;
	return device_open(path, device);
}

static void free_handle(struct cram_device *device)
{
	visits_deinit(device);
	memory_unmap(device, sizeof(*device));
}

static int open_with(open_fn *open_device, const char *path, const struct cram_params *params, cram_device **result)
{
	struct cram_device *device = memory_map(sizeof(*device), -1);
	sigset_t before;
	int code;

	if (device == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for a device handle");
	fork_watch();
	visits_init(device);
	host_block_signals(&before);
	code = open_device(path, params, &device->device);
	if (code == 0) {
		device->params = *device_params(&device->device);
		code = service_start(&device->service, &device->device, &service_ops, device);
		if (code != 0) {
			device_close(&device->device, false);
			if (open_device == device_create && path != NULL)
				unlink(path);
		}
	}
	host_restore_signals(&before);
	if (code != 0) {
		free_handle(device);
		return code;
	}
	*result = device;
	return 0;
}

int cram_create(const char *path, const struct cram_params *params, cram_device **device)
{
	return open_with(device_create, path, params, device);
}

int cram_open(const char *path, cram_device **device)
{
	return open_with(open_existing, path, NULL, device);
}

int host_restart_service(cram_device *device)
{
	descriptor_close(device->service.event_fd);
	return service_start(&device->service, &device->device, &service_ops, device);
}

static unsigned count_maps(const struct cram_device *device)
{
	unsigned n = 0;

	for (unsigned i = 0; i < CLAIMS_MAX; i++)
		n += device->maps[i] != NULL;
	return n;
}

/* Says to all that the device closes; from then on nobody begins a visit. */
static int start_closing(cram_device *device)
{
	struct visit visit;
	unsigned maps;
	bool node;
	int code = visit_begin_at(device, &visit, true);

	if (code != 0)
		return code;
	maps = count_maps(device);
	node = atomic_load(&device->used_as_node) > 0;
	if (maps == 0 && !node)
		atomic_store(&device->closing, true);
	visit_end(&visit);
	if (node)
		return cram_fail(CRAM_EBUSY, "the device is a manager's node");
	return maps == 0 ? 0 : cram_fail(CRAM_EBUSY, "%u mappings of this device exist", maps);
}

int cram_close(cram_device *device)
{
	sigset_t before;
	int code;

	if (device == NULL || atomic_load(&device->closing))
		return 0;
	if (host_forked(device)) {
		atomic_store(&device->closing, true);
		device_close(&device->device, true);
		return 0;
	}
	code = start_closing(device);
	if (code != 0)
		return code == CRAM_ECLOSED ? 0 : code;
	while (atomic_load(&device->waiters) != 0) {
		client_ring(device->device.self);
		sleep_ns(100000);
	}
	host_block_signals(&before);
	service_stop(&device->service);
	/* The last visits end before the object goes. */
	pthread_rwlock_wrlock(&device->maps_lock);
	device_close(&device->device, false);
	pthread_rwlock_unlock(&device->maps_lock);
	host_restore_signals(&before);
	return 0;
}

void cram_free(cram_device *device)
{
	if (device == NULL)
		return;
	cram_close(device);
	/* Whoever has it as a node comes later: a cycle of objects ends in any order. */
	atomic_store(&device->orphaned, true);
	if (atomic_load(&device->used_as_node) == 0)
		free_handle(device);
}

void host_release_node(cram_device *device)
{
	if (atomic_fetch_sub(&device->used_as_node, 1) == 1 && atomic_load(&device->orphaned))
		cram_free(device);
}

int cram_check(const cram_device *device)
{
	return host_check(device);
}

void cram_get_params(const cram_device *device, struct cram_params *params)
{
	*params = device->params;
}

int cram_fd(const cram_device *device)
{
	return device->device.fd;
}
