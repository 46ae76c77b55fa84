/* SPDX-License-Identifier: MIT
 *
 * Fills so many pages with noise, says "ready", and keeps them until it is killed.
 */
#include "program.h"

int main(int argc, char **argv)
{
	size_t pages = argc == 2 ? strtoul(argv[1], NULL, 10) : 0;
	uint64_t *memory = cold_memory(pages * PAGE), state = 88172645463325252ull;

	for (size_t i = 0; i < pages * PAGE / sizeof(*memory); i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		memory[i] = state;
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
