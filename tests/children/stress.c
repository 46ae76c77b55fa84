/* SPDX-License-Identifier: MIT
 *
 * stress.c - many threads on one mapping with the smallest window, against a copy of the contents in ordinary memory.
 *
 *   stress DELIVERY roomy|full WORKERS OPERATIONS SEED [damage]
 *
 * What a page is for goes by its number modulo 8, so that any range that the pager works on holds pages of all kinds:
 * pages that one worker each reads and writes in every way there is, counters that all add to, pages that are poisoned
 * and cleared, pages that are pinned, pages that only page operations touch, and pages that nobody touches. Beside the
 * workers run a flusher, a poisoner, a pinner, the periodic write-back, and a signal whose handler adds to counters.
 * full: the device has too little room, so that writes are dropped all the time: then there are no counters, pins or
 * injected poison.
 *
 * Ends with status 1, and a line that says where, as soon as a byte is neither right nor poison. damage changes one
 * byte behind the model's back at the end, to show that it would be noticed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/time.h>
#include <unistd.h>

#include "common.h"

#define PAGES 1024u
#define WINDOW (64u << 10)
#define WORDS (PAGE / 8)
#define LSB 12

enum kind { OWNED, COUNTERS, POISONED, PINNED, PLAIN, UNTOUCHED };
static const enum kind kinds[8] = { OWNED, COUNTERS, OWNED, POISONED, OWNED, PINNED, PLAIN, UNTOUCHED };

static cram_device *device;
static cram_map *map;
static uint8_t *memory;
static uint8_t *shadow;
static bool full;
static unsigned workers;
static uint64_t operations, seed;
static atomic_bool done;
static _Atomic uint64_t machine_checks, repairs;
static _Atomic uint32_t pinned; /* the page that the pinner works on */

static enum kind kind_of(unsigned page)
{
	enum kind kind = kinds[page % 8];

	return full && kind != UNTOUCHED && kind != PLAIN ? OWNED : kind;
}

static uint8_t *frame(unsigned page)
{
	return memory + page * PAGE;
}

static uint8_t *copy(unsigned page)
{
	return shadow + page * PAGE;
}

static _Noreturn void wrong(const char *where, unsigned page, size_t offset, uint64_t is, uint64_t should)
{
	printf("wrong: %s: page %u offset %zu: 0x%lx, not 0x%lx\n", where, page, offset, is, should);
	fflush(stdout);
	_exit(1);
}

static void check(bool right, const char *where, unsigned page)
{
	if (!right)
		wrong(where, page, 0, 0, 1);
}

/* Says where two pages differ, if they do. */
static void compare(const char *where, unsigned page, const uint8_t *is, const uint8_t *should)
{
	for (size_t i = 0; i < PAGE; i++)
		if (is[i] != should[i])
			wrong(where, page, i, is[i], should[i]);
}

/* ---- random numbers, contents ---------------------------------------------------------------------------- */

struct dice {
	uint64_t state;
};

static uint64_t roll(struct dice *dice, uint64_t sides)
{
	return mix(dice->state++) % sides;
}

/* A page with none to all of its bytes random: from zero and same-filled pages to raw ones. */
static void fill(struct dice *dice, uint8_t *page)
{
	uint64_t value = roll(dice, 4) == 0 ? 0 : mix(dice->state);
	unsigned entropy = (unsigned)roll(dice, 6) * 128;

	for (unsigned i = 0; i < WORDS; i++) {
		uint64_t word = i < entropy ? mix(dice->state + i) : value;

		memcpy(page + i * 8, &word, 8);
	}
	dice->state += WORDS;
}

/* Adds to a counter that others add to, too; no addition may get lost. */
static void add_to_counter(struct dice *dice)
{
	unsigned page = (unsigned)roll(dice, PAGES / 8) * 8 + 1;
	size_t word = roll(dice, WORDS);

	__atomic_fetch_add((uint64_t *)frame(page) + word, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add((uint64_t *)copy(page) + word, 1, __ATOMIC_RELAXED);
}

/* ---- signals --------------------------------------------------------------------------------------------- */

/* The program's other signals may touch the mapping, too, whatever they interrupt. */
static void on_alarm(int number)
{
	static struct dice dice;

	(void)number;
	add_to_counter(&dice);
}

static _Thread_local sigjmp_buf escape;
static _Thread_local siginfo_t caught;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	caught = *info;
	siglongjmp(escape, 1);
}

/* One access to a page of the mapping. */
struct access {
	unsigned page;
	size_t offset;
	uint8_t *bytes; /* from or to which it goes */
	size_t length;
};

static void load(struct access *access)
{
	memcpy(access->bytes, frame(access->page) + access->offset, access->length);
}

static void store(struct access *access)
{
	memcpy(frame(access->page) + access->offset, access->bytes, access->length);
}

/* False: it met poison, of which the program has been told as it should be. */
static bool attempt(void (*function)(struct access *), struct access *access)
{
	size_t at;

	if (sigsetjmp(escape, 1) == 0) {
		function(access);
		return true;
	}
	at = (size_t)((uint8_t *)caught.si_addr - memory);
	atomic_fetch_add(&machine_checks, 1);
	if (caught.si_code != BUS_MCEERR_AR || caught.si_addr_lsb != LSB)
		wrong("siginfo", access->page, at, (uint64_t)caught.si_code, BUS_MCEERR_AR);
	if (at < access->page * PAGE + access->offset || at >= access->page * PAGE + access->offset + access->length)
		wrong("si_addr", access->page, at, (uint64_t)at, access->page * PAGE + access->offset);
	return false;
}

/* ---- workers --------------------------------------------------------------------------------------------- */

/* A page of theirs that met poison becomes good again. */
static void repair(struct dice *dice, unsigned page)
{
	check(full, "poison without cause", page);
	atomic_fetch_add(&repairs, 1);
	if (roll(dice, 2) == 0) {
		cram_discard(device, page * PAGE, PAGE);
		memset(copy(page), 0, PAGE);
	} else {
		fill(dice, copy(page));
		cram_write_page(device, page * PAGE, copy(page));
	}
}

static void store_some(struct dice *dice, unsigned page, size_t offset, size_t length)
{
	uint8_t bytes[PAGE];
	struct access access = { page, offset, bytes, length };

	fill(dice, bytes);
	memcpy(copy(page) + offset, bytes, length);
	if (!attempt(store, &access))
		repair(dice, page);
}

static void load_some(struct dice *dice, unsigned page, size_t offset, size_t length)
{
	uint8_t bytes[PAGE];
	struct access access = { page, offset, bytes, length };

	memcpy(bytes, copy(page), PAGE);
	if (!attempt(load, &access)) {
		repair(dice, page);
		return;
	}
	if (memcmp(bytes, copy(page) + offset, length) != 0)
		for (size_t i = 0; i < length; i++)
			if (bytes[i] != copy(page)[offset + i])
				wrong("load", page, offset + i, bytes[i], copy(page)[offset + i]);
}

static void write_page(struct dice *dice, unsigned page)
{
	fill(dice, copy(page));
	cram_write_page(device, page * PAGE, copy(page));
}

static void read_page(struct dice *dice, unsigned page)
{
	uint8_t bytes[PAGE];
	size_t missing = cram_read_page(device, page * PAGE, bytes);

	if (missing != 0) {
		check(missing == PAGE, "part of a dropped page", page);
		repair(dice, page);
		return;
	}
	compare("read", page, bytes, copy(page));
}

static void discard(unsigned page)
{
	cram_discard(device, page * PAGE, PAGE);
	memset(copy(page), 0, PAGE);
}

static uint64_t poison_word(unsigned page, size_t word)
{
	return mix(page * WORDS + word) | 1;
}

/* A word of a page that the poisoner works on is right, or cleared, or poison. */
static void look_at_poison(struct dice *dice)
{
	unsigned page = (unsigned)roll(dice, PAGES / 8) * 8 + 3;
	size_t word = roll(dice, WORDS);
	uint64_t value;
	struct access access = { page, word * 8, (uint8_t *)&value, 8 };

	if (attempt(load, &access) && value != 0 && value != poison_word(page, word))
		wrong("beside poison", page, word * 8, value, poison_word(page, word));
}

/* Reads on through pages of all kinds, for fault-around; only its own are compared. */
static void read_ahead(struct dice *dice, unsigned worker, unsigned page)
{
	for (unsigned end = page + 24; page < end && page < PAGES; page++) {
		if (kind_of(page) == OWNED && page / 8 % workers == worker)
			load_some(dice, page, 0, 64);
		else if (kind_of(page) == UNTOUCHED)
			check(frame(page)[page % PAGE] == 0, "untouched", page);
	}
}

static unsigned own_page(struct dice *dice, unsigned worker)
{
	for (;;) {
		unsigned group = (unsigned)roll(dice, PAGES / 8 / workers) * workers + worker;
		unsigned page = group * 8 + (unsigned)roll(dice, 8);

		if (kind_of(page) == OWNED)
			return page;
	}
}

static void *work(void *argument)
{
	unsigned worker = (unsigned)(uintptr_t)argument;
	struct dice dice = { mix(seed + worker) };

	for (uint64_t i = 0; i < operations; i++) {
		unsigned page = own_page(&dice, worker);
		size_t offset = roll(&dice, WORDS) * 8;

		switch (roll(&dice, full ? 9 : 12)) {
		case 0:
			store_some(&dice, page, 0, PAGE);
			break;
		case 1:
			load_some(&dice, page, 0, PAGE);
			break;
		case 2:
		case 3:
			store_some(&dice, page, offset, 8);
			break;
		case 4:
			load_some(&dice, page, offset, 8);
			break;
		case 5:
			write_page(&dice, page);
			break;
		case 6:
			read_page(&dice, page);
			break;
		case 7:
			discard(page);
			break;
		case 8:
			read_ahead(&dice, worker, page);
			break;
		case 9:
		case 10:
			add_to_counter(&dice);
			break;
		case 11:
			look_at_poison(&dice);
			break;
		}
	}
	return NULL;
}

/* ---- what runs beside ------------------------------------------------------------------------------------ */

static void *flush(void *argument)
{
	struct dice dice = { (uintptr_t)argument };
	struct cram_map_stats stats;

	while (!atomic_load(&done)) {
		uint64_t first = roll(&dice, PAGES);

		must("cram_flush", cram_flush(map, first * PAGE, roll(&dice, PAGES - first + 1) * PAGE));
		cram_map_read_stats(map, &stats);
		check(stats.resident <= stats.window, "more frames than the window", (unsigned)stats.resident);
	}
	return NULL;
}

/* Half of the pages that are pinned never change, but are written to with the same again while they are. */
static bool constant(unsigned page)
{
	return kind_of(page) == PINNED && page / 8 % 2 == 0;
}

/* Page operations alone, on pages that lie between those of the mapping's users. */
static void *operate(void *argument)
{
	struct dice dice = { (uintptr_t)argument };

	while (!atomic_load(&done)) {
		unsigned page = (unsigned)roll(&dice, PAGES / 8) * 8 + 6;

		switch (roll(&dice, full ? 3 : 4)) {
		case 0:
			write_page(&dice, page);
			break;
		case 1:
			read_page(&dice, page);
			break;
		case 2:
			discard(page);
			break;
		case 3:
			page = (unsigned)atomic_load(&pinned);
			if (constant(page))
				cram_write_page(device, page * PAGE, copy(page));
			break;
		}
	}
	return NULL;
}

/* Poison takes effect, and ends, with the command that says so. */
static void *poison(void *argument)
{
	struct dice dice = { (uintptr_t)argument };

	while (!atomic_load(&done)) {
		unsigned page = (unsigned)roll(&dice, PAGES / 8) * 8 + 3;
		unsigned line = (unsigned)roll(&dice, PAGE / LINE);
		uint8_t bytes[PAGE];
		struct access access = { page, roll(&dice, PAGE), bytes, 1 };

		must("cram_inject_poison", cram_inject_poison(device, page * PAGE + line * LINE));
		check(!attempt(load, &access), "injected, but no machine check", page);
		check(cram_read_page(device, page * PAGE, bytes) == PAGE - line * LINE, "bytes before poison", page);
		check(memcmp(bytes, copy(page), line * LINE) == 0, "contents before poison", page);
		if (roll(&dice, 2) == 0) {
			must("cram_clear_poison", cram_clear_poison(device, page * PAGE + line * LINE));
			memset(copy(page) + line * LINE, 0, LINE);
		} else {
			for (size_t i = 0; i < WORDS; i++)
				((uint64_t *)copy(page))[i] = poison_word(page, i);
			cram_write_page(device, page * PAGE, copy(page));
		}
		access = (struct access){ page, 0, bytes, PAGE };
		check(attempt(load, &access), "repaired, but a machine check", page);
		compare("repaired", page, bytes, copy(page));
	}
	return NULL;
}

static bool present(int pagemap, unsigned page)
{
	uint64_t word;

	check(pread(pagemap, &word, 8, (off_t)((uintptr_t)frame(page) / PAGE * 8)) == 8, "pagemap", page);
	return word >> 63;
}

/* A pinned page is there, and stays. */
static void *pin(void *argument)
{
	struct dice dice = { (uintptr_t)argument };
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	while (!atomic_load(&done)) {
		unsigned page = (unsigned)roll(&dice, PAGES / 8) * 8 + 5;

		atomic_store(&pinned, page);
		must("cram_pin", cram_pin(map, page * PAGE, PAGE));
		for (int i = 0; i < 4; i++) {
			compare("pinned", page, frame(page), copy(page));
			if (!constant(page))
				fill(&dice, copy(page));
			if (roll(&dice, 2) == 0)
				memcpy(frame(page), copy(page), PAGE);
			else
				cram_write_page(device, page * PAGE, copy(page));
			check(present(pagemap, page), "pinned, but not resident", page);
		}
		must("cram_unpin", cram_unpin(map, page * PAGE, PAGE));
	}
	close(pagemap);
	return NULL;
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static unsigned verify(const char *when, bool mapped)
{
	unsigned lost = 0;

	for (unsigned page = 0; page < PAGES; page++) {
		uint8_t bytes[PAGE];
		struct access access = { page, 0, bytes, PAGE };
		bool whole = mapped ? attempt(load, &access) : cram_read_page(device, page * PAGE, bytes) == 0;

		if (whole)
			compare(when, page, bytes, copy(page));
		lost += !whole;
	}
	return lost;
}

/* Counters against the page map. */
static void verify_registers(unsigned lost)
{
	struct cram_registers before, after;
	struct cram_params params;
	uint64_t sectors = 0;

	cram_get_params(device, &params);
	for (unsigned page = 0; page < PAGES; page++) {
		struct cram_page_info info;

		must("cram_page_info", cram_page_info(device, page * PAGE, &info));
		sectors += info.sectors;
	}
	cram_read_registers(device, &before);
	if (before.used != sectors * params.sector)
		wrong("used", 0, 0, before.used, sectors * params.sector);
	if (before.poisoned != lost)
		wrong("poisoned", 0, 0, before.poisoned, lost);
	check(before.dropped_writes >= lost && (full || before.dropped_writes == 0), "dropped_writes", 0);
	check(before.dirty_frames == 0 && before.media_errors == 0, "dirty or damaged", 0);
	check(before.refused_writes == 0 && before.lost_pages == 0, "refused or lost", 0);
	must("cram_rebuild", cram_rebuild(device));
	cram_read_registers(device, &after);
	check(memcmp(&before, &after, sizeof(before)) == 0, "registers after rebuild", 0);
}

static void start(pthread_t *thread, void *(*function)(void *), uintptr_t argument)
{
	if (pthread_create(thread, NULL, function, (void *)argument) != 0)
		exit(3);
}

int main(int argc, char **argv)
{
	void *(*beside[])(void *) = { flush, operate, poison, pin };
	pthread_t threads[64], helpers[4];
	struct cram_map_stats stats;
	unsigned lost, count;

	if (argc < 6)
		return 3;
	full = strcmp(argv[2], "full") == 0;
	workers = (unsigned)atoi(argv[3]);
	operations = strtoull(argv[4], NULL, 0);
	seed = strtoull(argv[5], NULL, 0);
	count = full ? 2 : 4;
	shadow = calloc(PAGES, PAGE);
	device = create(NULL, PAGES * PAGE, full ? PAGES * PAGE / 8 : PAGES * PAGE);
	for (unsigned page = 0; page < PAGES && !full; page++) {
		if (kind_of(page) != POISONED && !constant(page))
			continue;
		for (size_t i = 0; i < WORDS; i++)
			((uint64_t *)copy(page))[i] = poison_word(page, i);
		cram_write_page(device, page * PAGE, copy(page));
	}
	sigaction(SIGBUS, &(struct sigaction){ .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO }, NULL);
	map = map_all(device, delivery_named(argv[1]), WINDOW, 1);
	memory = cram_map_address(map);

	if (!full) {
		sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm, .sa_flags = SA_RESTART }, NULL);
		setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 500 }, { 0, 500 } }, NULL);
	}
	for (unsigned i = 0; i < count; i++)
		start(&helpers[i], beside[i], mix(seed + 100 + i));
	for (unsigned i = 0; i < workers; i++)
		start(&threads[i], work, i);
	for (unsigned i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
	atomic_store(&done, true);
	for (unsigned i = 0; i < count; i++)
		pthread_join(helpers[i], NULL);
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);

	if (argc > 6) {
		copy(8)[1234] ^= 1;
		cram_write_page(device, 8 * PAGE, copy(8));
		copy(8)[1234] ^= 1;
	}
	verify("mapped", true);
	cram_map_read_stats(map, &stats);
	cram_unmap(map);
	lost = verify("unmapped", false);
	verify_registers(lost);
	printf("{\"evicted\": %lu, \"written_back\": %lu, \"prefetched\": %lu, \"poison_faults\": %lu, "
	       "\"machine_checks\": %lu, \"repairs\": %lu, \"lost\": %u}\n",
	       stats.evicted, stats.written_back, stats.prefetched, stats.poison_faults, machine_checks, repairs, lost);
	must("cram_close", cram_close(device));
	return 0;
}
