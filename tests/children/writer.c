/* SPDX-License-Identifier: MIT
 *
 * writer.c - writes to a named device through a mapping, and keeps a journal elsewhere, until it is killed.
 *
 *   writer DEVICE JOURNAL DELIVERY SEED OPERATIONS
 *
 * Two threads, each with pages of its own. The journal is a file in shared memory, three 64-bit numbers a page: the
 * version that is being written, the one that has been written, and the one that has been flushed. Word i of page p in
 * version v is mix(p << 40 ^ v << 8 ^ i) for the first half of a page and v for the rest. Only even pages are used, so
 * that nothing is brought in around a fault. With OPERATIONS other than 0 each thread ends after so many, and the
 * mapping is closed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"

#define PAGES 512u
#define WORDS (PAGE / 8)
#define WINDOW (64u << 10)
#define THREADS 2u

struct record {
	_Atomic uint64_t writing, written, flushed;
};

static cram_device *device;
static cram_map *map;
static struct record *journal;
static uint64_t operations, seed;

static uint64_t word(uint64_t page, uint64_t version, uint64_t i)
{
	return i < WORDS / 2 ? mix(page << 40 ^ version << 8 ^ i) : version;
}

static void write_next(unsigned page, int through_mapping)
{
	struct record *record = &journal[page];
	uint64_t version = atomic_load(&record->written) + 1;
	volatile uint64_t *memory = (uint64_t *)((uint8_t *)cram_map_address(map) + page * PAGE);
	uint64_t bytes[WORDS];

	atomic_store(&record->writing, version);
	if (through_mapping) {
		for (unsigned i = 0; i < WORDS; i++)
			memory[i] = word(page, version, i);
	} else {
		for (unsigned i = 0; i < WORDS; i++)
			bytes[i] = word(page, version, i);
		cram_write_page(device, page * PAGE, bytes);
	}
	atomic_store(&record->written, version);
}

static void flush(unsigned page)
{
	struct record *record = &journal[page];

	must("cram_flush", cram_flush(map, page * PAGE, PAGE));
	atomic_store(&record->flushed, atomic_load(&record->written));
}

static void *work(void *argument)
{
	unsigned thread = (unsigned)(uintptr_t)argument;
	uint64_t state = mix(seed + thread);

	for (uint64_t n = 0; operations == 0 || n < operations; n++) {
		uint64_t r = mix(state++);
		unsigned page = (unsigned)(r % (PAGES / 2 / THREADS) * THREADS + thread) * 2;

		write_next(page, (r >> 32) % 8 != 0);
		if ((r >> 40) % 4 == 0)
			flush(page);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	int fd;

	if (argc != 6)
		return 3;
	seed = strtoull(argv[4], NULL, 0);
	operations = strtoull(argv[5], NULL, 0);
	fd = open(argv[2], O_RDWR);
	journal = mmap(NULL, PAGES * sizeof(*journal), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (journal == MAP_FAILED)
		return 3;
	must("cram_open", cram_open(argv[1], &device));
	map = map_all(device, delivery_named(argv[3]), WINDOW, 1);
	printf("writing\n");
	fflush(stdout);
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, work, (void *)i) != 0)
			return 3;
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	cram_unmap(map);
	must("cram_close", cram_close(device));
	return 0;
}
