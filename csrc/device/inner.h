/* SPDX-License-Identifier: MIT
 *
 * inner.h - what the rooms of the device (device.c, page.c, registers.c, recovery.c, faults.c) share and nobody else sees.
 */
#ifndef CRAM_DEVICE_INNER_H
#define CRAM_DEVICE_INNER_H

#include "device.h"
#include "layout.h"

/* Takes a lock of the superblock or a mailbox; one that a dead client held makes the device suspect. */
void device_lock(struct device *device, struct futex_lock *lock);
/* An op that waits for others parks: what it holds is whole meanwhile. */
void device_park(struct op *op);
void device_unpark(struct op *op);
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

/* ---- faults on purpose (faults.c) ---- */

#define FAULT_NO_PAGE UINT64_MAX
/* Has the ring tell of a strike, unless it is quiet. Not under the alert lock. */
void fault_announce(struct device *device, enum cram_fault fault, uint64_t page);
bool fault_strikes_armed(struct device *device, enum cram_fault fault, uint64_t page);
/* Does the fault strike the page now? Then the ring tells it. */
static inline bool fault_strikes(struct device *device, enum cram_fault fault, uint64_t page)
{
	return inject_armed(&device->super->inject, fault) && fault_strikes_armed(device, fault, page);
}
static inline bool faults_armed(const struct device *device)
{
	return __builtin_expect(atomic_load_explicit(&device->super->inject.armed, memory_order_relaxed) != 0, 0);
}
void fault_delay_armed(struct op *op, enum cram_fault fault, uint64_t page);
/* Sleeps, parked, when a delay strikes a page whose work has not begun. */
static inline void fault_delay(struct op *op, enum cram_fault fault, uint64_t page)
{
	if (inject_armed(&op->device->super->inject, fault))
		fault_delay_armed(op, fault, page);
}
/* Pads the stored form of a page, or leaves it raw, as the ratio fault that has just struck wants it. True: it is padded. */
bool fault_pad(struct op *op, const uint8_t *page, struct encoded *encoded);
/* What strikes the device before a locked page is stored; it may park. */
void fault_before_store(struct op *op, uint64_t page);
/* What strikes a locked page that has just been stored, in the sectors of chain. */
void fault_stored(struct op *op, uint64_t page, const struct chain *chain, uint32_t length);
/* For alert_evaluate(): alert_fate_fn. arg: the device. */
uint64_t fault_of_interrupt(void *arg);
/* Makes a locked page poison: its data and sectors go. */
void device_make_poison(struct op *op, uint64_t page, enum cram_poison_source source);
/* Changes what registers tell. CRAM_ETIMEDOUT: nothing. */
int fault_registers(struct device *device, struct cram_registers *registers);

#endif
