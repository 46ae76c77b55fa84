/* SPDX-License-Identifier: MIT
 *
 * The device as memory of this process, through cram.h alone: faults, eviction, poison, pins, fork, interrupts.
 *
 * Each test that maps runs with both deliveries. Oracles: contents that are functions of page and version; SIGBUS as
 * the program's own handler sees it; the same pages read by cram_read_page().
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "check.h"
#include "children.h"
#include "content.h"
#include "cram.h"
#include "error.h"
#include "threads.h"

#define MIB (1ull << 20)
#define PAGE 4096u
#define WINDOW (64u << 10)
/* Wide enough for the frames of whole streams to be moved. */
#define WIDE_WINDOW (2 * MIB)

struct world {
	cram_device *device;
	cram_map *map;
	uint8_t *memory;
	uint64_t pages;
};

static const uint32_t deliveries[] = { CRAM_INLINE, CRAM_MONITOR };

static void open_wide_world(struct world *world, uint64_t advertised, uint64_t real, uint32_t delivery,
			    uint32_t writeback_ms, uint64_t window)
{
	struct cram_params params = { .advertised = advertised, .real = real };
	struct cram_map_params map = { .length = advertised, .window = window, .delivery = delivery,
				       .writeback_ms = writeback_ms };

	cram_params_default(&params);
	params.low_remaining = params.high_remaining = 0;
	CHECK_EQ(cram_create(NULL, &params, &world->device), 0);
	CHECK_EQ(cram_map_create(world->device, &map, &world->map), 0);
	world->memory = cram_map_address(world->map);
	world->pages = advertised / PAGE;
}

static void open_world(struct world *world, uint64_t advertised, uint64_t real, uint32_t delivery,
		       uint32_t writeback_ms)
{
	open_wide_world(world, advertised, real, delivery, writeback_ms, WINDOW);
}

static void unmap_world(struct world *world)
{
	cram_unmap(world->map);
	cram_map_free(world->map);
	world->map = NULL;
}

static void close_world(struct world *world)
{
	if (world->map != NULL)
		unmap_world(world);
	CHECK_EQ(cram_close(world->device), 0);
	cram_free(world->device);
}

static uint8_t *page_at(const struct world *world, uint64_t page)
{
	return world->memory + page * PAGE;
}

/* What the program does to the memory, thread sanitizer must not see: the pager copies a frame after it has protected
 * it, and that page tables order the two accesses, it does not know. What the pager does, it sees. */
#define UNSEEN __attribute__((no_sanitize_thread, noinline))

UNSEEN static void copy_unseen(void *to, const void *from, size_t n)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

UNSEEN static uint64_t load_unseen(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

UNSEEN static void store_unseen(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

UNSEEN static uint8_t touch_unseen(volatile uint8_t *at, bool write)
{
	if (write)
		*at = 1;
	return *at;
}

static uint8_t byte_of(const struct world *world, uint64_t page, unsigned at)
{
	return touch_unseen(page_at(world, page) + at, false);
}

static void make_page(uint8_t *to, uint64_t page, unsigned version, unsigned noise)
{
	fill_content(to, PAGE, page << 32 | version, noise);
}

static void write_memory(struct world *world, uint64_t page, unsigned version, unsigned noise)
{
	uint8_t bytes[PAGE];

	make_page(bytes, page, version, noise);
	copy_unseen(page_at(world, page), bytes, PAGE);
}

/* Writes the pages from `first` on, twice: a sweep that passes once only spends the others' second chance. */
static void sweep_memory(struct world *world, uint64_t first, unsigned version)
{
	for (unsigned pass = 0; pass < 2; pass++)
		for (uint64_t page = first; page < world->pages; page++)
			write_memory(world, page, version, 40);
}

static bool memory_holds(const struct world *world, uint64_t page, unsigned version, unsigned noise)
{
	uint8_t bytes[PAGE], found[PAGE];

	make_page(bytes, page, version, noise);
	copy_unseen(found, page_at(world, page), PAGE);
	return memcmp(found, bytes, PAGE) == 0;
}

/* As the kernel counts them. */
static uint64_t resident_pages(const struct world *world)
{
	uint64_t n = 0;

	for (uint64_t page = 0; page < world->pages; page++) {
		unsigned char there;

		CHECK_EQ(mincore(page_at(world, page), PAGE, &there), 0);
		n += there & 1;
	}
	return n;
}

static bool device_holds(const struct world *world, uint64_t page, unsigned version, unsigned noise)
{
	uint8_t bytes[PAGE], found[PAGE];

	make_page(bytes, page, version, noise);
	return cram_read_page(world->device, page * PAGE, found) == 0 && memcmp(bytes, found, PAGE) == 0;
}

static struct cram_registers registers_of(const struct world *world)
{
	struct cram_registers registers;

	cram_read_registers(world->device, &registers);
	return registers;
}

static struct cram_map_stats stats_of(const struct world *world)
{
	struct cram_map_stats stats;

	cram_map_read_stats(world->map, &stats);
	return stats;
}

static struct cram_page_info info_of(const struct world *world, uint64_t page)
{
	struct cram_page_info info;

	CHECK_EQ(cram_page_info(world->device, page * PAGE, &info), 0);
	return info;
}

/* ---- SIGBUS --------------------------------------------------------------------------------------------- */

static _Thread_local sigjmp_buf trapped;
static _Thread_local siginfo_t trap;

static void on_trap(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	trap = *info;
	siglongjmp(trapped, 1);
}

static void catch_traps(void)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

	CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

/* Does an access end in a machine check, at that very address? */
static bool access_traps(volatile uint8_t *at, bool write)
{
	if (sigsetjmp(trapped, 1) == 0) {
		touch_unseen(at, write);
		return false;
	}
	CHECK_EQ(trap.si_signo, SIGBUS);
	CHECK_EQ(trap.si_code, BUS_MCEERR_AR);
	CHECK_EQ((uintptr_t)trap.si_addr, (uintptr_t)at);
	CHECK_EQ(trap.si_addr_lsb, 12);
	return true;
}

/* ---- memory --------------------------------------------------------------------------------------------- */

static void keep_pages(uint32_t delivery)
{
	struct cram_map_stats stats;
	struct world world;
	uint64_t state = 1;

	open_world(&world, 2 * MIB, 2 * MIB, delivery, 0);
	for (uint64_t page = 0; page < world.pages; page++)
		CHECK_EQ(byte_of(&world, page, 17), 0);
	for (uint64_t page = 0; page < world.pages; page++)
		write_memory(&world, page, 0, page % NOISE_MAX);
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t page = random_below(&state, world.pages);

		CHECK(memory_holds(&world, page, 0, page % NOISE_MAX));
	}
	for (uint64_t page = 0; page < world.pages; page += 3)
		write_memory(&world, page, 1, page % NOISE_MAX);
	for (uint64_t page = 0; page < world.pages; page++)
		CHECK(memory_holds(&world, page, page % 3 == 0, page % NOISE_MAX));
	stats = stats_of(&world);
	CHECK_EQ(stats.window, WINDOW / PAGE);
	CHECK_LE(stats.resident, stats.window);
	CHECK(stats.evicted > 0);
	CHECK(stats.written_back > 0);
	unmap_world(&world);
	for (uint64_t page = 0; page < world.pages; page++)
		CHECK(device_holds(&world, page, page % 3 == 0, page % NOISE_MAX));
	CHECK_EQ(registers_of(&world).dirty_frames, 0);
	CHECK_EQ(registers_of(&world).poisoned, 0);
	close_world(&world);
}

/* A mapping of many times its window keeps what is written to it, and leaves it in the device when it goes. */
static void memory_keeps_pages(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++)
		keep_pages(deliveries[i]);
}

/* The twin: a page that changed behind the mapping, in the media, is poison and no longer what was written. */
static void changed_page_is_seen(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct cram_page_info info;
		struct world world;
		uint8_t byte;

		open_world(&world, MIB, MIB, deliveries[i], 0);
		write_memory(&world, 0, 0, 40);
		sweep_memory(&world, 1, 0);
		info = info_of(&world, 0);
		CHECK_EQ(info.resident, 0);
		CHECK_EQ(pread(cram_fd(world.device), &byte, 1, (off_t)info.media), 1);
		byte ^= 1;
		CHECK_EQ(pwrite(cram_fd(world.device), &byte, 1, (off_t)info.media), 1);
		CHECK(access_traps(page_at(&world, 0), false));
		CHECK_EQ(registers_of(&world).media_errors, 1);
		CHECK(memory_holds(&world, 1, 0, 40));
		close_world(&world);
	}
}

/* Streams of writes and reads, whose frames are moved from page to page, keep every page; so do writes to pages that a
 * stream of reads has brought in, and reads of pages that the device dropped. */
static void streams_keep_pages(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct cram_map_stats stats;
		struct world world;

		open_wide_world(&world, 16 * MIB, 16 * MIB, deliveries[i], 0, WIDE_WINDOW);
		for (uint64_t page = 0; page < world.pages; page++)
			write_memory(&world, page, 0, page % NOISE_MAX);
		for (uint64_t page = 0; page < world.pages; page++)
			CHECK(memory_holds(&world, page, 0, page % NOISE_MAX));
		for (uint64_t page = 0; page < world.pages; page++) {
			CHECK(memory_holds(&world, page, 0, page % NOISE_MAX));
			if (page % 3 == 0)
				write_memory(&world, page, 1, page % NOISE_MAX);
		}
		/* A page in the way of a stream: what the fault had prepared for it must not stay behind. */
		CHECK_EQ(cram_inject_poison(world.device, 70 * PAGE), 0);
		CHECK(access_traps(page_at(&world, 70), false));
		for (uint64_t page = 0; page < world.pages; page++)
			CHECK(page == 70 || memory_holds(&world, page, page % 3 == 0, page % NOISE_MAX));
		/* A monitor lets the program go on before it has counted. */
		while (stats_of(&world).resident != resident_pages(&world))
			sched_yield();
		stats = stats_of(&world);
		CHECK_LE(stats.resident, stats.window);
		CHECK(stats.prefetched > 3 * world.pages / 2);
		unmap_world(&world);
		for (uint64_t page = 0; page < world.pages; page++)
			CHECK(page == 70 || device_holds(&world, page, page % 3 == 0, page % NOISE_MAX));
		CHECK_EQ(registers_of(&world).dirty_frames, 0);
		close_world(&world);
	}
}

/* Page functions on a resident page act through its frame, both ways, and a flush leaves it in the media. */
static void page_functions_use_the_frame(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		uint8_t bytes[PAGE];
		struct world world;

		open_world(&world, MIB, MIB, deliveries[i], 0);
		write_memory(&world, 5, 1, 40);
		CHECK_EQ(info_of(&world, 5).resident, 1);
		CHECK_EQ(info_of(&world, 5).dirty, 1);
		CHECK_EQ(info_of(&world, 5).state, CRAM_PAGE_EMPTY);
		CHECK(device_holds(&world, 5, 1, 40));
		CHECK_EQ(registers_of(&world).dirty_frames, stats_of(&world).dirty);
		CHECK_EQ(cram_flush(world.map, 5 * PAGE, PAGE), 0);
		CHECK_EQ(info_of(&world, 5).dirty, 0);
		CHECK_EQ(info_of(&world, 5).resident, 1);
		CHECK_EQ(info_of(&world, 5).state, CRAM_PAGE_STORED);
		make_page(bytes, 5, 2, 40);
		cram_write_page(world.device, 5 * PAGE, bytes);
		CHECK(memory_holds(&world, 5, 2, 40));
		cram_discard(world.device, 5 * PAGE, PAGE);
		CHECK_EQ(byte_of(&world, 5, 100), 0);
		CHECK_EQ(info_of(&world, 5).state, CRAM_PAGE_EMPTY);
		CHECK_EQ(cram_flush(world.map, MIB, 0), 0);
		CHECK_EQ(cram_flush(world.map, MIB, 1), CRAM_EINVAL);
		close_world(&world);
	}
}

/* The periodic write-back cleans dirty frames by itself; the twin: without a period they stay dirty. */
static void write_back_cleans(void)
{
	for (unsigned i = 0; i < 2 * COUNT(deliveries); i++) {
		struct world world;

		open_world(&world, MIB, MIB, deliveries[i / 2], i % 2 == 0 ? 5 : 0);
		write_memory(&world, 3, 1, 40);
		if (i % 2 == 0) {
			for (unsigned wait = 0; registers_of(&world).dirty_frames > 0; wait++) {
				CHECK_COMPARE(wait, <, 50000);
				usleep(200);
			}
			CHECK(device_holds(&world, 3, 1, 40));
		} else {
			usleep(50000);
			CHECK(registers_of(&world).dirty_frames > 0);
		}
		CHECK(memory_holds(&world, 3, 1, 40));
		close_world(&world);
	}
}

/* ---- poison --------------------------------------------------------------------------------------------- */

/* After an overflow every page is what was written, or traps in the thread that touches it; no third. */
static void overflow_traps(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct world world;
		uint64_t traps = 0;

		open_world(&world, MIB, 16 * PAGE, deliveries[i], 0);
		for (uint64_t page = 0; page < world.pages; page++) {
			/* Dropped pages of an earlier round may trap: then it is repaired as a whole. */
			write_memory(&world, page, 1, NOISE_MAX);
		}
		CHECK_EQ(cram_flush(world.map, 0, MIB), 0);
		for (uint64_t page = 0; page < world.pages; page++) {
			if (access_traps(page_at(&world, page) + page * 7, page % 2))
				traps++;
			else if (page % 2 == 0)
				CHECK(memory_holds(&world, page, 1, NOISE_MAX));
		}
		CHECK(traps > 0);
		CHECK_COMPARE(traps, <, world.pages);
		CHECK_COMPARE(registers_of(&world).dropped_writes, >=, traps);
		CHECK_EQ(stats_of(&world).poison_faults, traps);
		CHECK_LE(registers_of(&world).peak, registers_of(&world).real);
		close_world(&world);
	}
}

/* Poison injected under a resident frame traps at any access to the page, until it is repaired in one of three ways. */
static void injected_poison_traps(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct cram_poison_record records[4];
		uint8_t bytes[PAGE], found[PAGE];
		struct world world;

		open_world(&world, MIB, MIB, deliveries[i], 0);
		for (uint64_t page = 0; page < 8; page++)
			write_memory(&world, page, 1, 40);
		for (uint64_t page = 1; page < 4; page++)
			CHECK_EQ(cram_inject_poison(world.device, page * PAGE + 128), 0);
		for (uint64_t page = 0; page < 8; page++) {
			bool poisoned = page >= 1 && page < 4;

			CHECK_EQ(access_traps(page_at(&world, page), false), poisoned);
			CHECK_EQ(access_traps(page_at(&world, page) + PAGE - 1, false), poisoned);
			CHECK(poisoned || memory_holds(&world, page, 1, 40));
		}
		CHECK_EQ(cram_read_page(world.device, PAGE, bytes), PAGE - 128);
		CHECK_EQ(cram_poison_list(world.device, records, COUNT(records)), 3);
		CHECK_EQ(records[1].dpa, 2 * PAGE + 128);
		CHECK_EQ(cram_inject_poison(world.device, 100), CRAM_EINVAL);
		CHECK_EQ(cram_inject_poison(world.device, MIB), CRAM_EINVAL);
		CHECK_EQ(cram_clear_poison(world.device, PAGE + 128), 0);
		make_page(bytes, 2, 2, 40);
		cram_write_page(world.device, 2 * PAGE, bytes);
		cram_discard(world.device, 3 * PAGE, PAGE);
		make_page(bytes, 1, 1, 40);
		memset(bytes + 128, 0, 64);
		copy_unseen(found, page_at(&world, 1), PAGE);
		CHECK_BYTES(found, bytes, PAGE);
		CHECK(memory_holds(&world, 2, 2, 40));
		CHECK_EQ(byte_of(&world, 3, 0), 0);
		CHECK_EQ(registers_of(&world).poisoned, 0);
		close_world(&world);
	}
}

struct toucher {
	struct world world;
	_Atomic uint32_t trapped;
};

static void touch_poison(void *arg, unsigned index)
{
	struct toucher *toucher = arg;

	for (unsigned i = 0; i < 50; i++) {
		/* Each thread has poison of its own to touch, and a page that all can read. */
		CHECK(access_traps(page_at(&toucher->world, 1 + index) + i, i % 2));
		CHECK(memory_holds(&toucher->world, 0, 1, 40));
		toucher->trapped++;
	}
}

/* Threads that touch poison at once each get their own signal, with their own address. */
static void threads_trap_by_themselves(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct toucher toucher = { .trapped = 0 };

		open_world(&toucher.world, MIB, MIB, deliveries[i], 0);
		write_memory(&toucher.world, 0, 1, 40);
		for (uint64_t page = 1; page < 5; page++)
			CHECK_EQ(cram_inject_poison(toucher.world.device, page * PAGE), 0);
		run_threads(4, touch_poison, &toucher);
		CHECK_EQ(toucher.trapped, 200);
		close_world(&toucher.world);
	}
}

static void touch_without_handler(void *arg)
{
	uint32_t delivery = *(const uint32_t *)arg;
	struct world world;

	signal(SIGBUS, SIG_DFL);
	open_world(&world, MIB, MIB, delivery, 0);
	CHECK_EQ(cram_inject_poison(world.device, 0), 0);
	access_traps(page_at(&world, 0), false);
}

/* Poison without a handler of the program's ends it by SIGBUS. */
static void unhandled_poison_kills(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		uint32_t delivery = deliveries[i];
		pid_t pid = child_start(touch_without_handler, &delivery);
		int status = 0;

		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status));
		CHECK_EQ(WTERMSIG(status), SIGBUS);
	}
}

/* ---- pins ----------------------------------------------------------------------------------------------- */

/* Pinned pages stay resident, whatever is brought in; pins nest, are limited by the window, and refuse poison. */
static void pinned_pages_stay(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct world world;

		open_world(&world, MIB, MIB, deliveries[i], 0);
		write_memory(&world, 4, 1, 40);
		CHECK_EQ(cram_pin(world.map, 4 * PAGE + 1, PAGE), 0);
		CHECK_EQ(cram_pin(world.map, 4 * PAGE, PAGE), 0);
		sweep_memory(&world, 10, 1);
		CHECK_EQ(info_of(&world, 4).resident, 1);
		CHECK_EQ(info_of(&world, 5).resident, 1);
		CHECK_EQ(cram_inject_poison(world.device, 4 * PAGE), CRAM_EBUSY);
		CHECK_EQ(cram_flush(world.map, 0, MIB), 0);
		CHECK_EQ(info_of(&world, 4).state, CRAM_PAGE_STORED);
		CHECK_EQ(info_of(&world, 4).dirty, 1);
		CHECK_EQ(cram_unpin(world.map, 4 * PAGE, 3 * PAGE), CRAM_EINVAL);
		CHECK_EQ(cram_unpin(world.map, 4 * PAGE + 1, PAGE), 0);
		sweep_memory(&world, 10, 2);
		CHECK_EQ(info_of(&world, 4).resident, 1);
		CHECK_EQ(info_of(&world, 5).resident, 0);
		CHECK_EQ(cram_unpin(world.map, 4 * PAGE, PAGE), 0);
		CHECK_EQ(cram_unpin(world.map, 4 * PAGE, PAGE), CRAM_EINVAL);
		sweep_memory(&world, 10, 3);
		CHECK_EQ(info_of(&world, 4).resident, 0);
		CHECK(memory_holds(&world, 4, 1, 40));
		CHECK_EQ(cram_pin(world.map, 0, WINDOW), CRAM_ENOMEM);
		CHECK_EQ(cram_inject_poison(world.device, 7 * PAGE), 0);
		CHECK_EQ(cram_pin(world.map, 6 * PAGE, 3 * PAGE), CRAM_EPOISON);
		CHECK_EQ(cram_unpin(world.map, 6 * PAGE, 3 * PAGE), CRAM_EINVAL);
		CHECK_EQ(cram_pin(world.map, MIB, PAGE), CRAM_EINVAL);
		close_world(&world);
	}
}

/* ---- threads -------------------------------------------------------------------------------------------- */

#define WRITERS 3u
#define SHARED_PAGES 96u
#define WORDS (PAGE / 8)

struct crowd {
	struct world world;
	bool meddle;              /* the twin: somebody discards pages that others write */
	_Atomic unsigned at_work;
	_Atomic uint64_t wrong;
};

static uint64_t *words_of(struct crowd *crowd, uint64_t page)
{
	return (uint64_t *)page_at(&crowd->world, page);
}

/* Writes pages of its own, first word and last, and reads everybody's: no value may ever go back. */
static void write_and_read(struct crowd *crowd, unsigned index)
{
	uint64_t last_seen[SHARED_PAGES] = { 0 };
	uint64_t state = index;

	for (uint64_t n = 1; n <= ROUNDS(6000u); n++) {
		uint64_t page = random_below(&state, SHARED_PAGES);
		uint64_t *words = words_of(crowd, page);
		uint64_t first = load_unseen(&words[0]), last = load_unseen(&words[WORDS - 1]);

		/* Its owner finds the page as it left it, the others never older than they saw it. */
		if (page % WRITERS == index)
			crowd->wrong += first != last_seen[page] || last != first;
		else
			crowd->wrong += first < last_seen[page];
		last_seen[page] = first;
		if (page % WRITERS != index)
			continue;
		store_unseen(&words[0], n);
		store_unseen(&words[1 + n % (WORDS - 2)], random_next(&state));
		store_unseen(&words[WORDS - 1], n);
		last_seen[page] = n;
	}
	crowd->at_work--;
}

static void live_in_memory(void *arg, unsigned index)
{
	struct crowd *crowd = arg;
	uint64_t state = index;

	if (index < WRITERS) {
		write_and_read(crowd, index);
		return;
	}
	while (atomic_load(&crowd->at_work) > 0) {
		uint64_t page = random_below(&state, SHARED_PAGES - 8);

		CHECK_EQ(cram_flush(crowd->world.map, page * PAGE, 8 * PAGE), 0);
		if (crowd->meddle)
			cram_discard(crowd->world.device, page * PAGE, PAGE);
		usleep(100);
	}
}

static void run_crowd(struct crowd *crowd, uint32_t delivery, bool meddle)
{
	memset(crowd, 0, sizeof(*crowd));
	open_world(&crowd->world, MIB, MIB, delivery, 1);
	crowd->at_work = WRITERS;
	crowd->meddle = meddle;
	run_threads(WRITERS + 1, live_in_memory, crowd);
}

#define STREAM_PAGES 2048u
#define AHEAD 64u

struct stream_race {
	struct world world;
	_Atomic uint64_t reader;
	_Atomic bool done;
	uint64_t expected[STREAM_PAGES]; /* the writer's */
};

/* One thread reads in sequence, another writes where the reader's pages are about to arrive. */
static void race_a_stream(void *arg, unsigned index)
{
	struct stream_race *race = arg;
	uint64_t state = 7;

	if (index == 0) {
		for (unsigned pass = 0; pass < ROUNDS(32u); pass++) {
			for (uint64_t page = 0; page < STREAM_PAGES; page++) {
				load_unseen((uint64_t *)page_at(&race->world, page));
				race->reader = page;
			}
		}
		race->done = true;
		return;
	}
	for (uint64_t n = 1; !race->done; n++) {
		uint64_t page;

		/* At any moment of a fault: who has met a missing page sleeps through the moment that counts. */
		for (uint64_t spins = random_below(&state, 1500); spins > 0; spins--)
			__builtin_ia32_pause();
		page = (race->reader + random_below(&state, AHEAD)) % STREAM_PAGES;
		store_unseen((uint64_t *)page_at(&race->world, page) + 8, n);
		race->expected[page] = n;
	}
}

/* The race: a page that a stream of reads brings in is written to before it is protected. No such write is lost. */
static void streams_lose_no_write(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct stream_race race = { .reader = 0 };
		uint64_t words[WORDS];

		open_wide_world(&race.world, STREAM_PAGES * PAGE, STREAM_PAGES * PAGE, deliveries[i], 0, WIDE_WINDOW);
		run_threads(2, race_a_stream, &race);
		for (uint64_t page = 0; page < STREAM_PAGES; page++)
			CHECK_EQ(load_unseen((uint64_t *)page_at(&race.world, page) + 8), race.expected[page]);
		unmap_world(&race.world);
		for (uint64_t page = 0; page < STREAM_PAGES; page++) {
			CHECK_EQ(cram_read_page(race.world.device, page * PAGE, words), 0);
			CHECK_EQ(words[8], race.expected[page]);
		}
		close_world(&race.world);
	}
}

/* Threads that fault, write, flush and evict at once, with the periodic write-back between them, lose no write. */
static void threads_lose_no_write(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		uint64_t ends[SHARED_PAGES][2], page_words[WORDS];
		struct crowd crowd;

		run_crowd(&crowd, deliveries[i], false);
		CHECK_EQ(crowd.wrong, 0);
		for (uint64_t page = 0; page < SHARED_PAGES; page++) {
			ends[page][0] = load_unseen(&words_of(&crowd, page)[0]);
			ends[page][1] = load_unseen(&words_of(&crowd, page)[WORDS - 1]);
			CHECK_EQ(ends[page][0], ends[page][1]);
		}
		CHECK(stats_of(&crowd.world).evicted > 0);
		CHECK_LE(stats_of(&crowd.world).resident, WINDOW / PAGE);
		unmap_world(&crowd.world);
		for (uint64_t page = 0; page < SHARED_PAGES; page++) {
			CHECK_EQ(cram_read_page(crowd.world.device, page * PAGE, page_words), 0);
			CHECK_EQ(page_words[0], ends[page][0]);
			CHECK_EQ(page_words[WORDS - 1], ends[page][1]);
		}
		CHECK_EQ(registers_of(&crowd.world).media_errors, 0);
		close_world(&crowd.world);
	}
}

/* The twin: writes that are discarded under their owners are missed by them. */
static void lost_writes_are_seen(void)
{
	struct crowd crowd;

	run_crowd(&crowd, CRAM_INLINE, true);
	CHECK(crowd.wrong > 0);
	close_world(&crowd.world);
}

/* ---- clients, fork, closing ----------------------------------------------------------------------------- */

/* A second client neither maps, nor reads, nor writes what the first has mapped; its poison commands are obeyed. */
static void mapped_range_is_exclusive(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct cram_map_params params = { .dpa = 8 * PAGE, .length = PAGE, .window = WINDOW };
		uint8_t bytes[PAGE] = { 0 };
		cram_device *other;
		struct world world;
		cram_map *map;
		char path[64];

		open_world(&world, MIB, MIB, deliveries[i], 0);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", cram_fd(world.device));
		CHECK_EQ(cram_open(path, &other), 0);
		write_memory(&world, 8, 1, 40);
		CHECK_EQ(cram_map_create(other, &params, &map), CRAM_EBUSY);
		CHECK_EQ(cram_read_page(other, 8 * PAGE, bytes), PAGE);
		cram_write_page(other, 8 * PAGE, bytes);
		cram_discard(other, 8 * PAGE, PAGE);
		CHECK_EQ(registers_of(&world).refused_writes, 2);
		CHECK(memory_holds(&world, 8, 1, 40));
		CHECK_EQ(cram_inject_poison(other, 8 * PAGE + 64), 0);
		CHECK(access_traps(page_at(&world, 8), false));
		CHECK_EQ(cram_clear_poison(other, 8 * PAGE + 64), 0);
		CHECK(!access_traps(page_at(&world, 8), false));
		unmap_world(&world);
		CHECK_EQ(cram_read_page(other, 8 * PAGE, bytes), 0);
		CHECK_EQ(cram_close(other), 0);
		cram_free(other);
		close_world(&world);
	}
}

#define FILE_NAME "host_device"

struct victim {
	uint32_t delivery;
	_Atomic uint32_t ready;
};

static void write_and_stand(void *arg)
{
	struct cram_params params = { .advertised = MIB, .real = MIB };
	struct cram_map_params map = { .length = MIB, .window = WINDOW };
	struct victim *victim = arg;
	struct world world;

	cram_params_default(&params);
	map.delivery = victim->delivery;
	CHECK_EQ(cram_create(FILE_NAME, &params, &world.device), 0);
	CHECK_EQ(cram_map_create(world.device, &map, &world.map), 0);
	world.memory = cram_map_address(world.map);
	for (uint64_t page = 0; page < 8; page++)
		write_memory(&world, page, 1, 40);
	CHECK_EQ(cram_flush(world.map, 0, 4 * PAGE), 0);
	write_memory(&world, 3, 2, 40);
	stand_still(&victim->ready);
}

/* What a killed process had written and not flushed is poison, what it had flushed is there, and its range is free. */
static void unflushed_pages_die_with_their_process(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct cram_map_params map = { .length = MIB, .window = WINDOW, .delivery = deliveries[i] };
		struct victim *victim = shared_memory(sizeof(*victim));
		struct world world = { .pages = MIB / PAGE };
		uint32_t dead;
		pid_t pid;

		unlink(FILE_NAME);
		victim->delivery = deliveries[i];
		pid = child_start(write_and_stand, victim);
		wait_for(&victim->ready);
		CHECK_EQ(cram_open(FILE_NAME, &world.device), 0);
		CHECK_EQ(cram_map_create(world.device, &map, &world.map), CRAM_EBUSY);
		CHECK_EQ(registers_of(&world).lost_pages, 0);
		child_kill(pid);
		CHECK_EQ(cram_reap(world.device, &dead), 0);
		CHECK_EQ(dead, 1);
		CHECK_EQ(cram_map_create(world.device, &map, &world.map), 0);
		world.memory = cram_map_address(world.map);
		for (uint64_t page = 0; page < 8; page++) {
			bool lost = page >= 3;

			CHECK_EQ(access_traps(page_at(&world, page), false), lost);
			CHECK(lost || memory_holds(&world, page, 1, 40));
		}
		/* And those that came with them for a writer that goes on in sequence. */
		CHECK_COMPARE(registers_of(&world).lost_pages, >=, 5);
		close_world(&world);
		CHECK_EQ(unlink(FILE_NAME), 0);
	}
}

#define ACCOUNT_PAGES 24u

/* What a process says of its pages: versions begun and finished; even ones are discards. */
struct account {
	uint32_t delivery;
	uint64_t seed;
	_Atomic uint32_t ready;
	_Atomic uint32_t begun[ACCOUNT_PAGES];
	_Atomic uint32_t done[ACCOUNT_PAGES];
};

static void write_accounted(struct world *world, struct account *account, uint64_t page)
{
	uint32_t next = (account->begun[page] + 1) | 1;

	atomic_store(&account->begun[page], next);
	write_memory(world, page, next, 40);
	atomic_store(&account->done[page], next);
}

static void discard_accounted(struct world *world, struct account *account, uint64_t page)
{
	uint32_t next = (account->begun[page] | 1) + 1;

	atomic_store(&account->begun[page], next);
	cram_discard(world->device, page * PAGE, PAGE);
	atomic_store(&account->done[page], next);
}

static void work_accounted(struct world *world, struct account *account, uint64_t *state)
{
	uint64_t page = random_below(state, ACCOUNT_PAGES);

	switch (random_below(state, 8)) {
	case 0:
		CHECK_EQ(cram_flush(world->map, 0, ACCOUNT_PAGES * PAGE), 0);
		break;
	case 1: /* as O_DIRECT would: written again while a flush has its snapshot */
		if (cram_pin(world->map, page * PAGE, PAGE) != 0)
			break;
		write_accounted(world, account, page);
		CHECK_EQ(cram_flush(world->map, page * PAGE, PAGE), 0);
		write_accounted(world, account, page);
		CHECK_EQ(cram_unpin(world->map, page * PAGE, PAGE), 0);
		break;
	case 2:
	case 3:
	case 4: /* over bytes that are newer than the stored ones */
		write_accounted(world, account, page);
		CHECK_EQ(cram_flush(world->map, page * PAGE, PAGE), 0);
		write_accounted(world, account, page);
		discard_accounted(world, account, page);
		break;
	default:
		write_accounted(world, account, page);
	}
}

static void work_until_killed(void *arg)
{
	struct cram_params params = { .advertised = MIB, .real = MIB };
	struct cram_map_params map = { .length = MIB, .window = WINDOW };
	struct account *account = arg;
	uint64_t state = account->seed;
	struct world world;

	cram_params_default(&params);
	map.delivery = account->delivery;
	CHECK_EQ(cram_create(FILE_NAME, &params, &world.device), 0);
	CHECK_EQ(cram_map_create(world.device, &map, &world.map), 0);
	world.memory = cram_map_address(world.map);
	atomic_store(&account->ready, 1);
	for (;;)
		work_accounted(&world, account, &state);
}

/* Bytes that are neither what was finished last, nor what was begun, are wrong. */
static bool account_holds(const struct world *world, const struct account *account, uint64_t page)
{
	uint32_t begun = account->begun[page], done = account->done[page];
	uint8_t found[PAGE], bytes[PAGE] = { 0 };

	if (cram_read_page(world->device, page * PAGE, found) != 0)
		return true;
	if (memcmp(found, bytes, PAGE) == 0)
		return begun % 2 == 0 || done % 2 == 0;
	for (uint32_t version = done; version <= begun; version++) {
		make_page(bytes, page, version, 40);
		if (version % 2 == 1 && memcmp(found, bytes, PAGE) == 0)
			return true;
	}
	return false;
}

/* Wherever a process is killed, flushing, discarding, evicting: no page has older bytes than it had finished. */
static void death_anywhere_leaves_no_old_bytes(void)
{
	uint64_t state = 1, lost = 0;

	for (unsigned i = 0; i < ROUNDS(120u); i++) {
		struct account *account = shared_memory(sizeof(*account));
		struct world world = { .pages = MIB / PAGE };
		pid_t pid;

		unlink(FILE_NAME);
		account->delivery = deliveries[i % 2];
		account->seed = i;
		pid = child_start(work_until_killed, account);
		wait_for(&account->ready);
		usleep((unsigned)random_below(&state, 3000));
		child_kill(pid);
		CHECK_EQ(cram_open(FILE_NAME, &world.device), 0);
		for (uint64_t page = 0; page < ACCOUNT_PAGES; page++)
			CHECK(account_holds(&world, account, page));
		lost += registers_of(&world).lost_pages;
		CHECK_EQ(cram_close(world.device), 0);
		cram_free(world.device);
		munmap(account, sizeof(*account));
	}
	/* The twin: there was something to be wrong about. */
	CHECK(lost > 0);
	CHECK_EQ(unlink(FILE_NAME), 0);
}

static void use_after_fork(void *arg)
{
	struct world *world = arg;
	uint8_t bytes[PAGE];

	CHECK_EQ(cram_check(world->device), CRAM_EFORKED);
	CHECK_EQ(cram_read_page(world->device, 0, bytes), PAGE);
	CHECK_EQ(cram_rebuild(world->device), CRAM_EFORKED);
	CHECK_EQ(cram_flush(world->map, 0, PAGE), CRAM_EFORKED);
	CHECK_EQ(cram_inject_poison(world->device, 0), CRAM_EFORKED);
	cram_unmap(world->map);
	CHECK_EQ(cram_close(world->device), 0);
	/* Not AddressSanitizer's: this must end by the signal itself. */
	signal(SIGSEGV, SIG_DFL);
	touch_unseen(world->memory, false);
}

/* A child of fork gets a clean fault and clean errors, and takes nothing from its parent. */
static void child_is_kept_out(void)
{
	for (unsigned i = 0; i < COUNT(deliveries); i++) {
		struct world world;
		int status = 0;
		pid_t pid;

		open_world(&world, MIB, MIB, deliveries[i], 0);
		write_memory(&world, 0, 1, 40);
		pid = child_start(use_after_fork, &world);
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status));
		CHECK_EQ(WTERMSIG(status), SIGSEGV);
		CHECK(memory_holds(&world, 0, 1, 40));
		write_memory(&world, 1, 1, 40);
		CHECK_EQ(registers_of(&world).clients, 1);
		close_world(&world);
	}
}

struct closing {
	struct world world;
	_Atomic uint32_t at_work;
	_Atomic uint32_t closed;
};

static void use_until_closed(void *arg, unsigned index)
{
	struct closing *closing = arg;
	cram_device *device = closing->world.device;
	uint8_t bytes[PAGE];
	int code = 0;

	for (uint64_t n = 0; code != CRAM_ECLOSED; n++) {
		make_page(bytes, index, (unsigned)n, 40);
		cram_write_page(device, index * PAGE, bytes);
		code = n % 2 == 0 ? cram_set_pressure(device, 1) : cram_inject_poison(device, (100 + index) * PAGE);
		CHECK(code == 0 || code == CRAM_ECLOSED);
		atomic_store(&closing->at_work, 1);
	}
	CHECK_EQ(cram_read_page(device, 0, bytes), PAGE);
	CHECK_EQ(cram_check(device), CRAM_ECLOSED);
	closing->closed++;
}

static void wait_until_closed(void *arg, unsigned index)
{
	struct closing *closing = arg;
	struct cram_event event;
	uint64_t sequence = 0;

	if (index > 0) {
		use_until_closed(arg, index);
		return;
	}
	CHECK_EQ(cram_event_wait(closing->world.device, &sequence, -1, &event), CRAM_ECLOSED);
	closing->closed++;
}

/* A device closes while threads use it and wait on it: each is told so, none hangs; with a mapping it stays open. */
static void device_closes_under_threads(void)
{
	for (unsigned i = 0; i < 10; i++) {
		struct closing closing = { .at_work = 0 };
		struct team team;

		open_world(&closing.world, MIB, MIB, deliveries[i % 2], 0);
		CHECK_EQ(cram_close(closing.world.device), CRAM_EBUSY);
		CHECK_EQ(cram_check(closing.world.device), 0);
		unmap_world(&closing.world);
		team_start(&team, 4, wait_until_closed, &closing);
		wait_for(&closing.at_work);
		usleep(2000);
		CHECK_EQ(cram_close(closing.world.device), 0);
		team_join(&team);
		CHECK_EQ(closing.closed, 4);
		CHECK_EQ(cram_close(closing.world.device), 0);
		cram_free(closing.world.device);
	}
}

struct coming {
	cram_device *device;
	char path[64];
	_Atomic bool stop;
	_Atomic uint64_t reaped;
};

static void come_and_go(void *arg, unsigned index)
{
	struct coming *coming = arg;

	if (index == 0) {
		while (!atomic_load(&coming->stop)) {
			uint32_t dead;

			CHECK_EQ(cram_reap(coming->device, &dead), 0);
			coming->reaped += dead;
		}
		return;
	}
	for (unsigned i = 0; i < ROUNDS(400u); i++) {
		cram_device *device;

		CHECK_EQ(cram_open(coming->path, &device), 0);
		CHECK_EQ(cram_close(device), 0);
		cram_free(device);
	}
	atomic_store(&coming->stop, true);
}

/* A client that lives is never taken for dead, not while it comes and not while it goes. */
static void living_clients_are_not_reaped(void)
{
	struct cram_params params = { .advertised = MIB, .real = MIB };
	struct coming coming = { .stop = false };
	struct cram_registers registers;

	cram_params_default(&params);
	CHECK_EQ(cram_create(NULL, &params, &coming.device), 0);
	snprintf(coming.path, sizeof(coming.path), "/proc/self/fd/%d", cram_fd(coming.device));
	run_threads(2, come_and_go, &coming);
	CHECK_EQ(coming.reaped, 0);
	cram_read_registers(coming.device, &registers);
	CHECK_EQ(registers.clients, 1);
	CHECK_EQ(cram_close(coming.device), 0);
	cram_free(coming.device);
}

/* ---- interrupts, codes, parameters ---------------------------------------------------------------------- */

static _Atomic uint32_t signals[2];

static void on_interrupt(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if (info->si_value.sival_int == CRAM_LTHRESH || info->si_value.sival_int == CRAM_HTHRESH)
		atomic_fetch_add(&signals[info->si_value.sival_int - CRAM_LTHRESH], 1);
}

/* One by one: of two that are pending at once thread sanitizer delivers one. */
static void await_signals(unsigned which, uint32_t n)
{
	for (unsigned wait = 0; signals[which] < n; wait++) {
		CHECK_COMPARE(wait, <, 20000);
		usleep(500);
	}
}

/* A crossing arrives as an event, on the eventfd and as a signal with the vector, each once. */
static void crossing_interrupts(void)
{
	struct sigaction action = { .sa_sigaction = on_interrupt, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct cram_params params = { .advertised = MIB, .real = 16 * PAGE };
	uint8_t bytes[PAGE];
	cram_device *device;
	uint64_t sequence = 0;

	CHECK_EQ(sigaction(SIGRTMIN + 12, &action, NULL), 0);
	cram_params_default(&params);
	params.low_remaining = 4 * PAGE;
	params.high_remaining = 8 * PAGE;
	CHECK_EQ(cram_create(NULL, &params, &device), 0);
	for (unsigned round = 1; round <= 5; round++) {
		struct cram_event event;

		for (uint64_t page = 0; page < 16; page++) {
			make_page(bytes, page, round, NOISE_MAX);
			cram_write_page(device, page * PAGE, bytes);
		}
		await_signals(0, round);
		cram_discard(device, 0, 16 * PAGE);
		await_signals(1, round);
		for (unsigned vector = CRAM_LTHRESH; vector <= CRAM_HTHRESH; vector++) {
			CHECK_EQ(cram_event_wait(device, &sequence, 5000, &event), 0);
			CHECK_EQ(event.vector, vector);
			CHECK_EQ(event.sequence, sequence);
			CHECK_EQ(event.remaining, vector == CRAM_LTHRESH ? 4 * PAGE : 8 * PAGE);
		}
		CHECK_EQ(sequence, 2 * round);
		CHECK_EQ(cram_event_wait(device, &sequence, 0, &event), CRAM_ETIMEDOUT);
	}
	CHECK_EQ(signals[0], 5);
	CHECK_EQ(signals[1], 5);
	eventfd_t count;
	CHECK_EQ(eventfd_read(cram_event_fd(device), &count), 0);
	CHECK_EQ(count, 10);
	CHECK_EQ(cram_close(device), 0);
	cram_free(device);
}

/* Every code has a name and a text of its own, and the list ends. */
static void codes_are_distinct(void)
{
	size_t n = 0;

	for (const struct cram_error_info *error; (error = cram_error_at(n)) != NULL; n++) {
		CHECK_COMPARE((int64_t)-error->code, >, 0);
		CHECK(error->name[0] == 'E' && error->text[0] != 0);
		for (size_t i = 0; i < n; i++) {
			CHECK_COMPARE(cram_error_at(i)->code, !=, error->code);
			CHECK(strcmp(cram_error_at(i)->name, error->name) != 0);
		}
	}
	CHECK(n > 10);
	CHECK(cram_error_at(SIZE_MAX) == NULL);
}

/* Nonsense is refused with the value named, and nothing is mapped. */
static void bad_mappings_are_refused(void)
{
	static const struct {
		struct cram_map_params params;
		const char *named;
	} cases[] = {
		{ { .length = 0, .window = WINDOW }, "0x0" },
		{ { .length = PAGE + 1, .window = WINDOW }, "0x1001" },
		{ { .dpa = 1, .length = PAGE, .window = WINDOW }, "0x1" },
		{ { .dpa = MIB, .length = PAGE, .window = WINDOW }, "0x100000" },
		{ { .dpa = PAGE, .length = MIB, .window = WINDOW }, "0x100000" },
		{ { .dpa = 0 - (uint64_t)PAGE, .length = 2 * PAGE, .window = WINDOW }, "0xfffffffffffff000" },
		{ { .length = PAGE, .window = WINDOW - PAGE }, "61440" },
		{ { .length = PAGE, .window = WINDOW + 1 }, "65537" },
		{ { .length = PAGE, .window = WINDOW, .delivery = 2 }, "2" },
	};
	struct cram_params params = { .advertised = MIB, .real = MIB };
	cram_device *device;

	cram_params_default(&params);
	CHECK_EQ(cram_create(NULL, &params, &device), 0);
	for (unsigned i = 0; i < COUNT(cases); i++) {
		cram_map *map = NULL;

		CHECK_EQ(cram_map_create(device, &cases[i].params, &map), CRAM_EINVAL);
		CHECK(map == NULL);
		CHECK(strstr(cram_error_detail(), cases[i].named) != NULL);
	}
	CHECK_EQ(cram_set_pressure(device, 1001), CRAM_EINVAL);
	CHECK_EQ(cram_set_thresholds(device, PAGE, 0, 0, 0), CRAM_EINVAL);
	CHECK_EQ(cram_close(device), 0);
	cram_free(device);
	cram_free(NULL);
	cram_map_free(NULL);
	cram_unmap(NULL);
	CHECK_EQ(cram_close(NULL), 0);
}

/* The codec alone says of a page what the device does with it. */
static void encoding_is_the_devices(void)
{
	struct cram_params params = { .advertised = MIB, .real = MIB };
	struct world world = { .pages = 0 };

	cram_params_default(&params);
	CHECK_EQ(cram_create(NULL, &params, &world.device), 0);
	for (unsigned noise = 0; noise <= NOISE_MAX; noise += 5) {
		uint8_t bytes[PAGE], form[PAGE], stored[PAGE];
		struct cram_page_info info;
		uint32_t length;

		make_page(bytes, noise, 1, noise);
		cram_write_page(world.device, noise * PAGE, bytes);
		info = info_of(&world, noise);
		CHECK_EQ(cram_encode(&params, bytes, form, &length), info.state);
		CHECK_EQ(length, info.length);
		/* The first sector, wherever the others are. */
		length = length < params.sector ? length : params.sector;
		CHECK_EQ(pread(cram_fd(world.device), stored, length, (off_t)info.media), length);
		CHECK_BYTES(stored, form, length);
	}
	params.sector = 1;
	CHECK_EQ(cram_encode(&params, NULL, NULL, NULL), CRAM_EINVAL);
	CHECK_EQ(cram_close(world.device), 0);
	cram_free(world.device);
}

static const struct test tests[] = {
	TEST(memory_keeps_pages),
	TEST(changed_page_is_seen),
	TEST(streams_keep_pages),
	TEST(page_functions_use_the_frame),
	TEST(write_back_cleans),
	TEST(overflow_traps),
	TEST(injected_poison_traps),
	TEST(threads_trap_by_themselves),
	TEST(unhandled_poison_kills),
	TEST(pinned_pages_stay),
	TEST(streams_lose_no_write),
	TEST(threads_lose_no_write),
	TEST(lost_writes_are_seen),
	TEST(mapped_range_is_exclusive),
	TEST(unflushed_pages_die_with_their_process),
	TEST(death_anywhere_leaves_no_old_bytes),
	TEST(child_is_kept_out),
	TEST(device_closes_under_threads),
	TEST(living_clients_are_not_reaped),
	TEST(crossing_interrupts),
	TEST(codes_are_distinct),
	TEST(bad_mappings_are_refused),
	TEST(encoding_is_the_devices),
};

int main(int argc, char **argv)
{
	catch_traps();
	return check_main(tests, COUNT(tests), argc, argv);
}
