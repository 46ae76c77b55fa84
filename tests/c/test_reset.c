/* SPDX-License-Identifier: MIT
 *
 * Removal, reset and power cycle: what becomes of pages, media and records, alone and beside others at work.
 *
 * Oracle: pages that say which they are; the audit of the whole object.
 */
#include <sched.h>

#include "children.h"
#include "rig.h"
#include "threads.h"

#define PAGES 256u

/* A page of each kind, empty ones, poisoned lines on both. */
static void create_filled(struct device *device, uint32_t poison_limit)
{
	struct cram_params params = rig_params(MIB);

	params.poison_limit = poison_limit;
	rig_create(device, &params);
	for (uint64_t page = 0; page < PAGES; page++)
		if (page % 7 != 6)
			CHECK(rig_store(device, page, 1, (unsigned)page));
	CHECK_EQ(rig_inject(device, 3, 5), 0);
	CHECK_EQ(rig_inject(device, 3, 63), 0);
	CHECK_EQ(rig_inject(device, 6, 0), 0);
}

static void strikes_leave_order(void)
{
	static const enum cram_fault faults[] = { CRAM_FAULT_RESET, CRAM_FAULT_POWER_CYCLE };
	static const uint32_t limits[] = { 1024, 3, 10 };

	for (unsigned i = 0; i < COUNT(faults) * COUNT(limits); i++) {
		bool keep = faults[i % 2] == CRAM_FAULT_POWER_CYCLE;
		uint8_t bytes[PAGE_SIZE];
		struct device device;

		create_filled(&device, limits[i / 2]);
		CHECK_EQ(device_strike(&device, faults[i % 2]), 0);
		CHECK_AUDIT(&device);
		for (uint64_t page = 0; page < PAGES; page++) {
			uint64_t lines = rig_load(&device, page, bytes);

			if (page % 7 != 6)
				CHECK_EQ(lines, ~0ull);
			else
				CHECK_EQ(lines, page == 6 && keep);
		}
		CHECK_EQ(rig_registers(&device).used, 0);
		CHECK_EQ(device_rebuild(&device), 0);
		CHECK_AUDIT(&device);
		CHECK_EQ(rig_load(&device, 6, bytes), keep);
		for (uint64_t page = 0; page < PAGES; page++)
			rig_drop(&device, page);
		CHECK_AUDIT(&device);
		CHECK_EQ(device.poison->count, 0);
		device_close(&device, false);
	}
}

/* The other faults strike by their attributes only. */
static void others_are_refused(void)
{
	struct device device;

	create_filled(&device, 10);
	for (unsigned fault = 0; fault < CRAM_FAULT_REMOVAL; fault++)
		CHECK_EQ(device_strike(&device, (enum cram_fault)fault), CRAM_EINVAL);
	CHECK_EQ(device.alert->head, 0);
	CHECK(rig_holds(&device, 0, 1));
	device_close(&device, false);
}

/* Nothing is stored any more, and no record is made of it; pages can be given back. */
static void removal_is_final(void)
{
	struct cram_registers registers;
	struct device device, again;
	uint8_t bytes[PAGE_SIZE];
	uint32_t records;
	struct op *op;

	create_filled(&device, 1024);
	records = device.poison->count;
	CHECK_EQ(device_strike(&device, CRAM_FAULT_REMOVAL), 0);
	CHECK_EQ(device_strike(&device, CRAM_FAULT_RESET), CRAM_ENODEV);
	rig_open_again(&device, &again);
	for (uint64_t page = 0; page < PAGES; page++) {
		CHECK(!rig_store(&device, page, 2, (unsigned)page));
		CHECK_EQ(rig_load(&again, page, bytes), ~0ull);
	}
	CHECK_EQ(device.poison->count, records);
	op = device_enter(&device);
	CHECK_EQ(device_read_registers(op, &registers), CRAM_ENODEV);
	device_leave(op);
	CHECK_EQ(device_rebuild(&again), 0);
	for (uint64_t page = 0; page < PAGES; page++)
		rig_drop(&device, page);
	CHECK_EQ(*device.media.used, 0);
	device_close(&again, false);
	device_close(&device, false);
}

/* ---- beside others --------------------------------------------------------------------------------------- */

#define WORKERS 4u

struct crowd {
	struct device *device;
	_Atomic bool stop;
	_Atomic uint32_t rounds;
};

/* Each stores its own pages over and over, and reads them back: the version stored last, or poison. */
static void work(void *arg, unsigned index)
{
	struct crowd *crowd = arg;
	uint8_t bytes[PAGE_SIZE];

	for (uint32_t version = 1; !atomic_load(&crowd->stop); version++) {
		for (uint64_t page = index; page < PAGES; page += WORKERS)
			rig_store(crowd->device, page, version, (unsigned)page + version);
		for (uint64_t page = index; page < PAGES; page += WORKERS) {
			uint32_t found = 0;

			if (rig_load(crowd->device, page, bytes) != 0)
				continue;
			CHECK(rig_recognise(bytes, page, &found));
			CHECK_EQ(found, version);
		}
		atomic_fetch_add(&crowd->rounds, 1);
	}
}

static void wait_for_rounds(struct crowd *crowd, uint32_t n)
{
	n += atomic_load(&crowd->rounds);
	while (atomic_load(&crowd->rounds) < n)
		sched_yield();
}

/* No reset lets a reader see what was before, and none loses a sector; a crowd that goes on has whole pages again. */
static void resets_beside_others(void)
{
	struct device device;
	struct crowd crowd = { .device = &device };
	struct team team;

	create_filled(&device, 20);
	team_start(&team, WORKERS, work, &crowd);
	for (unsigned i = 0; i < 30; i++) {
		CHECK_EQ(device_strike(&device, i % 2 ? CRAM_FAULT_RESET : CRAM_FAULT_POWER_CYCLE), 0);
		wait_for_rounds(&crowd, 1);
	}
	atomic_store(&crowd.stop, true);
	team_join(&team);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

/* As attributes, struck by whoever stores: with a page in hand, and beside others who are struck too. */
static void stores_are_struck(void)
{
	const struct cram_fault_attr attr = { .probability = CRAM_FAULT_CERTAIN / 200, .times = 20 };
	struct device device;
	struct crowd crowd = { .device = &device };
	struct team team;

	create_filled(&device, 20);
	CHECK_EQ(device_set_fault(&device, CRAM_FAULT_RESET, &attr), 0);
	CHECK_EQ(device_set_fault(&device, CRAM_FAULT_POWER_CYCLE, &attr), 0);
	team_start(&team, WORKERS, work, &crowd);
	while (device.super->inject.armed != 0)
		sched_yield();
	atomic_store(&crowd.stop, true);
	team_join(&team);
	CHECK_EQ(device.super->inject.fault[CRAM_FAULT_RESET].struck, 20);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

/* Removed in the midst of it: from then on nobody reads anything. */
static void removal_beside_others(void)
{
	struct device device;
	struct crowd crowd = { .device = &device };
	uint8_t bytes[PAGE_SIZE];
	struct team team;

	create_filled(&device, 20);
	team_start(&team, WORKERS, work, &crowd);
	wait_for_rounds(&crowd, 3);
	CHECK_EQ(device_strike(&device, CRAM_FAULT_REMOVAL), 0);
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK_EQ(rig_load(&device, page, bytes), ~0ull);
	atomic_store(&crowd.stop, true);
	team_join(&team);
	device_close(&device, false);
}

/* ---- deaths ---------------------------------------------------------------------------------------------- */

static void reset_for_ever(void *arg)
{
	struct device again;

	rig_open_again(arg, &again);
	for (unsigned i = 0;; i++) {
		for (uint64_t page = 0; page < PAGES; page += 3)
			rig_store(&again, page, i, i);
		device_strike(&again, i % 2 ? CRAM_FAULT_RESET : CRAM_FAULT_POWER_CYCLE);
	}
}

/* Who dies in the middle of a reset leaves half of one: each page is whole or poison, and the next one finds all in order. */
static void death_in_a_reset(void)
{
	for (unsigned i = 0; i < 20; i++) {
		uint8_t bytes[PAGE_SIZE];
		struct device device;
		uint32_t version;
		pid_t pid;

		create_filled(&device, 20);
		pid = child_start(reset_for_ever, &device);
		while (*(volatile _Atomic uint32_t *)&device.clients->losses < i + 1)
			sched_yield();
		child_kill(pid);
		CHECK_EQ(device_reap(&device, NULL), 0);
		CHECK_AUDIT(&device);
		for (uint64_t page = 0; page < PAGES; page++)
			CHECK(rig_load(&device, page, bytes) != 0 || page % 7 == 6 ||
			      rig_recognise(bytes, page, &version));
		device_close(&device, false);
	}
}

static const struct test tests[] = {
	TEST(strikes_leave_order),   TEST(others_are_refused), TEST(removal_is_final),
	TEST(resets_beside_others),  TEST(stores_are_struck),  TEST(removal_beside_others),
	TEST(death_in_a_reset),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
