/* SPDX-License-Identifier: MIT
 *
 * plane.c - the device's pages, for the functions of cram.h: through a frame of this process where there is one.
 */
#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "plane.h"

/* ---- the data plane -------------------------------------------------------------------------------------- */

/* The pager of this process that maps a page of the device, or NULL; *index: its number there. In a visit. */
static struct pager *find_pager(struct cram_device *device, uint64_t page, uint64_t *index)
{
	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		struct cram_map *map = device->maps[i];

		if (map != NULL && !pager_anonymous(&map->pager) && page - map->pager.first < map->pager.pages) {
			*index = page - map->pager.first;
			return &map->pager;
		}
	}
	return NULL;
}

/* The same for a page of anonymous memory, which the caller has locked: no list says where it is, and few ask. */
static struct pager *find_anonymous(struct cram_device *device, uint64_t page, uint64_t *index)
{
	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		struct cram_map *map = device->maps[i];

		if (map == NULL || map->pager.table == NULL)
			continue;
		*index = pager_find(&map->pager, 0, page);
		if (*index != UINT64_MAX)
			return &map->pager;
	}
	return NULL;
}

void cram_write_page(cram_device *device, uint64_t dpa, const void *from)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	uint8_t bounce[PAGE_SIZE];
	struct pager *pager;
	struct visit visit;

	/* The source may lie on a device: its fault must come before any page is locked. */
	memcpy(bounce, from, PAGE_SIZE);
	if (visit_begin_op(device, &visit) != 0)
		return;
	pager = find_pager(device, page, &index);
	if (page >= device->device.map.pages) {
		device_count_refused(&device->device);
		visit_end(&visit);
		return;
	}
	device_lock_page(visit.op, page);
	if (device_foreign(visit.op, page)) {
		device_count_refused(&device->device);
	} else if (pager != NULL && pager_resident(pager, index)) {
		pager_write(pager, visit.op, index, bounce);
	} else {
		bool marked = pager != NULL && device_poisoned(visit.op, page);

		device_store(visit.op, page, bounce);
		if (marked)
			pager_drop(pager, visit.op, index, false);
	}
	device_unlock_page(visit.op, page);
	visit_end(&visit);
}

/* Loads the page, of which the caller wants [start, end); returns where the bytes that it may have end. */
static size_t load_page(cram_device *device, uint64_t page, size_t start, size_t end, uint8_t *to)
{
	uint64_t index = 0, lines = ~0ull;
	struct pager *pager;
	struct visit visit;

	if (visit_begin_op(device, &visit) != 0)
		return start;
	pager = find_pager(device, page, &index);
	if (page < device->device.map.pages) {
		device_lock_page(visit.op, page);
		if (pager != NULL && pager_resident(pager, index)) {
			memcpy(to, pager_frame(pager, index), PAGE_SIZE);
			lines = 0;
		} else if (!device_foreign(visit.op, page)) {
			lines = device_load(visit.op, page, to);
		}
		device_unlock_page(visit.op, page);
	}
	visit_end(&visit);
	/* The first poisoned line at or after the one that start is in. */
	lines &= ~0ull << start / LINE_SIZE;
	if (lines != 0 && (size_t)__builtin_ctzll(lines) * LINE_SIZE < end)
		end = (size_t)__builtin_ctzll(lines) * LINE_SIZE;
	return end > start ? end : start;
}

size_t cram_read(cram_device *device, uint64_t dpa, void *to, size_t length)
{
	uint8_t bounce[PAGE_SIZE];
	size_t copied = 0;

	while (copied < length) {
		size_t start = (dpa + copied) % PAGE_SIZE;
		size_t end = length - copied < PAGE_SIZE - start ? start + length - copied : PAGE_SIZE;
		size_t good = load_page(device, (dpa + copied) >> PAGE_SHIFT, start, end, bounce);

		/* The destination may lie on a device too: no page is locked now. */
		memcpy((uint8_t *)to + copied, bounce + start, good - start);
		copied += good - start;
		if (good < end)
			break;
	}
	return length - copied;
}

size_t cram_read_page(cram_device *device, uint64_t dpa, void *page)
{
	return cram_read(device, dpa - dpa % PAGE_SIZE, page, PAGE_SIZE);
}

static void discard_page(struct cram_device *device, struct op *op, uint64_t page)
{
	uint64_t index = 0;
	struct pager *pager = find_pager(device, page, &index);

	device_lock_page(op, page);
	if (device_foreign(op, page)) {
		device_count_refused(&device->device);
	} else if (pager != NULL && pager_resident(pager, index) && pager_pinned(pager, index)) {
		/* A pinned frame must stay. */
		pager_write(pager, op, index, NULL);
	} else {
		/* The media first: a death before the frame's turn leaves DIRTY, and so poison, not the older bytes. */
		device_drop(op, page);
		if (pager != NULL)
			pager_drop(pager, op, index, true);
	}
	device_unlock_page(op, page);
}

/* Discards the pages from *page that one page of the page map describes, skipping what it does not hold. */
static void discard_some(struct cram_device *device, struct op *op, uint64_t *page, uint64_t last)
{
	uint64_t stop;

	*page = device_next_used(&device->device, *page);
	stop = (*page | (PAGE_SIZE / sizeof(uint64_t) - 1)) + 1;
	for (; *page < stop && *page < last; ++*page)
		discard_page(device, op, *page);
}

void cram_discard(cram_device *device, uint64_t dpa, uint64_t length)
{
	uint64_t page = dpa >> PAGE_SHIFT;
	uint64_t last = page + (length >> PAGE_SHIFT);
	struct visit visit;

	while (page < last) {
		if (visit_begin_op(device, &visit) != 0)
			return;
		if (last > device->device.map.pages)
			last = device->device.map.pages;
		if (page < last)
			discard_some(device, visit.op, &page, last);
		visit_end(&visit);
	}
}

static int check_address(const cram_device *device, uint64_t dpa, uint64_t unit)
{
	uint64_t advertised = device->params.advertised;

	if (dpa >= advertised)
		return cram_fail(CRAM_EINVAL, "address 0x%" PRIx64 ": past the advertised capacity of 0x%" PRIx64, dpa,
				 advertised);
	if (dpa % unit != 0)
		return cram_fail(CRAM_EINVAL, "address 0x%" PRIx64 ": not a multiple of %" PRIu64, dpa, unit);
	return 0;
}

int cram_page_info(cram_device *device, uint64_t dpa, struct cram_page_info *info)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	struct pager *pager;
	struct visit visit;
	int code = check_address(device, dpa, 1);

	if (code == 0)
		code = visit_begin_op(device, &visit);
	if (code != 0)
		return code;
	pager = find_pager(device, page, &index);
	device_lock_page(visit.op, page);
	device_page_info(visit.op, page, info);
	info->foreign = device_foreign(visit.op, page);
	info->resident = pager != NULL && pager_resident(pager, index);
	device_unlock_page(visit.op, page);
	visit_end(&visit);
	return 0;
}

/* ---- poison ---------------------------------------------------------------------------------------------- */

int plane_command(cram_device *device, struct op *op, enum request_kind kind, uint64_t dpa)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	unsigned line = (unsigned)(dpa % PAGE_SIZE / LINE_SIZE);
	bool anonymous = dpas_taken(&device->device.dpas, page);
	struct pager *pager;
	int code = 0;

	device_lock_page(op, page);
	pager = anonymous ? find_anonymous(device, page, &index) : find_pager(device, page, &index);
	if (anonymous && pager == NULL && !device_holds(op, page)) {
		code = CRAM_ENOENT;
	} else if (!anonymous && device_foreign(op, page)) {
		code = CRAM_EBUSY;
	} else if (pager != NULL && pager_resident(pager, index) && pager_pinned(pager, index)) {
		code = CRAM_EPERM;
	} else {
		if (pager != NULL)
			pager_drop(pager, op, index, false);
		if (kind == REQUEST_INJECT)
			code = device_inject(op, page, line) == 0 ? 0 : CRAM_ENOSPC;
		else
			device_clear(op, page, line);
	}
	device_unlock_page(op, page);
	return code;
}

/* The same, by whoever has the page mapped. */
static int command(struct cram_device *device, enum request_kind kind, uint64_t dpa)
{
	struct visit visit;
	int code = check_address(device, dpa, LINE_SIZE);

	if (code != 0)
		return code;
	/* Whom a page belongs to may change between the question and the command: then ask again. */
	do {
		code = visit_begin(device, &visit);
		if (code != 0)
			return code;
		code = device_check_removed(&device->device);
		if (code != 0) {
			visit_end(&visit);
			return code;
		}
		code = device_request(&device->device, kind, dpa);
		if (code == CRAM_ENOENT) {
			visit.op = device_enter(&device->device);
			code = plane_command(device, visit.op, kind, dpa);
		}
		visit_end(&visit);
	} while (code == CRAM_EBUSY);
	if (code == CRAM_ENOSPC)
		return cram_fail(CRAM_EBUSY, "address 0x%" PRIx64 ": the poison list is full (%u records)", dpa,
				 device->params.poison_limit);
	if (code == CRAM_EPERM)
		return cram_fail(CRAM_EBUSY, "address 0x%" PRIx64 ": its frame is pinned", dpa);
	return code;
}

int cram_inject_poison(cram_device *device, uint64_t dpa)
{
	return command(device, REQUEST_INJECT, dpa);
}

int cram_clear_poison(cram_device *device, uint64_t dpa)
{
	return command(device, REQUEST_CLEAR, dpa);
}

size_t cram_poison_list(cram_device *device, struct cram_poison_record *records, size_t n)
{
	struct visit visit;
	size_t found;

	if (visit_begin(device, &visit) != 0)
		return 0;
	found = device_poison_list(&device->device, records, n);
	visit_end(&visit);
	return found;
}
