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

/* The counters that an op adds to. */
struct stripe *device_stripe(struct op *op);
void device_add(_Atomic int64_t *counter, int64_t n);
/* After every change of the used sectors: the peak, and the thresholds. */
void device_used_changed(struct op *op);

#endif
