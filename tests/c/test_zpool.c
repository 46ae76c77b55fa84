/* SPDX-License-Identifier: MIT
 *
 * The pool of compressed pages: its classes against the kernel's, its objects against a model, compaction beside threads.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>

#include "children.h"
#include "content.h"
#include "device/pagemap.h"
#include "error.h"
#include "host/zpool.h"
#include "threads.h"

#define CHAIN 8u

static void open_pool(struct zpool *pool, uint64_t pages, unsigned chain)
{
	CHECK_EQ(zpool_init(pool, pages, chain), 0);
}

/* The class that objects of so many bytes go to: the smallest that holds them and a header, or the last. */
static struct zpool_class class_for(struct zpool *pool, uint32_t size)
{
	struct zpool_class class;
	unsigned i = 0;

	while (zpool_class_at(pool, i, &class) && class.size < size + 8 && class.size < PAGE_SIZE)
		i++;
	return class;
}

/* ---- classes -------------------------------------------------------------------------------------------- */

struct shape {
	unsigned index, size, pages, objects;
};

/* All distinct classes of zspages of at most chain pages. By least waste, as kernels since 6.3 choose; or by the largest
 * whole percentage in use, as they did before. */
static unsigned model_classes(struct shape *shapes, unsigned chain, bool by_percent)
{
	struct shape all[ZPOOL_SIZES];
	unsigned count = 0;

	for (unsigned i = 0; i < ZPOOL_SIZES; i++) {
		unsigned size = 32 + 16 * i, least = UINT32_MAX;

		for (unsigned pages = 1; pages <= chain; pages++) {
			unsigned waste = pages * 4096 % size;
			unsigned badness = by_percent ? 100 - (pages * 4096 - waste) * 100 / (pages * 4096) : waste;

			if (badness >= least)
				continue;
			least = badness;
			all[i] = (struct shape){ i, size, pages, pages * 4096 / size };
		}
	}
	for (unsigned i = 0; i < ZPOOL_SIZES; i++)
		if (i + 1 == ZPOOL_SIZES || all[i].pages != all[i + 1].pages || all[i].objects != all[i + 1].objects)
			shapes[count++] = all[i];
	return count;
}

/* The classes are those of the kernel's rule: 69, 119 and 192 of them, and the last before a whole page is of 3264, 3632
 * and 3840 bytes. Documentation/mm/zsmalloc.rst counts 69, 123 and 191: the rule that was before. */
static void classes_are_the_kernels(void)
{
	static const struct {
		unsigned chain, count, documented, watermark;
	} expected[] = { { 4, 69, 69, 3264 }, { 8, 119, 123, 3632 }, { 16, 192, 191, 3840 } };

	for (unsigned i = 0; i < COUNT(expected); i++) {
		struct shape shapes[ZPOOL_SIZES];
		struct zpool_class class;
		struct zpool pool;
		unsigned n = 0;

		CHECK_EQ(model_classes(shapes, expected[i].chain, true), expected[i].documented);
		CHECK_EQ(model_classes(shapes, expected[i].chain, false), expected[i].count);
		open_pool(&pool, 1, expected[i].chain);
		for (; zpool_class_at(&pool, n, &class); n++) {
			CHECK_COMPARE(n, <, expected[i].count);
			CHECK_EQ(class.index, shapes[n].index);
			CHECK_EQ(class.size, shapes[n].size);
			CHECK_EQ(class.pages_per_zspage, shapes[n].pages);
			CHECK_EQ(class.objects_per_zspage, shapes[n].objects);
			CHECK_EQ(class.obj_allocated + class.obj_used + class.pages_used + class.freeable, 0);
		}
		CHECK_EQ(n, expected[i].count);
		CHECK_EQ(shapes[n - 2].size, expected[i].watermark);
		CHECK_EQ(shapes[n - 1].size, 4096);
		zpool_deinit(&pool);
	}
}

/* The classes that the kernel's documentation lists, which are the same by both rules. */
static void documented_classes_are_there(void)
{
	static const struct {
		unsigned chain;
		struct shape shape;
	} documented[] = {
		{ 4, { 94, 1536, 3, 8 } },  { 4, { 100, 1632, 2, 5 } }, { 4, { 202, 3264, 4, 5 } },
		{ 8, { 202, 3264, 4, 5 } }, { 8, { 211, 3408, 5, 6 } }, { 8, { 217, 3504, 6, 7 } },
		{ 8, { 222, 3584, 7, 8 } }, { 8, { 225, 3632, 8, 9 } }, { 8, { 96, 1568, 5, 13 } },
		{ 8, { 254, 4096, 1, 1 } }, { 16, { 206, 3328, 13, 16 } }, { 16, { 235, 3792, 13, 14 } },
		{ 16, { 238, 3840, 15, 16 } },
	};

	for (unsigned i = 0; i < COUNT(documented); i++) {
		struct shape shape = documented[i].shape;
		struct zpool_class class;
		struct zpool pool;

		open_pool(&pool, 1, documented[i].chain);
		class = class_for(&pool, shape.size - 8);
		CHECK_EQ(class.index, shape.index);
		CHECK_EQ(class.size, shape.size);
		CHECK_EQ(class.pages_per_zspage, shape.pages);
		CHECK_EQ(class.objects_per_zspage, shape.objects);
		zpool_deinit(&pool);
	}
}

/* An object of each size is one of the smallest class that holds it and its header, and alone takes a zspage of it. */
static void each_size_has_its_class(void)
{
	static const unsigned chains[] = { 4, 8, 16 };

	for (unsigned i = 0; i < COUNT(chains); i++) {
		struct zpool pool;

		open_pool(&pool, 16, chains[i]);
		for (uint32_t size = 1; size <= PAGE_SIZE; size++) {
			struct zpool_class class = class_for(&pool, size);
			zpool_handle handle = zpool_alloc(&pool, size, size);

			CHECK(handle != 0 && handle >> ZPOOL_HANDLE_BITS == 0);
			CHECK_EQ(zpool_pages(&pool), class.pages_per_zspage);
			class = class_for(&pool, size);
			CHECK_EQ(class.obj_used, 1);
			CHECK_EQ(class.obj_allocated, class.objects_per_zspage);
			CHECK_EQ(class.pages_used, class.pages_per_zspage);
			CHECK_EQ(class.freeable, 0);
			zpool_free(&pool, handle);
			CHECK_EQ(zpool_pages(&pool), 0);
		}
		zpool_deinit(&pool);
	}
}

/* A chain that no kernel has, no page, and more pages than handles can name are refused; no pool is no trouble. */
static void impossible_pools_are_refused(void)
{
	static const unsigned chains[] = { 0, 1, 5, 32 };
	struct zpool pool = { .memory = NULL };

	zpool_deinit(&pool);
	for (unsigned i = 0; i < COUNT(chains); i++)
		CHECK_EQ(zpool_init(&pool, 100, chains[i]), CRAM_EINVAL);
	CHECK_EQ(zpool_init(&pool, 0, CHAIN), CRAM_EINVAL);
	CHECK_EQ(zpool_init(&pool, ZPOOL_PAGES_MAX + 1, CHAIN), CRAM_EINVAL);
	zpool_deinit(&pool);
	open_pool(&pool, 1, CHAIN);
	zpool_deinit(&pool);
	zpool_deinit(&pool);
}

/* ---- objects and their owners --------------------------------------------------------------------------- */

struct owner {
	_Atomic bool locked;
	zpool_handle handle;
	uint32_t size;
	uint64_t seed;
};

struct owners {
	struct zpool pool;
	struct owner *owner;
	unsigned count;
	unsigned refused;         /* of a hundred owners, so many may never move */
	_Atomic uint64_t moved;
	_Atomic unsigned at_work;
};

static void open_owners(struct owners *owners, uint64_t pages, unsigned chain, unsigned count)
{
	memset(owners, 0, sizeof(*owners));
	open_pool(&owners->pool, pages, chain);
	owners->owner = calloc(count, sizeof(*owners->owner));
	owners->count = count;
}

static void close_owners(struct owners *owners)
{
	zpool_deinit(&owners->pool);
	free(owners->owner);
}

static bool try_owner(struct owner *owner)
{
	return !atomic_exchange(&owner->locked, true);
}

static void release_owner(struct owner *owner)
{
	atomic_store(&owner->locked, false);
}

/* Leaves an arena whose free pages come in no order: neighbours in a zspage are rarely neighbours there. */
static void scatter(struct zpool *pool)
{
	zpool_handle *handles = calloc(pool->last, sizeof(*handles));
	uint64_t state = 3;

	for (unsigned i = 0; i < pool->last; i++)
		CHECK((handles[i] = zpool_alloc(pool, PAGE_SIZE, 0)) != 0);
	for (unsigned left = pool->last; left > 0; left--) {
		unsigned i = (unsigned)random_below(&state, left);

		zpool_free(pool, handles[i]);
		handles[i] = handles[left - 1];
	}
	free(handles);
}

/* The owner is the caller's, as below. */
static bool store(struct owners *owners, unsigned i, uint32_t size, uint64_t seed)
{
	struct owner *owner = &owners->owner[i];
	uint8_t content[PAGE_SIZE];

	owner->handle = zpool_alloc(&owners->pool, size, i);
	if (owner->handle == 0)
		return false;
	owner->size = size;
	owner->seed = seed;
	fill_content(content, size, seed, 50);
	zpool_write(&owners->pool, owner->handle, content, size);
	return true;
}

/* Returns whether it was read in place. */
static bool check_stored(struct owners *owners, unsigned i)
{
	struct owner *owner = &owners->owner[i];
	uint8_t content[PAGE_SIZE], buffer[PAGE_SIZE];
	const void *found = zpool_read(&owners->pool, owner->handle, owner->size, buffer);

	fill_content(content, owner->size, owner->seed, 50);
	CHECK_BYTES(found, content, owner->size);
	return found != buffer;
}

static void drop(struct owners *owners, unsigned i)
{
	zpool_free(&owners->pool, owners->owner[i].handle);
	owners->owner[i].handle = 0;
}

static bool begin_move(void *arg, uint64_t number, zpool_handle from)
{
	struct owners *owners = arg;
	struct owner *owner = &owners->owner[number];

	CHECK_COMPARE(number, <, owners->count);
	if (number % 100 < owners->refused || !try_owner(owner))
		return false;
	/* Who has an object under the class's lock has its handle: it is freed, and recorded, with the owner locked. */
	CHECK_EQ(owner->handle, from);
	return true;
}

static void end_move(void *arg, uint64_t number, zpool_handle to)
{
	struct owners *owners = arg;

	owners->owner[number].handle = to;
	/* All of it is there by now. */
	check_stored(owners, (unsigned)number);
	owners->moved++;
	release_owner(&owners->owner[number]);
}

static uint64_t compact(struct owners *owners)
{
	const struct zpool_mover mover = { begin_move, end_move, owners };

	return zpool_compact(&owners->pool, &mover);
}

/* What the classes say is what the owners have, and no zspage is empty. */
static void check_counts(struct owners *owners)
{
	uint64_t used = 0, stored = 0, pages = 0;
	struct zpool_class class;

	for (unsigned i = 0; zpool_class_at(&owners->pool, i, &class); i++) {
		uint64_t zspages = 0;

		for (unsigned group = 0; group < ZPOOL_GROUPS; group++)
			zspages += class.zspages[group];
		CHECK_EQ(class.zspages[0], 0);
		CHECK_EQ(class.obj_allocated, zspages * class.objects_per_zspage);
		CHECK_EQ(class.pages_used, zspages * class.pages_per_zspage);
		CHECK_EQ(class.freeable,
			 (class.obj_allocated - class.obj_used) / class.objects_per_zspage * class.pages_per_zspage);
		used += class.obj_used;
		pages += class.pages_used;
	}
	for (unsigned i = 0; i < owners->count; i++)
		stored += owners->owner[i].handle != 0;
	CHECK_EQ(used, stored);
	CHECK_EQ(pages, zpool_pages(&owners->pool));
}

static void check_all(struct owners *owners)
{
	for (unsigned i = 0; i < owners->count; i++)
		if (owners->owner[i].handle != 0)
			check_stored(owners, i);
	check_counts(owners);
}

static void drop_all(struct owners *owners)
{
	for (unsigned i = 0; i < owners->count; i++)
		if (owners->owner[i].handle != 0)
			drop(owners, i);
	check_counts(owners);
	CHECK_EQ(zpool_pages(&owners->pool), 0);
}

/* A size as compressed pages have them: small, middling, near the watermark, huge. */
static uint32_t some_size(uint64_t *state)
{
	static const uint32_t limits[] = { 64, 1200, 4096, 4096 };

	return 1 + (uint32_t)random_below(state, limits[random_below(state, COUNT(limits))]);
}

/* Whatever is stored and freed in whatever order, each object has its own bytes; nothing is left when all are gone. */
static void contents_survive(void)
{
	static const unsigned chains[] = { 4, 8, 16 };

	for (unsigned c = 0; c < COUNT(chains); c++) {
		uint64_t state = c + 1;
		struct owners owners;

		open_owners(&owners, 8192, chains[c], 3000);
		scatter(&owners.pool);
		for (unsigned round = 0; round < ROUNDS(60000); round++) {
			unsigned i = (unsigned)random_below(&state, owners.count);

			if (owners.owner[i].handle == 0) {
				CHECK(store(&owners, i, some_size(&state), random_next(&state)));
			} else {
				check_stored(&owners, i);
				drop(&owners, i);
			}
			if (round % 5000 == 0)
				check_all(&owners);
		}
		check_all(&owners);
		drop_all(&owners);
		close_owners(&owners);
	}
}

/* The fullest zspage that has room is filled first. */
static void fullest_is_filled_first(void)
{
	struct owners owners;
	struct zpool_class class;

	/* Three zspages of 31 objects: one of them keeps 3, one 20, one all but one. */
	open_owners(&owners, 100, CHAIN, 93);
	for (unsigned i = 0; i < 93; i++)
		CHECK(store(&owners, i, 1040, i));
	CHECK_EQ(class_for(&owners.pool, 1040).zspages[ZPOOL_FULL], 3);
	for (unsigned i = 3; i < 31; i++)
		drop(&owners, i);
	for (unsigned i = 31; i < 42; i++)
		drop(&owners, i);
	drop(&owners, 92);
	class = class_for(&owners.pool, 1040);
	CHECK_EQ(class.zspages[1], 1);  /* 9 % */
	CHECK_EQ(class.zspages[7], 1);  /* 64 % */
	CHECK_EQ(class.zspages[10], 1); /* 96 % */
	CHECK(store(&owners, 92, 1040, 92));
	class = class_for(&owners.pool, 1040);
	CHECK_EQ(class.zspages[ZPOOL_FULL], 1);
	for (unsigned i = 31; i < 42; i++)
		CHECK(store(&owners, i, 1040, i));
	class = class_for(&owners.pool, 1040);
	CHECK_EQ(class.zspages[ZPOOL_FULL], 2);
	CHECK_EQ(class.zspages[1], 1);
	check_all(&owners);
	close_owners(&owners);
}

/* Objects that cross from page to page are read in place between neighbours, else put together; whole both ways. */
static void straddling_objects_are_whole(void)
{
	struct owners owners;
	unsigned in_place = 0, copied = 0;

	open_owners(&owners, 128, CHAIN, 128);
	scatter(&owners.pool);
	for (unsigned i = 0; i < 128; i++)
		if (store(&owners, i, 3000 + i, i))
			*(check_stored(&owners, i) ? &in_place : &copied) += 1;
	CHECK(in_place > 0);
	CHECK(copied > 0);
	check_all(&owners);
	drop_all(&owners);
	close_owners(&owners);
	/* Of an arena that is new all pages are neighbours. */
	open_owners(&owners, 128, CHAIN, 128);
	for (unsigned i = 0; i < 128; i++)
		CHECK(store(&owners, i, 3000 + i, i) && check_stored(&owners, i));
	close_owners(&owners);
}

/* A page that did not shrink fits one page of the arena, its owner is kept beside it, and it is read in place. */
static void huge_objects_take_a_page(void)
{
	struct owners owners;
	uint64_t freed;

	open_owners(&owners, 64, CHAIN, 64);
	for (unsigned i = 0; i < 64; i++)
		CHECK(store(&owners, i, i % 2 == 0 ? PAGE_SIZE : 3632 - 8 + 1, i));
	CHECK_EQ(zpool_pages(&owners.pool), 64);
	CHECK_EQ(class_for(&owners.pool, PAGE_SIZE).zspages[ZPOOL_FULL], 64);
	for (unsigned i = 0; i < 64; i++)
		CHECK(check_stored(&owners, i));
	freed = compact(&owners);
	CHECK_EQ(freed + owners.moved, 0);
	drop_all(&owners);
	close_owners(&owners);
}

/* With no page left an allocation gives none, and everything is as it was; with one freed it succeeds. */
static void exhaustion_changes_nothing(void)
{
	struct owners owners;
	unsigned stored = 0, last;

	/* 11 zspages of 8 pages, and 4 pages over. */
	open_owners(&owners, 92, CHAIN, 400);
	while (store(&owners, stored, 1040, stored))
		stored++;
	CHECK_EQ(stored, 11 * 31);
	CHECK_EQ(zpool_pages(&owners.pool), 88);
	for (last = stored; last < stored + 4; last++)
		CHECK(store(&owners, last, PAGE_SIZE, last));
	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQ(zpool_alloc(&owners.pool, PAGE_SIZE, 0), 0);
		CHECK_EQ(zpool_alloc(&owners.pool, 1040, 0), 0);
		CHECK_EQ(zpool_alloc(&owners.pool, 1, 0), 0);
	}
	CHECK_EQ(zpool_pages(&owners.pool), 92);
	check_all(&owners);
	drop(&owners, last - 1);
	CHECK_EQ(zpool_alloc(&owners.pool, 1040, 0), 0);
	CHECK(store(&owners, last - 1, 4000, 7));
	drop(&owners, 5);
	CHECK(store(&owners, 5, 1040, 8));
	check_all(&owners);
	drop_all(&owners);
	close_owners(&owners);
}

/* Pages of the arena that the host has memory for. */
static uint64_t resident(const struct zpool *pool)
{
	uint64_t pages = (uint64_t)pool->last + 1, found = 0;
	uint8_t *flags = malloc(pages);

	CHECK_EQ(mincore(pool->arena, pages << PAGE_SHIFT, flags), 0);
	for (uint64_t i = 0; i < pages; i++)
		found += flags[i] & 1;
	free(flags);
	return found;
}

/* Host memory is that of the pages in zspages and of those counted as cached, which are few; all are used again. */
static void host_memory_follows(void)
{
	uint64_t state = 1;
	struct owners owners;

	open_owners(&owners, 4000, CHAIN, 4000);
	CHECK_EQ(resident(&owners.pool), 0);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < owners.count; i++)
			CHECK(store(&owners, i, some_size(&state) / 2 + 1, i));
		CHECK_EQ(resident(&owners.pool), zpool_pages(&owners.pool) + owners.pool.cached);
		for (unsigned i = 0; i < owners.count; i++) {
			drop(&owners, (unsigned)(i * 1237ull % owners.count));
			CHECK_LE(owners.pool.cached, ZPOOL_CACHED_MAX);
			if (i % 500 == 0)
				CHECK_EQ(resident(&owners.pool), zpool_pages(&owners.pool) + owners.pool.cached);
		}
		CHECK_EQ(zpool_pages(&owners.pool), 0);
		CHECK_EQ(resident(&owners.pool), owners.pool.cached);
		CHECK(owners.pool.cached > 0);
	}
	/* None was lost on the way. */
	for (unsigned i = 0; i < owners.count; i++)
		CHECK(store(&owners, i, PAGE_SIZE, i));
	CHECK_EQ(zpool_alloc(&owners.pool, PAGE_SIZE, 0), 0);
	CHECK_EQ(zpool_pages(&owners.pool), 4000);
	drop_all(&owners);
	close_owners(&owners);
}

/* What lz4 makes of a page of mixed content, 1040 bytes, costs 8/31 of a page with its header and a zspage's rest. */
static void overhead_is_the_classes(void)
{
	struct zpool_class class;
	struct owners owners;

	open_owners(&owners, 1000, CHAIN, 31 * 100);
	for (unsigned i = 0; i < owners.count; i++)
		CHECK(store(&owners, i, 1040, i));
	class = class_for(&owners.pool, 1040);
	CHECK_EQ(class.size, 1056);
	CHECK_EQ(zpool_pages(&owners.pool), 800);
	CHECK_EQ(zpool_pages(&owners.pool) * PAGE_SIZE / owners.count, 1057);
	close_owners(&owners);
}

/* ---- compaction ----------------------------------------------------------------------------------------- */

/* Many objects of several classes, of which one in n stays, at random. */
static void make_sparse(struct owners *owners, unsigned refused, uint64_t n)
{
	static const uint32_t sizes[] = { 24, 100, 1040, 2000, 3000, 3600, PAGE_SIZE };
	uint64_t state = 5;

	open_owners(owners, 4000, CHAIN, 7000);
	scatter(&owners->pool);
	owners->refused = refused;
	for (unsigned i = 0; i < owners->count; i++)
		CHECK(store(owners, i, sizes[i % COUNT(sizes)], i));
	for (unsigned i = 0; i < owners->count; i++)
		if (random_below(&state, n) != 0)
			drop(owners, i);
	check_counts(owners);
}

static uint64_t freeable(struct owners *owners)
{
	struct zpool_class class;
	uint64_t pages = 0;

	for (unsigned i = 0; zpool_class_at(&owners->pool, i, &class); i++)
		pages += class.freeable;
	return pages;
}

/* Compaction frees as many pages as the classes said that it can, and no object loses a byte. */
static void compaction_frees_pages(void)
{
	static const unsigned kept[] = { 2, 5, 30 };

	for (unsigned i = 0; i < COUNT(kept); i++) {
		struct owners owners;
		uint64_t before, expected;

		make_sparse(&owners, 0, kept[i]);
		before = zpool_pages(&owners.pool);
		expected = freeable(&owners);
		CHECK(expected > 100);
		CHECK_EQ(compact(&owners), expected);
		CHECK(owners.moved > 0);
		CHECK_EQ(zpool_pages(&owners.pool), before - expected);
		CHECK_EQ(freeable(&owners), 0);
		check_all(&owners);
		/* There is nothing left to do. */
		CHECK_EQ(compact(&owners), 0);
		drop_all(&owners);
		close_owners(&owners);
	}
}

/* The twin: of owners that all refuse nothing moves. */
static void refused_objects_stay(void)
{
	struct owners owners;
	uint64_t before;

	make_sparse(&owners, 100, 5);
	before = zpool_pages(&owners.pool);
	CHECK(freeable(&owners) > 100);
	CHECK_EQ(compact(&owners), 0);
	CHECK_EQ(owners.moved, 0);
	CHECK_EQ(zpool_pages(&owners.pool), before);
	check_all(&owners);
	drop_all(&owners);
	close_owners(&owners);
}

/* Owners that refuse keep their objects where they are; the others' pages are freed around them. */
static void compaction_goes_around_the_locked(void)
{
	struct owners owners;
	zpool_handle *handles;
	uint64_t freed;

	make_sparse(&owners, 2, 5);
	handles = calloc(owners.count, sizeof(*handles));
	for (unsigned i = 0; i < owners.count; i++)
		handles[i] = owners.owner[i].handle;
	freed = compact(&owners);
	CHECK(freed > 0);
	for (unsigned i = 0; i < owners.count; i++)
		if (i % 100 < 2)
			CHECK_EQ(owners.owner[i].handle, handles[i]);
	check_all(&owners);
	/* Once they let go, so do their zspages. */
	owners.refused = 0;
	freed = freeable(&owners);
	CHECK(freed > 0);
	CHECK_EQ(compact(&owners), freed);
	check_all(&owners);
	drop_all(&owners);
	free(handles);
	close_owners(&owners);
}

/* A zspage that stays, whichever it is, holds up none of the others, and takes in their objects. */
static void stuck_zspage_holds_up_no_other(void)
{
	for (unsigned stuck = 0; stuck < 40; stuck++) {
		struct owners owners;

		/* Of 40 zspages of 31 objects three objects each are left: four would do. */
		open_owners(&owners, 320, CHAIN, 40 * 31);
		for (unsigned i = 0; i < owners.count; i++)
			CHECK(store(&owners, i, 1040, i));
		for (unsigned i = 0; i < owners.count; i++)
			if (i % 31 >= 3)
				drop(&owners, i);
		CHECK(try_owner(&owners.owner[stuck * 31 + 1]));
		CHECK_EQ(compact(&owners), 36 * 8);
		check_all(&owners);
		close_owners(&owners);
	}
}

#define WORKERS 3u

/* Stores, reads and frees objects of any owners, now more of the one, now of the other; compacts, as the last. */
static void live_in_pool(void *arg, unsigned index)
{
	struct owners *owners = arg;
	uint64_t state = index;

	if (index == WORKERS) {
		while (atomic_load(&owners->at_work) > 0)
			compact(owners);
		return;
	}
	for (unsigned round = 0; round < ROUNDS(60000) || atomic_load(&owners->moved) < ROUNDS(10000); round++) {
		unsigned i = (unsigned)random_below(&state, owners->count);
		bool filling = round / 1024 % 2 == 0;
		struct owner *owner = &owners->owner[i];

		while (!try_owner(owner))
			sched_yield();
		if (owner->handle != 0)
			check_stored(owners, i);
		if (owner->handle == 0 && filling)
			CHECK(store(owners, i, some_size(&state) / 3 + 1, random_next(&state)));
		else if (owner->handle != 0 && !filling)
			drop(owners, i);
		release_owner(owner);
	}
	atomic_fetch_sub(&owners->at_work, 1);
}

/* While threads store, read and free, another compacts; every object has its own bytes all along. */
static void compaction_beside_threads(void)
{
	struct owners owners;

	open_owners(&owners, 4000, CHAIN, 4000);
	scatter(&owners.pool);
	atomic_store(&owners.at_work, WORKERS);
	run_threads(WORKERS + 1, live_in_pool, &owners);
	check_all(&owners);
	compact(&owners);
	CHECK_EQ(freeable(&owners), 0);
	check_all(&owners);
	drop_all(&owners);
	close_owners(&owners);
}

/* ---- fork ----------------------------------------------------------------------------------------------- */

static void live_on(void *arg)
{
	struct owners *owners = arg;

	zpool_forked(&owners->pool);
	check_all(owners);
	for (unsigned i = 0; i < owners->count; i += 2)
		if (owners->owner[i].handle != 0)
			drop(owners, i);
	CHECK(compact(owners) > 0);
	for (unsigned i = 0; i < owners->count; i += 2)
		CHECK(store(owners, i, 1000, i + 1));
	check_all(owners);
	drop_all(owners);
}

/* A child has its parent's objects, whoever held a lock when it was made; what it does with them stays with it. */
static void child_keeps_contents(void)
{
	struct owners owners;
	uint64_t pages;
	pid_t pid;

	make_sparse(&owners, 0, 3);
	pages = zpool_pages(&owners.pool);
	atomic_store(&owners.pool.lock.word, futex_name(0, 1));
	pid = child_start(live_on, &owners);
	atomic_store(&owners.pool.lock.word, 0);
	child_join(pid);
	CHECK_EQ(zpool_pages(&owners.pool), pages);
	check_all(&owners);
	drop_all(&owners);
	close_owners(&owners);
}

static const struct test tests[] = {
	TEST(classes_are_the_kernels),
	TEST(documented_classes_are_there),
	TEST(each_size_has_its_class),
	TEST(impossible_pools_are_refused),
	TEST(contents_survive),
	TEST(fullest_is_filled_first),
	TEST(straddling_objects_are_whole),
	TEST(huge_objects_take_a_page),
	TEST(exhaustion_changes_nothing),
	TEST(host_memory_follows),
	TEST(overhead_is_the_classes),
	TEST(compaction_frees_pages),
	TEST(refused_objects_stay),
	TEST(compaction_goes_around_the_locked),
	TEST(stuck_zspage_holds_up_no_other),
	TEST(compaction_beside_threads),
	TEST(child_keeps_contents),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
