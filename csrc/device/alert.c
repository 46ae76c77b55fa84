/* SPDX-License-Identifier: MIT */
#include "alert.h"

#include <unistd.h>

#include "futex.h"

void alert_set(struct alert *alert, uint64_t sectors, uint32_t sector_size, uint64_t low_remaining,
	       uint64_t high_remaining, uint32_t low_ratio, uint32_t high_ratio)
{
	uint64_t low_sectors = low_remaining / sector_size;
	uint64_t high_sectors = (high_remaining + sector_size - 1) / sector_size;

	alert->low_used = low_remaining == 0 ? UINT64_MAX : low_sectors >= sectors ? 0 : sectors - low_sectors;
	alert->high_used = high_sectors >= sectors ? 0 : sectors - high_sectors;
	alert->low_remaining = low_remaining;
	alert->high_remaining = high_remaining;
	alert->low_ratio = low_ratio;
	alert->high_ratio = high_ratio;
}

typedef uint64_t __attribute__((may_alias)) event_word;

/* Copies an event word by word: a reader may meet the writer that laps it, and then throws its copy away. */
static void copy_event(struct cram_event *to, const struct cram_event *from)
{
	event_word *to_words = (event_word *)to;
	const event_word *from_words = (const event_word *)from;

	for (size_t i = 0; i < sizeof(*to) / sizeof(event_word); i++)
		__atomic_store_n(&to_words[i], __atomic_load_n(&from_words[i], __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

void alert_push(struct alert *alert, enum cram_vector vector, uint32_t cause, uint64_t remaining, uint64_t ratio, uint64_t late_ns)
{
	uint64_t sequence = atomic_load_explicit(&alert->head, memory_order_relaxed) + 1;
	struct alert_slot *slot = &alert->ring[sequence % ALERT_RING];
	struct cram_event event = { .sequence = sequence,
				    .time_ns = now_ns() + late_ns,
				    .remaining = remaining,
				    .ratio = ratio,
				    .vector = vector,
				    .cause = cause,
				    .pid = (uint32_t)getpid() };

	atomic_store(&slot->sequence, 0);
	atomic_thread_fence(memory_order_release);
	copy_event(&slot->event, &event);
	atomic_store(&slot->sequence, sequence);
	if (alert_is_interrupt(vector))
		atomic_fetch_add(&alert->raised[vector == CRAM_LTHRESH ? 0 : 1], 1);
	atomic_store(&alert->head, sequence);
}

/* The latch a reading asks for: closed at or past low, open at or past high, else as it is. */
static uint32_t wanted(const struct alert *alert, uint32_t latches, const struct alert_reading *reading)
{
	if (reading->used >= alert->low_used)
		latches |= ALERT_LATCH_REMAINING;
	else if (alert->low_used == UINT64_MAX || reading->used <= alert->high_used)
		latches &= ~(uint32_t)ALERT_LATCH_REMAINING;
	if (alert->low_ratio != 0 && reading->ratio != 0 && reading->ratio <= alert->low_ratio)
		latches |= ALERT_LATCH_RATIO;
	else if (alert->low_ratio == 0 || reading->ratio == 0 || reading->ratio >= alert->high_ratio)
		latches &= ~(uint32_t)ALERT_LATCH_RATIO;
	return latches;
}

bool alert_evaluate(struct alert *alert, alert_read_fn *read, alert_fate_fn *fate, void *arg)
{
	bool raised = false;

	for (;;) {
		uint32_t old = atomic_load(&alert->latches);
		struct alert_reading reading;
		uint32_t latches, changed;

		read(arg, &reading);
		latches = wanted(alert, old, &reading);
		changed = latches ^ old;
		if (changed == 0)
			return raised;
		atomic_store(&alert->latches, latches);
		/* The device's own answer, before anybody is told: a driver finds the bits set. */
		if (latches & changed) {
			atomic_store(&alert->pressure, 1000);
			atomic_store(&alert->no_alloc, 1);
		} else if (latches == 0) {
			atomic_store(&alert->pressure, 0);
			atomic_store(&alert->no_alloc, 0);
		}
		for (uint32_t latch = ALERT_LATCH_REMAINING; latch <= ALERT_LATCH_RATIO; latch <<= 1) {
			uint64_t late;

			if (!(changed & latch))
				continue;
			late = fate(arg);
			if (late == ALERT_LOST)
				continue;
			alert_push(alert, latches & latch ? CRAM_LTHRESH : CRAM_HTHRESH,
				   latch == ALERT_LATCH_REMAINING ? CRAM_CAUSE_REMAINING : CRAM_CAUSE_RATIO, reading.remaining,
				   reading.ratio, late);
			raised = true;
		}
	}
}

bool alert_get(const struct alert *alert, uint64_t sequence, struct cram_event *event)
{
	const struct alert_slot *slot = &alert->ring[sequence % ALERT_RING];

	if (atomic_load(&slot->sequence) != sequence)
		return false;
	copy_event(event, &slot->event);
	/* A writer that has lapped us zeroes the sequence before it touches the event. */
	atomic_thread_fence(memory_order_acquire);
	return atomic_load(&slot->sequence) == sequence;
}
