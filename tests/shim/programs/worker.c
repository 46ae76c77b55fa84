/* SPDX-License-Identifier: MIT
 *
 * Writes its memory over and over, finding each time what it wrote before, forks now and then, and gives memory back;
 * until SIGTERM: then it ends with status 0. Says "ready" after the first lap.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "program.h"

#define WORDS (PAGE / sizeof(uint64_t))
#define PAGES 3000ul

static volatile sig_atomic_t stop;

static void on_term(int number)
{
	(void)number;
	stop = 1;
}

static uint64_t word(size_t page, uint64_t version, size_t i)
{
	return i < WORDS / 4 ? (page * 1000003 + version * 7919 + i) * 0x9e3779b97f4a7c15ull : version;
}

static void write_pages(uint64_t *memory, uint64_t version)
{
	for (size_t page = 0; page < PAGES && !stop; page++)
		for (size_t i = 0; i < WORDS; i++)
			memory[page * WORDS + i] = word(page, version, i);
}

static void check_pages(const uint64_t *memory, uint64_t version)
{
	for (size_t page = 0; page < PAGES; page++)
		for (size_t i = 0; i < WORDS; i += 31)
			CHECK(memory[page * WORDS + i] == word(page, version, i));
}

int main(void)
{
	uint64_t *memory = cold_memory(PAGES * PAGE);

	signal(SIGTERM, on_term);
	for (uint64_t version = 1; !stop; version++) {
		write_pages(memory, version);
		if (stop)
			break;
		check_pages(memory, version);
		if (version == 1) {
			puts("ready");
			fflush(stdout);
		}
		if (version % 4 == 0) {
			pid_t child = fork();

			if (child == 0) {
				check_pages(memory, version);
				write_pages(memory, version + 1000);
				_exit(0);
			}
			CHECK(child > 0);
			while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
				;
			check_pages(memory, version);
		}
		if (version % 3 == 0)
			CHECK(madvise(memory, PAGES * PAGE / 2, MADV_DONTNEED) == 0 && memory[0] == 0);
	}
	return 0;
}
