/* SPDX-License-Identifier: MIT
 *
 * What becomes of a page without a frame: stored, loaded, moved, written back, taken off a node, with a failure at each step;
 * beside threads. The callers' part, to lock a page in its table and to be in an op, is done here.
 *
 * Oracles: pages that say which they are, the counters computed anew from the table, the audit of the nodes' devices.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "host/visit.h"
#include "memory.h"
#include "rig.h"
#include "threads.h"

#define PAGES 64u
#define KIND 3u /* of rig_fill(): it shrinks */

struct world {
	cram_device *home;
	cram_device *devices[2];
	struct zswap *zswap;
	struct zswap_memory memory;
	uint32_t versions[PAGES]; /* 0: zeros */
	unsigned kinds[PAGES];
};

static cram_device *open_device(uint64_t real)
{
	struct cram_params params = rig_params(real);
	cram_device *device;

	CHECK_EQ(cram_create(NULL, &params, &device), 0);
	return device;
}

/* arena: pages of the pool; slots: of the swap file. */
static void open_world(struct world *world, uint64_t arena, uint64_t slots, unsigned nodes)
{
	struct cram_zswap_params params = { .chain = 4, .codec = CRAM_CODEC_LZ4, .level = 1, .swap_fd = -1 };
	struct cram_node_params node = { .live_registers = 1 };

	memset(world, 0, sizeof(*world));
	params.settings[CRAM_ZSWAP_ENABLED] = 1;
	params.settings[CRAM_ZSWAP_MAX_POOL_PERCENT] = 100;
	params.settings[CRAM_ZSWAP_ACCEPT_THRESHOLD_PERCENT] = 100;
	params.settings[CRAM_ZSWAP_RAM] = arena * PAGE_SIZE;
	if (slots > 0) {
		params.swap_fd = memfd_create("swap", MFD_CLOEXEC);
		params.swap_size = slots * PAGE_SIZE;
	}
	world->home = open_device(MIB);
	world->zswap = memory_map(sizeof(*world->zswap), -1);
	CHECK(world->zswap != NULL);
	CHECK_EQ(zswap_init(world->zswap, world->home, &params, NULL), 0);
	world->memory.zswap = world->zswap;
	CHECK(swaptable_init(&world->memory.table, PAGES));
	for (unsigned i = 0; i < nodes; i++) {
		world->devices[i] = open_device(MIB);
		CHECK_EQ(node_open(&world->zswap->nodes[i], world->devices[i], &node, &world->zswap->board->views[i]), 0);
	}
}

static struct op *enter(struct world *world)
{
	return device_enter(&world->home->device);
}

static void lock_page(struct world *world, uint64_t page)
{
	while (!swaptable_trylock(&world->memory.table, page))
		;
}

static bool store_kind(struct world *world, uint64_t page, uint32_t version, unsigned kind, bool force)
{
	struct op *op = enter(world);
	uint8_t frame[PAGE_SIZE] = { 0 };
	bool stored;

	if (version > 0)
		rig_fill(frame, page, version, kind);
	lock_page(world, page);
	stored = zswap_store(&world->memory, op, page, frame, force ? STORE_FORCED : STORE_RECLAIM);
	if (stored)
		world->versions[page] = version;
	swaptable_unlock(&world->memory.table, page);
	device_leave(op);
	return stored;
}

static bool store(struct world *world, uint64_t page, uint32_t version)
{
	return store_kind(world, page, version, KIND, false);
}

/* Is the page, as it is stored, the one that was stored there last? */
static bool holds(struct world *world, uint64_t page, uint64_t origin)
{
	struct op *op = enter(world);
	static const uint8_t zeros[PAGE_SIZE];
	uint8_t bytes[PAGE_SIZE];
	uint32_t version = 0;
	bool right;

	lock_page(world, page);
	right = zswap_load(&world->memory, op, page, bytes);
	if (right && world->versions[page] == 0)
		right = memcmp(bytes, zeros, PAGE_SIZE) == 0;
	else if (right)
		right = rig_recognise(bytes, origin, &version) && version == world->versions[page];
	swaptable_unlock(&world->memory.table, page);
	device_leave(op);
	return right;
}

static enum swap_tag tag_of(struct world *world, uint64_t page)
{
	return swap_tag(swaptable_get(&world->memory.table, page));
}

static void invalidate(struct world *world, uint64_t page)
{
	struct op *op = enter(world);

	lock_page(world, page);
	zswap_invalidate(&world->memory, op, page, false);
	world->versions[page] = 0;
	swaptable_unlock(&world->memory.table, page);
	device_leave(op);
}

static bool write_back(struct world *world, uint64_t page)
{
	struct op *op = enter(world);
	bool written;

	lock_page(world, page);
	written = zswap_write_back(&world->memory, op, page);
	swaptable_unlock(&world->memory.table, page);
	device_leave(op);
	return written;
}

static bool leave_node(struct world *world, uint64_t page, unsigned node)
{
	struct op *op = enter(world);
	bool left;

	lock_page(world, page);
	left = zswap_leave_node(&world->memory, op, page, node);
	swaptable_unlock(&world->memory.table, page);
	device_leave(op);
	return left;
}

static void drain_trims(struct world *world)
{
	struct op *op = enter(world);

	for (unsigned i = 0; i < 2; i++)
		if (world->devices[i] != NULL)
			node_flush_trims(&world->zswap->nodes[i], op);
	device_leave(op);
}

static uint64_t counted(const struct world *world, enum cram_zswap_counter counter)
{
	return atomic_load(&world->zswap->row->counters[counter]);
}

/* What is counted is what the table says; each device has what is on it. */
static void check_counters(struct world *world)
{
	uint64_t found[8] = { 0 }, nodes[2] = { 0 }, bytes = 0, direct = 0;

	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t entry = swaptable_get(&world->memory.table, page);

		found[swap_tag(entry)]++;
		if (swap_tag(entry) == SWAP_POOL)
			bytes += swap_size(entry);
		if (swap_tag(entry) == SWAP_DIRECT) {
			direct += swap_size(entry);
			nodes[swap_node(entry)]++;
		}
		CHECK_EQ(pageset_has(&world->memory.table.held, page), swap_tag(entry) != SWAP_NONE);
	}
	CHECK_EQ(counted(world, CRAM_ZSWAP_STORED_POOL), found[SWAP_POOL]);
	CHECK_EQ(counted(world, CRAM_ZSWAP_STORED_DIRECT), found[SWAP_DIRECT]);
	CHECK_EQ(counted(world, CRAM_ZSWAP_STORED_ZERO), found[SWAP_ZERO]);
	CHECK_EQ(counted(world, CRAM_ZSWAP_STORED_FILE), found[SWAP_FILE]);
	CHECK_EQ(atomic_load(&world->zswap->swap.used), found[SWAP_FILE]);
	CHECK_EQ(counted(world, CRAM_ZSWAP_STORED_BYTES), bytes);
	CHECK_EQ(counted(world, CRAM_ZSWAP_CHARGED_DIRECT), direct);
	CHECK_EQ(atomic_load(&world->zswap->groups.group[0].zswap), bytes + direct);
	CHECK_EQ(atomic_load(&world->zswap->groups.group[0].zswapped), found[SWAP_POOL] + found[SWAP_DIRECT]);
	for (unsigned i = 0; i < 2 && world->devices[i] != NULL; i++) {
		CHECK_EQ(atomic_load(&world->zswap->nodes[i].stored), nodes[i]);
		CHECK_AUDIT(&world->devices[i]->device);
	}
}

static void check_all(struct world *world)
{
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK(holds(world, page, page));
	check_counters(world);
}

static void close_world(struct world *world)
{
	for (uint64_t page = 0; page < PAGES; page++)
		invalidate(world, page);
	drain_trims(world);
	check_counters(world);
	CHECK_EQ(zpool_pages(&world->zswap->pool), 0);
	for (unsigned i = 0; i < 2 && world->devices[i] != NULL; i++) {
		struct op *op = enter(world);

		CHECK_EQ(rig_registers(&world->devices[i]->device).used, 0);
		node_close(&world->zswap->nodes[i], op);
		device_leave(op);
		device_close_table(&world->devices[i]->device);
		host_release_node(world->devices[i]);
		CHECK_EQ(cram_close(world->devices[i]), 0);
		cram_free(world->devices[i]);
	}
	swaptable_deinit(&world->memory.table);
	zswap_deinit(world->zswap);
	memory_unmap(world->zswap, sizeof(*world->zswap));
	CHECK_EQ(cram_close(world->home), 0);
	cram_free(world->home);
}

/* ---- one page -------------------------------------------------------------------------------------------- */

/* Each way to be stored, and back: the bytes are the same, and nothing is left. */
static void round_trips(void)
{
	static const struct {
		unsigned nodes, slots, percent;
		enum swap_tag tag;
	} ways[] = { { 1, 0, 100, SWAP_DIRECT }, { 0, 0, 100, SWAP_POOL }, { 0, 8, 0, SWAP_FILE } };

	for (unsigned i = 0; i < COUNT(ways); i++) {
		struct world world;

		open_world(&world, 64, ways[i].slots, ways[i].nodes);
		atomic_store(&world.zswap->board->settings[CRAM_ZSWAP_MAX_POOL_PERCENT], ways[i].percent);
		for (uint32_t version = 1; version < 20; version++) {
			CHECK(store(&world, 5, version));
			CHECK_EQ(tag_of(&world, 5), ways[i].tag);
			CHECK(store(&world, 6, 0));
			CHECK_EQ(tag_of(&world, 6), SWAP_ZERO);
			check_all(&world);
			invalidate(&world, 5);
			invalidate(&world, 6);
			CHECK_EQ(tag_of(&world, 5), SWAP_NONE);
		}
		close_world(&world);
	}
}

/* A moved page is the other one's, wherever it is; compaction finds its new owner. */
static void moves(void)
{
	struct world world;

	for (unsigned nodes = 0; nodes < 2; nodes++) {
		open_world(&world, 64, 0, nodes);
		CHECK(store(&world, 3, 7));
		lock_page(&world, 3);
		lock_page(&world, 40);
		zswap_move(&world.memory, 3, 40);
		world.versions[40] = 7;
		world.versions[3] = 0;
		swaptable_unlock(&world.memory.table, 3);
		swaptable_unlock(&world.memory.table, 40);
		CHECK_EQ(tag_of(&world, 3), SWAP_NONE);
		CHECK(holds(&world, 40, 3));
		check_counters(&world);
		close_world(&world);
	}
}

/* A poisoned device page is poison, also once it has left its node, until it is given up. */
static void poison(void)
{
	struct world world;
	uint64_t entry;

	open_world(&world, 64, 0, 1);
	CHECK(store(&world, 3, 7));
	CHECK(store(&world, 4, 8));
	entry = swaptable_get(&world.memory.table, 3);
	CHECK_EQ(rig_inject(&world.devices[0]->device, swap_dpa(entry), 9), 0);
	CHECK(zswap_poisoned(&world.memory, 3));
	CHECK(!zswap_poisoned(&world.memory, 4));
	CHECK(!holds(&world, 3, 3));
	CHECK(holds(&world, 4, 4));
	atomic_store(&world.zswap->nodes[0].state, NODE_LEAVING);
	CHECK(leave_node(&world, 3, 0));
	CHECK_EQ(tag_of(&world, 3), SWAP_POISON);
	CHECK(leave_node(&world, 4, 0));
	CHECK_EQ(tag_of(&world, 4), SWAP_POOL);
	CHECK(zswap_poisoned(&world.memory, 3));
	CHECK(holds(&world, 4, 4));
	invalidate(&world, 3);
	CHECK(!zswap_poisoned(&world.memory, 3));
	check_all(&world);
	close_world(&world);
}

/* ---- failures -------------------------------------------------------------------------------------------- */

/* Stores pages until one finds no room; how many found it. Those stay whole, and the one that did not has no entry. */
static unsigned fill(struct world *world, bool force)
{
	unsigned n = 0;

	while (n < PAGES && store_kind(world, n, n + 1, KIND, force))
		n++;
	CHECK_COMPARE(n, <, PAGES);
	CHECK_EQ(tag_of(world, n), SWAP_NONE);
	check_all(world);
	return n;
}

/* The arena has no page for another zspage, force or not. What is freed can be had again. */
static void full_arena(void)
{
	for (int force = 0; force < 2; force++) {
		struct world world;
		unsigned stored;

		open_world(&world, 4, 0, 0);
		/* The limit is the arena: past it, by a machine that has more memory than it says. */
		atomic_store(&world.zswap->board->settings[CRAM_ZSWAP_RAM], 64 * PAGE_SIZE);
		stored = fill(&world, force);
		CHECK_COMPARE(counted(&world, CRAM_ZSWAP_REJECT_ALLOC_FAIL), >, 0);
		CHECK_COMPARE(counted(&world, CRAM_ZSWAP_RECLAIM_FAIL), >, 0);
		for (unsigned page = 0; page < stored; page++)
			invalidate(&world, page);
		for (unsigned page = 0; page < stored; page++)
			CHECK(store(&world, page, 100 + page));
		check_all(&world);
		close_world(&world);
	}
}

/* The swap file has no slot: neither a store nor the shrinker loses a page, and the pool keeps its own. */
static void full_file(void)
{
	struct world world;
	unsigned written = 0;

	open_world(&world, 64, 4, 0);
	for (uint64_t page = 0; page < 16; page++)
		CHECK(store(&world, page, 1));
	for (uint64_t page = 0; page < 16; page++)
		CHECK(!write_back(&world, page)); /* its second chance */
	for (uint64_t page = 0; page < 16; page++)
		written += write_back(&world, page);
	CHECK_EQ(written, 4);
	CHECK_EQ(counted(&world, CRAM_ZSWAP_STORED_POOL), 12);
	check_all(&world);
	atomic_store(&world.zswap->board->settings[CRAM_ZSWAP_MAX_POOL_PERCENT], 0);
	CHECK(!store(&world, 20, 1));
	CHECK_EQ(tag_of(&world, 20), SWAP_NONE);
	check_all(&world);
	close_world(&world);
}

/* The swap file cannot be written, then not be read: the first costs nothing, the second that page alone. */
static void failing_file(void)
{
	struct world world;
	int fd, broken = memfd_create("broken", MFD_CLOEXEC);

	open_world(&world, 64, 8, 0);
	CHECK(store(&world, 0, 1));
	CHECK(!write_back(&world, 0));
	fd = world.zswap->swap.fd;
	world.zswap->swap.fd = -1;
	CHECK_EQ(counted(&world, CRAM_ZSWAP_REJECT_RECLAIM_FAIL), 0);
	CHECK(!write_back(&world, 0));
	CHECK_EQ(counted(&world, CRAM_ZSWAP_REJECT_RECLAIM_FAIL), 1);
	CHECK_EQ(tag_of(&world, 0), SWAP_POOL);
	check_all(&world);
	world.zswap->swap.fd = fd;
	CHECK(write_back(&world, 0));
	CHECK_EQ(tag_of(&world, 0), SWAP_FILE);
	CHECK(store(&world, 1, 1));
	world.zswap->swap.fd = broken;
	CHECK(!holds(&world, 0, 0));
	CHECK_EQ(tag_of(&world, 0), SWAP_POISON);
	CHECK(holds(&world, 1, 1));
	check_counters(&world);
	world.zswap->swap.fd = fd;
	close(broken);
	close_world(&world);
}

/* A device without a page, and nodes that refuse for every reason: the next node, then the pool, takes it. */
static void refusing_nodes(void)
{
	struct world world;
	struct node *nodes;
	uint64_t *taken = malloc(257 * sizeof(*taken)); /* and the answer that there is none */
	unsigned n = 0;
	struct op *op;

	CHECK(taken != NULL);
	open_world(&world, 64, 0, 2);
	nodes = world.zswap->nodes;
	op = device_enter(&world.devices[0]->device);
	while ((taken[n] = device_take_page(op)) != DEVICE_NO_PAGE) {
		atomic_store(&nodes[0].table.entries[taken[n]], (uint32_t)taken[n] + 1);
		device_unlock_page(op, taken[n++]);
	}
	device_leave(op);
	CHECK_EQ(n, 256);
	CHECK(store(&world, 0, 1));
	CHECK_EQ(swap_node(swaptable_get(&world.memory.table, 0)), 1);
	CHECK_EQ(atomic_load(&nodes[0].refused[CRAM_REFUSED_FULL]), 1);
	atomic_store(&nodes[1].view->no_alloc, 1);
	CHECK(store(&world, 1, 1));
	atomic_store(&nodes[1].view->no_alloc, 0);
	atomic_store(&nodes[1].view->allowed, 0);
	CHECK(store(&world, 2, 1));
	atomic_store(&nodes[1].view->allowed, 1);
	atomic_store(&nodes[1].view->pressure, 1000);
	CHECK(store(&world, 3, 1));
	atomic_store(&nodes[1].view->pressure, 0);
	atomic_store(&nodes[1].state, NODE_LEAVING);
	CHECK(store(&world, 4, 1));
	for (uint64_t page = 1; page < 5; page++)
		CHECK_EQ(tag_of(&world, page), SWAP_POOL);
	CHECK_EQ(atomic_load(&nodes[1].refused[CRAM_REFUSED_NO_ALLOC]), 1);
	CHECK_EQ(atomic_load(&nodes[1].refused[CRAM_REFUSED_VERDICT]), 1);
	CHECK_EQ(atomic_load(&nodes[1].refused[CRAM_REFUSED_PRESSURE]), 1);
	check_all(&world);
	op = device_enter(&world.devices[0]->device);
	while (n-- > 0) {
		device_lock_page(op, taken[n]);
		atomic_store(&nodes[0].table.entries[taken[n]], 0);
		device_put_page(op, taken[n]);
		device_unlock_page(op, taken[n]);
	}
	device_leave(op);
	CHECK(store(&world, 5, 1));
	CHECK_EQ(tag_of(&world, 5), SWAP_DIRECT);
	free(taken);
	close_world(&world);
}

/* A page that finds no room elsewhere stays on the node that it should leave, whole; with room it leaves. */
static void no_room_to_leave(void)
{
	struct world world;

	open_world(&world, 64, 0, 1);
	atomic_store(&world.zswap->groups.group[0].writeback, 0);
	for (uint64_t page = 0; page < 8; page++)
		CHECK(store_kind(&world, page, 1, page % KINDS, false));
	atomic_store(&world.zswap->nodes[0].state, NODE_LEAVING);
	atomic_store(&world.zswap->board->settings[CRAM_ZSWAP_MAX_POOL_PERCENT], 0);
	for (uint64_t page = 0; page < 8; page++)
		CHECK(!leave_node(&world, page, 0));
	CHECK_EQ(counted(&world, CRAM_ZSWAP_STORED_DIRECT), 8);
	check_all(&world);
	CHECK(leave_node(&world, 20, 0)); /* it is not there */
	CHECK(leave_node(&world, 0, 1));
	CHECK_EQ(tag_of(&world, 0), SWAP_DIRECT);
	atomic_store(&world.zswap->board->settings[CRAM_ZSWAP_MAX_POOL_PERCENT], 100);
	for (uint64_t page = 0; page < 8; page++)
		CHECK_EQ(leave_node(&world, page, 0), page % KINDS != KINDS - 1);
	check_all(&world);
	close_world(&world);
}

/* A page that does not shrink is refused where it may not be written back, but not by force; its neighbours do not mind. */
static void incompressible(void)
{
	struct world world;

	open_world(&world, 64, 0, 0);
	atomic_store(&world.zswap->groups.group[0].writeback, 0);
	CHECK(store(&world, 0, 1));
	CHECK(!store_kind(&world, 1, 1, KINDS - 1, false));
	CHECK_EQ(counted(&world, CRAM_ZSWAP_REJECT_COMPRESS_FAIL), 1);
	CHECK_EQ(counted(&world, CRAM_ZSWAP_REJECT_COMPRESS_POOR), 0);
	CHECK(store_kind(&world, 1, 1, KINDS - 1, true));
	CHECK_EQ(counted(&world, CRAM_ZSWAP_STORED_INCOMPRESSIBLE), 1);
	CHECK_EQ(swap_size(swaptable_get(&world.memory.table, 1)), PAGE_SIZE);
	check_all(&world);
	close_world(&world);
}

/* A full trim buffer frees at once what it has no room for; nobody's page is freed twice. */
static void trims(void)
{
	struct world world;
	struct node *node;

	open_world(&world, 64, 0, 1);
	node = &world.zswap->nodes[0];
	node->params.trim_buffer = 4;
	for (uint64_t page = 0; page < 8; page++)
		CHECK(store(&world, page, 1));
	for (uint64_t page = 0; page < 8; page++)
		invalidate(&world, page);
	CHECK_EQ(atomic_load(&node->trims.count), 4);
	CHECK_EQ(atomic_load(&node->trims_full), 4);
	CHECK_COMPARE(rig_registers(&world.devices[0]->device).used, >, 0);
	for (uint64_t page = 8; page < 16; page++)
		CHECK(store(&world, page, 1));
	drain_trims(&world);
	CHECK_EQ(atomic_load(&node->trims_done), 8);
	check_all(&world);
	close_world(&world);
}

/* ---- threads --------------------------------------------------------------------------------------------- */

struct crowd {
	struct world world;
	_Atomic unsigned working; /* threads that are not done yet */
};

#define WORKERS 3u

/* Stores, loads and gives up pages of its own, which the others write back, move and take off nodes meanwhile. */
static void work(struct crowd *crowd, unsigned index)
{
	struct world *world = &crowd->world;
	uint64_t state = index + 1;

	for (unsigned i = 0; i < ROUNDS(20000); i++) {
		uint64_t page = random_below(&state, PAGES / WORKERS) * WORKERS + index;
		uint32_t version = (uint32_t)random_below(&state, 1000);

		if (tag_of(world, page) != SWAP_NONE) {
			CHECK(holds(world, page, page));
			invalidate(world, page);
		} else {
			store_kind(world, page, version, (unsigned)random_below(&state, KINDS), random_below(&state, 4) == 0);
		}
	}
	atomic_fetch_sub(&crowd->working, 1);
}

static void disturb(struct crowd *crowd)
{
	struct world *world = &crowd->world;
	uint64_t state = 99;

	while (atomic_load(&crowd->working) > 0) {
		uint64_t page = random_below(&state, PAGES);
		unsigned node = (unsigned)random_below(&state, 2);

		switch (random_below(&state, 5)) {
		case 0:
			write_back(world, page);
			break;
		case 1:
			/* One that leaves is no home for others meanwhile. */
			atomic_store(&world->zswap->nodes[node].state, NODE_LEAVING);
			for (page = 0; page < PAGES; page++)
				leave_node(world, page, node);
			atomic_store(&world->zswap->nodes[node].state, NODE_ONLINE);
			break;
		case 2:
			atomic_store(&world->zswap->nodes[node].view->no_alloc, (uint32_t)random_below(&state, 2));
			break;
		case 3:
			atomic_store(&world->zswap->board->settings[CRAM_ZSWAP_MAX_POOL_PERCENT], random_below(&state, 2) * 50);
			atomic_store(&world->zswap->board->settings[CRAM_ZSWAP_CHARGING], random_below(&state, 3));
			break;
		default:
			drain_trims(world);
			break;
		}
	}
}

static void crowd_body(void *arg, unsigned index)
{
	if (index < WORKERS)
		work(arg, index);
	else
		disturb(arg);
}

/* Whatever the others do with a page, its owner finds it whole, and everything adds up in the end. */
static void crowd(void)
{
	static struct crowd crowd;

	open_world(&crowd.world, 64, 16, 2);
	crowd.world.zswap->nodes[1].params.trim_buffer = 8;
	atomic_store(&crowd.working, WORKERS);
	run_threads(WORKERS + 1, crowd_body, &crowd);
	check_all(&crowd.world);
	close_world(&crowd.world);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(round_trips), TEST(moves), TEST(poison), TEST(full_arena), TEST(full_file), TEST(failing_file),
		TEST(refusing_nodes), TEST(no_room_to_leave), TEST(incompressible), TEST(trims), TEST(crowd),
	};

	return check_main(tests, COUNT(tests), argc, argv);
}
