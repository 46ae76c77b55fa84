/* SPDX-License-Identifier: MIT
 *
 * unmap.c - threads that go on touching a mapping by its raw addresses while it is unmapped.
 *
 *   unmap DELIVERY THREADS
 *
 * Ends with status 1 when one of them sees a byte that is not right; it should die by a signal instead.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common.h"

#define PAGES 1024u
#define WORDS (PAGE / 8)

static volatile uint64_t *memory;
static _Atomic uint64_t looks;

static void *look(void *argument)
{
	uint64_t state = mix((uintptr_t)argument);

	for (;;) {
		uint64_t at = mix(state++) % (PAGES * WORDS);

		if (state % 4 == 0)
			memory[at] = mix(at);
		else if (memory[at] != mix(at))
			_exit(1);
		atomic_fetch_add_explicit(&looks, 1, memory_order_relaxed);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned threads = argc == 3 ? (unsigned)atoi(argv[2]) : 0;
	cram_device *device;
	cram_map *map;
	pthread_t t;

	if (threads == 0)
		return 3;
	/* Who faults in vain for ever is ended, by another signal. */
	setrlimit(RLIMIT_CPU, &(struct rlimit){ 10, 10 });
	device = create(NULL, PAGES * PAGE, PAGES * PAGE);
	map = map_all(device, delivery_named(argv[1]), 64 << 10, 1);
	memory = cram_map_address(map);
	for (uint64_t i = 0; i < PAGES * WORDS; i++)
		memory[i] = mix(i);
	for (uintptr_t i = 0; i < threads; i++)
		if (pthread_create(&t, NULL, look, (void *)i) != 0)
			return 3;
	while (atomic_load(&looks) < 1000)
		sched_yield();
	cram_unmap(map);
	must("cram_close", cram_close(device));
	/* One of them finds out. */
	pause();
	return 3;
}
