/* SPDX-License-Identifier: MIT
 *
 * fork, exec, spawn, threads.
 *
 *   processes          everything, with itself as the program that it starts
 *   processes child W  ends with status 7 if W is "word" and CRAM_TEST_WORD is "environment"
 *   processes chain P  starts the program P by every way there is; P is to print "static" to its standard output
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "program.h"

static char *self;

static int ending_of(pid_t child)
{
	int status;

	CHECK(child > 0 && waitpid(child, &status, 0) == child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static char *on_heap(const char *text)
{
	char *copy = cold_memory(strlen(text) + 1);

	return strcpy(copy, text);
}

static char **words(void)
{
	char **argv = cold_memory(4 * sizeof(*argv));

	argv[0] = on_heap("processes");
	argv[1] = on_heap("child");
	argv[2] = on_heap("word");
	argv[3] = NULL;
	return argv;
}

/* Every argument is cold when it is looked at. */
static void executing(void)
{
	char **argv = words(), *path = on_heap(self);
	pid_t child;

	for (int way = 0; way < 6; way++) {
		sweep();
		child = fork();
		if (child == 0) {
			sweep();
			switch (way) {
			case 0: execv(path, argv); break;
			case 1: execve(path, argv, environ); break;
			case 2: execvp(path, argv); break;
			case 3: execl(path, argv[0], argv[1], argv[2], (char *)NULL); break;
			case 4: execlp(path, argv[0], argv[1], argv[2], (char *)NULL); break;
			case 5: fexecve(open(path, O_RDONLY), argv, environ); break;
			}
			_exit(98);
		}
		CHECK(ending_of(child) == 7);
	}
	child = vfork();
	if (child == 0) {
		execv(path, argv);
		_exit(98);
	}
	CHECK(ending_of(child) == 7);
	CHECK(execv(on_heap("/nowhere/at/all"), argv) == -1 && errno == ENOENT);
}

static void spawning(void)
{
	char **argv = words(), *path = on_heap(self), name[] = "/tmp/cram_spawn_XXXXXX", text[16] = "";
	posix_spawn_file_actions_t *actions = cold_memory(sizeof(*actions));
	posix_spawnattr_t *attributes = cold_memory(sizeof(*attributes));
	char *shell[] = { "sh", "-c", "echo out", NULL };
	FILE *file;
	pid_t child;
	int fd;

	sweep();
	CHECK(posix_spawn(&child, path, NULL, NULL, argv, environ) == 0 && ending_of(child) == 7);
	CHECK(posix_spawnp(&child, path, NULL, NULL, argv, environ) == 0 && ending_of(child) == 7);
	fd = mkstemp(name);
	CHECK(fd >= 0);
	posix_spawn_file_actions_init(actions);
	posix_spawn_file_actions_addopen(actions, 1, on_heap(name), O_WRONLY, 0);
	posix_spawnattr_init(attributes);
	sweep();
	CHECK(posix_spawnp(&child, "sh", actions, attributes, shell, environ) == 0 && ending_of(child) == 0);
	CHECK(read(fd, text, 15) == 4 && strcmp(text, "out\n") == 0);
	posix_spawn_file_actions_destroy(actions);
	CHECK(unlink(name) == 0 && close(fd) == 0);
	sweep();
	CHECK(system(on_heap("exit 5")) == 5 << 8);
	putenv(on_heap("CRAM_TEST_PUT=put"));
	sweep();
	CHECK(system("test $CRAM_TEST_PUT = put") == 0 && system(NULL) != 0);
	file = popen(on_heap("echo $CRAM_TEST_PUT"), "r");
	CHECK(file != NULL && fgets(text, sizeof(text), file) != NULL && strcmp(text, "put\n") == 0 && pclose(file) == 0);
	CHECK(posix_spawn(&child, on_heap("/nowhere/at/all"), NULL, NULL, argv, environ) == ENOENT);
}

#define LINES (SWEEP / PAGE)

static void check_lines(const uint64_t *memory, uint64_t version)
{
	for (size_t i = 0; i < LINES; i++)
		CHECK(memory[i * 512] == i + version);
}

static void write_lines(uint64_t *memory, uint64_t version)
{
	for (size_t i = 0; i < LINES; i++)
		memory[i * 512] = i + version;
}

/* Each has the memory as it was at the fork, and changes it for itself, in any order. */
static void forking(void)
{
	uint64_t *memory = cold_memory(SWEEP);
	pid_t child, grandchild;

	write_lines(memory, 1);
	for (uint64_t lap = 0; lap < 3; lap++) {
		child = fork();
		if (child == 0) {
			check_lines(memory, 1 + lap);
			write_lines(memory, 100);
			grandchild = fork();
			if (grandchild == 0) {
				check_lines(memory, 100);
				write_lines(memory, 200);
				check_lines(memory, 200);
				_exit(7);
			}
			write_lines(memory, 300);
			CHECK(ending_of(grandchild) == 7);
			check_lines(memory, 300);
			_exit(7);
		}
		write_lines(memory, 2 + lap);
		check_lines(memory, 2 + lap);
		CHECK(ending_of(child) == 7);
		check_lines(memory, 2 + lap);
	}
}

static void *count_up(void *arg)
{
	uint64_t *memory = arg;

	for (int lap = 0; lap < 4; lap++)
		for (size_t i = 0; i < LINES; i++)
			memory[i * 512]++;
	return (void *)memory[0];
}

static void *fork_and_exec(void *arg)
{
	(void)arg;
	for (int i = 0; i < 10; i++) {
		pid_t child = fork();

		if (child == 0) {
			execl(self, self, "child", "word", (char *)NULL);
			_exit(98);
		}
		CHECK(ending_of(child) == 7);
	}
	return NULL;
}

static void *release(void *memory)
{
	free(memory);
	return NULL;
}

/* Forks of one thread while others write. */
static void threads(void)
{
	uint64_t *memory[2] = { cold_memory(SWEEP), cold_memory(SWEEP) };
	pthread_t writers[2], forker;
	pthread_attr_t *attributes = cold_memory(sizeof(*attributes));

	pthread_attr_init(attributes);
	pthread_attr_setstacksize(attributes, 128 << 10);
	sweep();
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&writers[i], attributes, count_up, memory[i]) == 0);
	CHECK(pthread_create(&forker, NULL, fork_and_exec, NULL) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(writers[i], NULL) == 0);
	CHECK(pthread_join(forker, NULL) == 0);
	for (size_t i = 0; i < LINES; i++)
		CHECK(memory[0][i * 512] == 4 && memory[1][i * 512] == 4);
	/* Threads that nobody joins, and more of them than glibc keeps stacks of. */
	for (int i = 0; i < 60; i++) {
		pthread_attr_setdetachstate(attributes, PTHREAD_CREATE_DETACHED);
		CHECK(pthread_create(&forker, attributes, release, malloc(100)) == 0);
		if (i % 20 == 0)
			sweep();
	}
}

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc == 3 && strcmp(argv[1], "child") == 0) {
		char *memory = cold_memory(1 << 20);

		/* The child of a placed program is placed. */
		CHECK(getenv("CRAM_TEST_PLACED") == NULL || (uintptr_t)memory >> 40 == 0x20);
		memset(memory, 1, 1 << 20);
		return strcmp(argv[2], "word") == 0 && strcmp(getenv("CRAM_TEST_WORD"), "environment") == 0 ? 7 : 8;
	}
	if (argc == 3 && strcmp(argv[1], "chain") == 0) {
		char line[1024];

		snprintf(line, sizeof(line), "%s; exec %s", argv[2], argv[2]);
		CHECK(system(argv[2]) == 0 && system(line) == 0);
		execl(argv[2], argv[2], (char *)NULL);
		return 98;
	}
	CHECK(setenv("CRAM_TEST_WORD", "environment", 1) == 0);
	executing();
	spawning();
	forking();
	threads();
	puts("processes: all right");
	return 0;
}
