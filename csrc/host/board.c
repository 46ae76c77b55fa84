/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "board.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "descriptor.h"
#include "memory.h"

struct board *board_create(int *fd)
{
	struct board *board;

	if (fd == NULL) {
		board = memory_map(sizeof(*board), -1);
	} else {
		*fd = descriptor_take(memfd_create("cram_emu_board", MFD_CLOEXEC));
		if (*fd < 0 || ftruncate(*fd, sizeof(*board)) != 0) {
			descriptor_close(*fd);
			return NULL;
		}
		board = memory_map(sizeof(*board), *fd);
		if (board == NULL)
			descriptor_close(*fd);
	}
	if (board != NULL)
		board->magic = BOARD_MAGIC;
	return board;
}

struct board *board_attach(int fd)
{
	struct board *board;
	struct stat file;

	if (fstat(fd, &file) != 0 || file.st_size != sizeof(*board))
		return NULL;
	board = memory_map(sizeof(*board), fd);
	if (board != NULL && board->magic != BOARD_MAGIC) {
		memory_unmap(board, sizeof(*board));
		return NULL;
	}
	return board;
}

void board_detach(struct board *board)
{
	if (board != NULL)
		memory_unmap(board, sizeof(*board));
}

static bool dead(uint32_t pid)
{
	return kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

/* What it has counted stays, what it had is gone with it. */
static void retire(struct board *board, struct board_row *row)
{
	for (unsigned i = 0; i < CRAM_ZSWAP_COUNTERS; i++) {
		uint64_t n = atomic_exchange(&row->counters[i], 0);

		if (!board_is_gauge(i))
			atomic_fetch_add(&board->retired[i], n);
	}
}

struct board_row *board_take_row(struct board *board)
{
	uint32_t self = (uint32_t)getpid();

	for (unsigned i = 0; i < BOARD_ROWS; i++) {
		struct board_row *row = &board->rows[i];
		uint32_t pid = atomic_load(&row->pid);

		if ((pid != 0 && !dead(pid)) || !atomic_compare_exchange_strong(&row->pid, &pid, self))
			continue;
		retire(board, row);
		return row;
	}
	return NULL;
}

struct board_row *board_fork_row(struct board *board, const struct board_row *parents)
{
	struct board_row *row = board_take_row(board);

	for (unsigned i = 0; row != NULL && board_is_gauge(i); i++)
		atomic_store(&row->counters[i], atomic_load(&parents->counters[i]));
	return row;
}

void board_leave_row(struct board *board, struct board_row *row)
{
	retire(board, row);
	atomic_store(&row->pid, 0);
}

uint64_t board_sum(const struct board *board, unsigned counter)
{
	uint64_t sum = board_is_gauge(counter) ? 0 : atomic_load(&board->retired[counter]);

	for (unsigned i = 0; i < BOARD_ROWS; i++) {
		uint32_t pid = atomic_load(&board->rows[i].pid);

		if (pid != 0 && (!board_is_gauge(counter) || !dead(pid)))
			sum += atomic_load(&board->rows[i].counters[counter]);
	}
	return sum;
}
