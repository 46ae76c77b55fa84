/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "board.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "descriptor.h"
#include "device/clients.h"
#include "device/futex.h"
#include "memory.h"

#define FIND_DEAD_NS 10000000u

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

static bool dead(uint64_t owner)
{
	return process_dead((uint32_t)owner, (uint32_t)(owner >> 32));
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

static void raise_end(struct board *board, uint32_t end)
{
	uint32_t known = atomic_load(&board->end);

	while (known < end && !atomic_compare_exchange_weak(&board->end, &known, end))
		;
}

static bool claim(struct board *board, unsigned i, uint64_t from, uint64_t self)
{
	struct board_row *row = &board->rows[i];

	if (!atomic_compare_exchange_strong(&row->owner, &from, self))
		return false;
	atomic_store(&row->dead, 0);
	retire(board, row);
	raise_end(board, i + 1);
	return true;
}

struct board_row *board_take_row(struct board *board)
{
	uint32_t self = (uint32_t)getpid();

	/* The one of the program that we were before an exec, or of a process that had our number. */
	for (unsigned i = 0; i < BOARD_ROWS; i++) {
		uint64_t owner = atomic_load(&board->rows[i].owner);

		if ((uint32_t)owner == self && claim(board, i, owner, self))
			return &board->rows[i];
	}
	for (unsigned i = 0; i < BOARD_ROWS; i++) {
		uint64_t owner = atomic_load(&board->rows[i].owner);

		if ((owner == 0 || dead(owner)) && claim(board, i, owner, self))
			return &board->rows[i];
	}
	return NULL;
}

void board_keep_row(struct board_row *row, uint32_t keeper)
{
	atomic_store(&row->owner, (uint64_t)keeper << 32 | (uint32_t)getpid());
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
	atomic_store(&row->owner, 0);
}

uint64_t board_sum(const struct board *board, unsigned counter)
{
	uint64_t sum = atomic_load(&board->retired[counter]);

	if (board_is_gauge(counter))
		return board_sum_others(board, NULL, counter);
	for (unsigned i = 0, end = atomic_load(&board->end); i < end; i++)
		if (atomic_load(&board->rows[i].owner) != 0)
			sum += atomic_load(&board->rows[i].counters[counter]);
	return sum;
}

uint64_t board_sum_others(const struct board *board, const struct board_row *self, unsigned gauge)
{
	uint64_t sum = 0;

	for (unsigned i = 0, end = atomic_load_explicit(&board->end, memory_order_relaxed); i < end; i++) {
		const struct board_row *row = &board->rows[i];
		uint64_t owner = atomic_load_explicit(&row->owner, memory_order_relaxed);

		if (row != self && owner != 0 && owner != atomic_load_explicit(&row->dead, memory_order_relaxed))
			sum += atomic_load_explicit(&row->counters[gauge], memory_order_relaxed);
	}
	return sum;
}

bool board_find_dead(struct board *board, bool now)
{
	uint64_t time = now_ns(), last = atomic_load(&board->found_ns);

	if (!now && (time - last < FIND_DEAD_NS || !atomic_compare_exchange_strong(&board->found_ns, &last, time)))
		return false;
	for (unsigned i = 0, end = atomic_load(&board->end); i < end; i++) {
		uint64_t owner = atomic_load(&board->rows[i].owner);

		/* The race: another process takes the row meanwhile. It is another owner. */
		atomic_store(&board->rows[i].dead, owner != 0 && dead(owner) ? owner : 0);
	}
	return true;
}
