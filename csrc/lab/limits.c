/* SPDX-License-Identifier: MIT
 *
 * limits.c - what no device of this kind can beat on this machine: decompression alone, and a copy alone.
 */
#include <lz4.h>
#include <string.h>
#include <sys/mman.h>

#include "../error.h"
#include "content.h"
#include "team.h"

/* Pages compressed alone, back to back. The reservation is for the worst case; only what is used is touched. */
struct page_store {
	char *bytes;
	uint32_t *length; /* of each page's form */
	uint64_t used;
	uint64_t pages;
};

static void *ordinary_memory(uint64_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	madvise(memory, bytes, MADV_NOHUGEPAGE); /* EINVAL: the kernel has no huge pages to keep away */
	return memory;
}

static uint64_t page_store_reserved(const struct page_store *store)
{
	return store->pages * (LZ4_COMPRESSBOUND(LAB_PAGE) + sizeof(*store->length));
}

static int page_store_init(struct page_store *store, const struct cram_lab_range *range)
{
	uint64_t words[LAB_WORDS];
	int length; /* never 0: there is room for the worst case */

	store->pages = range->pages;
	store->used = 0;
	store->length = ordinary_memory(page_store_reserved(store));
	if (!store->length)
		return cram_fail(CRAM_ENOMEM, "no address space for %llu compressed pages",
				 (unsigned long long)range->pages);
	store->bytes = (char *)(store->length + store->pages);
	for (uint64_t page = 0; page < store->pages; page++) {
		lab_page_fill(range, page, words);
		length = LZ4_compress_default((char *)words, store->bytes + store->used, LAB_PAGE,
					      LZ4_COMPRESSBOUND(LAB_PAGE));
		store->length[page] = (uint32_t)length;
		store->used += (uint64_t)length;
	}
	return 0;
}

static void page_store_deinit(struct page_store *store)
{
	munmap(store->length, page_store_reserved(store));
}

int cram_lab_decompress(const struct cram_lab_range *range, uint64_t *store_bytes, struct cram_lab_result *result)
{
	struct page_store store;
	uint64_t start, offset = 0, failed = 0, elapsed;
	char *memory = range->memory;
	int err = lab_check_range(range);

	if (!err)
		err = page_store_init(&store, range);
	if (err)
		return err;
	start = lab_now_ns();
	for (uint64_t page = 0; page < store.pages; page++) {
		int length = (int)store.length[page];

		failed += LZ4_decompress_safe(store.bytes + offset, memory + page * LAB_PAGE, length, LAB_PAGE) !=
			  (int)LAB_PAGE;
		offset += (uint64_t)length;
	}
	elapsed = lab_now_ns() - start;
	*store_bytes = store.used;
	page_store_deinit(&store);
	err = cram_lab_verify(range, 0, result);
	result->elapsed_ns = elapsed;
	result->wrong += failed;
	return err;
}

void cram_lab_copy(void *to, const void *from, uint64_t pages, struct cram_lab_result *result)
{
	uint64_t start = lab_now_ns();

	for (uint64_t page = 0; page < pages; page++)
		memcpy((char *)to + page * LAB_PAGE, (const char *)from + page * LAB_PAGE, LAB_PAGE);
	result->elapsed_ns = lab_now_ns() - start;
	result->wrong = memcmp(to, from, pages * LAB_PAGE) != 0;
}

int cram_lab_touch(uint64_t bytes)
{
	volatile char *memory = ordinary_memory(bytes);

	if (!memory)
		return cram_fail(CRAM_ENOMEM, "no address space for %llu bytes", (unsigned long long)bytes);
	for (uint64_t i = 0; i < bytes; i += LAB_PAGE)
		memory[i] = 1;
	munmap((void *)memory, bytes);
	return 0;
}
