/* SPDX-License-Identifier: MIT
 *
 * program.h - what the programs have that are run with and without the shim: assertions, and cold memory.
 *
 * They know of the shim only that it may be there: what they assert holds on any Linux. With CRAM_TEST_PLACED set they also
 * assert that the memory which they call cold is not resident, so that a call really meets a missing page.
 */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
/* More than the window that the tests give. */
#define SWEEP (48ul << 20)

#define CHECK(condition)                                                                                  \
	do {                                                                                              \
		if (!(condition)) {                                                                       \
			fprintf(stderr, "%s:%d: %s does not hold (errno %d, %s)\n", __FILE__, __LINE__, #condition, errno, \
				strerror(errno));                                                         \
			fflush(NULL);                                                                     \
			_exit(99);                                                                        \
		}                                                                                         \
	} while (0)

static inline bool placed(void)
{
	return getenv("CRAM_TEST_PLACED") != NULL;
}

static inline bool resident(const void *address)
{
	unsigned char vector = 0;

	CHECK(mincore((void *)((uintptr_t)address & ~(PAGE - 1)), PAGE, &vector) == 0);
	return vector & 1;
}

/* So much beside an object that nothing that is read on beyond other memory warms it. */
#define MARGIN (512ul << 10)

/* Pages of its own, for one object. */
static inline void *cold_memory(size_t size)
{
	char *memory = mmap(NULL, size + 2 * MARGIN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory + MARGIN;
}

/* Touches so much other memory that nothing else stays resident. */
static inline void sweep(void)
{
	static volatile char *other;

	if (other == NULL)
		other = cold_memory(SWEEP);
	for (int lap = 0; lap < 2; lap++)
		for (size_t i = 0; i < SWEEP; i += PAGE)
			other[i] = (char)(i >> 12);
}

/* Makes what is at the address cold. Whoever just works on the page (a write-back) may keep it a while. */
static inline void *cold(void *address)
{
	for (int i = 0; i < 100; i++) {
		sweep();
		if (!placed() || !resident(address))
			return address;
	}
	CHECK(!"the page goes");
	return NULL;
}

#endif
