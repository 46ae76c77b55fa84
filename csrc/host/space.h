/* SPDX-License-Identifier: MIT
 *
 * space.h - an anonymous mapping as a program's address space: what mmap(2) and its kin, system calls and fork(2) do to it.
 *
 * It does not choose addresses, nor know which calls a program makes; the shim does. Offsets and lengths are bytes from
 * the mapping's start, multiples of 4096; all threads may call at once.
 */
#ifndef CRAM_SPACE_H
#define CRAM_SPACE_H

#include <stdbool.h>
#include <stdint.h>

#include "cram.h"

/* Pages begin closed. Opens a range, with mprotect(2)'s protection; or closes it (PROT_NONE): its frames are written back
 * first, and none come. -errno as of mprotect(2). */
int space_protect(cram_map *map, uint64_t offset, uint64_t length, int protection);
/* The range reads as zeros, and its device pages are free. */
void space_discard(cram_map *map, uint64_t offset, uint64_t length);
/* Moves the pages of a closed range to a closed one that has none. */
void space_move(cram_map *map, uint64_t from, uint64_t to, uint64_t length);
/* What the kernel has put there before the mapping was made is the program's: dirty frames from now on. The range is then
 * open. CRAM_ENOSPC: the device has no page for it. */
int space_adopt(cram_map *map, uint64_t offset, uint64_t length);
/* What another kind of mapping has taken the place of, or gives back: the descriptor's hold on it. -errno. */
int space_register(cram_map *map, uint64_t offset, uint64_t length);

/* Poisons the line at an offset, of whatever page the device has for it, or now gets, and takes its frame away first; *dpa: the
 * line's address there. Managed memory's is demoted to a node first. CRAM_ENOSPC: the device has no page left. CRAM_EBUSY: the frame must stay, or the
 * poison list is full; or no node takes the page now. CRAM_EPOISON: it is poison already. */
int space_poison(cram_map *map, uint64_t offset, uint64_t *dpa);

/* In a child of fork, before it is served: pages of the range that it has touched unserved go. */
void space_drop_strays(cram_map *map, uint64_t offset, uint64_t length);

/* Calls fn for each part of the mapping that is memory of ours, not something else mapped there since. */
typedef void space_part_fn(cram_map *map, uint64_t offset, uint64_t length);
typedef void space_walk_fn(cram_map *map, space_part_fn *fn);

/* From now on a child of fork has this mapping too, as a further client: its pages are shared until they are written to.
 * One mapping a process. In a child where that fails the process ends, having said why. */
void space_inherit(cram_map *map, space_walk_fn *walk);
/* Whoever calls fork(2) says what it returned: the child's pid, if positive. Otherwise only the child itself makes known
 * that it lives. */
void space_forked(int pid);
/* Asked before: false where a child could not be served, for want of a slot, a descriptor or /proc. The race: another process
 * takes the last slot in between; then the child ends, having said why. */
bool space_can_fork(void);
/* What fork(2) does by itself, for forks that libc knows nothing of: around the call, on either side. */
void space_fork_prepare(void);
void space_fork_parent(void);
void space_fork_child(void);

#endif
