/* SPDX-License-Identifier: MIT
 *
 * The set of pages: against an array of flags, and under threads.
 */
#include <sched.h>
#include <stdlib.h>

#include "check.h"
#include "content.h"
#include "host/pageset.h"
#include "threads.h"

/* Compares the walk from every page with the flags. */
static void compare_walk(struct pageset *set, const uint8_t *flags, uint64_t pages)
{
	uint64_t expected = PAGESET_END;

	for (uint64_t page = pages; page-- > 0;) {
		if (flags[page])
			expected = page;
		CHECK_EQ(pageset_has(set, page), flags[page]);
		CHECK_EQ(pageset_next(set, page), expected);
	}
	CHECK_EQ(pageset_next(set, pages), PAGESET_END);
}

/* After any adds and removes the walk finds the members, in ascending order, and nothing else. */
static void walk_finds_the_members(void)
{
	static const uint64_t sizes[] = { 1, 63, 64, 65, 100, 4095, 4096, 4097, 20000 };
	uint64_t state = 1;

	for (unsigned i = 0; i < COUNT(sizes); i++) {
		uint64_t pages = sizes[i];
		uint8_t *flags = calloc(pages, 1);
		struct pageset set;

		CHECK(pageset_init(&set, pages));
		compare_walk(&set, flags, pages);
		for (int round = 0; round < 8; round++) {
			/* Now dense, now sparse. */
			uint64_t changes = round % 2 == 0 ? pages : pages / 100 + 1;

			for (uint64_t n = 0; n < changes; n++) {
				uint64_t page = random_below(&state, pages);

				flags[page] = random_below(&state, 4) >= (uint64_t)(round / 2);
				(flags[page] ? pageset_add : pageset_remove)(&set, page);
			}
			compare_walk(&set, flags, pages);
		}
		for (uint64_t page = 0; page < pages; page++) {
			flags[page] = 0;
			pageset_remove(&set, page);
		}
		compare_walk(&set, flags, pages);
		pageset_deinit(&set);
		free(flags);
	}
}

/* A set of 2^28 pages, 1 TiB of them, finds lone members at its ends, its middle and across empty summaries. */
static void large_set_is_walked(void)
{
	static const uint64_t members[] = { 0, 1, 63, 64, 4096, 262143, 262144, 1ull << 27, (1ull << 28) - 1 };
	struct pageset set;
	uint64_t page = 0;

	CHECK(pageset_init(&set, 1ull << 28));
	CHECK_EQ(pageset_next(&set, 0), PAGESET_END);
	for (unsigned i = 0; i < COUNT(members); i++)
		pageset_add(&set, members[i]);
	for (unsigned i = 0; i < COUNT(members); i++, page++) {
		page = pageset_next(&set, page);
		CHECK_EQ(page, members[i]);
	}
	CHECK_EQ(pageset_next(&set, page), PAGESET_END);
	for (unsigned i = 0; i < COUNT(members); i++)
		pageset_remove(&set, members[i]);
	CHECK_EQ(pageset_next(&set, 0), PAGESET_END);
	pageset_deinit(&set);
}

/* A set of zeros, and one that is gone already, may be given up. */
static void deinit_accepts_nothing(void)
{
	struct pageset set = { .pages = 0 };

	pageset_deinit(&set);
	CHECK(pageset_init(&set, 10));
	pageset_deinit(&set);
	pageset_deinit(&set);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

#define OWNERS 2u
#define WALKERS 2u
#define SPREAD 4u

struct crowd {
	struct pageset set;
	uint64_t stride;          /* between pages of one owner */
	bool forget;              /* the twin: the owner does not add what it looks for */
	_Atomic unsigned at_work;
	_Atomic uint64_t missed;  /* members that a walk which began after the add did not find */
	_Atomic uint64_t found;
	_Atomic uint64_t strange; /* pages that nobody ever added */
};

static void live_in_set(void *arg, unsigned index)
{
	struct crowd *crowd = arg;

	if (index >= OWNERS) {
		while (atomic_load(&crowd->at_work) > 0) {
			for (uint64_t page = 0; (page = pageset_next(&crowd->set, page)) != PAGESET_END; page++)
				if (page % crowd->stride >= OWNERS)
					crowd->strange++;
			sched_yield();
		}
		return;
	}
	for (uint64_t i = 0; i < ROUNDS(1000000u); i++) {
		/* The walk begins in another word than it has to end in, so that it needs the summaries. */
		uint64_t at = i % SPREAD * crowd->stride;
		uint64_t page = at + crowd->stride + index;

		if (!crowd->forget)
			pageset_add(&crowd->set, page);
		while ((at = pageset_next(&crowd->set, at)) < page)
			at++;
		if (at == page)
			crowd->found++;
		else
			crowd->missed++;
		pageset_remove(&crowd->set, page);
	}
	crowd->at_work--;
}

static void crowd_run(struct crowd *crowd, uint64_t stride, bool forget)
{
	memset(crowd, 0, sizeof(*crowd));
	CHECK(pageset_init(&crowd->set, (SPREAD + 1) * stride));
	crowd->stride = stride;
	crowd->forget = forget;
	crowd->at_work = OWNERS;
	run_threads(OWNERS + WALKERS, live_in_set, crowd);
}

/* A walk that begins after a page was added finds it, whatever others add, remove and walk meanwhile. */
static void members_are_never_missed(void)
{
	/* So that neighbours share a summary's word, the top's word, and nothing. */
	static const uint64_t strides[] = { 64, 4096, 262144 };

	for (unsigned i = 0; i < COUNT(strides); i++) {
		struct crowd crowd;

		crowd_run(&crowd, strides[i], false);
		CHECK_EQ(crowd.missed, 0);
		CHECK_EQ(crowd.strange, 0);
		CHECK_EQ(crowd.found, OWNERS * ROUNDS(1000000u));
		CHECK_EQ(pageset_next(&crowd.set, 0), PAGESET_END);
		for (uint64_t page = 0; page < crowd.set.pages; page += strides[i]) {
			pageset_add(&crowd.set, page);
			CHECK_EQ(pageset_next(&crowd.set, 0), page);
			pageset_remove(&crowd.set, page);
		}
		pageset_deinit(&crowd.set);
	}
}

/* The twin: a page that was not added is missed. */
static void missing_is_seen(void)
{
	struct crowd crowd;

	crowd_run(&crowd, 64, true);
	CHECK_EQ(crowd.missed, OWNERS * ROUNDS(1000000u));
	pageset_deinit(&crowd.set);
}

static const struct test tests[] = {
	TEST(walk_finds_the_members),
	TEST(large_set_is_walked),
	TEST(deinit_accepts_nothing),
	TEST(members_are_never_missed),
	TEST(missing_is_seen),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
