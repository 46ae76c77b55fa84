/* SPDX-License-Identifier: MIT
 *
 * alert.h - thresholds with hysteresis, and the ring of what they raised.
 *
 * It does not signal anybody: whoever sleeps on the ring is woken by the device's bells. Two causes, remaining real
 * capacity and ratio, each with a latch: lthresh when the latch closes, hthresh when it opens, so that each fires
 * once a crossing and re-arms only past the other threshold.
 *
 * alert_due() is the cheap question that every store asks; alert_evaluate() is called under the alert lock
 * (device.c), the last in the lock order. The race: one thread falls below a threshold while another, who has just
 * risen above it, opens the latch. Each changes the counter before it looks at the latch, and the evaluation reads
 * the counter again after every change of the latch, so one of them sees the other.
 */
#ifndef CRAM_ALERT_H
#define CRAM_ALERT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cram.h"

#define ALERT_RING 4096u

enum alert_latch { ALERT_LATCH_REMAINING = 1u << 0, ALERT_LATCH_RATIO = 1u << 1 };

struct alert_slot {
	_Atomic uint64_t sequence; /* of the event below; 0 while it is being written */
	struct cram_event event;
};

struct alert {
	/* Thresholds. In sectors used, so that a store compares without dividing: low_used is reached from below. */
	_Atomic uint64_t low_used;  /* UINT64_MAX: off */
	_Atomic uint64_t high_used;
	_Atomic uint32_t low_ratio; /* per mille; 0: off */
	_Atomic uint32_t high_ratio;
	_Atomic uint64_t low_remaining; /* as set, in bytes */
	_Atomic uint64_t high_remaining;

	_Atomic uint32_t latches; /* enum alert_latch bits: closed, that is: low */
	_Atomic uint32_t pressure;
	_Atomic uint32_t no_alloc;
	_Atomic uint64_t raised[2]; /* lthresh, hthresh */
	_Atomic uint64_t head;      /* sequence of the newest event */
	struct alert_slot ring[ALERT_RING];
};

/* The readings that thresholds look at. */
struct alert_reading {
	uint64_t used;      /* sectors */
	uint64_t remaining; /* bytes */
	uint64_t ratio;     /* per mille; 0: nothing stored, no ratio */
};

typedef void alert_read_fn(void *arg, struct alert_reading *reading);

/* Sets thresholds for a media of `sectors` sectors of sector_size bytes. Values are checked by the caller; under the
 * alert lock. */
void alert_set(struct alert *alert, uint64_t sectors, uint32_t sector_size, uint64_t low_remaining,
	       uint64_t high_remaining, uint32_t low_ratio, uint32_t high_ratio);

static inline bool alert_ratio_on(const struct alert *alert)
{
	return atomic_load_explicit(&alert->low_ratio, memory_order_relaxed) != 0;
}

/* Might `used` sectors cross a threshold on remaining capacity? */
static inline bool alert_due(const struct alert *alert, uint64_t used)
{
	if (atomic_load(&alert->latches) & ALERT_LATCH_REMAINING)
		return used <= atomic_load_explicit(&alert->high_used, memory_order_relaxed);
	return used >= atomic_load_explicit(&alert->low_used, memory_order_relaxed);
}

/* What happens to the interrupt that would be raised now: ALERT_LOST, or the time by which it is late, in ns. */
#define ALERT_LOST UINT64_MAX
typedef uint64_t alert_fate_fn(void *arg);

/* Brings latches in line with the readings and writes an event for each change that is not lost. True: there are new
 * events. */
bool alert_evaluate(struct alert *alert, alert_read_fn *read, alert_fate_fn *fate, void *arg);
static inline bool alert_is_interrupt(uint32_t vector)
{
	return vector == CRAM_LTHRESH || vector == CRAM_HTHRESH;
}

/* Writes an event that is to arrive late_ns from now. Under the alert lock. */
void alert_push(struct alert *alert, enum cram_vector vector, uint32_t cause, uint64_t remaining, uint64_t ratio, uint64_t late_ns);

/* Copies the event with that sequence number; false when it has been overwritten, or is not yet there. */
bool alert_get(const struct alert *alert, uint64_t sequence, struct cram_event *event);

#endif
