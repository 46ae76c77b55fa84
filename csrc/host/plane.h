/* SPDX-License-Identifier: MIT
 *
 * plane.h - the one thing that plane.c has for others than the callers of cram.h.
 */
#ifndef CRAM_PLANE_H
#define CRAM_PLANE_H

#include "visit.h"

/* Carries a poison command out on a page that is not another client's (else CRAM_EBUSY): CRAM_ENOSPC when the poison
 * list is full, CRAM_EPERM when its frame is pinned. In an op. */
int plane_command(cram_device *device, struct op *op, enum request_kind kind, uint64_t dpa);

#endif
