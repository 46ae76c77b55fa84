/* SPDX-License-Identifier: MIT
 *
 * Thresholds, latches and the ring of events.
 *
 * Oracle: the definition, in bytes: low when remaining <= low_remaining, recovered when remaining >= high_remaining,
 * between them as it was; and a reading of the ring event by event.
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"
#include "content.h"
#include "device/alert.h"
#include "threads.h"

#define SECTOR 64u

struct rig {
	struct alert *alert;
	uint64_t sectors;
	_Atomic uint64_t used;
	_Atomic uint64_t ratio;
	pthread_mutex_t lock; /* the alert lock */
	bool lose;
};

static void read_levels(void *arg, struct alert_reading *reading)
{
	struct rig *rig = arg;

	reading->used = atomic_load(&rig->used);
	reading->remaining = (rig->sectors - reading->used) * SECTOR;
	reading->ratio = atomic_load(&rig->ratio);
}

static uint64_t fate(void *arg)
{
	return ((struct rig *)arg)->lose ? ALERT_LOST : 0;
}

static void rig_init(struct rig *rig, uint64_t sectors, uint64_t low_remaining, uint64_t high_remaining,
		     uint32_t low_ratio, uint32_t high_ratio)
{
	memset(rig, 0, sizeof(*rig));
	rig->alert = calloc(1, sizeof(*rig->alert));
	rig->sectors = sectors;
	pthread_mutex_init(&rig->lock, NULL);
	alert_set(rig->alert, sectors, SECTOR, low_remaining, high_remaining, low_ratio, high_ratio);
}

static void rig_deinit(struct rig *rig)
{
	pthread_mutex_destroy(&rig->lock);
	free(rig->alert);
}

static bool evaluate(struct rig *rig)
{
	bool raised;

	pthread_mutex_lock(&rig->lock);
	raised = alert_evaluate(rig->alert, read_levels, fate, rig);
	pthread_mutex_unlock(&rig->lock);
	return raised;
}

/* Copies the newest event, if there is one; returns its number. */
static uint64_t newest(const struct rig *rig, struct cram_event *event)
{
	uint64_t head = atomic_load(&rig->alert->head);

	if (head > 0)
		CHECK(alert_get(rig->alert, head, event));
	return head;
}

/* What is wrong with the events in the ring, or NULL: sequence, vectors by turns for each cause, totals. */
static const char *find_fault(const struct alert *alert)
{
	uint64_t head = atomic_load(&alert->head), n[2] = { 0, 0 };
	uint64_t first = head > ALERT_RING ? head - ALERT_RING + 1 : 1;
	uint32_t last[3] = { 0, 0, 0 };
	uint64_t time_ns = 0;

	for (uint64_t sequence = first; sequence <= head; sequence++) {
		struct cram_event event;

		if (!alert_get(alert, sequence, &event))
			return "an event of the ring is missing";
		if (event.sequence != sequence)
			return "an event has another's number";
		if (event.time_ns < time_ns)
			return "events are not in order of time";
		if (event.cause != CRAM_CAUSE_REMAINING && event.cause != CRAM_CAUSE_RATIO)
			return "an event has no cause";
		if (event.vector != CRAM_LTHRESH && event.vector != CRAM_HTHRESH)
			return "an event has no vector";
		if (event.vector == last[event.cause])
			return "an event came twice in a row";
		if (first == 1 && last[event.cause] == 0 && event.vector != CRAM_LTHRESH)
			return "hthresh came first";
		last[event.cause] = event.vector;
		time_ns = event.time_ns;
		n[event.vector - CRAM_LTHRESH]++;
	}
	if (first == 1 && (n[0] != alert->raised[0] || n[1] != alert->raised[1]))
		return "the counters are not the events";
	return NULL;
}

/* ---- one thread ----------------------------------------------------------------------------------------- */

/* For all thresholds and levels of a small media, a latch is closed and opened where the definition says, each time
 * with one event of the right vector, and alert_due() never misses a change. */
static void latch_follows_the_definition(void)
{
	enum { SECTORS = 7 };
	static const uint64_t steps[] = { 0, 1, 63, 64, 65, 100, 128, 300, 447, 448 };

	for (unsigned i = 0; i < COUNT(steps); i++) {
		for (unsigned j = i; j < COUNT(steps); j++) {
			uint64_t low = steps[i], high = steps[j], state = i * 16 + j, events = 0;
			bool closed = false;
			struct rig rig;

			rig_init(&rig, SECTORS, low, high, 0, 0);
			for (int n = 0; n < 200; n++) {
				uint64_t used = random_below(&state, SECTORS + 1);
				uint64_t remaining = (SECTORS - used) * SECTOR;
				bool should = remaining <= low || (remaining < high && closed);
				struct cram_event event;
				bool due;

				should = should && low != 0;
				atomic_store(&rig.used, used);
				due = alert_due(rig.alert, used);
				CHECK_EQ(evaluate(&rig), should != closed);
				if (should != closed) {
					CHECK(due);
					CHECK_EQ(newest(&rig, &event), ++events);
					CHECK_EQ(event.vector, should ? CRAM_LTHRESH : CRAM_HTHRESH);
					CHECK_EQ(event.cause, CRAM_CAUSE_REMAINING);
					CHECK_EQ(event.remaining, remaining);
				}
				closed = should;
				CHECK_EQ(rig.alert->pressure, closed ? 1000 : 0);
				CHECK_EQ(rig.alert->no_alloc, closed);
				CHECK(!evaluate(&rig));
			}
			CHECK(find_fault(rig.alert) == NULL);
			rig_deinit(&rig);
		}
	}
}

/* Counts the events of a level that goes up and down around the lower threshold ten times. */
static uint64_t events_of_ten_swings(uint64_t low_remaining, uint64_t high_remaining)
{
	struct rig rig;
	uint64_t head;

	rig_init(&rig, 100, low_remaining, high_remaining, 0, 0);
	for (int i = 0; i < 10; i++) {
		atomic_store(&rig.used, 90);
		evaluate(&rig);
		atomic_store(&rig.used, 89);
		evaluate(&rig);
	}
	head = rig.alert->head;
	rig_deinit(&rig);
	return head;
}

/* A level that trembles at one threshold raises one interrupt: it re-arms only past the other. */
static void trembling_raises_once(void)
{
	CHECK_EQ(events_of_ten_swings(10 * SECTOR, 20 * SECTOR), 1);
}

/* The twin: with both thresholds within the trembling it raises one interrupt a swing. */
static void trembling_past_both_raises_each_time(void)
{
	CHECK_EQ(events_of_ten_swings(10 * SECTOR, 11 * SECTOR), 20);
	CHECK_EQ(events_of_ten_swings(10 * SECTOR, 10 * SECTOR), 20);
}

/* The ratio has a latch of its own; a device that holds nothing has no ratio, and that is no alarm. */
static void ratio_has_its_own_latch(void)
{
	static const struct {
		uint64_t ratio;
		uint32_t vector; /* 0: none */
	} steps[] = { { 0, 0 }, { 2000, 0 }, { 1501, 0 }, { 1500, CRAM_LTHRESH }, { 1400, 0 }, { 1999, 0 },
		      { 2000, CRAM_HTHRESH }, { 1, CRAM_LTHRESH }, { 0, CRAM_HTHRESH }, { 0, 0 } };
	struct rig rig;
	uint64_t events = 0;

	rig_init(&rig, 100, 0, 0, 1500, 2000);
	CHECK(alert_ratio_on(rig.alert));
	for (unsigned i = 0; i < COUNT(steps); i++) {
		struct cram_event event;

		atomic_store(&rig.ratio, steps[i].ratio);
		CHECK_EQ(evaluate(&rig), steps[i].vector != 0);
		if (steps[i].vector == 0)
			continue;
		CHECK_EQ(newest(&rig, &event), ++events);
		CHECK_EQ(event.vector, steps[i].vector);
		CHECK_EQ(event.cause, CRAM_CAUSE_RATIO);
		CHECK_EQ(event.ratio, steps[i].ratio);
	}
	CHECK(find_fault(rig.alert) == NULL);
	rig_deinit(&rig);
}

/* With two causes low, no_alloc and pressure go only when the second recovers too. */
static void relief_waits_for_both_causes(void)
{
	struct cram_event event;
	struct rig rig;

	rig_init(&rig, 100, 10 * SECTOR, 20 * SECTOR, 1500, 2000);
	atomic_store(&rig.used, 95);
	atomic_store(&rig.ratio, 1000);
	CHECK(evaluate(&rig));
	CHECK_EQ(newest(&rig, &event), 2);
	atomic_store(&rig.used, 0);
	CHECK(evaluate(&rig));
	CHECK_EQ(newest(&rig, &event), 3);
	CHECK_EQ(event.cause, CRAM_CAUSE_REMAINING);
	CHECK_EQ(rig.alert->no_alloc, 1);
	CHECK_EQ(rig.alert->pressure, 1000);
	atomic_store(&rig.ratio, 3000);
	CHECK(evaluate(&rig));
	CHECK_EQ(rig.alert->no_alloc, 0);
	CHECK_EQ(rig.alert->pressure, 0);
	CHECK(find_fault(rig.alert) == NULL);
	rig_deinit(&rig);
}

/* New thresholds are obeyed at the next evaluation, and switching them off opens the latch. */
static void thresholds_may_change(void)
{
	struct cram_event event;
	struct rig rig;

	rig_init(&rig, 100, 0, 0, 0, 0);
	atomic_store(&rig.used, 100);
	CHECK(!alert_due(rig.alert, 100));
	CHECK(!evaluate(&rig));
	alert_set(rig.alert, 100, SECTOR, 10 * SECTOR, 100 * SECTOR, 0, 0);
	CHECK(evaluate(&rig));
	alert_set(rig.alert, 100, SECTOR, 0, 100 * SECTOR, 0, 0);
	CHECK(evaluate(&rig));
	CHECK_EQ(newest(&rig, &event), 2);
	CHECK_EQ(event.vector, CRAM_HTHRESH);
	rig_deinit(&rig);
}

/* Raises so many events. */
static void raise_events(struct rig *rig, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		atomic_store(&rig->used, rig->used == 0 ? 100 : 0);
		CHECK(evaluate(rig));
	}
}

/* The ring holds the newest events whole; an older one, and one that is not yet there, are refused. */
static void ring_holds_the_newest(void)
{
	struct cram_event event;
	struct rig rig;

	rig_init(&rig, 100, SECTOR, 100 * SECTOR, 0, 0);
	CHECK(!alert_get(rig.alert, 1, &event));
	raise_events(&rig, ALERT_RING);
	CHECK(alert_get(rig.alert, 1, &event));
	CHECK(find_fault(rig.alert) == NULL);
	raise_events(&rig, 10);
	CHECK(!alert_get(rig.alert, 10, &event));
	CHECK(alert_get(rig.alert, 11, &event));
	CHECK(!alert_get(rig.alert, ALERT_RING + 11, &event));
	CHECK(find_fault(rig.alert) == NULL);
	rig_deinit(&rig);
}

/* The twin: the reading of the ring notices an event twice in a row, one of another number, and a missing one. */
static void faults_of_the_ring_are_seen(void)
{
	struct rig rig;

	rig_init(&rig, 100, SECTOR, 100 * SECTOR, 0, 0);
	raise_events(&rig, 10);
	CHECK(find_fault(rig.alert) == NULL);
	rig.alert->ring[5].event.vector = CRAM_HTHRESH;
	CHECK(find_fault(rig.alert) != NULL);
	rig.alert->ring[5].event.vector = CRAM_LTHRESH;
	rig.alert->ring[5].event.sequence = 6;
	CHECK(find_fault(rig.alert) != NULL);
	rig.alert->ring[5].event.sequence = 5;
	CHECK(find_fault(rig.alert) == NULL);
	rig.alert->ring[5].sequence = 0;
	CHECK(find_fault(rig.alert) != NULL);
	rig_deinit(&rig);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

#define MOVERS 4u

struct movers {
	struct rig rig;
	bool blind; /* the twin: nobody asks whether an evaluation is due */
};

static void move_level(void *arg, unsigned index)
{
	struct movers *m = arg;
	uint64_t state = index;

	/* Each adds and takes back up to a quarter of the media, so that the level swings over both thresholds. */
	for (unsigned i = 0; i < ROUNDS(4000u); i++) {
		uint64_t n = 1 + random_below(&state, 25);
		uint64_t used = atomic_fetch_add(&m->rig.used, n) + n;

		if (!m->blind && alert_due(m->rig.alert, used))
			evaluate(&m->rig);
		if (i % 8 == 0)
			sched_yield();
		used = atomic_fetch_sub(&m->rig.used, n) - n;
		if (!m->blind && alert_due(m->rig.alert, used))
			evaluate(&m->rig);
	}
}

/* When threads move the level at once, lthresh and hthresh come by turns, and in the end no crossing was missed. */
static void threads_miss_no_crossing(void)
{
	struct movers m = { .blind = false };

	for (unsigned i = 0; i < 10; i++) {
		rig_init(&m.rig, 100, 60 * SECTOR, 70 * SECTOR, 0, 0);
		run_threads(MOVERS, move_level, &m);
		CHECK(find_fault(m.rig.alert) == NULL);
		CHECK(m.rig.alert->head > 0);
		CHECK_EQ(m.rig.alert->raised[0], m.rig.alert->raised[1]);
		CHECK(!evaluate(&m.rig));
		/* Once more, to end above the threshold. */
		m.rig.used = 39;
		run_threads(MOVERS, move_level, &m);
		m.rig.used = 40;
		if (alert_due(m.rig.alert, 40))
			evaluate(&m.rig);
		CHECK_EQ(m.rig.alert->raised[0], m.rig.alert->raised[1] + 1);
		CHECK(find_fault(m.rig.alert) == NULL);
		CHECK(!evaluate(&m.rig));
		rig_deinit(&m.rig);
	}
}

/* The twin: where nobody asks, a crossing is missed. */
static void missed_crossing_is_seen(void)
{
	struct movers m = { .blind = true };

	rig_init(&m.rig, 100, 60 * SECTOR, 70 * SECTOR, 0, 0);
	m.rig.used = 40;
	run_threads(MOVERS, move_level, &m);
	CHECK_EQ(m.rig.alert->head, 0);
	CHECK(evaluate(&m.rig));
	rig_deinit(&m.rig);
}

struct reading {
	struct rig rig;
	_Atomic uint32_t done;
	_Atomic uint64_t seen, torn;
};

static void write_or_read(void *arg, unsigned index)
{
	struct reading *r = arg;

	if (index == 0) {
		while (atomic_load(&r->seen) == 0)
			sched_yield();
		raise_events(&r->rig, ROUNDS(20u) * ALERT_RING);
		atomic_store(&r->done, 1);
		return;
	}
	while (atomic_load(&r->done) == 0) {
		/* The slot that is written next: its old event, a lap behind, or nothing. */
		uint64_t sequence = atomic_load(&r->rig.alert->head) + 1 - ALERT_RING;
		struct cram_event event;

		if (!alert_get(r->rig.alert, sequence, &event))
			continue;
		r->seen++;
		/* Odd ones are lthresh, at 0 sectors left; and time and number belong together. */
		if (event.sequence != sequence || event.vector != (sequence % 2 ? CRAM_LTHRESH : CRAM_HTHRESH) ||
		    event.remaining != (sequence % 2 ? 0 : 100 * SECTOR))
			r->torn++;
	}
}

/* An event that is overwritten while it is read is refused, never handed out half old and half new. */
static void lapped_event_is_refused(void)
{
	struct reading r = { .done = 0 };

	rig_init(&r.rig, 100, SECTOR, 100 * SECTOR, 0, 0);
	raise_events(&r.rig, ALERT_RING);
	run_threads(2, write_or_read, &r);
	CHECK_EQ(r.torn, 0);
	rig_deinit(&r.rig);
}

/* A lost interrupt leaves its bits, no event, and the next one comes. */
static void lost_interrupt_leaves_bits(void)
{
	struct rig rig;

	rig_init(&rig, 100, SECTOR, 50 * SECTOR, 0, 0);
	rig.lose = true;
	atomic_store(&rig.used, 100);
	CHECK(!evaluate(&rig));
	CHECK_EQ(atomic_load(&rig.alert->head), 0);
	CHECK_EQ(atomic_load(&rig.alert->no_alloc), 1);
	rig.lose = false;
	atomic_store(&rig.used, 0);
	CHECK(evaluate(&rig));
	CHECK_EQ(atomic_load(&rig.alert->head), 1);
	rig_deinit(&rig);
}

static const struct test tests[] = {
	TEST(lost_interrupt_leaves_bits),
	TEST(latch_follows_the_definition),
	TEST(trembling_raises_once),
	TEST(trembling_past_both_raises_each_time),
	TEST(ratio_has_its_own_latch),
	TEST(relief_waits_for_both_causes),
	TEST(thresholds_may_change),
	TEST(ring_holds_the_newest),
	TEST(faults_of_the_ring_are_seen),
	TEST(threads_miss_no_crossing),
	TEST(missed_crossing_is_seen),
	TEST(lapped_event_is_refused),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
