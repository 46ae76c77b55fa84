/* SPDX-License-Identifier: MIT
 *
 * Sectors and chains, on arrays of exactly the right size, so that a step outside them is seen.
 *
 * Oracle: an owner kept for each sector beside the media, and counts taken from the bitmap bit by bit.
 */
#include <sched.h>
#include <stdlib.h>

#include "check.h"
#include "content.h"
#include "device/media.h"
#include "threads.h"

#define NOBODY UINT32_MAX

struct pool {
	struct media media;
	_Atomic uint64_t used;
	uint64_t words;
	uint64_t groups;
};

static void pool_init(struct pool *pool, uint64_t sectors, uint32_t sector_size)
{
	pool->words = (sectors + 63) / 64;
	pool->groups = (pool->words + MEDIA_GROUP_WORDS - 1) / MEDIA_GROUP_WORDS;
	atomic_store(&pool->used, 0);
	pool->media = (struct media){ .bytes = calloc(sectors, sector_size),
				      .links = calloc(sectors, sizeof(uint32_t)),
				      .bitmap = calloc(pool->words, sizeof(uint64_t)),
				      .groups = calloc(pool->groups, sizeof(uint16_t)),
				      .used = &pool->used,
				      .sectors = sectors,
				      .sector_size = sector_size };
}

static void pool_deinit(struct pool *pool)
{
	free(pool->media.bytes);
	free(pool->media.links);
	free((void *)pool->media.bitmap);
	free((void *)pool->media.groups);
}

static bool is_used(const struct pool *pool, uint64_t sector)
{
	return pool->media.bitmap[sector / 64] >> sector % 64 & 1;
}

static uint64_t count_bits(const struct pool *pool)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < pool->words; i++)
		n += (uint64_t)__builtin_popcountll(pool->media.bitmap[i]);
	return n;
}

/* What contradicts the bitmap, with nobody at work, or NULL. */
static const char *find_fault(const struct pool *pool, uint64_t held)
{
	if (atomic_load(&pool->used) != held)
		return "the counter is not what is held";
	if (count_bits(pool) != held)
		return "the bitmap is not what is held";
	for (uint64_t group = 0; group < pool->groups; group++) {
		uint64_t first = group * MEDIA_GROUP_WORDS, n = 0;

		for (uint64_t i = first; i < first + MEDIA_GROUP_WORDS && i < pool->words; i++)
			n += (uint64_t)__builtin_popcountll(pool->media.bitmap[i]);
		if (pool->media.groups[group] != n)
			return "a group is not the sum of its words";
	}
	return NULL;
}

static void take(struct pool *pool, uint64_t *cursor, uint32_t n, struct chain *chain)
{
	CHECK(media_reserve(&pool->media, n));
	chain->count = 0;
	media_take(&pool->media, cursor, n, chain);
	CHECK_EQ(chain->count, n);
}

static void give_back(struct pool *pool, struct chain *chain)
{
	uint32_t n = chain->count;

	media_release(&pool->media, chain, 0);
	media_unreserve(&pool->media, n);
}

/* A chain of every second sector from first on. */
static void make_scattered(struct pool *pool, uint32_t first, uint32_t count, struct chain *chain)
{
	chain->count = count;
	for (uint32_t i = 0; i < count; i++) {
		chain->sector[i] = first + 2 * i;
		pool->media.bitmap[chain->sector[i] / 64] |= 1ull << chain->sector[i] % 64;
		pool->media.groups[chain->sector[i] / MEDIA_GROUP_SECTORS]++;
	}
	atomic_fetch_add(&pool->used, count);
}

/* ---- reservations --------------------------------------------------------------------------------------- */

/* Room is reserved to the last sector and not beyond it, and a refusal changes nothing. */
static void reserves_exactly(void)
{
	struct pool pool;

	pool_init(&pool, 100, 64);
	CHECK(media_reserve(&pool.media, 64));
	CHECK(!media_reserve(&pool.media, 37));
	CHECK_EQ(pool.used, 64);
	CHECK(media_reserve(&pool.media, 36));
	CHECK(!media_reserve(&pool.media, 1));
	CHECK(media_reserve(&pool.media, 0));
	CHECK_EQ(pool.used, 100);
	media_unreserve(&pool.media, 1);
	CHECK(media_reserve(&pool.media, 1));
	CHECK_EQ(pool.used, 100);
	pool_deinit(&pool);
}

struct small_and_large {
	struct pool pool;
	_Atomic unsigned small_at_work;
	_Atomic uint64_t refused_small, refused_large, overshoots;
	_Atomic uint64_t highest;
};

#define SMALL_THREADS 2u

static void ask_for_room(void *arg, unsigned index)
{
	struct small_and_large *s = arg;

	if (index >= SMALL_THREADS) {
		while (atomic_load(&s->small_at_work) > 0) {
			if (!media_reserve(&s->pool.media, 64))
				s->refused_large++;
			else
				media_unreserve(&s->pool.media, 64);
		}
		return;
	}
	while (atomic_load(&s->refused_large) == 0)
		sched_yield();
	for (int i = 0; i < ROUNDS(200000); i++) {
		if (!media_reserve(&s->pool.media, 1)) {
			s->refused_small++;
			continue;
		}
		if (atomic_load(&s->pool.used) > s->pool.media.sectors)
			s->overshoots++;
		media_unreserve(&s->pool.media, 1);
	}
	s->small_at_work--;
}

/* A request too large for what is left takes no room from a small one beside it, not even for a moment. */
static void refusal_disturbs_nobody(void)
{
	struct small_and_large s = { .small_at_work = SMALL_THREADS };

	pool_init(&s.pool, 1000, 64);
	CHECK(media_reserve(&s.pool.media, 1000 - 63));
	run_threads(SMALL_THREADS + 2, ask_for_room, &s);
	CHECK_EQ(s.refused_small, 0);
	CHECK_EQ(s.overshoots, 0);
	pool_deinit(&s.pool);
}

/* The twin: with one sector too few, small requests are refused, and the test above would say so. */
static void refusal_of_small_is_seen(void)
{
	struct small_and_large s = { .small_at_work = SMALL_THREADS };

	pool_init(&s.pool, 1000, 64);
	CHECK(media_reserve(&s.pool.media, 1000));
	run_threads(SMALL_THREADS + 2, ask_for_room, &s);
	CHECK_EQ(s.refused_small, (uint64_t)SMALL_THREADS * ROUNDS(200000));
	pool_deinit(&s.pool);
}

/* ---- taking and releasing ------------------------------------------------------------------------------- */

/* A reservation of all sectors takes each exactly once, wherever the search begins. */
static void takes_every_sector_once(void)
{
	static const uint64_t sizes[] = { 1, 2, 63, 64, 65, 127, 128, 4095, 4096, 4097, 8191, 8192, 12289 };

	for (unsigned i = 0; i < COUNT(sizes); i++) {
		for (unsigned from = 0; from < 4; from++) {
			uint64_t cursor = from == 3 ? UINT64_MAX : from * (sizes[i] / 64) / 2;
			struct pool pool;
			uint64_t held = 0;

			pool_init(&pool, sizes[i], 64);
			while (held < sizes[i]) {
				uint32_t n = sizes[i] - held < 37 ? (uint32_t)(sizes[i] - held) : 37;
				struct chain chain;

				take(&pool, &cursor, n, &chain);
				for (uint32_t j = 0; j < n; j++)
					CHECK_COMPARE(chain.sector[j], <, sizes[i]);
				held += n;
			}
			CHECK(find_fault(&pool, held) == NULL);
			pool_deinit(&pool);
		}
	}
}

/* Taking appends: the sectors that a chain has stay first. */
static void take_appends(void)
{
	struct chain chain = { .count = 0 };
	struct pool pool;
	uint64_t cursor = 0;

	pool_init(&pool, 200, 64);
	CHECK(media_reserve(&pool.media, 5));
	media_take(&pool.media, &cursor, 2, &chain);
	media_take(&pool.media, &cursor, 3, &chain);
	CHECK_EQ(chain.count, 5);
	for (uint32_t i = 0; i < 5; i++)
		CHECK_EQ(chain.sector[i], i);
	pool_deinit(&pool);
}

/* Fills the first of two groups, but for one sector. */
static void fill_first_group(struct pool *pool)
{
	uint64_t cursor = 0;
	struct chain chain;

	pool_init(pool, 2 * MEDIA_GROUP_SECTORS, 64);
	for (unsigned i = 0; i < MEDIA_GROUP_SECTORS / 64; i++)
		take(pool, &cursor, 64, &chain);
	chain = (struct chain){ .count = 1, .sector = { 100 } };
	give_back(pool, &chain);
}

/* A full group is skipped only while it is full. */
static void full_group_is_skipped_while_full(void)
{
	struct chain chain;
	struct pool pool;
	uint64_t cursor = 0;

	fill_first_group(&pool);
	take(&pool, &cursor, 1, &chain);
	CHECK_EQ(chain.sector[0], 100);
	cursor = 0;
	take(&pool, &cursor, 1, &chain);
	CHECK_EQ(chain.sector[0], MEDIA_GROUP_SECTORS);
	chain = (struct chain){ .count = 1, .sector = { 4095 } };
	give_back(&pool, &chain);
	cursor = 0;
	take(&pool, &cursor, 1, &chain);
	CHECK_EQ(chain.sector[0], 4095);
	pool_deinit(&pool);
}

/* The twin: a group that only claims to be full is skipped too, so it is the group's count that was obeyed. */
static void lying_group_is_skipped(void)
{
	struct chain chain;
	struct pool pool;
	uint64_t cursor = 0;

	fill_first_group(&pool);
	pool.media.groups[0] = MEDIA_GROUP_SECTORS;
	take(&pool, &cursor, 1, &chain);
	CHECK_EQ(chain.sector[0], MEDIA_GROUP_SECTORS);
	CHECK(find_fault(&pool, MEDIA_GROUP_SECTORS) != NULL);
	pool_deinit(&pool);
}

/* A release from the middle frees those sectors and no others, and leaves the reservation to its owner. */
static void releases_only_the_tail(void)
{
	struct chain chain = { .count = 0 }, before;
	struct pool pool;

	pool_init(&pool, 300, 64);
	make_scattered(&pool, 50, 40, &chain);
	before = chain;
	media_release(&pool.media, &chain, 15);
	CHECK_EQ(chain.count, 15);
	for (uint32_t i = 0; i < before.count; i++)
		CHECK_EQ(is_used(&pool, before.sector[i]), i < 15);
	CHECK_EQ(count_bits(&pool), 15);
	CHECK_EQ(pool.used, 40);
	media_unreserve(&pool.media, 25);
	CHECK(find_fault(&pool, 15) == NULL);
	media_release(&pool.media, &chain, 15);
	CHECK(find_fault(&pool, 15) == NULL);
	pool_deinit(&pool);
}

/* ---- chains --------------------------------------------------------------------------------------------- */

static bool same_chain(const struct chain *a, const struct chain *b)
{
	return a->count == b->count && memcmp(a->sector, b->sector, a->count * sizeof(a->sector[0])) == 0;
}

/* Consecutive sectors are a run, and no link is written. */
static void run_needs_no_links(void)
{
	struct chain chain, loaded;
	struct pool pool;
	uint64_t cursor = 0;

	pool_init(&pool, 100, 64);
	memset(pool.media.links, 0xaa, 100 * sizeof(uint32_t));
	take(&pool, &cursor, 10, &chain);
	media_chain_link(&pool.media, &chain, 7);
	CHECK(chain.run);
	for (uint32_t i = 0; i < 100; i++)
		CHECK_EQ(pool.media.links[i], 0xaaaaaaaa);
	CHECK(media_chain_load(&pool.media, chain.sector[0], 10, true, 7, &loaded));
	CHECK(same_chain(&chain, &loaded));
	CHECK(media_run(&pool.media, &loaded) == pool.media.bytes + 64 * chain.sector[0]);
	pool_deinit(&pool);
}

/* Any other order is linked, and read back in that order by its owner's tag. */
static void linked_chain_is_read_back(void)
{
	struct pool pool;

	pool_init(&pool, 400, 64);
	for (uint32_t count = 2; count <= MEDIA_CHAIN_MAX; count++) {
		struct chain chain, loaded;
		uint32_t swapped;

		make_scattered(&pool, 3, count, &chain);
		swapped = chain.sector[0];
		chain.sector[0] = chain.sector[count - 1];
		chain.sector[count - 1] = swapped;
		media_chain_link(&pool.media, &chain, 77);
		CHECK(!chain.run);
		CHECK(media_run(&pool.media, &chain) == NULL);
		CHECK(media_chain_load(&pool.media, chain.sector[0], count, false, 77, &loaded));
		CHECK(same_chain(&chain, &loaded));
		give_back(&pool, &chain);
	}
	pool_deinit(&pool);
}

/* A chain with a link out of the media, over a free sector, in a circle, or to another owner's end is not followed. */
static void broken_chain_is_refused(void)
{
	struct chain chain, loaded;
	struct pool pool;

	pool_init(&pool, 100, 64);
	make_scattered(&pool, 10, 5, &chain);
	media_chain_link(&pool.media, &chain, 77);
	CHECK(media_chain_load(&pool.media, 10, 5, false, 77, &loaded));
	CHECK(!media_chain_load(&pool.media, 10, 5, false, 78, &loaded));
	CHECK(!media_chain_load(&pool.media, 10, 4, false, 77, &loaded));
	CHECK(!media_chain_load(&pool.media, 10, 6, false, 77, &loaded));
	CHECK(!media_chain_load(&pool.media, 100, 5, false, 77, &loaded));
	CHECK(!media_chain_load(&pool.media, 11, 5, false, 77, &loaded));
	pool.media.links[14] = 100;
	CHECK(!media_chain_load(&pool.media, 10, 5, false, 77, &loaded));
	pool.media.links[14] = UINT32_MAX;
	CHECK(!media_chain_load(&pool.media, 10, 5, false, 77, &loaded));
	pool.media.links[14] = 15;
	CHECK(!media_chain_load(&pool.media, 10, 5, false, 77, &loaded));
	pool.media.links[14] = 10;
	CHECK(!media_chain_load(&pool.media, 10, 5, false, 77, &loaded));
	pool.media.links[14] = 16;
	CHECK(media_chain_load(&pool.media, 10, 5, false, 77, &loaded));
	CHECK(!media_chain_load(&pool.media, 96, 5, true, 77, &loaded));
	CHECK(media_chain_load(&pool.media, 96, 4, true, 77, &loaded));
	CHECK(!media_chain_load(&pool.media, UINT32_MAX, 4, true, 77, &loaded));
	pool_deinit(&pool);
}

/* Whatever the links say, following them stays inside the media, and a claim that fails marks nothing. */
static void random_links_stay_inside(void)
{
	uint64_t state = 1;

	for (int i = 0; i < 20000; i++) {
		uint64_t sectors = 1 + random_below(&state, 200);
		uint32_t first = (uint32_t)random_below(&state, sectors + 3);
		uint32_t count = (uint32_t)random_below(&state, MEDIA_CHAIN_MAX + 1);
		bool run = random_below(&state, 2);
		struct chain chain;
		struct pool pool;

		pool_init(&pool, sectors, 64);
		for (uint64_t j = 0; j < sectors; j++)
			pool.media.links[j] = (uint32_t)(random_below(&state, 8) == 0 ? random_next(&state)
										       : random_below(&state, sectors));
		if (count > 0 && media_chain_claim(&pool.media, first, count, run, 3)) {
			CHECK(find_fault(&pool, count) == NULL);
			CHECK(media_chain_load(&pool.media, first, count, run, 3, &chain));
		} else {
			CHECK(find_fault(&pool, 0) == NULL);
			if (media_chain_load(&pool.media, first, count, run, 3, &chain))
				CHECK(count == 0 || run);
		}
		pool_deinit(&pool);
	}
}

/* A claim marks a whole chain, and nothing of one that meets another's sector at its last. */
static void claim_is_all_or_nothing(void)
{
	struct chain chain;
	struct pool pool;

	pool_init(&pool, 5000, 64);
	make_scattered(&pool, 4090, 5, &chain);
	media_chain_link(&pool.media, &chain, 9);
	give_back(&pool, &chain);
	CHECK(media_chain_claim(&pool.media, 4098, 1, true, 0));
	CHECK(!media_chain_claim(&pool.media, 4090, 5, false, 9));
	CHECK(find_fault(&pool, 1) == NULL);
	chain = (struct chain){ .count = 1, .sector = { 4098 } };
	give_back(&pool, &chain);
	CHECK(!media_chain_claim(&pool.media, 4090, 5, false, 8));
	CHECK(find_fault(&pool, 0) == NULL);
	CHECK(media_chain_claim(&pool.media, 4090, 5, false, 9));
	CHECK(find_fault(&pool, 5) == NULL);
	CHECK(!media_chain_claim(&pool.media, 4090, 5, false, 9));
	CHECK(!media_chain_claim(&pool.media, 4997, 4, true, 0));
	CHECK(find_fault(&pool, 5) == NULL);
	pool_deinit(&pool);
}

/* Bytes come back as written, of any length, and no sector of another chain changes. */
static void bytes_stay_in_their_chain(void)
{
	uint8_t bytes[4096], back[4096];

	for (uint32_t size = 64; size <= 4096; size *= 2) {
		for (uint32_t length = 1; length <= 4096; length += length < 130 ? 1 : 97) {
			struct chain chain, run;
			struct pool pool;
			uint32_t n;

			pool_init(&pool, 2 * MEDIA_CHAIN_MAX * 64 / (size / 64) + 2, size);
			n = media_sectors_for(&pool.media, length);
			CHECK_EQ(n, (length + size - 1) / size);
			make_scattered(&pool, 0, n, &chain);
			media_chain_link(&pool.media, &chain, 1);
			fill_content(bytes, length, length, NOISE_MAX);
			media_write(&pool.media, &chain, bytes, length);
			media_read(&pool.media, &chain, back, length);
			CHECK_BYTES(back, bytes, length);
			for (uint32_t i = 1; n > 1 && i < 2 * n; i += 2)
				for (uint32_t j = 0; j < size; j++)
					CHECK_EQ(pool.media.bytes[(uint64_t)i * size + j], 0);
			run = (struct chain){ .count = n };
			for (uint32_t i = 0; i < n; i++)
				run.sector[i] = i;
			media_chain_link(&pool.media, &run, 1);
			CHECK(run.run);
			media_write(&pool.media, &run, bytes, length);
			CHECK_BYTES(media_run(&pool.media, &run), bytes, length);
			media_read(&pool.media, &run, back, length);
			CHECK_BYTES(back, bytes, length);
			pool_deinit(&pool);
		}
	}
}

/* ---- threads -------------------------------------------------------------------------------------------- */

#define CHURNERS 4u
#define CHAINS_EACH 16u

struct churn {
	struct pool pool;
	_Atomic uint32_t *owners; /* of each sector, kept beside the media */
	struct chain chains[CHURNERS][CHAINS_EACH];
	_Atomic uint64_t stolen;  /* sectors that somebody else had */
	_Atomic uint64_t refused;
};

static void note_owners(struct churn *churn, const struct chain *chain, uint32_t from, uint32_t to)
{
	for (uint32_t i = 0; i < chain->count; i++)
		if (atomic_exchange(&churn->owners[chain->sector[i]], to) != from)
			churn->stolen++;
}

static void churn_chains(void *arg, unsigned index)
{
	struct churn *churn = arg;
	struct media *media = &churn->pool.media;
	uint64_t state = index, cursor = index * 7;

	for (int i = 0; i < ROUNDS(40000); i++) {
		struct chain *chain = &churn->chains[index][random_below(&state, CHAINS_EACH)];
		uint32_t n = 1 + (uint32_t)random_below(&state, MEDIA_CHAIN_MAX);

		if (chain->count > 0) {
			note_owners(churn, chain, index, NOBODY);
			give_back(&churn->pool, chain);
		} else if (media_reserve(media, n)) {
			media_take(media, &cursor, n, chain);
			note_owners(churn, chain, NOBODY, index);
		} else {
			churn->refused++;
		}
	}
}

static void churn_init(struct churn *churn, uint64_t sectors)
{
	memset(churn, 0, sizeof(*churn));
	pool_init(&churn->pool, sectors, 64);
	churn->owners = calloc(sectors, sizeof(uint32_t));
	for (uint64_t i = 0; i < sectors; i++)
		atomic_store(&churn->owners[i], NOBODY);
}

static uint64_t held_by_all(const struct churn *churn)
{
	uint64_t held = 0;

	for (unsigned i = 0; i < CHURNERS; i++)
		for (unsigned j = 0; j < CHAINS_EACH; j++)
			held += churn->chains[i][j].count;
	return held;
}

static void churn_deinit(struct churn *churn)
{
	free((void *)churn->owners);
	pool_deinit(&churn->pool);
}

/* Threads that take and release at once never hold the same sector, and in the end the bits are what they hold. */
static void churn_loses_no_sector(void)
{
	static const uint64_t sizes[] = { 700, 9000 };

	for (unsigned i = 0; i < COUNT(sizes); i++) {
		struct churn churn;

		churn_init(&churn, sizes[i]);
		run_threads(CHURNERS, churn_chains, &churn);
		CHECK_EQ(churn.stolen, 0);
		CHECK(find_fault(&churn.pool, held_by_all(&churn)) == NULL);
		/* The small one was often full, so that taking had to look for the last free bits. */
		CHECK_EQ(churn.refused > 0, i == 0);
		churn_deinit(&churn);
	}
}

/* The twin: bits that are cleared under their owners are taken twice, which the owners notice. */
static void stolen_sectors_are_seen(void)
{
	struct churn churn;
	struct chain chain;
	uint64_t cursor = 0;

	churn_init(&churn, 700);
	take(&churn.pool, &cursor, 64, &chain);
	note_owners(&churn, &chain, NOBODY, CHURNERS);
	churn.pool.media.bitmap[0] = 0;
	run_threads(CHURNERS, churn_chains, &churn);
	CHECK(churn.stolen > 0);
	CHECK(find_fault(&churn.pool, held_by_all(&churn) + 64) != NULL);
	churn_deinit(&churn);
}

static const struct test tests[] = {
	TEST(reserves_exactly),
	TEST(refusal_disturbs_nobody),
	TEST(refusal_of_small_is_seen),
	TEST(takes_every_sector_once),
	TEST(take_appends),
	TEST(full_group_is_skipped_while_full),
	TEST(lying_group_is_skipped),
	TEST(releases_only_the_tail),
	TEST(run_needs_no_links),
	TEST(linked_chain_is_read_back),
	TEST(broken_chain_is_refused),
	TEST(random_links_stay_inside),
	TEST(claim_is_all_or_nothing),
	TEST(bytes_stay_in_their_chain),
	TEST(churn_loses_no_sector),
	TEST(stolen_sectors_are_seen),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
