/* SPDX-License-Identifier: MIT
 *
 * pins.c - pages that are kept from eviction, for pager.h.
 */
#include "error.h"
#include "frames.h"

static bool pinned_by(const struct pager *pager, uint64_t page, unsigned except)
{
	for (unsigned i = 0; i < pager->pin_count; i++)
		if (i != except && page - pager->pins[i].first < pager->pins[i].count)
			return true;
	return false;
}

/* Unpins the pages of [first, first + count) that no other pin holds. Each under its lock: pager_write() relies on a
 * pinned page staying so, and pins pages for a moment itself, so that the bit alone does not say whose it is. */
static void release_pages(struct pager *pager, struct op *op, uint64_t first, uint64_t count, unsigned except)
{
	for (uint64_t page = first; page < first + count; page++) {
		bool known;

		if (pinned_by(pager, page, except))
			continue;
		known = pager_lock_known(pager, op, page, true);
		frame_set_pinned(pager, page, false);
		if (known)
			pager_unlock(pager, op, page);
		pager->pinned_pages--;
	}
}

/* Makes one page resident, writable and pinned. */
static enum fault_result pin_page(struct pager *pager, struct op *op, uint64_t page)
{
	for (;;) {
		enum fault_result result;

		if (!pager_lock(pager, op, page))
			return FAULT_FAILED;
		if (pager_resident(pager, page)) {
			frame_hold(pager, op, page);
			pager_unlock(pager, op, page);
			return FAULT_DONE;
		}
		pager_unlock(pager, op, page);
		result = pager_fault(pager, op, page, true);
		if (result != FAULT_DONE)
			return result;
	}
}

static int pin_range(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	uint64_t room = pager->window - pager->batch;
	uint64_t fresh = 0;

	if (pager->pin_count == PAGER_PINS_MAX)
		return cram_fail(CRAM_ENOMEM, "%u ranges are pinned already", PAGER_PINS_MAX);
	for (uint64_t page = first; page < first + count; page++)
		fresh += !pinned_by(pager, page, PAGER_PINS_MAX);
	if (pager->pinned_pages + fresh > room)
		return cram_fail(CRAM_ENOMEM, "pinning %llu more pages, with %llu pinned, in a window that allows %llu",
				 (unsigned long long)fresh, (unsigned long long)pager->pinned_pages,
				 (unsigned long long)room);
	for (uint64_t page = first; page < first + count; page++) {
		enum fault_result result;

		if (pinned_by(pager, page, PAGER_PINS_MAX))
			continue;
		result = pin_page(pager, op, page);
		if (result == FAULT_DONE) {
			pager->pinned_pages++;
			continue;
		}
		release_pages(pager, op, first, page - first, PAGER_PINS_MAX);
		if (result == FAULT_POISON)
			return cram_fail(CRAM_EPOISON, "the page at offset 0x%llx is poisoned",
					 (unsigned long long)(page << PAGE_SHIFT));
		return cram_fail(CRAM_ENOMEM, "no memory for the frame at offset 0x%llx",
				 (unsigned long long)(page << PAGE_SHIFT));
	}
	pager->pins[pager->pin_count++] = (struct pin){ first, count };
	return 0;
}

int pager_pin(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	int code;

	take_lock(pager, &pager->pin_lock);
	code = pin_range(pager, op, first, count);
	futex_unlock(&pager->pin_lock);
	return code;
}

int pager_unpin(struct pager *pager, struct op *op, uint64_t first, uint64_t count)
{
	int code = CRAM_EINVAL;

	take_lock(pager, &pager->pin_lock);
	for (unsigned i = 0; i < pager->pin_count && code != 0; i++) {
		if (pager->pins[i].first != first || pager->pins[i].count != count)
			continue;
		release_pages(pager, op, first, count, i);
		pager->pins[i] = pager->pins[--pager->pin_count];
		code = 0;
	}
	futex_unlock(&pager->pin_lock);
	return code == 0 ? 0
			 : cram_fail(code, "offset 0x%llx, length 0x%llx is not a pinned range",
				     (unsigned long long)(first << PAGE_SHIFT), (unsigned long long)(count << PAGE_SHIFT));
}
