/* SPDX-License-Identifier: MIT
 *
 * descriptor.h - the core's own file descriptors: where their numbers lie, and which they are.
 *
 * A program under the shim uses low numbers as it pleases; what it closes or replaces must not be ours. Any thread.
 */
#ifndef CRAM_DESCRIPTOR_H
#define CRAM_DESCRIPTOR_H

#include <stdbool.h>

/* From now on numbers of ours are this or above, where the process's limit allows; 0, as at first: whatever comes. */
void descriptors_from(int least);
/* Takes a descriptor of ours, which may get another number: the one to use. Negative ones stay as they are. */
int descriptor_take(int fd);
/* Closes one that was taken. */
void descriptor_close(int fd);
/* Is it one that was taken? Async-signal-safe. */
bool descriptor_taken(int fd);
/* The highest of those that were taken from first to last, or -1. */
int descriptor_highest(unsigned first, unsigned last);

#endif
