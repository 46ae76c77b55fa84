/* SPDX-License-Identifier: MIT
 *
 * mmap() and its kin: what a program finds in its memory afterwards, and the errors that it gets.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <sys/syscall.h>

#include "program.h"

#define SIZE (1ul << 20)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define READ_WRITE (PROT_READ | PROT_WRITE)

static sigjmp_buf trap;

static void on_segv(int number)
{
	siglongjmp(trap, number);
}

static bool traps(volatile char *at, bool write)
{
	if (sigsetjmp(trap, 1) != 0)
		return true;
	if (write)
		*at = *at;
	else
		(void)*at;
	return false;
}

static char *map(size_t size, int protection)
{
	char *memory = mmap(NULL, size, protection, PRIVATE, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static void fill(char *memory, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE)
		*(size_t *)(memory + i) = i + 1;
}

static bool filled(const char *memory, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE)
		if (*(const size_t *)(memory + i) != i + 1)
			return false;
	return true;
}

static bool zeros(const char *memory, size_t size)
{
	for (size_t i = 0; i < size; i += 8)
		if (*(const uint64_t *)(memory + i) != 0)
			return false;
	return true;
}

static void unmapping(void)
{
	char *memory = map(8 * SIZE, READ_WRITE);

	fill(memory, 8 * SIZE);
	sweep();
	CHECK(munmap(memory + SIZE, SIZE) == 0);
	CHECK(traps(memory + SIZE, false) && traps(memory + 2 * SIZE - 1, true));
	CHECK(!traps(memory, true) && filled(memory, SIZE));
	CHECK(munmap(memory + SIZE, SIZE) == 0);
	CHECK(munmap(memory + 1, SIZE) == -1 && errno == EINVAL);
	/* What comes there next is empty. */
	for (int i = 0; i < 50; i++) {
		char *next = map(SIZE, READ_WRITE);

		CHECK(zeros(next, SIZE));
		fill(next, SIZE);
		CHECK(munmap(next, SIZE) == 0);
	}
	CHECK(munmap(memory, 8 * SIZE) == 0);
}

static void advising(void)
{
	char *memory = map(4 * SIZE, READ_WRITE);

	fill(memory, 4 * SIZE);
	sweep();
	CHECK(madvise(memory + SIZE, SIZE, MADV_DONTNEED) == 0);
	CHECK(filled(memory, SIZE) && zeros(memory + SIZE, SIZE) && *(size_t *)(memory + 2 * SIZE) == 2 * SIZE + 1);
	CHECK(madvise(memory, SIZE, MADV_WILLNEED) == 0 && madvise(memory, SIZE, MADV_HUGEPAGE) == 0);
	CHECK(posix_madvise(memory, SIZE, POSIX_MADV_DONTNEED) == 0 && filled(memory, SIZE));
	CHECK(madvise(memory + 1, PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
	CHECK(syscall(SYS_madvise, memory, SIZE, MADV_DONTNEED) == 0 && zeros(memory, SIZE));
	CHECK(munmap(memory, 4 * SIZE) == 0);
}

static void protecting(void)
{
	char *memory = map(4 * SIZE, READ_WRITE);

	fill(memory, 4 * SIZE);
	CHECK(mprotect(memory + SIZE, SIZE, PROT_NONE) == 0);
	CHECK(traps(memory + SIZE + 5, false) && traps(memory + SIZE + 5, true));
	sweep();
	CHECK(mprotect(memory + SIZE, SIZE, PROT_READ) == 0);
	CHECK(!traps(memory + SIZE, false) && traps(memory + SIZE + PAGE, true));
	sweep();
	CHECK(traps(memory + SIZE + 7 * PAGE, true));
	CHECK(mprotect(memory, 4 * SIZE, READ_WRITE) == 0);
	CHECK(filled(memory, 4 * SIZE));
	fill(memory, 4 * SIZE);
	CHECK(munmap(memory + 3 * SIZE, SIZE) == 0);
	CHECK(mprotect(memory, 4 * SIZE, PROT_READ) == -1 && errno == ENOMEM);
	CHECK(munmap(memory, 3 * SIZE) == 0);
	/* Reserved first, then used bit by bit: as runtimes do. */
	memory = map(64 * SIZE, PROT_NONE);
	for (size_t i = 0; i < 64; i += 8) {
		CHECK(mprotect(memory + i * SIZE, SIZE, READ_WRITE) == 0);
		fill(memory + i * SIZE, SIZE);
	}
	sweep();
	for (size_t i = 0; i < 64; i += 8)
		CHECK(filled(memory + i * SIZE, SIZE));
	CHECK(munmap(memory, 64 * SIZE) == 0);
}

static void moving(void)
{
	char *memory = map(4 * SIZE, READ_WRITE), *block, *moved;

	fill(memory, 4 * SIZE);
	moved = mremap(memory, 4 * SIZE, 2 * SIZE, 0);
	CHECK(moved == memory && filled(moved, 2 * SIZE) && traps(memory + 2 * SIZE, false));
	moved = mremap(memory, 2 * SIZE, 3 * SIZE, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED && filled(moved, 2 * SIZE) && zeros(moved + 2 * SIZE, SIZE));
	fill(moved, 3 * SIZE);
	memory = moved;
	/* Something in the way: it must move. */
	block = mmap(memory + 3 * SIZE, SIZE, READ_WRITE, PRIVATE | MAP_FIXED, -1, 0);
	CHECK(block == memory + 3 * SIZE);
	fill(block, SIZE);
	sweep();
	CHECK(mremap(memory, 3 * SIZE, 6 * SIZE, 0) == MAP_FAILED && errno == ENOMEM);
	moved = mremap(memory, 3 * SIZE, 6 * SIZE, MREMAP_MAYMOVE);
	CHECK(moved != MAP_FAILED && moved != memory);
	CHECK(filled(moved, 3 * SIZE) && zeros(moved + 3 * SIZE, 3 * SIZE) && filled(block, SIZE));
	CHECK(traps(memory, false));
	fill(moved, 6 * SIZE);
	sweep();
	CHECK(filled(moved, 6 * SIZE));
	CHECK(munmap(moved, 6 * SIZE) == 0 && munmap(block, SIZE) == 0);
}

static void replacing(void)
{
	char name[] = "/tmp/cram_space_XXXXXX", *memory = map(8 * SIZE, READ_WRITE), *at;
	int fd = mkstemp(name);

	CHECK(fd >= 0 && unlink(name) == 0 && ftruncate(fd, SIZE) == 0);
	CHECK(pwrite(fd, "file", 5, 0) == 5);
	fill(memory, 8 * SIZE);
	CHECK(mmap(memory + SIZE, SIZE, READ_WRITE, PRIVATE | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
	at = mmap(memory + SIZE, SIZE, READ_WRITE, PRIVATE | MAP_FIXED, -1, 0);
	CHECK(at == memory + SIZE && zeros(at, SIZE));
	/* A file in the middle of it. */
	at = mmap(memory + 2 * SIZE, SIZE, READ_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(at == memory + 2 * SIZE && strcmp(at, "file") == 0);
	sweep();
	CHECK(filled(memory, SIZE) && *(size_t *)(memory + 3 * SIZE) == 3 * SIZE + 1);
	strcpy(at + PAGE, "through");
	CHECK(pread(fd, memory, 8, PAGE) == 8 && strcmp(memory, "through") == 0);
	/* In a child as well, which has the file, and memory beside it. */
	if (fork() == 0) {
		CHECK(strcmp(memory, "through") == 0 && strcmp(at + PAGE, "through") == 0);
		CHECK(*(size_t *)(memory + 4 * SIZE) == 4 * SIZE + 1);
		strcpy(at + PAGE, "child");
		memory[0] = 'x';
		_exit(0);
	}
	int status;

	CHECK(waitpid(-1, &status, 0) > 0 && status == 0);
	CHECK(strcmp(at + PAGE, "child") == 0 && strcmp(memory, "through") == 0);
	CHECK(munmap(at, SIZE) == 0 && traps(at, false));
	at = mmap(at, SIZE, READ_WRITE, PRIVATE | MAP_FIXED, -1, 0);
	CHECK(zeros(at, SIZE));
	fill(at, SIZE);
	sweep();
	CHECK(filled(at, SIZE));
	CHECK(munmap(memory, 8 * SIZE) == 0);
	close(fd);
}

/* malloc() and its kin, with what the C library allocates among them. */
static void allocating(void)
{
	char *line = NULL, *grown = malloc(100), *array[200];
	FILE *file = tmpfile();
	size_t size = 0;

	CHECK(file != NULL && fputs("a line of text\n", file) > 0 && fseek(file, 0, SEEK_SET) == 0);
	CHECK(getline(&line, &size, file) == 15 && strcmp(line, "a line of text\n") == 0);
	line = realloc(line, 3 * SIZE);
	CHECK(strcmp(line, "a line of text\n") == 0 && malloc_usable_size(line) >= 3 * SIZE);
	free(line);
	strcpy(grown, "grows");
	for (size = 200; size < 20 * SIZE; size *= 3) {
		grown = reallocarray(grown, size, 1);
		CHECK(strcmp(grown, "grows") == 0 && malloc_usable_size(grown) >= size);
	}
	free(grown);
	CHECK(asprintf(&line, "%d", 77) == 2 && malloc_usable_size(line) >= 3);
	free(line);
	line = strdup("twice");
	CHECK(strcmp(line, "twice") == 0);
	free(line);
	for (int lap = 0; lap < 3; lap++) {
		for (size_t i = 0; i < 200; i++) {
			array[i] = lap % 2 ? calloc(1, 1 + i * 997) : aligned_alloc(64, (1 + i * 997 + 63) & ~63ul);
			CHECK(array[i] != NULL);
			memset(array[i], (int)i, 1 + i * 997);
		}
		sweep();
		for (size_t i = 0; i < 200; i++) {
			CHECK((unsigned char)array[i][i * 997] == (unsigned char)i && (unsigned char)array[i][0] == (unsigned char)i);
			free(array[i]);
		}
	}
	fclose(file);
	CHECK(setenv("CRAM_TEST_SET", "is set", 1) == 0);
	CHECK(system("test \"$CRAM_TEST_SET\" = 'is set'") == 0);
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_segv };

	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	if (placed())
		CHECK((uintptr_t)map(SIZE, READ_WRITE) >> 40 == 0x20 && (uintptr_t)malloc(10) >> 40 == 0x20);
	unmapping();
	advising();
	protecting();
	moving();
	replacing();
	allocating();
	puts("space: all right");
	return 0;
}
