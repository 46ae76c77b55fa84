/* SPDX-License-Identifier: MIT
 *
 * content.h - bytes that are functions of a seed, with tunable compressibility, and memory that ends at a guard page.
 *
 * liblz4 and libzstd are not built with a sanitizer: what they read or write out of bounds, only a guard page shows.
 */
#ifndef CONTENT_H
#define CONTENT_H

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"

/* splitmix64. */
static inline uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* One of [0, n). */
static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
	return random_next(state) % n;
}

#define NOISE_MAX 100u

/* Fills n bytes: runs of 1 to 32 bytes, noise in a hundred of them random, the others copied from further up. */
static inline void fill_content(uint8_t *to, size_t n, uint64_t seed, unsigned noise)
{
	uint64_t state = seed * 0x9e3779b97f4a7c15ull + noise;

	for (size_t at = 0; at < n;) {
		size_t length = 1 + random_below(&state, 32);
		size_t back = at == 0 ? 0 : 1 + random_below(&state, at < 1024 ? at : 1024);
		int fresh = back == 0 || random_below(&state, NOISE_MAX) < noise;

		for (; length > 0 && at < n; length--, at++)
			to[at] = fresh ? (uint8_t)(random_next(&state) >> 56) : to[at - back];
	}
}

/* n bytes of zeros whose end is the end of readable memory. For good. */
static inline void *guarded(size_t n)
{
	size_t whole = (n + 4095) & ~(size_t)4095;
	uint8_t *memory = mmap(NULL, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	CHECK(mprotect(memory + whole, 4096, PROT_NONE) == 0);
	return memory + whole - n;
}

#endif
