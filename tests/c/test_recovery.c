/* SPDX-License-Identifier: MIT
 *
 * Recovery: everything derived is made anew from the page map, and what the dead leave behind is put in order.
 *
 * The dead are children that are killed where it hurts, or anywhere. Oracles: pages that say which version they are,
 * what the child had begun and finished by its own account, and the audit of rig.h.
 */
#define _GNU_SOURCE
#include <sched.h>

#include "children.h"
#include "rig.h"
#include "threads.h"

#define PAGES (MIB / PAGE_SIZE)
#define POISON_LIMIT 8u

/* ---- a device with something of everything -------------------------------------------------------------- */

/* Linked chains and runs, words, zeros, poisoned lines, dropped pages with and without a record. */
static void create_varied(struct device *device)
{
	struct cram_params params = rig_params(64 * PAGE_SIZE);

	params.poison_limit = POISON_LIMIT;
	rig_create(device, &params);
	for (uint64_t page = 0; page < PAGES; page++)
		rig_store(device, page, 1, 4);
	for (uint64_t page = 0; page < PAGES; page += 2)
		rig_drop(device, page);
	for (uint64_t page = 0; page < 64; page++)
		CHECK(rig_store(device, page, 2, (unsigned)page));
	/* The list has room for lines now: records of dropped pages went with them. */
	CHECK_COMPARE(rig_registers(device).poison_records, >, 0);
	for (uint64_t page = 0; device->poison->count < POISON_LIMIT; page++)
		CHECK_EQ(rig_inject(device, page, (unsigned)page), 0);
	CHECK(rig_registers(device).poison_overflow > 0);
	CHECK_AUDIT(device);
}

struct picture {
	struct cram_registers registers;
	struct cram_poison_record records[2 * POISON_LIMIT];
	size_t count;
	uint64_t lines[PAGES];
	uint8_t bytes[PAGES][PAGE_SIZE];
};

/* All that a client can see of the device. */
static struct picture *take_picture(struct device *device)
{
	struct picture *picture = calloc(1, sizeof(*picture));

	for (uint64_t page = 0; page < PAGES; page++)
		picture->lines[page] = rig_load(device, page, picture->bytes[page]);
	picture->registers = rig_registers(device);
	picture->count = device_poison_list(device, picture->records, COUNT(picture->records));
	CHECK_LE(picture->count, COUNT(picture->records));
	return picture;
}

static void check_same(struct device *device, const struct picture *before)
{
	struct picture *after = take_picture(device);

	CHECK_BYTES(after, before, sizeof(*after));
	free(after);
}

/* ---- damage to what is derived -------------------------------------------------------------------------- */

static void clear_bitmap(struct device *device)
{
	memset((void *)device->media.bitmap, 0, device->media.sectors / 8);
}

static void fill_bitmap(struct device *device)
{
	memset((void *)device->media.bitmap, 0xff, device->media.sectors / 8);
}

static void scramble_bitmap(struct device *device)
{
	fill_content((uint8_t *)device->media.bitmap, device->media.sectors / 8, 1, NOISE_MAX);
}

static void scramble_groups(struct device *device)
{
	device->media.groups[0] += 5;
	device->media.groups[1] = MEDIA_GROUP_SECTORS;
}

static void lose_count(struct device *device)
{
	device->super->used = 0;
}

static void raise_count(struct device *device)
{
	device->super->used += 1000;
}

static void scramble_stripes(struct device *device)
{
	for (unsigned i = 0; i < STRIPES; i++) {
		device->super->stripes[i].pages[i % 6] += i;
		device->super->stripes[i].payload -= 77;
		device->super->stripes[i].poisoned += 3;
	}
}

static void lose_overflow(struct device *device)
{
	device->super->poison_overflow = 0;
}

static void double_record(struct device *device)
{
	device->poison->records[1] = device->poison->records[device->poison->count - 1];
	device->poison->records[device->poison->count++] = device->poison->records[0];
}

static void add_strange_records(struct device *device)
{
	static const struct cram_poison_record strange[] = {
		{ 60 * PAGE_SIZE, LINE_SIZE, CRAM_POISON_INJECTED }, /* a page that is not poisoned */
		{ 60 * PAGE_SIZE, PAGE_SIZE, CRAM_POISON_MEDIA },
		{ MIB, LINE_SIZE, CRAM_POISON_INJECTED },	     /* no page */
		{ UINT64_MAX - 63, LINE_SIZE, CRAM_POISON_INJECTED },
	};

	for (unsigned i = 0; i < COUNT(strange); i++)
		device->poison->records[device->poison->count++] = strange[i];
}

static void everything(struct device *device)
{
	scramble_bitmap(device);
	scramble_groups(device);
	raise_count(device);
	scramble_stripes(device);
	lose_overflow(device);
	add_strange_records(device);
}

/* Whatever derived structure is damaged, the audit notices, a rebuild restores it, and no page, no line of poison and
 * no register differs from before. */
static void derived_state_is_rebuilt(void)
{
	static void (*const damages[])(struct device *) = {
		clear_bitmap, fill_bitmap,   scramble_bitmap,	  scramble_groups, lose_count,
		raise_count,  lose_overflow, scramble_stripes, add_strange_records, everything,
	};

	for (unsigned i = 0; i < COUNT(damages); i++) {
		struct picture *before;
		struct device device;

		create_varied(&device);
		before = take_picture(&device);
		damages[i](&device);
		CHECK(rig_audit(&device) != NULL);
		CHECK_EQ(device_rebuild(&device), 0);
		CHECK_AUDIT(&device);
		check_same(&device, before);
		/* And once more over what is right. */
		CHECK_EQ(device_rebuild(&device), 0);
		CHECK_AUDIT(&device);
		check_same(&device, before);
		free(before);
		device_close(&device, false);
	}
}

/* Records that stand twice are one again, and pages whose record is lost that way are poison all the same. */
static void doubled_records_are_rebuilt(void)
{
	struct picture *before;
	struct device device;

	create_varied(&device);
	before = take_picture(&device);
	double_record(&device);
	CHECK(rig_audit(&device) != NULL);
	CHECK_EQ(device_rebuild(&device), 0);
	CHECK_AUDIT(&device);
	for (uint64_t page = 0; page < PAGES; page++)
		if (before->lines[page] == UINT64_MAX)
			CHECK_EQ(rig_info(&device, page).poisoned, UINT64_MAX);
	free(before);
	device_close(&device, false);
}

/* A record list whose length is nonsense is given up; whole poisoned pages stay poison, counted as without a record. */
static void nonsense_list_is_given_up(void)
{
	struct device device;
	uint64_t pages;

	create_varied(&device);
	pages = rig_registers(&device).poison_overflow;
	for (uint32_t i = 0; i < device.poison->count; i++)
		pages += device.poison->records[i].length == PAGE_SIZE;
	device.poison->count = UINT32_MAX;
	CHECK_EQ(device_rebuild(&device), 0);
	CHECK_AUDIT(&device);
	CHECK_EQ(rig_registers(&device).poison_records, 0);
	CHECK_EQ(rig_registers(&device).poison_overflow, pages);
	device_close(&device, false);
}

/* ---- broken chains -------------------------------------------------------------------------------------- */

/* A page whose sectors are linked. */
static uint64_t find_linked(struct device *device)
{
	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t entry = device->map.entries[page];

		if (entry_state(entry) == CRAM_PAGE_STORED && !(entry & ENTRY_RUN))
			return page;
	}
	CHECK(!"a linked page");
	return 0;
}

/* Pages that are stored, or raw, and read as they should. */
static uint64_t count_intact(struct device *device)
{
	uint8_t bytes[PAGE_SIZE];
	uint32_t version;
	uint64_t n = 0;

	for (uint64_t page = 0; page < PAGES; page++)
		n += rig_load(device, page, bytes) == 0 && rig_recognise(bytes, page, &version);
	return n;
}

/* A page whose chain is broken becomes poison, its sectors are free again, and every other page is as before. */
static void broken_chain_becomes_poison(void)
{
	for (unsigned i = 0; i < 5; i++) {
		struct cram_registers before;
		struct cram_page_info info;
		struct device device;
		uint64_t page, intact, first;
		uint8_t bytes[PAGE_SIZE];

		create_varied(&device);
		page = find_linked(&device);
		rig_store(&device, page, 2, 4);
		page = find_linked(&device);
		info = rig_info(&device, page);
		intact = count_intact(&device);
		before = rig_registers(&device);
		first = entry_first(device.map.entries[page]);
		switch (i) {
		case 0: /* out of the media */
			device.media.links[first] = (uint32_t)device.media.sectors;
			break;
		case 1: /* in a circle */
			device.media.links[first] = (uint32_t)first;
			break;
		case 2: /* into another page's sectors */
			device.media.links[first] = entry_first(device.map.entries[page + 6]);
			break;
		case 3: /* the entry itself: out of the media */
			device.map.entries[page] |= UINT32_MAX;
			break;
		case 4: /* a run over others' sectors */
			device.map.entries[page] |= ENTRY_RUN;
			break;
		}
		CHECK_EQ(device_rebuild(&device), 0);
		CHECK_AUDIT(&device);
		/* Where it comes first it keeps others' sectors, and its first reader finds that they are not its own. */
		if (i == 4)
			CHECK_COMPARE(rig_load(&device, page, bytes), !=, 0);
		CHECK_COMPARE(rig_registers(&device).used, <, before.used);
		CHECK_COMPARE(rig_registers(&device).media_errors, >, before.media_errors);
		CHECK_EQ(rig_info(&device, page).state, CRAM_PAGE_POISON);
		CHECK_COMPARE(rig_info(&device, page).sectors, !=, info.sectors);
		/* Over others' sectors it may be them that lose: who comes first in the map keeps them. */
		if (i < 2 || i == 3)
			CHECK_EQ(count_intact(&device), intact - 1);
		device_close(&device, false);
	}
}

/* Of two pages that claim the same sectors at most one keeps them, and neither is read as the other. */
static void shared_sectors_have_one_owner(void)
{
	struct device device;
	uint8_t bytes[PAGE_SIZE];
	uint32_t version;
	uint64_t used;

	create_varied(&device);
	CHECK(rig_store(&device, 10, 3, 3));
	used = rig_registers(&device).used;
	device.map.entries[200] = device.map.entries[10];
	device.map.checks[200] = device.map.checks[10];
	CHECK_EQ(device_rebuild(&device), 0);
	CHECK_AUDIT(&device);
	CHECK_LE(rig_registers(&device).used, used);
	CHECK(rig_holds(&device, 10, 3));
	CHECK(rig_load(&device, 200, bytes) == UINT64_MAX || !rig_recognise(bytes, 10, &version));
	CHECK_EQ(rig_info(&device, 200).state, CRAM_PAGE_POISON);
	device_close(&device, false);
}

/* Sectors of a broken chain that was given up are found again when room runs out, without being asked for. */
static void lost_room_is_found(void)
{
	struct device device;
	uint64_t page;

	create_varied(&device);
	page = find_linked(&device);
	device.media.links[entry_first(device.map.entries[page])] = UINT32_MAX;
	rig_drop(&device, page);
	CHECK_EQ(device.super->suspect, 1);
	CHECK(rig_audit(&device) != NULL);
	/* Fill up: the last of the room is what the broken chain had. */
	for (page = 65; page < PAGES && device.super->suspect; page++)
		rig_store(&device, page, 3, 5);
	CHECK_EQ(device.super->suspect, 0);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

/* ---- clients that die at a certain place ---------------------------------------------------------------- */

struct victim {
	struct device *parents; /* the parent's handle: its descriptor is ours too */
	struct device device;
	_Atomic uint32_t ready;
	void (*stand)(struct victim *victim);
};

static void open_and_stand(void *arg)
{
	struct victim *victim = arg;

	rig_open_again(victim->parents, &victim->device);
	victim->stand(victim);
	stand_still(&victim->ready);
}

static struct victim *make_victim(struct device *device, void (*stand)(struct victim *))
{
	struct victim *victim = shared_memory(sizeof(*victim));

	victim->parents = device;
	victim->stand = stand;
	return victim;
}

/* Starts a child that stands where stand() leads, and kills it there. */
static void kill_at(struct device *device, void (*stand)(struct victim *))
{
	struct victim *victim = make_victim(device, stand);
	pid_t pid = child_start(open_and_stand, victim);

	wait_for(&victim->ready);
	child_kill(pid);
}

#define HELD 7u

static void hold_page(struct victim *victim)
{
	struct op *op = device_enter(&victim->device);

	device_lock_page(op, HELD);
}

static void hold_busy_page(struct victim *victim)
{
	hold_page(victim);
	pagemap_change(&victim->device.map, HELD, 0, ENTRY_BUSY);
}

static void create_plain(struct device *device)
{
	rig_create_small(device, 32 * PAGE_SIZE);
	for (uint64_t page = 0; page < 16; page++)
		CHECK(rig_store(device, page, 1, (unsigned)page));
}

static void check_plain(struct device *device, uint64_t except)
{
	for (uint64_t page = 0; page < 16; page++)
		if (page != except)
			CHECK(rig_holds(device, page, 1));
	CHECK_AUDIT(device);
}

/* A page that a dead client had locked, and not begun to change, is intact, and whoever waits for it gets it. */
static void held_page_is_released(void)
{
	struct device device;

	create_plain(&device);
	kill_at(&device, hold_page);
	CHECK(pagemap_entry(&device.map, HELD) & ENTRY_LOCK);
	CHECK(rig_holds(&device, HELD, 1));
	check_plain(&device, PAGES);
	CHECK_EQ(rig_registers(&device).clients, 1);
	CHECK_EQ(rig_registers(&device).lost_pages, 0);
	device_close(&device, false);
}

/* A page that a dead client was changing is poison, once, with a record that says so. */
static void busy_page_becomes_poison(void)
{
	struct cram_poison_record record;
	uint8_t bytes[PAGE_SIZE];
	struct device device;

	create_plain(&device);
	kill_at(&device, hold_busy_page);
	CHECK_EQ(rig_load(&device, HELD, bytes), UINT64_MAX);
	CHECK_EQ(rig_registers(&device).lost_pages, 1);
	CHECK_EQ(device_poison_list(&device, &record, 1), 1);
	CHECK_EQ(record.dpa, HELD * PAGE_SIZE);
	CHECK_EQ(record.length, PAGE_SIZE);
	CHECK_EQ(record.source, CRAM_POISON_LOST);
	check_plain(&device, HELD);
	CHECK(rig_store(&device, HELD, 1, 4));
	check_plain(&device, PAGES);
	device_close(&device, false);
}

struct patient {
	struct device *device;
	_Atomic bool done;
};

static void *wait_for_page(void *arg)
{
	struct patient *patient = arg;

	CHECK(rig_holds(patient->device, HELD, 1));
	atomic_store(&patient->done, true);
	return NULL;
}

/* The twin: while the client lives, its page is waited for, and a reaping takes nothing from it. */
static void living_holder_keeps_its_page(void)
{
	struct patient patient;
	struct victim *victim;
	struct device device;
	uint32_t dead = 77;
	pthread_t waiter;
	pid_t pid;

	create_plain(&device);
	patient = (struct patient){ .device = &device };
	victim = make_victim(&device, hold_page);
	pid = child_start(open_and_stand, victim);
	wait_for(&victim->ready);
	CHECK_EQ(pthread_create(&waiter, NULL, wait_for_page, &patient), 0);
	usleep(300000);
	CHECK_EQ(device_reap(&device, &dead), 0);
	CHECK_EQ(dead, 0);
	CHECK(!atomic_load(&patient.done));
	CHECK(pagemap_entry(&device.map, HELD) & ENTRY_LOCK);
	child_kill(pid);
	CHECK_EQ(pthread_join(waiter, NULL), 0);
	check_plain(&device, PAGES);
	device_close(&device, false);
}

/* A lock bit by damage, in the name of a slot that nobody has, is taken for nobody's, and the page is intact. */
static void lock_of_nobody_is_opened(void)
{
	static const uint64_t holders[] = { 1, 5, 63, 255 };

	for (unsigned i = 0; i < COUNT(holders); i++) {
		struct device device;

		create_plain(&device);
		device.map.entries[HELD] |= ENTRY_LOCK | holders[i] << ENTRY_HOLDER_SHIFT;
		CHECK(rig_holds(&device, HELD, 1));
		check_plain(&device, PAGES);
		device_close(&device, false);
	}
}

static void claim_and_dirty(struct victim *victim)
{
	int claim;

	CHECK_EQ(device_claim(&victim->device, 4, 8, &claim), 0);
	for (uint64_t page = 4; page < 12; page += 2)
		rig_mark_dirty(&victim->device, page, true);
	atomic_store(&victim->device.self->dirty_frames, 4);
}

/* Pages whose newer copy died with a client are poison, its clean ones are intact, and its range is free again. */
static void dirty_pages_of_the_dead_become_poison(void)
{
	struct device device;
	uint32_t dead = 77;
	int claim;

	create_plain(&device);
	kill_at(&device, claim_and_dirty);
	CHECK_EQ(rig_registers(&device).dirty_frames, 4);
	CHECK_EQ(device_reap(&device, &dead), 0);
	CHECK_EQ(dead, 1);
	CHECK_EQ(device_reap(&device, &dead), 0);
	CHECK_EQ(dead, 0);
	for (uint64_t page = 0; page < 16; page++) {
		bool lost = page >= 4 && page < 12 && page % 2 == 0;

		CHECK_EQ(rig_info(&device, page).state == CRAM_PAGE_POISON, lost);
		CHECK_EQ(rig_info(&device, page).dirty, 0);
		CHECK(lost || rig_holds(&device, page, 1));
	}
	CHECK_EQ(rig_registers(&device).lost_pages, 4);
	CHECK_EQ(rig_registers(&device).dirty_frames, 0);
	CHECK_AUDIT(&device);
	CHECK_EQ(device_claim(&device, 0, 16, &claim), 0);
	device_close(&device, false);
}

/* The twin: a rebuild leaves the dirty pages of the living as they are. */
static void dirty_pages_of_the_living_are_kept(void)
{
	struct victim *victim;
	struct device device;
	pid_t pid;

	create_plain(&device);
	victim = make_victim(&device, claim_and_dirty);
	pid = child_start(open_and_stand, victim);
	wait_for(&victim->ready);
	CHECK_EQ(device_rebuild(&device), 0);
	for (uint64_t page = 0; page < 16; page++)
		CHECK_EQ(rig_info(&device, page).dirty, page >= 4 && page < 12 && page % 2 == 0);
	CHECK_EQ(rig_registers(&device).lost_pages, 0);
	check_plain(&device, PAGES);
	child_kill(pid);
	device_close(&device, false);
}

static void hold_table(struct victim *victim)
{
	futex_lock(&victim->device.clients->lock, futex_name(victim->device.client, thread_id()), clients_holder_dead,
		   victim->device.clients);
}

static void raise_gate_over_half_a_rebuild(struct victim *victim)
{
	hold_table(victim);
	gate_raise(victim->device.clients);
	clear_bitmap(&victim->device);
	scramble_stripes(&victim->device);
	lose_count(&victim->device);
}

/* The table's lock is taken over from a dead client. */
static void table_lock_of_the_dead_is_taken(void)
{
	struct device device;
	int claim;

	create_plain(&device);
	kill_at(&device, hold_table);
	CHECK_EQ(device_claim(&device, 0, 1, &claim), 0);
	CHECK_EQ(rig_registers(&device).clients, 1);
	check_plain(&device, PAGES);
	device_close(&device, false);
}

/* A rebuild that its client began and died in is done again before anybody works: nobody sees its half. */
static void half_a_rebuild_is_finished(void)
{
	struct device device;

	create_plain(&device);
	kill_at(&device, raise_gate_over_half_a_rebuild);
	CHECK_EQ(device.clients->gate, 1);
	CHECK(rig_store(&device, 20, 1, 4));
	CHECK_EQ(device.clients->gate, 0);
	check_plain(&device, PAGES);
	CHECK_EQ(rig_registers(&device).media_errors, 0);
	device_close(&device, false);
}

/* A gate that nobody holds, over half a rebuild, is what one leaves that gave up: whoever comes next finishes it. */
static void abandoned_gate_is_lowered(void)
{
	struct device device;
	int claim;

	create_plain(&device);
	gate_raise(device.clients);
	clear_bitmap(&device);
	lose_count(&device);
	CHECK_EQ(device_claim(&device, 0, 1, &claim), 0);
	CHECK_EQ(device.clients->gate, 0);
	check_plain(&device, PAGES);
	gate_raise(device.clients);
	scramble_stripes(&device);
	CHECK(rig_store(&device, 20, 1, 4));
	CHECK_EQ(device.clients->gate, 0);
	check_plain(&device, PAGES);
	device_close(&device, false);
}

static void do_nothing(void *arg)
{
	(void)arg;
}

/* A client that has died while joining, before it had a slot, keeps nobody out either. */
static void joiner_that_died_is_no_obstacle(void)
{
	struct device device, next;
	pid_t pid;

	create_plain(&device);
	pid = child_start(do_nothing, NULL);
	child_join(pid);
	device.clients->lock.word = futex_name(CLIENT_JOINING, (uint32_t)pid);
	rig_open_again(&device, &next);
	check_plain(&next, PAGES);
	device_close(&next, false);
	device_close(&device, false);
}

static void die_removing_a_record(struct victim *victim)
{
	struct device *device = &victim->device;

	futex_lock(&device->super->poison_lock, futex_name(device->client, thread_id()), clients_holder_dead,
		   device->clients);
	device->poison->records[0] = device->poison->records[device->poison->count - 1];
}

/* The poison list of a client that died in it is taken over, mistrusted, and mended by the next recovery. */
static void poison_list_of_the_dead_is_mended(void)
{
	struct device device;

	create_plain(&device);
	for (unsigned line = 0; line < 5; line++)
		CHECK_EQ(rig_inject(&device, 20 + line, line), 0);
	kill_at(&device, die_removing_a_record);
	CHECK_EQ(rig_inject(&device, 30, 0), 0);
	CHECK_EQ(device.super->suspect, 1);
	CHECK_EQ(device_reap(&device, NULL), 0);
	CHECK_EQ(device.super->suspect, 0);
	check_plain(&device, PAGES);
	CHECK_EQ(rig_registers(&device).poison_records, 5);
	device_close(&device, false);
}

static void die_in_alerts(struct victim *victim)
{
	struct device *device = &victim->device;

	futex_lock(&device->super->alert_lock, futex_name(device->client, thread_id()), clients_holder_dead,
		   device->clients);
}

/* Thresholds go on after a client died evaluating them. */
static void alerts_of_the_dead_go_on(void)
{
	struct device device;

	create_plain(&device);
	kill_at(&device, die_in_alerts);
	CHECK_EQ(device_set_thresholds(&device, 4096, 8192, 0, 0), 0);
	for (uint64_t page = 20; page < 60; page++)
		rig_store(&device, page, 1, 5);
	CHECK_EQ(rig_registers(&device).lthresh, 1);
	CHECK_EQ(device_reap(&device, NULL), 0);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

static void die_with_sectors(struct victim *victim)
{
	struct device *device = &victim->device;
	struct op *op = device_enter(device);
	struct chain chain = { .count = 0 };

	device_lock_page(op, 100);
	/* As a store does it, up to where it would write. */
	while (media_reserve(&device->media, 64))
		;
	pagemap_change(&device->map, 100, 0, ENTRY_BUSY);
	media_take(&device->media, &op->cursor, 64, &chain);
}

/* Room that a dead client had reserved and taken is found again by the next one who needs it. */
static void room_of_the_dead_is_found(void)
{
	struct device device;

	create_plain(&device);
	kill_at(&device, die_with_sectors);
	CHECK_COMPARE(rig_registers(&device).remaining, <, PAGE_SIZE);
	CHECK(rig_store(&device, 20, 1, 5));
	CHECK(rig_holds(&device, 20, 1));
	CHECK_EQ(rig_registers(&device).dropped_writes, 0);
	CHECK_EQ(rig_info(&device, 100).state, CRAM_PAGE_POISON);
	check_plain(&device, PAGES);
	device_close(&device, false);
}

static void run_inside(struct victim *victim)
{
	device_enter(&victim->device);
}

/* A client that is stopped in the middle of a page makes a rebuild give up after two seconds, with nothing changed;
 * when it goes on, so does the rebuild. */
static void stopped_client_is_waited_for(void)
{
	struct victim *victim;
	struct device device;
	uint64_t start;
	pid_t pid;

	create_plain(&device);
	victim = make_victim(&device, run_inside);
	pid = child_start(open_and_stand, victim);
	wait_for(&victim->ready);
	scramble_bitmap(&device);
	start = now_ns();
	CHECK_EQ(device_rebuild(&device), CRAM_ETIMEDOUT);
	CHECK_COMPARE(now_ns() - start, >=, 2000000000);
	CHECK(rig_audit(&device) != NULL);
	CHECK_EQ(device.clients->gate, 0);
	CHECK_EQ(device.clients->lock.word, 0);
	CHECK(rig_holds(&device, 0, 1));
	child_kill(pid);
	CHECK_EQ(device_rebuild(&device), 0);
	check_plain(&device, PAGES);
	device_close(&device, false);
}

/* ---- the last client dies ------------------------------------------------------------------------------- */

#define FILE_NAME "recovery_device"

static void open_file_and_stand(void *arg)
{
	struct victim *victim = arg;
	int claim;

	CHECK_EQ(device_open(FILE_NAME, &victim->device), 0);
	CHECK_EQ(device_claim(&victim->device, 0, 4, &claim), 0);
	rig_mark_dirty(&victim->device, 2, true);
	hold_busy_page(victim);
	stand_still(&victim->ready);
}

/* A device file whose only client died in the middle is put in order by the next one that opens it. */
static void reopening_recovers(void)
{
	struct cram_params params = rig_params(32 * PAGE_SIZE);
	struct victim *victim = shared_memory(sizeof(*victim));
	struct device device;
	pid_t pid;

	unlink(FILE_NAME);
	CHECK_EQ(device_create(FILE_NAME, &params, &device), 0);
	for (uint64_t page = 0; page < 16; page++)
		CHECK(rig_store(&device, page, 1, (unsigned)page));
	device_close(&device, false);
	pid = child_start(open_file_and_stand, victim);
	wait_for(&victim->ready);
	child_kill(pid);
	CHECK_EQ(device_open(FILE_NAME, &device), 0);
	CHECK_EQ(rig_registers(&device).clients, 1);
	CHECK_EQ(rig_registers(&device).lost_pages, 2);
	CHECK_EQ(rig_info(&device, 2).state, CRAM_PAGE_POISON);
	CHECK_EQ(rig_info(&device, HELD).state, CRAM_PAGE_POISON);
	CHECK(rig_store(&device, 2, 1, 3));
	CHECK(rig_store(&device, HELD, 1, 3));
	check_plain(&device, PAGES);
	device_close(&device, false);
	CHECK_EQ(unlink(FILE_NAME), 0);
}

/* ---- clients that die anywhere -------------------------------------------------------------------------- */

#define WORKERS 2u
#define WORKER_PAGES 24u

/* What a child says of its pages: versions begun and finished. */
struct account {
	struct device *parents;
	struct device device;
	_Atomic uint32_t begun[WORKERS * WORKER_PAGES];
	_Atomic uint32_t done[WORKERS * WORKER_PAGES];
	_Atomic uint32_t ready;
	uint64_t seed;
};

static void work_step(struct device *device, struct account *account, uint64_t *state, uint64_t page)
{
	uint32_t next = atomic_load(&account->begun[page]) + 1;
	uint8_t bytes[PAGE_SIZE];

	switch (random_below(state, 8)) {
	case 0:
		rig_load(device, page, bytes);
		return;
	case 1:
		/* Poison is allowed at any time: nothing to account for. */
		rig_inject(device, page, (unsigned)random_below(state, 64));
		return;
	case 2:
		/* Every second version says that the page is empty. */
		next += next % 2;
		atomic_store(&account->begun[page], next);
		rig_drop(device, page);
		break;
	default:
		next += 1 - next % 2;
		atomic_store(&account->begun[page], next);
		rig_store(device, page, next, (unsigned)random_below(state, KINDS));
	}
	atomic_store(&account->done[page], next);
}

static void work_until_killed(void *arg, unsigned index)
{
	struct account *account = arg;
	uint64_t state = account->seed * WORKERS + index;

	atomic_store(&account->ready, 1);
	for (;;)
		work_step(&account->device, account, &state, index * WORKER_PAGES + random_below(&state, WORKER_PAGES));
}

static void work_in_child(void *arg)
{
	struct account *account = arg;

	rig_open_again(account->parents, &account->device);
	run_threads(WORKERS, work_until_killed, account);
}

/* The page is some version between the last one that was finished and the last one that was begun, or poison. */
static void check_account(struct device *device, const struct account *account, uint64_t page)
{
	uint32_t begun = atomic_load(&account->begun[page]), done = atomic_load(&account->done[page]);
	uint32_t version = 0;
	uint8_t bytes[PAGE_SIZE], zeros[PAGE_SIZE] = { 0 };

	if (rig_load(device, page, bytes) != 0)
		return;
	if (memcmp(bytes, zeros, PAGE_SIZE) == 0) {
		/* Never written, or dropped. */
		CHECK(done % 2 == 0 || begun % 2 == 0);
		return;
	}
	CHECK(rig_recognise(bytes, page, &version));
	CHECK(version == done || version == begun);
	CHECK_EQ(version % 2, 1);
}

/* Kills a child at work; true when it left something to recover. */
static bool kill_at_work(struct device *device, uint64_t seed, uint64_t *state)
{
	struct account *account = shared_memory(sizeof(*account));
	bool disturbed;
	pid_t pid;

	for (uint64_t page = 0; page < WORKERS * WORKER_PAGES; page++)
		rig_drop(device, page);
	account->parents = device;
	account->seed = seed;
	pid = child_start(work_in_child, account);
	wait_for(&account->ready);
	/* The parent works too, on pages of its own, so that it meets locks that the child dies with. */
	for (uint64_t n = random_below(state, 60); n > 0; n--)
		rig_store(device, 100 + random_below(state, 20), (uint32_t)n, (unsigned)n);
	usleep((unsigned)random_below(state, 2000));
	child_kill(pid);
	disturbed = rig_audit(device) != NULL;
	for (unsigned i = 0; i < 20; i++)
		rig_store(device, 100 + i, i, i);
	CHECK_EQ(device_reap(device, NULL), 0);
	CHECK_AUDIT(device);
	for (uint64_t page = 0; page < WORKERS * WORKER_PAGES; page++)
		check_account(device, account, page);
	CHECK_AUDIT(device);
	CHECK_EQ(rig_registers(device).media_errors, 0);
	munmap(account, sizeof(*account));
	return disturbed;
}

/* Wherever a client is killed: each of its pages is what it had finished, what it had begun, or poison. */
static void death_anywhere_leaves_no_wrong_page(void)
{
	uint64_t state = 1, disturbed = 0;
	struct device device;

	/* Little room, so that it also dies dropping writes. */
	rig_create_small(&device, 24 * PAGE_SIZE);
	for (uint64_t i = 0; i < ROUNDS(100u); i++)
		disturbed += kill_at_work(&device, i, &state);
	/* The twin: some of them left what only the recovery put in order. */
	CHECK(disturbed > 0);
	device_close(&device, false);
}

static const struct test tests[] = {
	TEST(derived_state_is_rebuilt),
	TEST(doubled_records_are_rebuilt),
	TEST(nonsense_list_is_given_up),
	TEST(broken_chain_becomes_poison),
	TEST(shared_sectors_have_one_owner),
	TEST(lost_room_is_found),
	TEST(held_page_is_released),
	TEST(busy_page_becomes_poison),
	TEST(living_holder_keeps_its_page),
	TEST(lock_of_nobody_is_opened),
	TEST(dirty_pages_of_the_dead_become_poison),
	TEST(dirty_pages_of_the_living_are_kept),
	TEST(table_lock_of_the_dead_is_taken),
	TEST(half_a_rebuild_is_finished),
	TEST(abandoned_gate_is_lowered),
	TEST(joiner_that_died_is_no_obstacle),
	TEST(poison_list_of_the_dead_is_mended),
	TEST(alerts_of_the_dead_go_on),
	TEST(room_of_the_dead_is_found),
	TEST(stopped_client_is_waited_for),
	TEST(reopening_recovers),
	TEST(death_anywhere_leaves_no_wrong_page),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
