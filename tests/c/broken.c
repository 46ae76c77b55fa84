/* SPDX-License-Identifier: MIT
 *
 * What the C units run under must be able to fail: one defect, named on the command line, for each kind of report.
 */
#include <stdlib.h>

#include "check.h"
#include "threads.h"

static int shared;

static void race(void *arg, unsigned index)
{
	(void)arg;
	for (unsigned i = 0; i < 1000; i++)
		shared += (int)index;
}

static void fail_check(void)
{
	CHECK_EQ(1 + 1, 3);
}

static void leak(void)
{
	void *volatile memory = malloc(100);

	memory = NULL;
	(void)memory;
}

static void overflow_heap(void)
{
	volatile char *memory = malloc(100);
	volatile size_t at = 100;

	memory[at] = 1;
	free((void *)memory);
}

static void overflow_integer(void)
{
	volatile int n = INT32_MAX;

	n = n + 1;
}

static void race_threads(void)
{
	run_threads(2, race, NULL);
}

static void nothing(void)
{
}

static const struct test tests[] = {
	TEST(nothing), TEST(fail_check), TEST(leak), TEST(overflow_heap), TEST(overflow_integer), TEST(race_threads),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
