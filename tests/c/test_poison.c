/* SPDX-License-Identifier: MIT
 *
 * The poison list.
 *
 * Oracle: a plain set of addresses for each kind of record.
 */
#include <stdlib.h>

#include "check.h"
#include "content.h"
#include "device/pagemap.h"
#include "device/poison.h"

static struct poison_list *make_list(uint32_t limit)
{
	struct poison_list *list = calloc(1, sizeof(*list));

	list->limit = limit;
	return list;
}

static bool has(const struct poison_list *list, uint64_t dpa, uint32_t length)
{
	for (uint32_t i = 0; i < list->count; i++)
		if (list->records[i].dpa == dpa && list->records[i].length == length)
			return true;
	return false;
}

/* The list takes as many records as its limit says, refuses the next, and is unchanged by that. */
static void list_is_limited(void)
{
	static const uint32_t limits[] = { 1, 2, 1000, POISON_RECORDS_MAX };

	for (unsigned i = 0; i < COUNT(limits); i++) {
		struct poison_list *list = make_list(limits[i]), *before = make_list(0);

		for (uint32_t j = 0; j < limits[i]; j++)
			CHECK(poison_add(list, j * 64ull, LINE_SIZE, CRAM_POISON_INJECTED));
		memcpy(before, list, sizeof(*list));
		CHECK(!poison_add(list, 1 << 30, LINE_SIZE, CRAM_POISON_INJECTED));
		CHECK_BYTES(list, before, sizeof(*list));
		CHECK_EQ(poison_remove(list, 0, 64), 1);
		CHECK(poison_add(list, 1 << 30, PAGE_SIZE, CRAM_POISON_MEDIA));
		CHECK(has(list, 1 << 30, PAGE_SIZE));
		free(list);
		free(before);
	}
}

/* A record keeps its address, length and source. */
static void record_is_kept(void)
{
	struct poison_list *list = make_list(10);

	CHECK(poison_add(list, 0xfffffff000, PAGE_SIZE, CRAM_POISON_LOST));
	CHECK_EQ(list->count, 1);
	CHECK_EQ(list->records[0].dpa, 0xfffffff000);
	CHECK_EQ(list->records[0].length, PAGE_SIZE);
	CHECK_EQ(list->records[0].source, CRAM_POISON_LOST);
	free(list);
}

/* Exactly the records that begin in the range are removed, at both of its ends. */
static void range_is_removed(void)
{
	struct poison_list *list = make_list(100);

	for (uint64_t dpa = 0; dpa < 100 * 64; dpa += 64)
		CHECK(poison_add(list, dpa, LINE_SIZE, CRAM_POISON_INJECTED));
	CHECK_EQ(poison_remove(list, 640, 0), 0);
	CHECK_EQ(poison_remove(list, 641, 63), 0);
	CHECK_EQ(poison_remove(list, 640, 128), 2);
	CHECK_EQ(poison_remove(list, 640, 128), 0);
	CHECK_EQ(list->count, 98);
	for (uint64_t i = 0; i < 100; i++)
		CHECK_EQ(has(list, i * 64, LINE_SIZE), i != 10 && i != 11);
	CHECK_EQ(poison_remove(list, 0, UINT64_MAX), 98);
	CHECK_EQ(list->count, 0);
	free(list);
}

/* The mask of a page has a bit for each of its lines in the list, and none for neighbours and whole pages. */
static void lines_make_a_mask(void)
{
	struct poison_list *list = make_list(100);

	CHECK_EQ(poison_lines(list, 8192), 0);
	CHECK(poison_add(list, 8192, LINE_SIZE, CRAM_POISON_INJECTED));
	CHECK(poison_add(list, 8192 + 63 * 64, LINE_SIZE, CRAM_POISON_INJECTED));
	CHECK(poison_add(list, 8192 + 5 * 64, LINE_SIZE, CRAM_POISON_INJECTED));
	CHECK(poison_add(list, 8192 - 64, LINE_SIZE, CRAM_POISON_INJECTED));
	CHECK(poison_add(list, 8192 + 4096, LINE_SIZE, CRAM_POISON_INJECTED));
	CHECK(poison_add(list, 16384, PAGE_SIZE, CRAM_POISON_DROPPED));
	CHECK_EQ(poison_lines(list, 8192), 1ull << 63 | 1ull << 5 | 1);
	CHECK_EQ(poison_lines(list, 4096), 1ull << 63);
	CHECK_EQ(poison_lines(list, 12288), 1);
	CHECK_EQ(poison_lines(list, 16384), 0);
	CHECK_EQ(poison_remove(list, 8192, PAGE_SIZE), 3);
	CHECK_EQ(poison_lines(list, 8192), 0);
	free(list);
}

/* After any additions and removals the list holds what a set of them would. */
static void list_is_a_set(void)
{
	enum { LINES = 512 };
	struct poison_list *list = make_list(LINES);
	uint8_t there[LINES] = { 0 };
	uint64_t state = 7;

	for (int i = 0; i < 5000; i++) {
		uint64_t from = random_below(&state, LINES);
		uint64_t n = random_below(&state, 8);
		uint32_t removed = 0, count = 0;

		if (random_below(&state, 2) == 0) {
			if (!there[from])
				CHECK(poison_add(list, from * 64, LINE_SIZE, CRAM_POISON_INJECTED));
			there[from] = 1;
		} else {
			for (uint64_t j = from; j < from + n && j < LINES; j++) {
				removed += there[j];
				there[j] = 0;
			}
			CHECK_EQ(poison_remove(list, from * 64, n * 64), removed);
		}
		for (unsigned page = 0; page < LINES / 64; page++) {
			uint64_t mask = 0;

			for (unsigned j = 0; j < 64; j++)
				mask |= (uint64_t)there[page * 64 + j] << j;
			CHECK_EQ(poison_lines(list, page * 4096ull), mask);
			count += (uint32_t)__builtin_popcountll(mask);
		}
		CHECK_EQ(list->count, count);
	}
	free(list);
}

/* A record that a removal left twice when its client died stands once after the mending, and no other is lost. */
static void doubles_are_mended(void)
{
	for (uint32_t n = 0; n < 20; n++) {
		for (uint32_t dead_at = 0; dead_at < n; dead_at++) {
			struct poison_list *list = make_list(100);

			for (uint32_t i = 0; i < n; i++)
				CHECK(poison_add(list, i * 64ull, LINE_SIZE, CRAM_POISON_INJECTED));
			/* As poison_remove() does it, up to where it died. */
			list->records[dead_at] = list->records[n - 1];
			CHECK_EQ(list->count, n);
			poison_dedupe(list);
			CHECK_EQ(list->count, dead_at == n - 1 ? n : n - 1);
			for (uint32_t i = 0; i < n; i++)
				CHECK_EQ(has(list, i * 64ull, LINE_SIZE), i != dead_at || dead_at == n - 1);
			free(list);
		}
	}
}

/* However often records stand there, each stands once afterwards. */
static void any_doubles_are_mended(void)
{
	struct poison_list *list = make_list(POISON_RECORDS_MAX);
	uint64_t state = 3;

	poison_dedupe(list);
	CHECK_EQ(list->count, 0);
	while (list->count < POISON_RECORDS_MAX)
		CHECK(poison_add(list, random_below(&state, 50) * 64, LINE_SIZE, CRAM_POISON_INJECTED));
	poison_dedupe(list);
	CHECK_EQ(list->count, 50);
	for (uint64_t i = 0; i < 50; i++)
		CHECK(has(list, i * 64, LINE_SIZE));
	free(list);
}

static const struct test tests[] = {
	TEST(list_is_limited),
	TEST(record_is_kept),
	TEST(range_is_removed),
	TEST(lines_make_a_mask),
	TEST(list_is_a_set),
	TEST(doubles_are_mended),
	TEST(any_doubles_are_mended),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
