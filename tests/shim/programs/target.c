/* SPDX-License-Identifier: MIT
 *
 * Structures that poison may be put under, and a handler that counts:
 *
 *   target HOW [keep|fork]
 *
 * HOW is what reads them: "handled" with a handler of SIGBUS that gives up the structure that was hit, "bare" without one.
 * keep: the structures are made first; then standard input is read to its end. fork: by a child, which makes one more mapping.
 * Prints the name of each structure, and how many accesses of it met poison.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>

#include "program.h"

#define TABLE (1ul << 20)
#define NODES 64

struct node {
	struct node *next;
	uint64_t value;
};

static sigjmp_buf trap;
static void *volatile met;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	CHECK(info->si_code == BUS_MCEERR_AR);
	met = info->si_addr;
	siglongjmp(trap, 1);
}

/* Found by name: -rdynamic. */
__attribute__((noinline)) char *make_table(void)
{
	char *table = malloc(TABLE);

	__asm__ volatile("" ::: "memory");
	return table;
}

__attribute__((noinline)) struct node *make_node(struct node *next)
{
	struct node *node = malloc(sizeof(*node));

	node->next = next;
	node->value = 7;
	return node;
}

__attribute__((noinline)) char *make_mapping(void)
{
	char *memory = mmap(NULL, TABLE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

/* Touches each page of a structure; how many met poison. */
static unsigned touch(volatile char *memory, size_t size)
{
	volatile unsigned found = 0;
	volatile size_t i;

	for (i = 0; i < size; i += PAGE) {
		if (sigsetjmp(trap, 1) == 0)
			memory[i] = memory[i] + 1;
		else
			found += met == memory + i;
	}
	return found;
}

/* A node that cannot be made or read ends the list. */
static unsigned walk(void)
{
	static struct node *volatile list;
	volatile unsigned found = 0;
	static struct node *volatile at;

	for (volatile int i = 0; i < NODES; i++) {
		if (sigsetjmp(trap, 1) == 0)
			list = make_node(list);
		else
			found++;
	}
	for (at = list; at != NULL;) {
		if (sigsetjmp(trap, 1) != 0) {
			found++;
			break;
		}
		at = at->next;
	}
	return found;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	char *table, *mapping[4];
	unsigned found[4] = { 0 };
	int mappings = 3, status;

	CHECK(argc > 1);
	if (strcmp(argv[1], "handled") == 0)
		CHECK(sigaction(SIGBUS, &action, NULL) == 0);
	table = make_table();
	for (int i = 0; i < mappings; i++)
		mapping[i] = make_mapping();
	if (argc > 2 && strcmp(argv[2], "fork") == 0) {
		pid_t pid = fork();

		CHECK(pid >= 0);
		if (pid > 0) {
			CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
			return WEXITSTATUS(status);
		}
		mapping[mappings++] = make_mapping();
	}
	if (argc > 2) {
		memset(table, 1, TABLE);
		for (int i = 0; i < mappings; i++)
			memset(mapping[i], 1, TABLE);
		CHECK(write(STDOUT_FILENO, "made\n", 5) == 5);
		while (getchar() != EOF)
			;
	}
	for (int i = 0; i < mappings; i++)
		found[i] = touch(mapping[i], TABLE);
	printf("table %u\nmappings", touch(table, TABLE));
	for (int i = 0; i < mappings; i++)
		printf(" %u", found[i]);
	printf("\n");
	printf("nodes %u\n", walk());
	return 0;
}
