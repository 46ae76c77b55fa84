/* SPDX-License-Identifier: MIT
 *
 * board.h - what a manager's processes have in common: settings and verdicts go down, statistics come up.
 *
 * It holds no pages, and decides nothing. A process of its own has it in private memory; `cram-emu run` shares one with the
 * programs that it starts, each of which has a manager of its own. Everything is an atomic; whoever attaches takes a row to
 * count in, which his death leaves behind.
 */
#ifndef CRAM_BOARD_H
#define CRAM_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cram.h"

#define BOARD_ROWS 64u
#define BOARD_MAGIC 0x64727a62u

/* The host's view of a node, published from outside: as old as the last question and the last interrupt. */
struct node_view {
	_Atomic uint32_t allowed;   /* the verdict */
	_Atomic uint32_t no_alloc;
	_Atomic uint32_t pressure;  /* 0..1000 */
	_Atomic uint32_t page_size; /* bytes of media that a page takes, on average */
};

struct board_row {
	_Alignas(64) _Atomic uint64_t owner; /* its pid, and, above that, its keeper, 0 for none yet; 0: nobody's yet */
	_Atomic uint64_t dead;               /* the owner, when that was found dead */
	_Atomic uint64_t counters[CRAM_ZSWAP_COUNTERS];
};

struct board {
	uint32_t magic;
	_Atomic uint64_t settings[CRAM_ZSWAP_SETTINGS];
	struct node_view views[CRAM_NODES_MAX];
	_Atomic uint64_t retired[CRAM_ZSWAP_COUNTERS]; /* of processes whose rows others have taken */
	_Atomic uint64_t found_ns;  /* when it was last found out who is dead */
	_Atomic uint32_t end;       /* rows from here on were never anybody's */
	_Atomic uint32_t pool_full; /* the limit was met, and the pools have not fallen to the acceptance threshold */
	struct board_row rows[BOARD_ROWS];
};

/* Is this counter of what is now, and not of what has been? */
static inline bool board_is_gauge(unsigned counter)
{
	return counter <= CRAM_ZSWAP_LAST_GAUGE;
}

/* A new one: in private memory, or, *fd being -1, in a file of which that is set. NULL: no memory. */
struct board *board_create(int *fd);
/* The one in that file, which stays the caller's. NULL: it is none, or there is no memory. */
struct board *board_attach(int fd);
void board_detach(struct board *board);
/* Takes a row for this process, which has one at most: NULL when other living processes have them all. */
struct board_row *board_take_row(struct board *board);
/* In a child of fork: a row of its own, with what is now its own too. */
struct board_row *board_fork_row(struct board *board, const struct board_row *parents);
/* Whose thread, that lives as long as this program does, tells others that we do: without one a program that we execute would
 * count as us. */
void board_keep_row(struct board_row *row, uint32_t keeper);
/* The row's process is done with it. */
void board_leave_row(struct board *board, struct board_row *row);
/* The sum over all rows; of what is now, but for those that were found dead. */
uint64_t board_sum(const struct board *board, unsigned counter);
/* Of what is now, the sum over the others' rows (self NULL: all), but for those that were found dead: no system call. */
uint64_t board_sum_others(const struct board *board, const struct board_row *self, unsigned gauge);
/* Finds out who is dead, some system calls a row; unless `now`, not more often than every 10 ms. False: not this time. */
bool board_find_dead(struct board *board, bool now);

#endif
