/* SPDX-License-Identifier: MIT
 *
 * Registers and thresholds: what the device says of itself, and when it raises an interrupt, by one thread, by many,
 * and beside a rebuild.
 *
 * Oracles: levels that follow from the pages stored; the events in the ring, which must come by turns.
 */
#include <sched.h>

#include "rig.h"
#include "threads.h"

/* ---- thresholds ----------------------------------------------------------------------------------------- */

/* What is wrong with the events in the ring, or NULL: each cause's vectors come by turns, beginning with lthresh. */
static const char *find_event_fault(struct device *device)
{
	uint64_t head = device->alert->head, first = head > ALERT_RING ? head - ALERT_RING + 1 : 1;
	uint32_t before = first == 1 ? CRAM_HTHRESH : 0;
	uint32_t last[3] = { 0, before, before };

	for (uint64_t sequence = first; sequence <= head; sequence++) {
		struct cram_event event;

		if (!alert_get(device->alert, sequence, &event))
			return "an event is missing";
		if (event.vector == last[event.cause])
			return "an interrupt came twice in a row";
		if (event.remaining > device->media.sectors * device->media.sector_size)
			return "more remains than is real";
		last[event.cause] = event.vector;
	}
	return NULL;
}

static void create_with_thresholds(struct device *device, uint64_t low, uint64_t high, uint32_t low_ratio,
				   uint32_t high_ratio)
{
	struct cram_params params = rig_params(16 * PAGE_SIZE);

	params.low_remaining = low;
	params.high_remaining = high;
	params.low_ratio = low_ratio;
	params.high_ratio = high_ratio;
	rig_create(device, &params);
}

/* Filling raises lthresh once, at the page that reaches the threshold, and emptying hthresh once. */
static void filling_raises_once(void)
{
	struct device device;

	create_with_thresholds(&device, 4 * PAGE_SIZE, 8 * PAGE_SIZE, 0, 0);
	for (unsigned round = 1; round < 4; round++) {
		for (uint64_t page = 0; page < 16; page++) {
			CHECK(rig_store(&device, page, 1, 5));
			CHECK_EQ(rig_registers(&device).lthresh, page >= 11 ? round : round - 1);
			CHECK_EQ(rig_registers(&device).no_alloc, page >= 11);
		}
		for (uint64_t page = 0; page < 16; page++) {
			rig_drop(&device, page);
			CHECK_EQ(rig_registers(&device).hthresh, page >= 7 ? round : round - 1);
			CHECK_EQ(rig_registers(&device).pressure, page >= 7 ? 0 : 1000);
		}
	}
	CHECK(find_event_fault(&device) == NULL);
	CHECK_EQ(device_set_thresholds(&device, PAGE_SIZE, 0, 0, 0), CRAM_EINVAL);
	CHECK_EQ(device_set_thresholds(&device, 16 * PAGE_SIZE, 16 * PAGE_SIZE, 0, 0), 0);
	CHECK_EQ(rig_registers(&device).events, 7);
	device_close(&device, false);
}

/* The ratio is that of all pages with data to the bytes in use, and its thresholds are watched at every store. */
static void ratio_is_watched(void)
{
	struct device device;

	create_with_thresholds(&device, 0, 0, 1500, 2500);
	CHECK(rig_store(&device, 0, 1, 5));
	CHECK_EQ(rig_registers(&device).ratio, 1000);
	CHECK_EQ(rig_registers(&device).lthresh, 1);
	CHECK(rig_store(&device, 1, 1, 0));
	CHECK_EQ(rig_registers(&device).ratio, 2000);
	CHECK_EQ(rig_registers(&device).hthresh, 0);
	CHECK(rig_store(&device, 2, 1, 0));
	CHECK_EQ(rig_registers(&device).ratio, 3000);
	CHECK_EQ(rig_registers(&device).hthresh, 1);
	rig_drop(&device, 0);
	CHECK_EQ(rig_registers(&device).ratio, 0);
	CHECK_EQ(rig_registers(&device).events, 2);
	device_close(&device, false);
}

static void swing(void *arg, unsigned index)
{
	struct device *device = arg;

	for (unsigned i = 0; i < ROUNDS(1500u); i++) {
		for (uint64_t page = 0; page < 5; page++)
			rig_store(device, index * 5 + page, i, 5);
		for (uint64_t page = 0; page < 5; page++)
			rig_drop(device, index * 5 + page);
	}
}

/* Threads that fill, overflow and empty the device raise lthresh and hthresh by turns, and end below the latch. */
static void crossings_alternate_under_threads(void)
{
	struct device device;

	create_with_thresholds(&device, 4 * PAGE_SIZE, 8 * PAGE_SIZE, 0, 0);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t before = device.alert->head;

		run_threads(4, swing, &device);
		CHECK(device.alert->head > before);
		CHECK_EQ(device.alert->raised[0], device.alert->raised[1]);
		CHECK(find_event_fault(&device) == NULL);
	}
	device_evaluate_alerts(&device);
	CHECK_EQ(device.alert->raised[0], device.alert->raised[1]);
	CHECK_LE(rig_registers(&device).peak, rig_registers(&device).real);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

struct watching {
	struct device device;
	_Atomic bool stop;
	_Atomic uint64_t impossible;
};

static void swing_or_watch(void *arg, unsigned index)
{
	struct watching *w = arg;

	if (index < 3) {
		swing(&w->device, index);
		atomic_store(&w->stop, true);
		return;
	}
	while (!atomic_load(&w->stop)) {
		struct cram_registers r = rig_registers(&w->device);

		if (r.used > r.real || r.remaining > r.real || r.peak > r.real || r.used + r.remaining != r.real ||
		    r.pages_raw > 15 || r.poisoned > 15 || r.poison_records > 15)
			w->impossible++;
	}
}

/* Registers that are read while threads overflow the device show nothing that cannot be, such as more than is real. */
static void registers_show_what_can_be(void)
{
	struct watching w = { .stop = false };

	rig_create_small(&w.device, 8 * PAGE_SIZE);
	run_threads(4, swing_or_watch, &w);
	CHECK_EQ(w.impossible, 0);
	CHECK(rig_registers(&w.device).dropped_writes > 0);
	CHECK_AUDIT(&w.device);
	device_close(&w.device, false);
}

static void rewrite_same(void *arg, unsigned index)
{
	for (unsigned i = 0; i < ROUNDS(10000u); i++)
		CHECK(rig_store(arg, index, 7, 3));
}

/* Rewriting pages with the bytes they have changes no level, and raises nothing. */
static void rewriting_raises_nothing(void)
{
	struct device device;
	uint32_t ratio;

	create_with_thresholds(&device, 0, 0, 0, 0);
	for (uint64_t page = 0; page < 4; page++)
		CHECK(rig_store(&device, page, 7, 3));
	ratio = (uint32_t)rig_registers(&device).ratio;
	CHECK_EQ(device_set_thresholds(&device, 0, 0, ratio - 1, ratio), 0);
	run_threads(4, rewrite_same, &device);
	CHECK_EQ(rig_registers(&device).ratio, ratio);
	CHECK_EQ(rig_registers(&device).events, 0);
	device_close(&device, false);
}

/* The twin: with the level on the other side of the threshold the same rewriting raises. */
static void raised_by_rewriting_is_seen(void)
{
	struct device device;
	uint32_t ratio;

	create_with_thresholds(&device, 0, 0, 0, 0);
	for (uint64_t page = 0; page < 4; page++)
		CHECK(rig_store(&device, page, 7, 3));
	ratio = (uint32_t)rig_registers(&device).ratio;
	alert_set(device.alert, device.media.sectors, 64, 0, 0, ratio, ratio);
	CHECK(rig_store(&device, 0, 7, 3));
	CHECK_EQ(rig_registers(&device).events, 1);
	device_close(&device, false);
}

struct settling {
	struct device device;
	_Atomic bool stop;
	_Atomic uint64_t looks;
};

/* A device whose raw pages are the last that a rebuild finds, after many that have no sectors. */
static void create_for_rebuild(struct device *device, uint64_t raw_pages)
{
	struct cram_params params = rig_params(16 * PAGE_SIZE);

	params.advertised = 16 * MIB;
	params.low_remaining = 4 * PAGE_SIZE;
	params.high_remaining = 8 * PAGE_SIZE;
	rig_create(device, &params);
	for (uint64_t page = 0; page < device->map.pages; page++)
		CHECK(rig_store(device, page, 1, page < device->map.pages - raw_pages ? 0 : 5));
}

/* Rebuilds so long that others have seen many of them. */
static void rebuild_while_others_look(struct settling *s)
{
	for (unsigned i = 0; i < ROUNDS(400u) || atomic_load(&s->looks) < 100; i++) {
		CHECK_EQ(device_rebuild(&s->device), 0);
		/* The gate is up nearly all the time: let somebody in. */
		usleep(20);
	}
	atomic_store(&s->stop, true);
}

static void rebuild_or_set(void *arg, unsigned index)
{
	struct settling *s = arg;

	if (index == 0) {
		rebuild_while_others_look(s);
		return;
	}
	while (!atomic_load(&s->stop)) {
		CHECK_EQ(device_set_thresholds(&s->device, 4 * PAGE_SIZE, 8 * PAGE_SIZE, 0, 0), 0);
		s->looks++;
	}
}

/* A rebuild, in the middle of which nothing seems to be in use, raises nothing, whoever sets thresholds meanwhile. */
static void rebuild_raises_nothing(void)
{
	struct settling s = { .stop = false };

	create_for_rebuild(&s.device, 14);
	CHECK_EQ(rig_registers(&s.device).events, 1);
	run_threads(2, rebuild_or_set, &s);
	CHECK_EQ(rig_registers(&s.device).events, 1);
	CHECK_AUDIT(&s.device);
	device_close(&s.device, false);
}

static void rebuild_or_read(void *arg, unsigned index)
{
	struct settling *s = arg;

	if (index == 0) {
		rebuild_while_others_look(s);
		return;
	}
	for (; !atomic_load(&s->stop); s->looks++) {
		struct cram_poison_record records[8];

		CHECK_EQ(rig_registers(&s->device).poisoned, 3);
		CHECK_EQ(rig_registers(&s->device).used, PAGE_SIZE);
		CHECK_EQ(device_poison_list(&s->device, records, COUNT(records)), 3);
		CHECK_EQ(records[0].dpa, 0);
		CHECK_EQ(records[1].dpa, PAGE_SIZE);
		CHECK_EQ(records[2].dpa, 2 * PAGE_SIZE);
	}
}

/* Registers and the poison list that are read during a rebuild are as they were before it. */
static void rebuild_is_not_seen(void)
{
	struct settling s = { .stop = false };

	create_for_rebuild(&s.device, 1);
	for (uint64_t page = 0; page < 3; page++)
		CHECK_EQ(rig_inject(&s.device, page, 0), 0);
	run_threads(2, rebuild_or_read, &s);
	CHECK_AUDIT(&s.device);
	device_close(&s.device, false);
}
static const struct test tests[] = {
	TEST(filling_raises_once),
	TEST(ratio_is_watched),
	TEST(crossings_alternate_under_threads),
	TEST(registers_show_what_can_be),
	TEST(rewriting_raises_nothing),
	TEST(raised_by_rewriting_is_seen),
	TEST(rebuild_raises_nothing),
	TEST(rebuild_is_not_seen),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
