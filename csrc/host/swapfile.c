/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "swapfile.h"

#include <sys/syscall.h>

#include "device/pagemap.h"
#include "descriptor.h"
#include "error.h"
#include "memory.h"

static uint64_t words(const struct swapfile *swap)
{
	return (swap->slots + 63) / 64;
}

int swapfile_open(struct swapfile *swap, int fd, uint64_t slots)
{
	swap->fd = fd;
	swap->slots = slots;
	swap->taken = memory_map(words(swap) * 8, -1);
	if (swap->taken == NULL) {
		swap->slots = 0;
		return cram_fail(CRAM_ENOMEM, "no memory for the map of a swap file of %llu pages", (unsigned long long)slots);
	}
	/* The last word's bits past the end are never free. */
	if (slots % 64 != 0)
		atomic_store(&swap->taken[slots / 64], ~0ull << slots % 64);
	return 0;
}

void swapfile_close(struct swapfile *swap)
{
	if (swap->taken == NULL)
		return;
	memory_unmap(swap->taken, words(swap) * 8);
	descriptor_close(swap->fd);
	swap->taken = NULL;
	swap->slots = 0;
}

static uint64_t take_slot(struct swapfile *swap)
{
	uint64_t n = words(swap), start = atomic_load_explicit(&swap->cursor, memory_order_relaxed);

	for (uint64_t i = 0; i < n; i++) {
		uint64_t word = (start + i) % n;
		uint64_t taken = atomic_load_explicit(&swap->taken[word], memory_order_relaxed);

		while (~taken != 0) {
			unsigned bit = (unsigned)__builtin_ctzll(~taken);

			if (!atomic_compare_exchange_weak(&swap->taken[word], &taken, taken | 1ull << bit))
				continue;
			atomic_store_explicit(&swap->cursor, word, memory_order_relaxed);
			atomic_fetch_add_explicit(&swap->used, 1, memory_order_relaxed);
			return word * 64 + bit;
		}
	}
	return SWAPFILE_NO_SLOT;
}

void swapfile_free(struct swapfile *swap, uint64_t slot)
{
	atomic_fetch_and(&swap->taken[slot / 64], ~(1ull << slot % 64));
	atomic_fetch_sub_explicit(&swap->used, 1, memory_order_relaxed);
}

/* One of pread(2) and pwrite(2), the whole page. */
static bool transfer(long number, int fd, uint64_t slot, const void *page)
{
	uint64_t done = 0;

	while (done < PAGE_SIZE) {
		long n = memory_call(number, fd, (long)((uintptr_t)page + done), (long)(PAGE_SIZE - done),
				     (long)((slot << PAGE_SHIFT) + done), 0, 0);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (uint64_t)n;
	}
	return true;
}

uint64_t swapfile_write(struct swapfile *swap, const void *page)
{
	uint64_t slot = swap->slots == 0 ? SWAPFILE_NO_SLOT : take_slot(swap);

	if (slot != SWAPFILE_NO_SLOT && !transfer(SYS_pwrite64, swap->fd, slot, page)) {
		swapfile_free(swap, slot);
		return SWAPFILE_NO_SLOT;
	}
	return slot;
}

bool swapfile_read(const struct swapfile *swap, uint64_t slot, void *page)
{
	return transfer(SYS_pread64, swap->fd, slot, page);
}
