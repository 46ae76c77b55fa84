/* SPDX-License-Identifier: MIT
 *
 * Entries of the page map, and their lock bit.
 */
#include <sched.h>

#include "check.h"
#include "device/pagemap.h"
#include "threads.h"

#define PAGES 8u
#define FLAGS (ENTRY_LOCK | ENTRY_BUSY | ENTRY_DIRTY | ENTRY_RECORDED | ENTRY_RUN | ENTRY_HOLDER)

struct store {
	_Atomic uint64_t entries[PAGES];
	_Atomic uint32_t checks[PAGES];
};

static struct pagemap map_of(struct store *store)
{
	return (struct pagemap){ .entries = store->entries, .checks = store->checks, .pages = PAGES };
}

/* Whatever is put into an entry comes out of it, and no field reaches into another or into the flags. */
static void fields_do_not_overlap(void)
{
	static const uint32_t firsts[] = { 0, 1, 0x80000000, 0xffffffff };
	static const uint32_t lengths[] = { 0, 1, 2048, 4095 };

	for (unsigned state = CRAM_PAGE_EMPTY; state <= CRAM_PAGE_POISON; state++) {
		for (unsigned i = 0; i < COUNT(firsts); i++) {
			for (unsigned j = 0; j < COUNT(lengths); j++) {
				uint64_t entry = entry_make(state, firsts[i], lengths[j]);
				uint32_t length = state == CRAM_PAGE_STORED ? lengths[j]
						  : state == CRAM_PAGE_RAW ? PAGE_SIZE
									   : 0;

				CHECK_EQ(entry & FLAGS, 0);
				for (unsigned with_flags = 0; with_flags < 2; with_flags++) {
					CHECK_EQ(entry_state(entry), state);
					CHECK_EQ(entry_first(entry), firsts[i]);
					CHECK_EQ(entry_length(entry), length);
					entry |= FLAGS;
				}
			}
		}
	}
	CHECK_EQ(entry_make(CRAM_PAGE_RAW, 0, PAGE_SIZE), entry_make(CRAM_PAGE_RAW, 0, 0));
	CHECK_EQ(entry_holder(255ull << ENTRY_HOLDER_SHIFT), 255);
	CHECK_EQ(entry_holder(~ENTRY_HOLDER), 0);
}

/* A locked page is refused to everybody, its holder too, and after the unlock the entry is as it was. */
static void lock_bit_excludes(void)
{
	uint64_t entry = entry_make(CRAM_PAGE_STORED, 12345, 678) | ENTRY_DIRTY | ENTRY_RECORDED | ENTRY_RUN;
	struct store store = { .entries = { 0 } };
	struct pagemap map = map_of(&store);

	store.entries[3] = entry;
	CHECK(pagemap_trylock(&map, 3, 63));
	CHECK_EQ(entry_holder(pagemap_entry(&map, 3)), 63);
	CHECK_EQ(pagemap_entry(&map, 3) & ~(ENTRY_LOCK | ENTRY_HOLDER), entry);
	CHECK(!pagemap_trylock(&map, 3, 63));
	CHECK(!pagemap_trylock(&map, 3, 0));
	CHECK_EQ(entry_holder(pagemap_entry(&map, 3)), 63);
	CHECK(pagemap_trylock(&map, 4, 0));
	pagemap_unlock(&map, 3);
	CHECK_EQ(pagemap_entry(&map, 3), entry);
	CHECK(pagemap_trylock(&map, 3, 0));
	CHECK_EQ(entry_holder(pagemap_entry(&map, 3)), 0);
}

/* A change replaces the flags it names and nothing else; the unlock takes BUSY with it. */
static void change_replaces_named_flags(void)
{
	uint64_t entry = entry_make(CRAM_PAGE_SAME, 7, 0) | ENTRY_DIRTY;
	struct store store = { .entries = { entry } };
	struct pagemap map = map_of(&store);

	CHECK(pagemap_trylock(&map, 0, 9));
	pagemap_change(&map, 0, ENTRY_DIRTY, ENTRY_RECORDED | ENTRY_BUSY);
	CHECK_EQ(pagemap_entry(&map, 0), entry_make(CRAM_PAGE_SAME, 7, 0) | ENTRY_RECORDED | ENTRY_BUSY | ENTRY_LOCK |
						 9ull << ENTRY_HOLDER_SHIFT);
	pagemap_unlock(&map, 0);
	CHECK_EQ(pagemap_entry(&map, 0), entry_make(CRAM_PAGE_SAME, 7, 0) | ENTRY_RECORDED);
}

/* A publication keeps the lock and its holder, and drops every flag that it does not name, BUSY and DIRTY too. */
static void publish_keeps_only_the_lock(void)
{
	struct store store = { .entries = { ENTRY_BUSY | ENTRY_DIRTY | ENTRY_RECORDED | ENTRY_RUN } };
	struct pagemap map = map_of(&store);

	CHECK(pagemap_trylock(&map, 0, 5));
	pagemap_publish(&map, 0, entry_make(CRAM_PAGE_POISON, 0x89abcdef, 0) | ENTRY_RECORDED, 0x01234567);
	CHECK_EQ(pagemap_entry(&map, 0), entry_make(CRAM_PAGE_POISON, 0x89abcdef, 0) | ENTRY_RECORDED | ENTRY_LOCK |
						 5ull << ENTRY_HOLDER_SHIFT);
	CHECK_EQ(pagemap_word(&map, 0, pagemap_entry(&map, 0)), 0x0123456789abcdef);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

struct counting {
	struct store store;
	bool locked;                    /* false: the twin */
	uint64_t plain[PAGES];          /* for thread sanitizer's eyes */
	_Atomic uint64_t counts[PAGES];
};

static void lock(struct pagemap *map, uint64_t page, unsigned client)
{
	while (!pagemap_trylock(map, page, client))
		sched_yield();
}

static void count_up(void *arg, unsigned index)
{
	struct counting *c = arg;
	struct pagemap map = map_of(&c->store);

	for (unsigned i = 0; i < ROUNDS(60000u); i++) {
		uint64_t page = i % 2 + index % 2; /* neighbours share one, and not the other */
		uint64_t seen;

		if (c->locked) {
			lock(&map, page, index);
			CHECK_EQ(entry_holder(pagemap_entry(&map, page)), index);
			CHECK_EQ(pagemap_check(&map, page), entry_first(pagemap_entry(&map, page)));
			c->plain[page]++;
		}
		seen = atomic_load(&c->counts[page]);
		if (i % 64 == 0)
			sched_yield();
		atomic_store(&c->counts[page], seen + 1);
		if (c->locked) {
			pagemap_publish(&map, page, entry_make(CRAM_PAGE_SAME, i, 0), i);
			pagemap_unlock(&map, page);
		}
	}
}

static uint64_t total(const struct counting *c)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < PAGES; i++)
		sum += c->counts[i];
	return sum;
}

/* Under a page's lock bit one thread works on the page, and sees all that the last one wrote. */
static void lock_bit_orders_threads(void)
{
	struct counting c = { .locked = true };

	run_threads(4, count_up, &c);
	CHECK_EQ(total(&c), 4 * ROUNDS(60000u));
	for (unsigned i = 0; i < PAGES; i++)
		CHECK_EQ(c.plain[i], c.counts[i]);
}

/* The twin: without it updates are lost. */
static void lost_updates_are_seen(void)
{
	struct counting c = { .locked = false };

	run_threads(4, count_up, &c);
	CHECK_COMPARE(total(&c), <, 4 * ROUNDS(60000u));
}

static const struct test tests[] = {
	TEST(fields_do_not_overlap),
	TEST(lock_bit_excludes),
	TEST(change_replaces_named_flags),
	TEST(publish_keeps_only_the_lock),
	TEST(lock_bit_orders_threads),
	TEST(lost_updates_are_seen),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
