/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "space.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "error.h"
#include "memory.h"
#include "uffd.h"
#include "visit.h"

/* What mincore(2) is asked of at once. */
#define MINCORE_PAGES 4096u

static uint64_t page_of(uint64_t bytes)
{
	return bytes >> PAGE_SHIFT;
}

int space_protect(cram_map *map, uint64_t offset, uint64_t length, int protection)
{
	uint8_t *start = map->pager.base + offset;
	struct visit visit;
	int code;

	if (protection != PROT_NONE) {
		code = memory_protect(start, length, protection);
		if (code == 0)
			pager_open(&map->pager, page_of(offset), page_of(length));
		return code;
	}
	/* In this order: a frame that nobody may read could not be written back. */
	code = visit_begin_op(map->owner, &visit);
	if (code != 0)
		return code;
	pager_close(&map->pager, visit.op, page_of(offset), page_of(length));
	code = memory_protect(start, length, protection);
	visit_end(&visit);
	return code;
}

void space_discard(cram_map *map, uint64_t offset, uint64_t length)
{
	struct visit visit;

	if (visit_begin_op(map->owner, &visit) != 0)
		return;
	pager_discard(&map->pager, visit.op, page_of(offset), page_of(length));
	visit_end(&visit);
}

void space_move(cram_map *map, uint64_t from, uint64_t to, uint64_t length)
{
	struct visit visit;

	if (visit_begin_op(map->owner, &visit) != 0)
		return;
	pager_move(&map->pager, visit.op, page_of(from), page_of(to), page_of(length));
	visit_end(&visit);
}

/* Calls act for the pages of a range that the kernel has filled; stops, and says false, when it does. */
typedef bool present_fn(struct pager *pager, struct op *op, uint64_t page);

static bool for_present(struct pager *pager, struct op *op, uint64_t first, uint64_t count, present_fn *act)
{
	unsigned char present[MINCORE_PAGES];

	for (uint64_t done = 0; done < count; done += MINCORE_PAGES) {
		uint64_t n = count - done < MINCORE_PAGES ? count - done : MINCORE_PAGES;

		if (memory_call(SYS_mincore, (long)pager_frame(pager, first + done), (long)(n << PAGE_SHIFT),
				(long)present, 0, 0, 0) != 0)
			continue;
		for (uint64_t i = 0; i < n; i++)
			if ((present[i] & 1) && !act(pager, op, first + done + i))
				return false;
	}
	return true;
}

int space_adopt(cram_map *map, uint64_t offset, uint64_t length)
{
	struct visit visit;
	bool adopted;
	int code = visit_begin_op(map->owner, &visit);

	if (code != 0)
		return code;
	adopted = for_present(&map->pager, visit.op, page_of(offset), page_of(length), pager_adopt);
	pager_open(&map->pager, page_of(offset), page_of(length));
	visit_end(&visit);
	return adopted ? 0 : cram_fail(CRAM_ENOSPC, "the device has no pages left");
}

int space_register(cram_map *map, uint64_t offset, uint64_t length)
{
	return uffd_register(map->pager.uffd, map->pager.base + offset, length, true);
}

/* A locked page. */
static int poison_page(struct pager *pager, struct op *op, uint64_t page, unsigned line, uint64_t *dpa)
{
	if (pager_pinned(pager, page))
		return cram_fail(CRAM_EBUSY, "its frame is pinned");
	pager_drop(pager, op, page, false);
	if (pager_resident(pager, page))
		return cram_fail(CRAM_EBUSY, "its frame cannot be taken away");
	if (pager->managed != NULL)
		return zswap_poison(pager->managed, op, page, line, dpa);
	*dpa = (pager_dpa(pager, page) << PAGE_SHIFT) + line * LINE_SIZE;
	if (device_inject(op, pager_dpa(pager, page), line) != 0)
		return cram_fail(CRAM_EBUSY, "the poison list is full");
	return 0;
}

int space_poison(cram_map *map, uint64_t offset, uint64_t *dpa)
{
	uint64_t page = page_of(offset);
	struct visit visit;
	int code = visit_begin_op(map->owner, &visit);

	if (code != 0)
		return code;
	if (pager_lock(&map->pager, visit.op, page)) {
		code = poison_page(&map->pager, visit.op, page, (unsigned)(offset % PAGE_SIZE / LINE_SIZE), dpa);
		pager_unlock(&map->pager, visit.op, page);
	} else {
		code = cram_fail(CRAM_ENOSPC, "the device has no pages left");
	}
	visit_end(&visit);
	return code;
}

/* A page that the kernel filled with zeros, because the child touched it before anybody watched, hides what it holds. */
static bool drop_stray(struct pager *pager, struct op *op, uint64_t page)
{
	struct iovec range = { pager_frame(pager, page), PAGE_SIZE };

	(void)op;
	if (!pager_resident(pager, page))
		uffd_drop(&range, 1);
	return true;
}

void space_drop_strays(cram_map *map, uint64_t offset, uint64_t length)
{
	struct pager *pager = &map->pager;
	uint64_t end = page_of(offset) + page_of(length);

	/* A page that is closed nobody can have touched: most of the address space is, and asking the kernel costs more. */
	for (uint64_t page = page_of(offset); page < end;) {
		uint64_t stop = (page / MINCORE_PAGES + 1) * MINCORE_PAGES;
		uint64_t opened = 0;

		stop = stop < end ? stop : end;
		for (uint64_t word = page / 64; word <= (stop - 1) / 64; word++)
			opened |= atomic_load_explicit(&pager->opened[word], memory_order_relaxed);
		if (opened != 0)
			for_present(pager, NULL, page, stop - page, drop_stray);
		page = stop;
	}
}
