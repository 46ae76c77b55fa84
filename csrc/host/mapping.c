/* SPDX-License-Identifier: MIT
 *
 * mapping.c - a range of the device as memory, for the functions of cram.h: the memory, its pager and its delivery.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "memory.h"
#include "sigbus.h"
#include "uffd.h"
#include "visit.h"

#define WINDOW_MIN (64u << 10)
#define MANAGED_MAX (1ull << 40)

static int check_map_params(const struct cram_device *device, const struct cram_map_params *p, bool managed)
{
	uint64_t advertised = device->params.advertised;

	if (managed)
		advertised = MANAGED_MAX;
	else if (p->anonymous != 0)
		advertised *= DPAS_SPAN;
	if (p->anonymous > 1 || (p->anonymous && p->dpa != 0))
		return cram_fail(CRAM_EINVAL, "anonymous %u at 0x%" PRIx64 ": not 0, or 1 at 0", p->anonymous, p->dpa);
	if (managed && (p->length % PAGE_SIZE != 0 || p->length == 0 || p->length > advertised))
		return cram_fail(CRAM_EINVAL, "%" PRIu64 " bytes of managed memory: not whole pages, up to 1 TiB", p->length);
	if (p->dpa % PAGE_SIZE != 0 || p->length % PAGE_SIZE != 0 || p->length == 0 || p->dpa > advertised ||
	    p->length > advertised - p->dpa)
		return cram_fail(CRAM_EINVAL,
				 "range of 0x%" PRIx64 " bytes at 0x%" PRIx64 ": not whole pages within the advertised 0x%" PRIx64,
				 p->length, p->dpa, advertised);
	if (p->window % PAGE_SIZE != 0 || p->window < WINDOW_MIN)
		return cram_fail(CRAM_EINVAL, "frames of %" PRIu64 " bytes: not a multiple of 4096 from 64 KiB", p->window);
	if (p->delivery != CRAM_MONITOR && p->delivery != CRAM_INLINE)
		return cram_fail(CRAM_EINVAL, "delivery %u: not monitor (0) or inline (1)", p->delivery);
	return 0;
}

static int fail_uffd(int error, bool monitored)
{
	if (error == -EPERM || error == -EACCES)
		return cram_fail(CRAM_EPERM,
				 monitored ? "userfaultfd for the kernel's own faults is not permitted: run as root, set "
					     "vm.unprivileged_userfaultfd to 1, give access to /dev/userfaultfd, or use "
					     "inline delivery"
					   : "userfaultfd is not permitted to this process, not even for user faults");
	if (error == -ENOSYS)
		return cram_fail(CRAM_ENOSYS, "this kernel's userfaultfd lacks %s (Linux %s)",
				 monitored ? "write protection or poison" : "write protection",
				 monitored ? "6.6" : "5.18");
	return cram_fail(cram_code_of_errno(-error), "userfaultfd: %s", strerrordesc_np(-error));
}

/* Memory of ours, kept from huge pages and from children; NULL: none. */
static uint8_t *map_private(uint64_t length)
{
	uint8_t *memory = memory_map(length, -1);

	if (memory == NULL)
		return NULL;
	memory_advise(memory, length, MADV_NOHUGEPAGE);
	memory_advise(memory, length, MADV_DONTFORK);
	return memory;
}

void map_spares(struct pager *pager, bool move)
{
	pager->spares = move ? map_private(PAGER_SPARES) : NULL;
	/* Without them frames are copied. No protection there: a page that was swapped out brings its own along, and
	 * the pager must be able to write to it. */
	if (pager->spares != NULL && uffd_register(pager->uffd, pager->spares, PAGER_SPARES, false) != 0) {
		memory_unmap(pager->spares, PAGER_SPARES);
		pager->spares = NULL;
	}
}

/* The memory itself, not served yet, and where its frames rest between two pages. */
static int map_memory(struct cram_map *map, void *given, uint64_t length, bool monitored)
{
	struct pager *pager = &map->pager;
	bool move;
	int code = uffd_open(!monitored, &pager->uffd, &move);

	if (code != 0)
		return fail_uffd(code, monitored);
	pager->base = given != NULL ? given : map_private(length);
	if (pager->base == NULL) {
		descriptor_close(pager->uffd);
		return cram_fail(CRAM_ENOMEM, "no address space for a mapping of %" PRIu64 " bytes", length);
	}
	map_spares(pager, move);
	return 0;
}

static void unmap_memory(struct cram_map *map)
{
	/* In this order: a thread that still waits for a page wakes when the descriptor closes, and must then find no
	 * memory (SIGSEGV) rather than the kernel's zeros. */
	memory_unmap(map->pager.base, map->pager.pages << PAGE_SHIFT);
	if (map->pager.spares != NULL)
		memory_unmap(map->pager.spares, PAGER_SPARES);
	descriptor_close(map->pager.uffd);
}

static int set_up(struct cram_map *map, void *given, const struct cram_map_params *params)
{
	bool monitored = params->delivery == CRAM_MONITOR;
	int code = map_memory(map, given, params->length, monitored);

	if (code != 0)
		return code;
	code = pager_init(&map->pager);
	if (code == 0) {
		code = delivery_start(&map->delivery, &map->pager, monitored);
		if (code == 0) {
			code = uffd_register(map->pager.uffd, map->pager.base, params->length, true);
			if (code == 0)
				return 0;
			code = fail_uffd(code, monitored);
			delivery_stop(&map->delivery);
		}
		pager_deinit(&map->pager);
	}
	unmap_memory(map);
	return code;
}

static void list_map(struct cram_device *device, struct cram_map *old, struct cram_map *new)
{
	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		if (device->maps[i] == old) {
			device->maps[i] = new;
			if (new != NULL)
				new->managed.number = i;
			return;
		}
	}
}

static struct cram_map *new_map(cram_device *device, const struct cram_map_params *params)
{
	struct cram_map *map;

	map = memory_map(sizeof(*map), -1);
	if (map == NULL)
		return NULL;
	map->owner = device;
	map->period_ns = (uint64_t)params->writeback_ms * 1000000;
	map->pager.device = &device->device;
	map->pager.pages = params->length >> PAGE_SHIFT;
	map->pager.first = params->dpa >> PAGE_SHIFT;
	map->pager.window = params->window >> PAGE_SHIFT;
	map->pager.wake = params->delivery == CRAM_MONITOR;
	map->pager.timed = params->writeback_ms != 0;
	return map;
}

/* Takes the device pages: a range of them, or a table to put those in that the memory comes to need. */
static int claim_pages(struct cram_map *map, bool anonymous)
{
	struct device *device = map->pager.device;
	struct dpa_table table;
	int code;

	if (map->pager.managed != NULL)
		return 0;
	if (!anonymous)
		return device_claim(device, map->pager.first, map->pager.pages, &map->claim);
	code = device_open_table(device, &table);
	if (code == 0)
		map->pager.table = table.entries;
	return code;
}

static void unclaim_pages(struct cram_map *map)
{
	if (map->pager.managed != NULL)
		return;
	if (map->pager.table != NULL)
		device_close_table(map->pager.device);
	else
		device_unclaim(map->pager.device, map->claim);
}

int cram_map_create(cram_device *device, const struct cram_map_params *params, cram_map **map)
{
	int code = map_create(device, params, NULL, NULL, 0, map);

	if (code == 0 && params->anonymous)
		pager_open(&(*map)->pager, 0, (*map)->pager.pages);
	return code;
}

static void free_map(struct cram_map *map)
{
	swaptable_deinit(&map->managed.table);
	memory_unmap(map, sizeof(*map));
}

/* Takes the memory under a manager. */
static int manage(struct cram_map *map, struct zswap *zswap, uint32_t group)
{
	map->managed.zswap = zswap;
	map->managed.group = group;
	map->pager.managed = &map->managed;
	/* Its frames are written nowhere while they stay. */
	map->period_ns = 0;
	map->pager.timed = false;
	if (swaptable_init(&map->managed.table, map->pager.pages))
		return 0;
	return cram_fail(CRAM_ENOMEM, "no memory for a swap table of %" PRIu64 " pages", map->pager.pages);
}

int map_create(cram_device *device, const struct cram_map_params *params, void *memory, struct zswap *zswap, uint32_t group,
	       cram_map **result)
{
	struct cram_map *map;
	struct visit visit;
	int code = check_map_params(device, params, zswap != NULL);

	if (code != 0)
		return code;
	map = new_map(device, params);
	if (map == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for a mapping handle");
	if (zswap != NULL)
		code = manage(map, zswap, group);
	if (code == 0)
		code = visit_begin_at(device, &visit, true);
	if (code != 0) {
		free_map(map);
		return code;
	}
	code = pager_removed(&map->pager) ? device_check_removed(map->pager.device) : claim_pages(map, params->anonymous);
	if (code == 0) {
		code = set_up(map, memory, params);
		if (code != 0)
			unclaim_pages(map);
		else
			list_map(device, NULL, map);
	}
	visit_end(&visit);
	if (code != 0) {
		free_map(map);
		return code;
	}
	*result = map;
	return 0;
}

/* In a child the memory is not there, and nothing in the object is ours. */
static void unmap_in_child(struct cram_map *map)
{
	pager_deinit(&map->pager);
	descriptor_close(map->pager.uffd);
	map->closed = true;
}

void cram_unmap(cram_map *map)
{
	struct cram_device *device;
	struct visit visit;

	if (map == NULL || map->closed)
		return;
	device = map->owner;
	if (host_forked(device)) {
		unmap_in_child(map);
		return;
	}
	/* First no fault is answered any more, so that no frame appears; then what there is goes back; only then do
	 * page operations stop to look for frames here. A device with mappings does not close: a visit is to be had. */
	delivery_stop(&map->delivery);
	visit_begin_op(device, &visit);
	if (pager_anonymous(&map->pager))
		pager_discard(&map->pager, visit.op, 0, map->pager.pages);
	else
		pager_evict_all(&map->pager, visit.op);
	visit_end(&visit);
	visit_begin_at(device, &visit, true);
	list_map(device, map, NULL);
	map->closed = true;
	unmap_memory(map);
	unclaim_pages(map);
	pager_deinit(&map->pager);
	visit_end(&visit);
}

void cram_map_free(cram_map *map)
{
	cram_unmap(map);
	if (map != NULL)
		free_map(map);
}

void *cram_map_address(const cram_map *map)
{
	return map->pager.base;
}

static int check_range(const cram_map *map, uint64_t offset, uint64_t length)
{
	uint64_t size = map->pager.pages << PAGE_SHIFT;

	if (offset > size || length > size - offset)
		return cram_fail(CRAM_EINVAL, "range of 0x%" PRIx64 " bytes at 0x%" PRIx64 ": outside the mapping of 0x%" PRIx64,
				 length, offset, size);
	return 0;
}

/* The pages that a range of bytes touches. */
static uint64_t page_count(uint64_t offset, uint64_t length)
{
	return length == 0 ? 0 : ((offset + length - 1) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) + 1;
}

typedef int range_fn(struct pager *pager, struct op *op, uint64_t first, uint64_t count);

/* Does something to the pages of a range of a mapping that is still there. */
static int on_range(cram_map *map, uint64_t offset, uint64_t length, range_fn *act)
{
	struct visit visit;
	int code = check_range(map, offset, length);

	if (code == 0)
		code = visit_begin_op(map->owner, &visit);
	if (code != 0)
		return code;
	if (map->closed)
		code = cram_fail(CRAM_ECLOSED, "the mapping is closed");
	else
		code = act(&map->pager, visit.op, offset >> PAGE_SHIFT, page_count(offset, length));
	visit_end(&visit);
	return code;
}

static int flush_range(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	pager_flush(pager, op, first, count);
	return 0;
}

int cram_flush(cram_map *map, uint64_t offset, uint64_t length)
{
	int code = on_range(map, offset, length, flush_range);

	if (code == 0)
		delivery_reassert();
	return code;
}

int cram_pin(cram_map *map, uint64_t offset, uint64_t length)
{
	return on_range(map, offset, length, pager_pin);
}

int cram_unpin(cram_map *map, uint64_t offset, uint64_t length)
{
	return on_range(map, offset, length, pager_unpin);
}

void cram_map_read_stats(const cram_map *map, struct cram_map_stats *stats)
{
	const struct pager *pager = &map->pager;

	memset(stats, 0, sizeof(*stats));
	stats->resident = atomic_load(&pager->resident);
	stats->dirty = atomic_load(&pager->dirty);
	stats->window = pager->window;
	stats->poison_faults = atomic_load(&map->delivery.poison_faults);
	stats->handler_restored = sigbus_reinstalled();
	for (unsigned i = 0; i < PLACES_MAX; i++) {
		const struct lane *lane = &pager->lanes[i];

		stats->read_faults += atomic_load(&lane->read_faults);
		stats->write_faults += atomic_load(&lane->write_faults);
		stats->protect_faults += atomic_load(&lane->protect_faults);
		stats->prefetched += atomic_load(&lane->prefetched);
		stats->evicted += atomic_load(&lane->evicted);
		stats->written_back += atomic_load(&lane->written_back);
	}
}
