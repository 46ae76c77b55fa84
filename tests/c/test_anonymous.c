/* SPDX-License-Identifier: MIT
 *
 * Anonymous memory: pages that get device pages as they are touched, give them back, and are shared by forks.
 *
 * Oracles: contents that are functions of page and version; the device's own count of pages and sectors, which must come
 * back to 0; a child's exit status.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"
#include "cram.h"
#include "error.h"
#include "host/space.h"
#include "host/visit.h"
#include "memory.h"
#include "threads.h"

#define MIB (1ull << 20)
#define PAGE 4096u
#define WINDOW MIB

struct world {
	cram_device *device;
	cram_map *map;
	uint8_t *memory;
};

static const uint32_t deliveries[] = { CRAM_INLINE, CRAM_MONITOR };

static void walk(cram_map *map, space_part_fn *fn)
{
	fn(map, 0, map->pager.pages * PAGE);
}

static void open_world(struct world *world, uint64_t advertised, uint64_t length, uint32_t delivery)
{
	struct cram_params params = { .advertised = advertised, .real = advertised };
	struct cram_map_params map = { .length = length, .window = WINDOW, .delivery = delivery, .anonymous = 1 };

	cram_params_default(&params);
	params.low_remaining = params.high_remaining = 0;
	CHECK_EQ(cram_create(NULL, &params, &world->device), 0);
	CHECK_EQ(map_create(world->device, &map, memory_reserve(NULL, length), NULL, 0, &world->map), 0);
	CHECK_EQ(space_protect(world->map, 0, length, PROT_READ | PROT_WRITE), 0);
	world->memory = cram_map_address(world->map);
}

static void close_world(struct world *world)
{
	space_inherit(NULL, NULL);
	cram_unmap(world->map);
	cram_map_free(world->map);
	CHECK_EQ(cram_close(world->device), 0);
	cram_free(world->device);
}

static struct cram_registers registers_of(const struct world *world)
{
	struct cram_registers registers;

	cram_read_registers(world->device, &registers);
	return registers;
}

/* A page of words that say which page and version it is, and do not compress to nothing. */
__attribute__((no_sanitize_thread, noinline)) static void fill(struct world *world, uint64_t page, uint64_t version)
{
	volatile uint64_t *words = (volatile uint64_t *)(world->memory + page * PAGE);

	for (unsigned i = 0; i < PAGE / 8; i++)
		words[i] = i < 64 ? (page * 1000003 + version * 7919 + i) * 0x9e3779b97f4a7c15ull : version;
}

__attribute__((no_sanitize_thread, noinline)) static bool holds(struct world *world, uint64_t page, uint64_t version)
{
	volatile uint64_t *words = (volatile uint64_t *)(world->memory + page * PAGE);

	for (unsigned i = 0; i < PAGE / 8; i++)
		if (words[i] != (i < 64 ? (page * 1000003 + version * 7919 + i) * 0x9e3779b97f4a7c15ull : version))
			return false;
	return true;
}

__attribute__((no_sanitize_thread, noinline)) static bool zero(struct world *world, uint64_t page)
{
	volatile uint64_t *words = (volatile uint64_t *)(world->memory + page * PAGE);

	for (unsigned i = 0; i < PAGE / 8; i++)
		if (words[i] != 0)
			return false;
	return true;
}

static void fill_all(struct world *world, uint64_t first, uint64_t count, uint64_t version)
{
	for (uint64_t page = first; page < first + count; page++)
		fill(world, page, version);
}

static void check_all(struct world *world, uint64_t first, uint64_t count, uint64_t version)
{
	for (uint64_t page = first; page < first + count; page++)
		CHECK(holds(world, page, version));
}

/* The memory is wider than the device, and holds what is written anywhere in it. */
static void pages_are_found_as_touched(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct world world;

		open_world(&world, 8 * MIB, 32 * MIB, deliveries[i]);
		fill_all(&world, 0, 512, 1);
		fill_all(&world, 6000, 1000, 2);
		check_all(&world, 0, 512, 1);
		check_all(&world, 6000, 1000, 2);
		CHECK(zero(&world, 3000));
		close_world(&world);
	}
}

/* What is discarded reads as zeros, and its capacity is back. */
static void discarded_pages_are_free(void)
{
	struct world world;

	open_world(&world, 8 * MIB, 16 * MIB, CRAM_INLINE);
	for (uint64_t round = 1; round < 6; round++) {
		fill_all(&world, round * 500, 1500, round);
		CHECK(registers_of(&world).used > 0);
		space_discard(world.map, round * 500 * PAGE, 1500 * PAGE);
		CHECK_EQ(registers_of(&world).used, 0);
		CHECK(zero(&world, round * 500 + 700));
		/* A stream had brought more pages in than were written. */
		space_discard(world.map, 0, 16 * MIB);
		CHECK_EQ(registers_of(&world).dirty_frames, 0);
	}
	close_world(&world);
}

/* Closed pages keep what they hold, without frames; moved ones hold it elsewhere. */
static void closed_pages_rest(void)
{
	struct world world;
	struct cram_map_stats stats;

	open_world(&world, 8 * MIB, 16 * MIB, CRAM_INLINE);
	fill_all(&world, 100, 600, 3);
	CHECK_EQ(space_protect(world.map, 100 * PAGE, 600 * PAGE, PROT_NONE), 0);
	cram_map_read_stats(world.map, &stats);
	/* What a stream had brought in beyond them is not closed. */
	CHECK_LE(stats.resident, 63);
	CHECK_EQ(space_protect(world.map, 2000 * PAGE, 600 * PAGE, PROT_NONE), 0);
	space_move(world.map, 100 * PAGE, 2000 * PAGE, 600 * PAGE);
	CHECK_EQ(space_protect(world.map, 2000 * PAGE, 600 * PAGE, PROT_READ), 0);
	for (uint64_t page = 0; page < 600; page++) {
		volatile uint64_t *words = (volatile uint64_t *)(world.memory + (2000 + page) * PAGE);

		CHECK_EQ(words[0], ((100 + page) * 1000003 + 3 * 7919) * 0x9e3779b97f4a7c15ull);
	}
	CHECK_EQ(space_protect(world.map, 100 * PAGE, 600 * PAGE, PROT_READ | PROT_WRITE), 0);
	CHECK(zero(&world, 100));
	close_world(&world);
}

/* What the kernel filled before the mapping was made belongs to it. */
static void early_pages_are_adopted(void)
{
	struct cram_params params = { .advertised = 8 * MIB, .real = 8 * MIB };
	struct cram_map_params map = { .length = 8 * MIB, .window = WINDOW, .delivery = CRAM_INLINE, .anonymous = 1 };
	struct world world;

	world.memory = memory_reserve(NULL, 8 * MIB);
	CHECK_EQ(mprotect(world.memory, 2 * MIB, PROT_READ | PROT_WRITE), 0);
	for (uint64_t page = 0; page < 512; page += 3)
		fill(&world, page, 9);
	cram_params_default(&params);
	CHECK_EQ(cram_create(NULL, &params, &world.device), 0);
	CHECK_EQ(map_create(world.device, &map, world.memory, NULL, 0, &world.map), 0);
	CHECK_EQ(space_adopt(world.map, 0, 2 * MIB), 0);
	CHECK_EQ(space_protect(world.map, 2 * MIB, 6 * MIB, PROT_READ | PROT_WRITE), 0);
	fill_all(&world, 600, 1000, 1);
	for (uint64_t page = 0; page < 512; page++)
		CHECK(page % 3 == 0 ? holds(&world, page, 9) : zero(&world, page));
	check_all(&world, 600, 1000, 1);
	close_world(&world);
}

/* ---- fork ------------------------------------------------------------------------------------------------ */

/* Thread sanitizer does not let a child of a process with threads have threads. */
#ifdef __SANITIZE_THREAD__
#define FORKS 0
#else
#define FORKS 1
#endif
#define FORKED 1200u

static int wait_for(pid_t child)
{
	int status;

	CHECK_EQ(waitpid(child, &status, 0), child);
	return status;
}

static pid_t fork_world(void)
{
	pid_t child = fork();

	if (child != 0)
		space_forked(child);
	CHECK(child >= 0);
	return child;
}

/* Parent and child each have the memory as it was, and change it without the other's seeing it. */
static void forks_share_pages(void)
{
	for (unsigned i = 0; FORKS && i < COUNT(deliveries); i++) {
		struct world world;
		pid_t child;

		open_world(&world, 16 * MIB, 16 * MIB, deliveries[i]);
		space_inherit(world.map, walk);
		fill_all(&world, 0, FORKED, 1);
		child = fork_world();
		if (child == 0) {
			check_all(&world, 0, FORKED, 1);
			fill_all(&world, 0, FORKED / 2, 2);
			check_all(&world, 0, FORKED / 2, 2);
			check_all(&world, FORKED / 2, FORKED / 2, 1);
			/* A grandchild sees the child's. */
			child = fork_world();
			if (child == 0) {
				check_all(&world, 0, FORKED / 2, 2);
				check_all(&world, FORKED / 2, FORKED / 2, 1);
				_exit(7);
			}
			fill_all(&world, 0, FORKED, 4);
			CHECK_EQ(WEXITSTATUS(wait_for(child)), 7);
			check_all(&world, 0, FORKED, 4);
			_exit(7);
		}
		fill_all(&world, FORKED / 3, FORKED / 3, 3);
		check_all(&world, 0, FORKED / 3, 1);
		check_all(&world, FORKED / 3, FORKED / 3, 3);
		CHECK_EQ(WEXITSTATUS(wait_for(child)), 7);
		check_all(&world, 0, FORKED / 3, 1);
		check_all(&world, FORKED / 3, FORKED / 3, 3);
		CHECK_EQ(cram_reap(world.device, NULL), 0);
		CHECK_EQ(registers_of(&world).clients, 1);
		space_discard(world.map, 0, 16 * MIB);
		CHECK_EQ(registers_of(&world).used, 0);
		close_world(&world);
	}
}

struct writers {
	struct world *world;
	_Atomic bool stop;
	_Atomic uint64_t rounds;
};

#define WRITER_PAGES 400u

/* Writes its pages again and again, and finds what it wrote. */
static void write_on(void *arg, unsigned index)
{
	struct writers *writers = arg;

	for (uint64_t version = 1; !atomic_load(&writers->stop); version++) {
		for (uint64_t page = index * WRITER_PAGES; page < (index + 1) * WRITER_PAGES; page++) {
			if (version > 1)
				CHECK(holds(writers->world, page, version - 1));
			fill(writers->world, page, version);
		}
		atomic_fetch_add(&writers->rounds, 1);
	}
}

static void fork_and_look(void *arg, unsigned index)
{
	struct writers *writers = arg;

	(void)index;
	for (unsigned i = 0; i < ROUNDS(40); i++) {
		uint64_t page = 2 * WRITER_PAGES;
		pid_t child = fork_world();
		int status;

		if (child == 0) {
			/* Pages of nobody's who writes are as they were; and ours to change. */
			check_all(writers->world, page, WRITER_PAGES, 5);
			fill_all(writers->world, page, WRITER_PAGES, 6);
			fill_all(writers->world, 0, WRITER_PAGES, 6);
			check_all(writers->world, page, WRITER_PAGES, 6);
			check_all(writers->world, 0, WRITER_PAGES, 6);
			_exit(7);
		}
		/* Some children are killed at any point. */
		if (i % 3 == 0)
			kill(child, SIGKILL);
		status = wait_for(child);
		CHECK((i % 3 == 0 && WIFSIGNALED(status)) || (WIFEXITED(status) && WEXITSTATUS(status) == 7));
	}
	atomic_store(&writers->stop, true);
}

static void work(void *arg, unsigned index)
{
	if (index == 2)
		fork_and_look(arg, index);
	else
		write_on(arg, index);
}

/* The race: a fork while other threads of the parent fault, evict and write. */
static void forks_race_with_writers(void)
{
	struct world world;
	struct writers writers = { .world = &world };

	if (!FORKS)
		return;
	open_world(&world, 16 * MIB, 16 * MIB, CRAM_INLINE);
	space_inherit(world.map, walk);
	fill_all(&world, 2 * WRITER_PAGES, WRITER_PAGES, 5);
	run_threads(3, work, &writers);
	check_all(&world, 2 * WRITER_PAGES, WRITER_PAGES, 5);
	CHECK_EQ(cram_reap(world.device, NULL), 0);
	CHECK_EQ(registers_of(&world).clients, 1);
	space_discard(world.map, 0, 16 * MIB);
	CHECK_EQ(registers_of(&world).used, 0);
	close_world(&world);
}

/* ---- poison on purpose ----------------------------------------------------------------------------------- */

static sigjmp_buf trap;
static void *volatile met;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	met = info->si_code == BUS_MCEERR_AR ? info->si_addr : NULL;
	siglongjmp(trap, 1);
}

/* Does an access of that byte meet poison, there? */
__attribute__((no_sanitize_thread, noinline)) static bool poisoned(struct world *world, uint64_t offset)
{
	volatile uint8_t *byte = world->memory + offset;

	met = NULL;
	if (sigsetjmp(trap, 1) == 0)
		(void)*byte;
	return met == byte;
}

/* Whatever a page is, poison is put there, and nowhere else; it is in the device's list, and goes with the page. */
static void poison_is_put(void)
{
	enum { DIRTY = 3, CLEAN = 5, UNTOUCHED = 100, LINE = 64 };
	static const uint64_t at[] = { DIRTY * PAGE + 130, CLEAN * PAGE, UNTOUCHED * PAGE + PAGE - 1 };
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO }, before;

	CHECK_EQ(sigaction(SIGBUS, &action, &before), 0);
	for (size_t i = 0; i < COUNT(deliveries); i++) {
		struct cram_poison_record records[COUNT(at)];
		uint64_t dpa[COUNT(at)];
		struct world world;

		open_world(&world, 4 * MIB, 4 * MIB, deliveries[i]);
		fill_all(&world, 0, 8, 1);
		CHECK_EQ(cram_flush(world.map, CLEAN * PAGE, PAGE), 0);
		for (size_t j = 0; j < COUNT(at); j++) {
			CHECK_EQ(space_poison(world.map, at[j], &dpa[j]), 0);
			CHECK_EQ(dpa[j] % PAGE, at[j] % PAGE / LINE * LINE);
		}
		CHECK_EQ(registers_of(&world).poisoned, COUNT(at));
		CHECK_EQ(cram_poison_list(world.device, records, COUNT(records)), COUNT(at));
		for (size_t j = 0; j < COUNT(at); j++) {
			CHECK_EQ(records[j].source, CRAM_POISON_INJECTED);
			CHECK(poisoned(&world, at[j]));
			CHECK(poisoned(&world, at[j]));
		}
		for (uint64_t page = 0; page < 8; page++)
			CHECK(page == DIRTY || page == CLEAN || holds(&world, page, 1));
		CHECK(!poisoned(&world, (UNTOUCHED + 1) * PAGE));
		for (size_t j = 0; j < COUNT(at); j++) {
			space_discard(world.map, at[j] / PAGE * PAGE, PAGE);
			CHECK(zero(&world, at[j] / PAGE));
		}
		CHECK_EQ(registers_of(&world).poisoned, 0);
		close_world(&world);
	}
	CHECK_EQ(sigaction(SIGBUS, &before, NULL), 0);
}

/* Where it cannot be, nothing has changed: a pinned page, and a device without a page left for one that has none. */
static void poison_is_refused(void)
{
	struct world world;
	uint64_t dpa = 77;

	open_world(&world, MIB, 2 * MIB, CRAM_INLINE);
	fill_all(&world, 0, 4, 1);
	CHECK_EQ(cram_pin(world.map, PAGE, PAGE), 0);
	CHECK_EQ(space_poison(world.map, PAGE, &dpa), CRAM_EBUSY);
	CHECK_EQ(cram_unpin(world.map, PAGE, PAGE), 0);
	fill_all(&world, 4, MIB / PAGE - 4, 1);
	CHECK_EQ(space_poison(world.map, MIB, &dpa), CRAM_ENOSPC);
	CHECK_EQ(dpa, 77);
	CHECK_EQ(registers_of(&world).poisoned, 0);
	check_all(&world, 0, MIB / PAGE, 1);
	close_world(&world);
}

/* A mapping of the device as it is, and anonymous memory, take no page of each other. */
static void kinds_do_not_mix(void)
{
	struct cram_map_params params = { .length = MIB, .window = WINDOW, .delivery = CRAM_INLINE };
	uint8_t page[PAGE] = { 1 }, back[PAGE];
	struct world world;
	cram_map *map;

	open_world(&world, 4 * MIB, 4 * MIB, CRAM_INLINE);
	fill_all(&world, 0, 3, 1);
	CHECK_EQ(cram_map_create(world.device, &params, &map), CRAM_EBUSY);
	params.dpa = 2 * MIB;
	cram_write_page(world.device, MIB, page);
	CHECK_EQ(cram_map_create(world.device, &params, &map), 0);
	fill_all(&world, 0, 767, 2);
	check_all(&world, 0, 767, 2);
	CHECK_EQ(cram_read_page(world.device, MIB, back), 0);
	CHECK_EQ(back[0], 1);
	/* A page that memory has is nobody's to read by its address. */
	CHECK_EQ(cram_read_page(world.device, 0, back), PAGE);
	cram_unmap(map);
	cram_map_free(map);
	close_world(&world);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(pages_are_found_as_touched),
		TEST(discarded_pages_are_free),
		TEST(closed_pages_rest),
		TEST(early_pages_are_adopted),
		TEST(forks_share_pages),
		TEST(forks_race_with_writers),
		TEST(poison_is_put),
		TEST(poison_is_refused),
		TEST(kinds_do_not_mix),
	};

	return check_main(tests, COUNT(tests), argc, argv);
}
