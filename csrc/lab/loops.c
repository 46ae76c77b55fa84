/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "content.h"
#include "team.h"

/* What a random write left, in the order of struct write_model: by page, and in a page by time. */
struct written_word {
	uint64_t page;
	uint64_t order;
	uint32_t word;
	uint64_t value;
};

struct write_model {
	struct written_word *words;
	uint64_t count;
};

int lab_check_range(const struct cram_lab_range *range)
{
	if (!range->memory || (uintptr_t)range->memory % LAB_PAGE)
		return cram_fail(CRAM_EINVAL, "memory at %p is not page-aligned", range->memory);
	if (range->pages < 1 || range->pages > 1ull << 32)
		return cram_fail(CRAM_EINVAL, "%llu pages: 1 to 2^32", (unsigned long long)range->pages);
	if (range->low % 8 || range->high % 8 || range->low > range->high || range->high > LAB_PAGE)
		return cram_fail(CRAM_EINVAL, "entropy of %u to %u bytes: multiples of 8 up to 4096", range->low,
				 range->high);
	if (range->threads < 1 || range->threads > LAB_THREADS)
		return cram_fail(CRAM_EINVAL, "%u threads: 1 to %u", range->threads, LAB_THREADS);
	return 0;
}

static int run_loop(const struct cram_lab_range *range, void (*run)(struct lab_worker *), const void *argument,
		    uint64_t accesses, uint32_t *latency_ns, struct cram_lab_result *result)
{
	struct lab_team team = {
		.range = range, .run = run, .argument = argument, .accesses = accesses, .latency_ns = latency_ns,
	};
	int err = lab_check_range(range);

	return err ? err : lab_team_run(&team, result);
}

static uint64_t *page_at(const struct cram_lab_range *range, uint64_t page)
{
	return (uint64_t *)((char *)range->memory + page * LAB_PAGE);
}

/* Order matters, and one wrong value among right ones always shows: each step is a bijection of the digest. */
static uint64_t digest_add(uint64_t digest, uint64_t value)
{
	return (digest ^ value) * 0x9e3779b97f4a7c15ull;
}

/* ---- sequential ------------------------------------------------------------------------------------------- */

static void fill(struct lab_worker *worker)
{
	const struct cram_lab_range *range = worker->team->range;
	uint64_t first, last;

	lab_share(worker, range->pages, &first, &last);
	lab_begin(worker);
	for (uint64_t page = first; page < last; page++)
		lab_page_fill(range, page, page_at(range, page));
	lab_end(worker);
}

int cram_lab_fill(const struct cram_lab_range *range, struct cram_lab_result *result)
{
	return run_loop(range, fill, NULL, 0, NULL, result);
}

static void scan(struct lab_worker *worker)
{
	const struct cram_lab_range *range = worker->team->range;
	uint64_t first, last, digest = 0, expected = 0;

	lab_share(worker, range->pages, &first, &last);
	lab_begin(worker);
	for (uint64_t page = first; page < last; page++)
		digest = digest_add(digest, *(volatile uint64_t *)page_at(range, page));
	lab_end(worker);
	for (uint64_t page = first; page < last; page++)
		expected = digest_add(expected, lab_page_word(range, page, 0));
	worker->wrong = digest != expected;
}

int cram_lab_scan(const struct cram_lab_range *range, struct cram_lab_result *result)
{
	return run_loop(range, scan, NULL, 0, NULL, result);
}

/* ---- random ----------------------------------------------------------------------------------------------- */

static uint32_t saturate(uint64_t ns)
{
	return ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

static void random_read(struct lab_worker *worker)
{
	const struct cram_lab_range *range = worker->team->range;
	uint64_t key = lab_stream_key(range->seed, LAB_READ, worker->index);
	uint64_t first, last, digest = 0, expected = 0;

	lab_share(worker, worker->team->accesses, &first, &last);
	lab_begin(worker);
	for (uint64_t i = first; i < last; i++) {
		struct lab_access access = lab_access_at(range, key, worker->index, i - first);
		volatile uint64_t *word = page_at(range, access.page) + access.word;
		uint64_t start = lab_now_ns();
		uint64_t value = *word;

		worker->team->latency_ns[i] = saturate(lab_now_ns() - start);
		digest = digest_add(digest, value);
	}
	lab_end(worker);
	for (uint64_t i = first; i < last; i++) {
		struct lab_access access = lab_access_at(range, key, worker->index, i - first);

		expected = digest_add(expected, lab_page_word(range, access.page, access.word));
	}
	worker->wrong = digest != expected;
}

int cram_lab_random_read(const struct cram_lab_range *range, uint64_t accesses, uint32_t *latency_ns,
			 struct cram_lab_result *result)
{
	return run_loop(range, random_read, NULL, accesses, latency_ns, result);
}

static void random_write(struct lab_worker *worker)
{
	const struct cram_lab_range *range = worker->team->range;
	uint64_t key = lab_stream_key(range->seed, LAB_WRITE, worker->index);
	uint64_t first, last;

	lab_share(worker, worker->team->accesses, &first, &last);
	lab_begin(worker);
	for (uint64_t i = first; i < last; i++) {
		struct lab_access access = lab_access_at(range, key, worker->index, i - first);
		volatile uint64_t *word = page_at(range, access.page) + access.word;
		uint64_t start = lab_now_ns();

		*word = access.value;
		worker->team->latency_ns[i] = saturate(lab_now_ns() - start);
	}
	lab_end(worker);
}

int cram_lab_random_write(const struct cram_lab_range *range, uint64_t accesses, uint32_t *latency_ns,
			  struct cram_lab_result *result)
{
	return run_loop(range, random_write, NULL, accesses, latency_ns, result);
}

/* Writes stay among the words that are entropy in every page, so that a hot page compresses as well as a cold one. */
static uint64_t *hot_word(const struct cram_lab_range *range, uint32_t span, uint64_t x)
{
	uint64_t page = ((x >> 32) * range->pages) >> 32;

	return page_at(range, page) + LAB_WORDS - span + (((x & UINT32_MAX) * span) >> 32);
}

int cram_lab_hot(const struct cram_lab_range *range, uint64_t stream, uint64_t accesses,
		 struct cram_lab_result *result)
{
	uint64_t key = lab_mix(range->seed) ^ lab_mix(~stream), start;
	uint32_t span = range->low ? range->low / 8 : LAB_WORDS;
	int err = lab_check_range(range);

	if (err)
		return err;
	start = lab_now_ns();
	for (uint64_t i = 0; i < accesses; i++) {
		uint64_t x = lab_draw(key, 2 * i), y = lab_draw(key, 2 * i + 1);
		uint64_t value = *(volatile uint64_t *)hot_word(range, LAB_WORDS, x);

		/* What was read goes into what is written: equal ranges at the end prove the reads too. */
		*(volatile uint64_t *)hot_word(range, span, y) = value ^ y;
	}
	result->elapsed_ns = lab_now_ns() - start;
	result->wrong = 0;
	return 0;
}

/* ---- verification ----------------------------------------------------------------------------------------- */

static int by_page_and_time(const void *a, const void *b)
{
	const struct written_word *x = a, *y = b;

	if (x->page != y->page)
		return x->page < y->page ? -1 : 1;
	return (x->order > y->order) - (x->order < y->order);
}

/* The writes of cram_lab_random_write(), computed anew. Threads share no word, so their order does not matter. */
static int write_model_init(struct write_model *model, const struct cram_lab_range *range, uint64_t accesses)
{
	uint64_t n = 0;

	model->count = accesses;
	model->words = calloc(accesses ? accesses : 1, sizeof(*model->words));
	if (!model->words)
		return cram_fail(CRAM_ENOMEM, "no memory for a model of %llu writes", (unsigned long long)accesses);
	for (uint32_t thread = 0; thread < range->threads; thread++) {
		uint64_t key = lab_stream_key(range->seed, LAB_WRITE, thread);
		uint64_t end = accesses * (thread + 1) / range->threads;

		for (uint64_t i = 0; n < end; i++, n++) {
			struct lab_access access = lab_access_at(range, key, thread, i);

			model->words[n] = (struct written_word){ access.page, n, access.word, access.value };
		}
	}
	qsort(model->words, accesses, sizeof(*model->words), by_page_and_time);
	return 0;
}

static void write_model_deinit(struct write_model *model)
{
	free(model->words);
}

static uint64_t first_write_from(const struct write_model *model, uint64_t page)
{
	uint64_t low = 0, high = model->count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (model->words[middle].page < page)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void verify(struct lab_worker *worker)
{
	const struct cram_lab_range *range = worker->team->range;
	const struct write_model *model = worker->team->argument;
	uint64_t expected[LAB_WORDS];
	uint64_t first, last, next;

	lab_share(worker, range->pages, &first, &last);
	next = first_write_from(model, first);
	lab_begin(worker);
	for (uint64_t page = first; page < last; page++) {
		lab_page_fill(range, page, expected);
		for (; next < model->count && model->words[next].page == page; next++)
			expected[model->words[next].word] = model->words[next].value;
		worker->wrong += memcmp(expected, page_at(range, page), LAB_PAGE) != 0;
	}
	lab_end(worker);
}

int cram_lab_verify(const struct cram_lab_range *range, uint64_t accesses, struct cram_lab_result *result)
{
	struct write_model model;
	int err = lab_check_range(range);

	if (err)
		return err;
	err = write_model_init(&model, range, accesses);
	if (err)
		return err;
	err = run_loop(range, verify, &model, 0, NULL, result);
	write_model_deinit(&model);
	return err;
}
