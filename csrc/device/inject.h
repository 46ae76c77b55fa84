/* SPDX-License-Identifier: MIT
 *
 * inject.h - fault attributes: which faults may strike, and whether one does now.
 *
 * The rules are the kernel's (lib/fault-inject.c, should_fail_ex()), but that chance comes from a seed: the k-th question about a
 * fault has the same answer in every run. It knows neither pages nor what a fault does (faults.c). One list makes the enum
 * of cram.h true, the names and the texts. Lock-free; in shared memory, so that a fault that anybody sets strikes all clients.
 */
#ifndef CRAM_INJECT_H
#define CRAM_INJECT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cram.h"

/* X(suffix of enum cram_fault, name, what `value` is, largest value, what it does) */
#define INJECT_FAULTS(X)                                                                                            \
	X(STORE, "store", NULL, 0, "a store is refused though there is room: the write is dropped, the page poisoned")  \
	X(CORRUPT, "corrupt", NULL, 0, "a bit of a stored form flips in the media")                                     \
	X(POISON, "poison", "bytes", UINT64_MAX, "a line of a page that was just stored is poisoned; with a value, those at its"\
	  " multiples")                                                                                                  \
	X(RATIO, "ratio", "bytes", 4096, "a page compresses to so many bytes at best; 0: not at all, it is stored as it is") \
	X(CAPACITY, "capacity", "bytes", UINT64_MAX, "real capacity is lost, so much as is free")                       \
	X(TRIM, "trim", NULL, 0, "what a page gives back when it is freed or trimmed stays in use")                     \
	X(READ_DELAY, "read_delay", "us", 60000000, "a load takes longer")                                              \
	X(WRITE_DELAY, "write_delay", "us", 60000000, "a store takes longer")                                           \
	X(LOST_IRQ, "lost_irq", NULL, 0, "an interrupt is not raised; its registers are set")                           \
	X(LATE_IRQ, "late_irq", "ms", 3600000, "an interrupt arrives later, and those behind it; its registers are set")  \
	X(SPURIOUS_IRQ, "spurious_irq", NULL, 0, "a store raises lthresh without cause")                                \
	X(STALE, "stale", "ms", 3600000, "registers tell what was so long ago, at most")                                \
	X(NO_ANSWER, "no_answer", NULL, 0, "registers do not answer in time")                                           \
	X(LIE_REMAINING, "lie_remaining", "per mille", 1000000, "remaining capacity is told scaled")                     \
	X(LIE_RATIO, "lie_ratio", "per mille", 1000000, "the ratio is told scaled")                                      \
	X(SATURATED, "saturated", "bytes", UINT64_MAX, "remaining capacity is told as so much at most")                   \
	X(STORM_IRQ, "storm_irq", "interrupts", 4096, "a store raises lthresh without cause, so many times at once")       \
	X(STUCK_IRQ, "stuck_irq", NULL, 0, "while capacity runs low, each store raises lthresh again")                     \
	X(ALLOC, "alloc", NULL, 0, "the driver refuses a host a page, though it is safe")                                 \
	X(UNSAFE, "unsafe", NULL, 0, "the driver says that a page is safe, though it is not")                             \
	X(TRIM_BUSY, "trim_busy", NULL, 0, "the driver puts a trim off (EAGAIN): the page keeps its capacity meanwhile") \
	X(TRIM_FULL, "trim_full", NULL, 0, "the driver's buffer for trims is full: a page is trimmed where it is freed") \
	X(REMOVAL, "removal", NULL, 0, "at a store the device is gone, for good: every page is poison, registers end")  \
	X(RESET, "reset", NULL, 0, "at a store the device starts anew: what it held is poison, thresholds as created")  \
	X(POWER_CYCLE, "power_cycle", NULL, 0, "as reset, but the poison list stays as it was")

struct inject_fault {
	_Atomic uint64_t probability; /* of INJECT_CERTAIN; 0: off */
	_Atomic uint64_t interval;
	_Atomic uint64_t limit;       /* times that it may still strike, and one; 0: without limit, as in a new device */
	_Atomic uint64_t space;       /* bytes that pass before the first one */
	_Atomic uint64_t seed;
	_Atomic uint64_t value;
	_Atomic uint32_t distribution;
	_Atomic uint32_t verbose;     /* XOR 1, so that a new device is all zeros */
	_Atomic uint32_t task_filter;
	_Atomic uint64_t asked;
	_Atomic uint64_t struck;
};

struct inject {
	/* Bit i: fault i may strike. What the hot paths look at, and nothing else there. */
	_Alignas(64) _Atomic uint32_t armed;
	_Alignas(64) struct inject_fault fault[CRAM_FAULTS];
};

static inline bool inject_armed(const struct inject *inject, enum cram_fault fault)
{
	return __builtin_expect(atomic_load_explicit(&inject->armed, memory_order_relaxed) >> fault & 1, 0);
}

/* Does it strike now? size: bytes that are at stake. marked: who asks may be struck by faults with a task filter. */
bool inject_strikes(struct inject *inject, enum cram_fault fault, uint64_t size, bool marked);
static inline bool inject_quiet(const struct inject *inject, enum cram_fault fault)
{
	return atomic_load(&inject->fault[fault].verbose) == 1;
}
/* Counts a strike that nobody asked chance about. */
static inline void inject_struck(struct inject *inject, enum cram_fault fault)
{
	atomic_fetch_add(&inject->fault[fault].struck, 1);
}
/* A number of 64 bits for the strike that was just answered with yes: the same in every run. */
uint64_t inject_chance(const struct inject *inject, enum cram_fault fault);
/* The value of that strike, drawn by the same number. */
uint64_t inject_value(const struct inject *inject, enum cram_fault fault);

void inject_get(const struct inject *inject, enum cram_fault fault, struct cram_fault_attr *attr);
/* CRAM_EINVAL, naming the value; nothing has changed then. Begins to count anew, and so from the start of the seed. */
int inject_set(struct inject *inject, enum cram_fault fault, const struct cram_fault_attr *attr);

#endif
