/* SPDX-License-Identifier: MIT
 *
 * manager.c - the manager and its memory, for the functions of cram.h; the work that a policy has it do in batches.
 */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "visit.h"

/* Pages between two ends of a visit: others may want to map or unmap. */
#define TURN 256u
#define HOME_SIZE (1u << 20)

struct cram_zswap {
	struct cram_device *home;
	bool closed;
	struct zswap zswap;
};

/* ---- parameters ------------------------------------------------------------------------------------------ */

static int check_setting(uint32_t setting, uint64_t value)
{
	static const uint64_t most[] = {
		[CRAM_ZSWAP_ENABLED] = 1, [CRAM_ZSWAP_MAX_POOL_PERCENT] = 100, [CRAM_ZSWAP_ACCEPT_THRESHOLD_PERCENT] = 100,
		[CRAM_ZSWAP_SHRINKER_ENABLED] = 1, [CRAM_ZSWAP_RAM] = 1ull << 50, [CRAM_ZSWAP_DIRECT_LIMIT] = CRAM_DIRECT_SIZE,
		[CRAM_ZSWAP_MAX_DIRECT_PERCENT] = 100, [CRAM_ZSWAP_CHARGING] = CRAM_CHARGE_FUZZY,
	};
	static const char *const names[] = {
		"enabled", "max_pool_percent", "accept_threshold_percent", "shrinker_enabled", "ram", "direct_limit",
		"max_direct_percent", "charging",
	};

	if (setting >= CRAM_ZSWAP_SETTINGS)
		return cram_fail(CRAM_EINVAL, "setting %u: there are %d", setting, CRAM_ZSWAP_SETTINGS);
	if (value > most[setting])
		return cram_fail(CRAM_EINVAL, "%s %" PRIu64 ": not from 0 to %" PRIu64, names[setting], value, most[setting]);
	if (setting == CRAM_ZSWAP_RAM && value < PAGE_SIZE)
		return cram_fail(CRAM_EINVAL, "ram %" PRIu64 ": below a page, 4096", value);
	return 0;
}

static int check_params(const struct cram_zswap_params *params)
{
	for (uint32_t i = 0; i < CRAM_ZSWAP_SETTINGS; i++) {
		int code = check_setting(i, params->settings[i]);

		if (code != 0)
			return code;
	}
	if (params->chain != 4 && params->chain != 8 && params->chain != 16)
		return cram_fail(CRAM_EINVAL, "chain of %u pages: not 4, 8 or 16", params->chain);
	if (params->codec != CRAM_CODEC_LZ4 && params->codec != CRAM_CODEC_ZSTD)
		return cram_fail(CRAM_EINVAL, "compressor %u: not lz4 or zstd", params->codec);
	if (params->swap_fd >= 0 && (params->swap_size % PAGE_SIZE != 0 || params->swap_size == 0))
		return cram_fail(CRAM_EINVAL, "swap of %" PRIu64 " bytes: not whole pages", params->swap_size);
	return 0;
}

/* ---- lifetime -------------------------------------------------------------------------------------------- */

/* The device that gives threads their places and their memory to work in; nothing is stored there. */
static int open_home(struct cram_device **home)
{
	struct cram_params params = { .advertised = HOME_SIZE, .real = HOME_SIZE };

	cram_params_default(&params);
	return cram_create(NULL, &params, home);
}

int cram_zswap_create(const struct cram_zswap_params *params, cram_zswap **result)
{
	struct cram_zswap *zswap;
	int code = check_params(params);

	if (code != 0)
		return code;
	zswap = memory_map(sizeof(*zswap), -1);
	if (zswap == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for a manager");
	code = open_home(&zswap->home);
	if (code == 0) {
		code = zswap_init(&zswap->zswap, zswap->home, params, NULL);
		if (code != 0)
			cram_free(zswap->home);
	}
	if (code != 0) {
		memory_unmap(zswap, sizeof(*zswap));
		return code;
	}
	*result = zswap;
	return 0;
}

static unsigned count_nodes(const struct zswap *zswap)
{
	unsigned n = 0;

	for (unsigned i = 0; i < NODES_MAX; i++)
		n += atomic_load(&zswap->nodes[i].state) != NODE_FREE;
	return n;
}

int cram_zswap_close(cram_zswap *zswap)
{
	int code;

	if (zswap == NULL || zswap->closed)
		return 0;
	if (!host_forked(zswap->home) && count_nodes(&zswap->zswap) > 0)
		return cram_fail(CRAM_EBUSY, "%u nodes of this manager exist", count_nodes(&zswap->zswap));
	code = cram_close(zswap->home);
	if (code == 0)
		zswap->closed = true;
	return code;
}

void cram_zswap_free(cram_zswap *zswap)
{
	if (zswap == NULL)
		return;
	for (uint32_t i = 0; i < NODES_MAX && !zswap->closed && !host_forked(zswap->home); i++)
		if (atomic_load(&zswap->zswap.nodes[i].state) != NODE_FREE)
			cram_zswap_remove_node(zswap, i);
	cram_free(zswap->home);
	zswap_deinit(&zswap->zswap);
	memory_unmap(zswap, sizeof(*zswap));
}

int cram_zswap_set(cram_zswap *zswap, uint32_t setting, uint64_t value)
{
	int code = check_setting(setting, value);

	if (code == 0)
		atomic_store(&zswap->zswap.board->settings[setting], value);
	return code;
}

int cram_zswap_fd(const cram_zswap *zswap)
{
	return zswap->zswap.board_fd;
}

uint64_t cram_zswap_get(const cram_zswap *zswap, uint32_t setting)
{
	return setting < CRAM_ZSWAP_SETTINGS ? zswap_setting(&zswap->zswap, setting) : 0;
}

/* ---- statistics ------------------------------------------------------------------------------------------ */

void cram_zswap_read_stats(const cram_zswap *manager, struct cram_zswap_stats *stats)
{
	const struct zswap *zswap = &manager->zswap;

	memset(stats, 0, sizeof(*stats));
	if (manager->closed)
		return;
	board_find_dead(zswap->board, true);
	for (unsigned i = 0; i < CRAM_ZSWAP_COUNTERS; i++)
		stats->counters[i] = board_sum(zswap->board, i);
	stats->pool_total_size = stats->counters[CRAM_ZSWAP_POOL_PAGES] << PAGE_SHIFT;
	for (unsigned i = CRAM_DIRECT_NONE; i <= CRAM_DIRECT_SIZE; i++)
		stats->total_pages[i] = zswap_total_pages(zswap, (enum cram_direct_limit)i);
	stats->max_pages = zswap_max_pages(zswap);
	stats->swap_pages = zswap->swap.slots;
	stats->swap_used = atomic_load(&zswap->swap.used);
	stats->pool_cached = zpool_cached(&zswap->pool);
}

int cram_zswap_class(const cram_zswap *zswap, uint32_t i, struct cram_zpool_class *row)
{
	struct zpool_class class;

	if (zswap->closed || !zpool_class_at(&((cram_zswap *)zswap)->zswap.pool, i, &class))
		return 0;
	*row = (struct cram_zpool_class){
		.index = class.index, .size = class.size, .objs_allocated = class.obj_allocated, .objs_used = class.obj_used,
		.pages_used = class.pages_used, .pages_per_zspage = class.pages_per_zspage, .freeable = class.freeable,
	};
	memcpy(row->fullness, class.zspages, sizeof(row->fullness));
	return 1;
}

/* ---- compaction ------------------------------------------------------------------------------------------ */

/* The table and the page that an object's owner is. In a visit. */
static struct swaptable *owner_of(const struct cram_device *home, uint64_t owner, uint64_t *page)
{
	struct cram_map *map = home->maps[owner >> SWAP_DPA_BITS];

	*page = owner & ((1ull << SWAP_DPA_BITS) - 1);
	return map == NULL ? NULL : &map->managed.table;
}

/* Whoever frees an object has its page locked. */
static bool begin_move(void *home, uint64_t owner, zpool_handle from)
{
	uint64_t page, entry;
	struct swaptable *table = owner_of(home, owner, &page);

	if (table == NULL || !swaptable_trylock(table, page))
		return false;
	entry = swaptable_get(table, page);
	if (swap_tag(entry) == SWAP_POOL && swap_value(entry) == from)
		return true;
	swaptable_unlock(table, page);
	return false;
}

static void end_move(void *home, uint64_t owner, zpool_handle to)
{
	uint64_t page;
	struct swaptable *table = owner_of(home, owner, &page);
	uint64_t entry = swaptable_get(table, page);

	swaptable_set(table, page, swap_make(SWAP_POOL, to, swap_size(entry)) | (entry & SWAP_REFERENCED));
	swaptable_unlock(table, page);
}

uint64_t cram_zswap_compact(cram_zswap *zswap)
{
	const struct zpool_mover mover = { .begin = begin_move, .end = end_move, .arg = zswap->home };
	struct visit visit;
	uint64_t freed;

	if (visit_begin(zswap->home, &visit) != 0)
		return 0;
	freed = zpool_compact(&zswap->zswap.pool, &mover);
	zswap_publish_pool(&zswap->zswap);
	visit_end(&visit);
	return freed;
}

/* ---- nodes ----------------------------------------------------------------------------------------------- */

static int find_node(const cram_zswap *zswap, uint32_t nid, struct node **node)
{
	*node = (struct node *)&zswap->zswap.nodes[nid % NODES_MAX];
	if (nid >= NODES_MAX || atomic_load(&(*node)->state) == NODE_FREE)
		return cram_fail(CRAM_ENOENT, "node %u: there is none", nid);
	return 0;
}

int cram_zswap_add_node(cram_zswap *zswap, cram_device *device, const struct cram_node_params *params, uint32_t *nid)
{
	struct visit home, visit;
	uint32_t free = 0;
	int code;

	if (params->live_registers > 1 || params->approves > 1)
		return cram_fail(CRAM_EINVAL, "live registers %u, approves %u: not 0 or 1", params->live_registers, params->approves);
	if (params->trim_buffer > NODE_TRIMS)
		return cram_fail(CRAM_EINVAL, "trim buffer of %u pages: not from 0 to %u", params->trim_buffer, NODE_TRIMS);
	code = visit_begin_at(zswap->home, &home, true);
	if (code != 0)
		return code;
	while (free < NODES_MAX && atomic_load(&zswap->zswap.nodes[free].state) != NODE_FREE)
		free++;
	if (free == NODES_MAX) {
		code = cram_fail(CRAM_EBUSY, "the manager has %u nodes already", NODES_MAX);
	} else if ((code = visit_begin(device, &visit)) == 0) {
		code = node_open(&zswap->zswap.nodes[free], device, params, &zswap->zswap.board->views[free]);
		visit_end(&visit);
	}
	visit_end(&home);
	if (code == 0)
		*nid = free;
	return code;
}

/* One turn of moving pages of a memory off a node, from *page on: PAGESET_END at the end. */
static int move_off(struct cram_map *map, struct op *op, unsigned node, uint64_t *page)
{
	struct pager *pager = &map->pager;

	for (unsigned i = 0; i < TURN; i++, ++*page) {
		bool moved;

		*page = pageset_next(&map->managed.table.held, *page);
		if (*page == PAGESET_END)
			return 0;
		pager_lock_known(pager, op, *page, true);
		moved = zswap_leave_node(&map->managed, op, *page, node);
		pager_unlock(pager, op, *page);
		if (!moved)
			return cram_fail(CRAM_ENOSPC, "node %u: there is no room elsewhere for all of its pages", node);
	}
	return 0;
}

/* A turn a visit: others want the home device too. */
static int move_all_off(struct cram_zswap *zswap, unsigned node)
{
	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		uint64_t page = 0;

		while (page != PAGESET_END) {
			struct visit visit;
			int code = visit_begin_op(zswap->home, &visit);

			if (code != 0)
				return code;
			if (zswap->home->maps[i] == NULL)
				page = PAGESET_END;
			else
				code = move_off(zswap->home->maps[i], visit.op, node, &page);
			visit_end(&visit);
			if (code != 0)
				return code;
		}
	}
	return 0;
}

static int let_go(struct cram_zswap *zswap, struct node *node)
{
	struct visit visit;
	int code = visit_begin_op(zswap->home, &visit);

	if (code != 0)
		return code;
	/* A page that was promoted has lost its entry already, and is about to be released. */
	while (atomic_load(&node->stored) > 0)
		device_nap(visit.op, 20000);
	node_close(node, visit.op);
	visit_end(&visit);
	return 0;
}

int cram_zswap_remove_node(cram_zswap *zswap, uint32_t nid)
{
	struct node *node;
	struct visit visit;
	int code = find_node(zswap, nid, &node);

	if (code == 0)
		code = visit_begin_at(zswap->home, &visit, true);
	if (code != 0)
		return code;
	atomic_store(&node->state, NODE_LEAVING);
	visit_end(&visit);
	/* The race: a fault that has found the node online stores a page there after we have looked. The visit above has seen
	 * the reclaim of policies out; this sees faults out. */
	delivery_pause();
	delivery_resume();
	code = move_all_off(zswap, nid);
	if (code == 0)
		code = let_go(zswap, node);
	if (code != 0)
		return code;
	host_block_signals(&visit.before);
	device_close_table(node->device);
	host_restore_signals(&visit.before);
	host_release_node(node->handle);
	atomic_store(&node->state, NODE_FREE);
	return 0;
}

int cram_node_publish(cram_zswap *zswap, uint32_t nid, int allowed, int no_alloc, uint32_t pressure, uint32_t page_size)
{
	struct node *node;
	int code = find_node(zswap, nid, &node);

	if (code != 0)
		return code;
	if (pressure > 1000 || page_size > PAGE_SIZE)
		return cram_fail(CRAM_EINVAL, "pressure %u, page size %u: over 1000, or 4096", pressure, page_size);
	atomic_store(&node->view->allowed, allowed != 0);
	atomic_store(&node->view->no_alloc, no_alloc != 0);
	atomic_store(&node->view->pressure, pressure);
	atomic_store(&node->view->page_size, page_size);
	return 0;
}

int cram_node_read_stats(const cram_zswap *zswap, uint32_t nid, struct cram_node_stats *stats)
{
	struct node *node;
	int code = find_node(zswap, nid, &node);

	if (code != 0)
		return code;
	*stats = (struct cram_node_stats){
		.stored = atomic_load(&node->stored), .promoted = atomic_load(&node->promoted),
		.poisoned = atomic_load(&node->poisoned), .approved = atomic_load(&node->approved),
		.unapproved = atomic_load(&node->unapproved), .stock = atomic_load(&node->stock.count),
		.trims_done = atomic_load(&node->trims_done), .trims_deferred = atomic_load(&node->trims_deferred),
		.trims_full = atomic_load(&node->trims_full), .trims_busy = atomic_load(&node->trims_busy), .trims_waiting = atomic_load(&node->trims.count),
		.allowed = atomic_load(&node->view->allowed), .no_alloc = atomic_load(&node->view->no_alloc),
		.pressure = atomic_load(&node->view->pressure), .page_size = atomic_load(&node->view->page_size),
	};
	for (unsigned i = 0; i < CRAM_REFUSALS; i++)
		stats->refused[i] = atomic_load(&node->refused[i]);
	return 0;
}

/* A visit to the home device, for work on a node that is there. */
static int visit_node(cram_zswap *zswap, uint32_t nid, struct node **node, struct visit *visit)
{
	int code = visit_begin_op(zswap->home, visit);

	if (code != 0)
		return code;
	code = find_node(zswap, nid, node);
	if (code != 0)
		visit_end(visit);
	return code;
}

int cram_node_offer(cram_zswap *zswap, uint32_t nid, uint64_t *dpas, uint32_t n)
{
	struct node *node;
	struct visit visit;
	int code = visit_node(zswap, nid, &node, &visit);

	if (code != 0)
		return code;
	code = atomic_load(&node->state) == NODE_ONLINE ? (int)node_offer(node, visit.op, dpas, n) : 0;
	visit_end(&visit);
	for (int i = 0; i < code; i++)
		dpas[i] <<= PAGE_SHIFT;
	return code;
}

int cram_node_answer(cram_zswap *zswap, uint32_t nid, const uint64_t *dpas, const int32_t *answers, uint32_t n)
{
	struct node *node;
	struct visit visit;
	int code = visit_node(zswap, nid, &node, &visit);

	if (code != 0)
		return code;
	for (uint32_t i = 0; i < n && code == 0; i++) {
		uint64_t dpa = dpas[i] >> PAGE_SHIFT;

		/* Not what was offered, or not to this node, which has the number of one that has left. */
		if (!node_has(node, dpa))
			code = cram_fail(CRAM_EINVAL, "page 0x%" PRIx64 ": not one that node %u has offered", dpas[i], nid);
		else
			node_answer(node, visit.op, &dpa, &answers[i], 1);
	}
	visit_end(&visit);
	return code;
}

int64_t cram_node_flush(cram_zswap *zswap, uint32_t nid)
{
	struct node *node;
	struct visit visit;
	int64_t flushed = visit_node(zswap, nid, &node, &visit);

	if (flushed != 0)
		return flushed;
	flushed = (int64_t)node_flush_trims(node, visit.op);
	visit_end(&visit);
	return flushed;
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

static int check_group(const cram_zswap *zswap, uint32_t group)
{
	if (group >= MEMCG_MAX || !atomic_load(&zswap->zswap.groups.group[group].used))
		return cram_fail(CRAM_ENOENT, "memory cgroup %u: there is none", group);
	return 0;
}

int cram_managed_create(cram_zswap *zswap, const struct cram_managed_params *params, cram_map **map)
{
	struct cram_map_params mapping = { .length = params->length, .window = params->dram, .delivery = params->delivery };
	int code = check_group(zswap, params->group);

	if (code == 0)
		code = map_create(zswap->home, &mapping, NULL, &zswap->zswap, params->group, map);
	if (code == 0)
		pager_open(&(*map)->pager, 0, (*map)->pager.pages);
	return code;
}

/* A visit to a managed memory that is still there. */
static int visit_memory(cram_map *map, struct visit *visit)
{
	int code = visit_begin_op(map->owner, visit);

	if (code != 0)
		return code;
	if (!map->closed && map->pager.managed != NULL)
		return 0;
	visit_end(visit);
	return map->closed ? cram_fail(CRAM_ECLOSED, "the memory is closed") : cram_fail(CRAM_EINVAL, "not managed memory");
}

/* Reclaims in batches, a visit each, until so many pages are gone, or the memory has no more frames than `least`. */
static int reclaim(cram_map *map, uint64_t pages, uint64_t least, uint64_t *done)
{
	uint64_t sum = 0;
	unsigned n = 1;
	int code = 0;

	while (n > 0 && sum < pages && atomic_load(&map->pager.resident) > least) {
		struct visit visit;

		code = visit_memory(map, &visit);
		if (code != 0)
			break;
		n = pager_reclaim(&map->pager, visit.op, pages - sum);
		zswap_count(map->managed.zswap, CRAM_ZSWAP_KSWAPD_RECLAIM, n);
		visit_end(&visit);
		sum += n;
	}
	*done = sum;
	return code;
}

int cram_map_reclaim(cram_map *map, uint64_t pages, uint64_t *done)
{
	return reclaim(map, pages, 0, done);
}

int cram_map_balance(cram_map *map, uint64_t pages, uint64_t *done)
{
	return reclaim(map, pages, map->pager.low, done);
}

int cram_map_discard(cram_map *map, uint64_t offset, uint64_t length)
{
	uint64_t size = map->pager.pages << PAGE_SHIFT;
	struct visit visit;
	int code;

	if (offset % PAGE_SIZE != 0 || length % PAGE_SIZE != 0 || offset > size || length > size - offset)
		return cram_fail(CRAM_EINVAL, "range of 0x%" PRIx64 " bytes at 0x%" PRIx64 ": not whole pages within 0x%" PRIx64, length,
				 offset, size);
	code = visit_memory(map, &visit);
	if (code != 0)
		return code;
	pager_discard(&map->pager, visit.op, offset >> PAGE_SHIFT, length >> PAGE_SHIFT);
	visit_end(&visit);
	return 0;
}

/* One turn of the shrinker's hand: pages written back, of `most`; *scanned grows. */
static uint64_t shrink_turn(struct cram_map *map, struct op *op, uint64_t most, uint64_t *scanned)
{
	struct pager *pager = &map->pager;
	uint64_t written = 0;

	for (unsigned i = 0; i < TURN && written < most; i++, ++*scanned) {
		uint64_t page = pageset_next(&map->managed.table.held, atomic_load(&map->shrink_hand));

		/* Two that shrink at once may look at a page twice, or pass one over until the next lap. */
		atomic_store(&map->shrink_hand, page == PAGESET_END ? 0 : page + 1);
		if (page == PAGESET_END)
			continue;
		/* Waits: who stores a batch has all of its pages until the last of them has met the limit, and called us. */
		if (!pager_lock_known(pager, op, page, true))
			continue;
		written += zswap_write_back(&map->managed, op, page);
		pager_unlock(pager, op, page);
	}
	return written;
}

int cram_map_shrink(cram_map *map, uint64_t pages, uint64_t *done)
{
	uint64_t written = 0, scanned = 0, laps;
	struct visit visit;
	int code = visit_memory(map, &visit);

	if (code != 0)
		return code;
	/* One lap spends the second chances, the next finds them spent. */
	laps = TURN;
	for (unsigned i = CRAM_ZSWAP_STORED_POOL; i <= CRAM_ZSWAP_STORED_FILE; i++)
		laps += 2 * atomic_load(&map->managed.zswap->row->counters[i]);
	visit_end(&visit);
	while (code == 0 && written < pages && scanned < laps) {
		code = visit_memory(map, &visit);
		if (code != 0)
			break;
		written += shrink_turn(map, visit.op, pages - written, &scanned);
		visit_end(&visit);
	}
	*done = written;
	return code;
}

int cram_managed_page(cram_map *map, uint64_t offset, struct cram_managed_page *info)
{
	uint64_t page = offset >> PAGE_SHIFT, entry;
	struct visit visit;
	int code;

	if (page >= map->pager.pages)
		return cram_fail(CRAM_EINVAL, "offset 0x%" PRIx64 ": outside the memory", offset);
	code = visit_memory(map, &visit);
	if (code != 0)
		return code;
	pager_lock(&map->pager, visit.op, page);
	entry = swaptable_get(&map->managed.table, page);
	*info = (struct cram_managed_page){ .place = swap_tag(entry), .size = swap_size(entry) };
	if (pager_resident(&map->pager, page))
		info->place = SWAP_POISON + 1;
	if (swap_tag(entry) == SWAP_DIRECT) {
		info->node = swap_node(entry);
		info->dpa = swap_dpa(entry) << PAGE_SHIFT;
	}
	pager_unlock(&map->pager, visit.op, page);
	visit_end(&visit);
	return 0;
}

/* ---- memory cgroups -------------------------------------------------------------------------------------- */

int cram_memcg_create(cram_zswap *zswap, uint32_t parent, uint32_t *group)
{
	struct visit visit;
	int code = check_group(zswap, parent), made;

	if (code == 0)
		code = visit_begin_at(zswap->home, &visit, true);
	if (code != 0)
		return code;
	made = memcg_create(&zswap->zswap.groups, parent);
	visit_end(&visit);
	if (made < 0)
		return cram_fail(CRAM_EBUSY, "the manager has %u memory cgroups already", MEMCG_MAX);
	*group = (uint32_t)made;
	return 0;
}

int cram_memcg_set(cram_zswap *zswap, uint32_t group, uint64_t max, uint64_t zswap_max, int writeback)
{
	struct memcg *row = &zswap->zswap.groups.group[group % MEMCG_MAX];
	int code = check_group(zswap, group);

	if (code != 0)
		return code;
	atomic_store(&row->max, max);
	atomic_store(&row->zswap_max, zswap_max);
	atomic_store(&row->writeback, writeback != 0);
	return 0;
}

int cram_memcg_read_stats(const cram_zswap *zswap, uint32_t group, struct cram_memcg_stats *stats)
{
	const struct memcg *row = &zswap->zswap.groups.group[group % MEMCG_MAX];
	int code = check_group(zswap, group);

	if (code != 0)
		return code;
	*stats = (struct cram_memcg_stats){
		.max = atomic_load(&row->max), .zswap_max = atomic_load(&row->zswap_max), .anon = atomic_load(&row->anon),
		.zswap = atomic_load(&row->zswap), .zswapped = atomic_load(&row->zswapped), .zswpin = atomic_load(&row->zswpin),
		.zswpout = atomic_load(&row->zswpout), .zswpwb = atomic_load(&row->zswpwb),
		.max_events = atomic_load(&row->max_events), .oom = atomic_load(&row->oom), .parent = row->parent,
		.writeback = atomic_load(&row->writeback),
	};
	return 0;
}

/* ---- what the manager has for a policy ------------------------------------------------------------------- */

int cram_zswap_wait(cram_zswap *manager, int timeout_ms)
{
	struct zswap *zswap = &manager->zswap;
	uint64_t end = timeout_ms < 0 ? UINT64_MAX : now_ns() + (uint64_t)timeout_ms * 1000000;
	uint32_t work;

	atomic_store(&zswap->listeners, 1);
	for (;;) {
		uint32_t bell = atomic_load(&zswap->bell);
		uint64_t now = now_ns();

		work = atomic_exchange(&zswap->wanted, 0);
		if (work != 0 || now >= end)
			break;
		futex_wait(&zswap->bell, bell, end == UINT64_MAX ? -1 : (int64_t)(end - now));
	}
	return (int)work;
}

void cram_zswap_wake(cram_zswap *zswap)
{
	atomic_fetch_or(&zswap->zswap.wanted, CRAM_WORK_STOP);
	atomic_fetch_add(&zswap->zswap.bell, 1);
	futex_wake_all(&zswap->zswap.bell);
}

void cram_zswap_subscribe(cram_zswap *zswap, uint32_t kinds)
{
	atomic_store(&zswap->zswap.notes_kinds, kinds);
}

uint32_t cram_zswap_take_notes(cram_zswap *manager, struct cram_zswap_note *notes, uint32_t n)
{
	struct zswap *zswap = &manager->zswap;
	uint64_t tail = atomic_load(&zswap->notes_tail);
	uint32_t taken = 0;

	/* One reader: what is before the head is written, and stays until the tail has passed it. */
	while (taken < n && tail + taken < atomic_load(&zswap->notes_head)) {
		notes[taken] = zswap->notes[(tail + taken) % CRAM_ZSWAP_NOTES];
		taken++;
	}
	atomic_store(&zswap->notes_tail, tail + taken);
	return taken;
}
