/* SPDX-License-Identifier: MIT
 *
 * target.h - `cram-emu run --poison-at`: poison under something of the program's, once in a run.
 *
 * heap:N        the page at N percent of what the program has allocated, of the pages that hold any of it
 * mmap:N+OFFSET in the N-th mapping that the program has made and that is placed
 * caller:NAME#N the N-th allocation by the function of that name, which is then a page, or several, of its own
 *
 * It strikes as soon as there is such a thing and the book (witness.h) says that it is due, in the thread that makes it, or,
 * where it has been made before, or could not be struck then, in one of ours.
 */
#ifndef CRAM_TARGET_H
#define CRAM_TARGET_H

#include <stdbool.h>
#include <stddef.h>

/* Begins, as the settings have it; "-": there is none. False: that is not a target, or it cannot be looked for. */
bool target_start(const char *text);
/* Is anybody to tell what is allocated? */
bool target_wanted(void);
/* Is the allocation that the caller is about to make the one? It is counted. */
bool target_is_next(const void *caller);
/* A block of the heap has been allocated; chosen: it is the one. */
void target_allocated(const void *memory, bool chosen);
/* A block of the heap is about to be freed. True: it was the one, and nothing is, until another block is told to be. */
bool target_freed(const void *memory);
/* The program has made a mapping, its number-th. */
void target_mapped(const void *memory, unsigned number, const void *caller);
/* In a child of fork. */
void target_forked(void);

#endif
