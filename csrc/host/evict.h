/* SPDX-License-Identifier: MIT
 *
 * evict.h - room in the window: which pages lose their frames, and to whom these go.
 *
 * A sweep in address order with second chances. It never waits for a page.
 */
#ifndef CRAM_EVICT_H
#define CRAM_EVICT_H

#include "frames.h"

/* What a fault has to put its pages into. */
struct supply {
	enum store_why why;
	bool recycle;    /* it may move the frames of victims */
	bool alone;      /* no other thread touches the memory: see thread_alone() */
	unsigned frames; /* reserved in the window */
	unsigned spare;  /* so many of them lie in the first of the place's spare pages; 0: they are still to be made */
};

/* May frames be moved to where a fault needs so many, and with what care? */
struct supply evict_plan(const struct pager *pager, unsigned want, bool write);
/* Reserves up to want frames, at least one, evicting as needed. */
void evict_reserve(struct pager *pager, struct op *op, unsigned want, struct supply *supply);

#endif
