/* SPDX-License-Identifier: MIT
 *
 * swapfile.h - the backing file: pages as they are, one a slot.
 *
 * It does not know who has a slot. The file is this process's alone; a child of fork needs a copy. All functions but those that
 * open and close are async-signal-safe, and may be called by any thread.
 */
#ifndef CRAM_SWAPFILE_H
#define CRAM_SWAPFILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SWAPFILE_NO_SLOT UINT64_MAX

struct swapfile {
	int fd;                   /* the caller's, until close */
	uint64_t slots;           /* 0: there is none */
	_Atomic uint64_t *taken;  /* bitmap */
	_Atomic uint64_t used;
	_Atomic uint64_t cursor;  /* where the next search begins, in words */
};

/* Takes the file over, with room for so many pages. CRAM_ENOMEM. */
int swapfile_open(struct swapfile *swap, int fd, uint64_t slots);
/* Accepts zeros. */
void swapfile_close(struct swapfile *swap);
/* Writes a page to a free slot: its number, or SWAPFILE_NO_SLOT when there is none, or the write fails (a full disk). */
uint64_t swapfile_write(struct swapfile *swap, const void *page);
/* False: it cannot be read, and the page is undefined. */
bool swapfile_read(const struct swapfile *swap, uint64_t slot, void *page);
void swapfile_free(struct swapfile *swap, uint64_t slot);

#endif
