/* SPDX-License-Identifier: MIT
 *
 * inner.h - what the rooms of the device (device.c, page.c, registers.c, recovery.c) share and nobody else sees.
 */
#ifndef CRAM_DEVICE_INNER_H
#define CRAM_DEVICE_INNER_H

#include "device.h"
#include "layout.h"

/* Takes a lock of the superblock or a mailbox; one that a dead client held makes the device suspect. */
void device_lock(struct device *device, struct futex_lock *lock);
/* Recovers from dead clients in the middle of an op, which stands at a page boundary; how many there were. */
uint32_t device_reap_parked(struct op *op);

/* Nothing is free: do the dead hold something, or a broken chain? True when a recovery has run: look again. */
bool device_freed_by_the_dead(struct op *op);
/* The first byte at or after offset of the object that may be other than zero, or UINT64_MAX: reading what is not there would
 * make it. */
uint64_t device_next_data(const struct device *device, uint64_t offset);

/* The counters that an op adds to. */
struct stripe *device_stripe(struct op *op);
void device_add(_Atomic int64_t *counter, int64_t n);
/* After every change of the used sectors: the peak, and the thresholds. */
void device_used_changed(struct op *op);

#endif
