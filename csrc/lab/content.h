/* SPDX-License-Identifier: MIT
 *
 * content.h - what the pages of a measured range hold, and where random accesses go.
 *
 * Nothing here is stored: contents, addresses and written values are functions of the seed and of a position, so
 * whoever verifies computes them anew and shares no state with what it verifies.
 */
#ifndef CRAM_LAB_CONTENT_H
#define CRAM_LAB_CONTENT_H

#include <stdint.h>

#include "../cram.h"

#define LAB_PAGE 4096u
#define LAB_WORDS (LAB_PAGE / 8)
#define LAB_THREADS 64u

enum lab_stream { LAB_READ = 1, LAB_WRITE = 2 };

struct lab_access {
	uint64_t page;
	uint32_t word;
	uint64_t value; /* what a write puts there */
};

/* CRAM_EINVAL for a range outside the limits that cram.h states. */
int lab_check_range(const struct cram_lab_range *range);

/* A bijection of 64 bits without visible structure (the finaliser of the splitmix generator). */
static inline uint64_t lab_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* The i-th output of the generator that starts at key. */
static inline uint64_t lab_draw(uint64_t key, uint64_t i)
{
	return lab_mix(key + (i + 1) * 0x9e3779b97f4a7c15ull);
}

/* The page's own word: repeated before its entropy, and the key of the entropy. */
static inline uint64_t lab_page_key(const struct cram_lab_range *range, uint64_t page)
{
	return lab_draw(lab_mix(range->seed), page);
}

static inline uint32_t lab_entropy_words(const struct cram_lab_range *range, uint64_t key)
{
	uint32_t low = range->low / 8, high = range->high / 8;

	return low == high ? low : low + (uint32_t)((key >> 32) % (high - low + 1));
}

static inline void lab_page_fill(const struct cram_lab_range *range, uint64_t page, uint64_t *words)
{
	uint64_t key = lab_page_key(range, page);
	uint32_t entropy = lab_entropy_words(range, key);
	uint32_t i;

	for (i = 0; i < LAB_WORDS - entropy; i++)
		words[i] = key;
	for (; i < LAB_WORDS; i++)
		words[i] = lab_draw(key, i);
}

static inline uint64_t lab_page_word(const struct cram_lab_range *range, uint64_t page, uint32_t word)
{
	uint64_t key = lab_page_key(range, page);

	return word < LAB_WORDS - lab_entropy_words(range, key) ? key : lab_draw(key, word);
}

static inline uint64_t lab_stream_key(uint64_t seed, enum lab_stream stream, uint32_t thread)
{
	return lab_mix(seed ^ ((uint64_t)stream << 56) ^ ((uint64_t)(thread + 1) << 40));
}

/* The i-th access of a thread's stream. Threads share the pages and never a word, so that the last value written
 * to a word does not depend on how the threads ran. */
static inline struct lab_access lab_access_at(const struct cram_lab_range *range, uint64_t key, uint32_t thread,
					      uint64_t i)
{
	uint64_t x = lab_draw(key, i);

	return (struct lab_access){
		.page = ((x >> 32) * range->pages) >> 32,
		.word = (uint32_t)(x % (LAB_WORDS / range->threads)) * range->threads + thread,
		.value = lab_mix(~x),
	};
}

#endif
