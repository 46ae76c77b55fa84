/* SPDX-License-Identifier: MIT
 *
 * check.h - what every C unit has: assertions, and a main() that runs its table of tests.
 *
 * A failed assertion says where, what and with which values on stderr, and ends the process at once with status 1,
 * also from a thread or a child. Nothing is cleaned up then: the leak sanitizer must not speak over it.
 */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct test {
	const char *name;
	void (*run)(void);
};

#define TEST(function) { #function, function }
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Thread sanitizer makes everything some ten times slower. */
#ifdef __SANITIZE_THREAD__
#define ROUNDS(n) ((n) / 8 + 1)
#else
#define ROUNDS(n) (n)
#endif

static inline void check_true(const char *file, int line, const char *text, int holds)
{
	if (holds)
		return;
	fprintf(stderr, "%s:%d: %s does not hold\n", file, line, text);
	fflush(NULL);
	_exit(1);
}

static inline void check_compare(const char *file, int line, const char *text, int holds, uint64_t a, uint64_t b)
{
	if (holds)
		return;
	fprintf(stderr, "%s:%d: %s does not hold: %" PRId64 " (0x%" PRIx64 ") and %" PRId64 " (0x%" PRIx64 ")\n", file,
		line, text, (int64_t)a, a, (int64_t)b, b);
	fflush(NULL);
	_exit(1);
}

static inline void check_bytes(const char *file, int line, const char *text, const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;
	size_t i = 0;

	while (i < n && x[i] == y[i])
		i++;
	if (i == n)
		return;
	fprintf(stderr, "%s:%d: %s: byte %zu of %zu is 0x%02x, not 0x%02x\n", file, line, text, i, n, x[i], y[i]);
	fflush(NULL);
	_exit(1);
}

#define CHECK(condition) check_true(__FILE__, __LINE__, #condition, !!(condition))
/* Integers of any type; a negative one is its two's complement. */
#define CHECK_EQ(a, b) CHECK_COMPARE(a, ==, b)
#define CHECK_LE(a, b) CHECK_COMPARE(a, <=, b)
#define CHECK_COMPARE(a, operator, b)                                                                             \
	do {                                                                                                      \
		uint64_t check_a = (uint64_t)(a), check_b = (uint64_t)(b);                                        \
		check_compare(__FILE__, __LINE__, #a " " #operator " " #b, check_a operator check_b, check_a,     \
			      check_b);                                                                           \
	} while (0)
#define CHECK_BYTES(a, b, n) check_bytes(__FILE__, __LINE__, #a " and " #b, a, b, n)

static inline double check_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Runs the tests named on the command line, or all of them, and says on stdout how long each took. */
static inline int check_main(const struct test *tests, size_t n, int argc, char **argv)
{
	for (size_t i = 0; i < n; i++) {
		double start = check_seconds();
		int wanted = argc == 1;

		for (int j = 1; j < argc; j++)
			wanted |= strcmp(argv[j], tests[i].name) == 0;
		if (!wanted)
			continue;
		printf("%s", tests[i].name);
		fflush(stdout);
		tests[i].run();
		printf(" %.3f s\n", check_seconds() - start);
	}
	return 0;
}

#endif
