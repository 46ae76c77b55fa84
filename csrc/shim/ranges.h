/* SPDX-License-Identifier: MIT
 *
 * ranges.h - which addresses of the region are in use, and for what.
 *
 * It maps nothing. Offsets from the region's start, whole pages; ranges in ascending order, in memory of its own. The
 * callers hold the lock, with signals blocked, and so does fork(2).
 */
#ifndef CRAM_RANGES_H
#define CRAM_RANGES_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

struct range {
	uint64_t start, end;
	int protection; /* as of mprotect(2) */
	bool hole;      /* something else is mapped there: a file, shared memory */
};

void ranges_lock(sigset_t *before);
void ranges_unlock(const sigset_t *before);
/* In a child of fork that inherited the lock, held. */
void ranges_reset_lock(void);

/* Address space of so many bytes that is free, below limit; UINT64_MAX when there is none. Not taken yet. */
uint64_t ranges_find(uint64_t length, uint64_t limit);
/* Is all of it free? */
bool ranges_free(uint64_t start, uint64_t end);
/* Is all of it in use? */
bool ranges_used(uint64_t start, uint64_t end);
/* Says what is at [start, end) from now on, whatever was there; false: no memory, nothing changed. */
bool ranges_set(uint64_t start, uint64_t end, int protection, bool hole);
bool ranges_clear(uint64_t start, uint64_t end);

/* The part of the first range at or after start that lies in [start, end). False: there is none. */
bool ranges_next(uint64_t start, uint64_t end, struct range *part);
/* Bytes from start on, at most length, that may be read, or written to. Needs no lock; async-signal-safe, but for a handler
 * that has come in between a change of this thread's: signals are blocked there. */
uint64_t ranges_accessible(uint64_t start, uint64_t length, bool write);

#endif
