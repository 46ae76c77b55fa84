/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "error.h"
#include "layout.h"
#include "memory.h"
#include "recovery.h"

#define PAGE_SPINS 100
#define PAGE_SLEEP_MAX_NS 1000000
/* Waiting so long for a page lock raises the question whether its holder lives. */
#define PAGE_LIVENESS_NS 50000000
#define REQUEST_TIMEOUT_NS 2000000000
#define REQUEST_LIVENESS_NS 10000000

/* ---- lifetime ------------------------------------------------------------------------------------------- */

/* A place's part of the scratch memory: the op, then its buffers. */
#define SCRATCH_HEAD 192u
#define SCRATCH_FORM SCRATCH_HEAD
#define SCRATCH_PAGE (SCRATCH_FORM + PAGE_SIZE)
#define SCRATCH_BATCH (SCRATCH_PAGE + PAGE_SIZE)
#define SCRATCH_CODEC (SCRATCH_BATCH + DEVICE_BATCH * PAGE_SIZE)
_Static_assert(sizeof(struct op) <= SCRATCH_HEAD, "an op fits its head");

static int map_object(struct device *device, const struct geometry *geometry, const char *name)
{
	void *base = memory_map(geometry->size, device->fd);

	if (base == NULL)
		return cram_fail(cram_code_of_errno(errno), "%s: cannot map %" PRIu64 " bytes: %s", name, geometry->size,
				 strerror(errno));
	madvise(base, geometry->size, MADV_DONTDUMP);
	device->base = base;
	device->super = base;
	device->clients = (struct clients *)(device->base + geometry->clients);
	device->alert = (struct alert *)(device->base + geometry->alert);
	device->poison = (struct poison_list *)(device->base + geometry->poison);
	device->map.entries = (_Atomic uint64_t *)(device->base + geometry->map);
	device->map.checks = (uint32_t *)(device->base + geometry->checks);
	device->map.pages = geometry->pages;
	device->media.bytes = device->base + geometry->media;
	device->media.links = (uint32_t *)(device->base + geometry->links);
	device->media.bitmap = (_Atomic uint64_t *)(device->base + geometry->bitmap);
	device->media.groups = (_Atomic uint16_t *)(device->base + geometry->groups);
	device->media.used = &device->super->used;
	device->media.sectors = geometry->sectors;
	device->media.sector_size = geometry->params.sector;
	codec_init(&device->codec, &geometry->params);
	return 0;
}

static int map_scratch(struct device *device)
{
	size_t stride = SCRATCH_CODEC + device->codec.compress_space + device->codec.decompress_space;
	device->scratch_stride = (stride + PAGE_SIZE - 1) & ~(size_t)(PAGE_SIZE - 1);
	device->scratch = memory_map(device->scratch_stride * PLACES_MAX, -1);
	if (device->scratch == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for the work areas: %s", strerror(errno));
	return 0;
}

static void unmap(struct device *device)
{
	if (device->scratch != NULL)
		munmap(device->scratch, device->scratch_stride * PLACES_MAX);
	if (device->base != NULL)
		munmap(device->base, device->super->geometry.size);
	close(device->fd);
	device->fd = -1;
}

/* Joins the mapped object as a client, recovering from dead ones first. */
static int join(struct device *device, const char *name)
{
	int client, code;

	device->client = CLIENT_JOINING;
	code = recovery_lock(device);

	if (code == 0 && (clients_dead(device->clients) != 0 || device->super->suspect))
		code = recovery_run(device, NULL);
	if (code != 0) {
		recovery_unlock(device);
		return code;
	}
	client = clients_join(device->clients);
	if (client >= 0) {
		device->client = (unsigned)client;
		device->self = &device->clients->table[client];
	}
	recovery_unlock(device);
	if (client == -2)
		return cram_fail(CRAM_EIO, "%s: cannot read /proc/%d/stat (descriptors used up?)", name, (int)getpid());
	if (client < 0)
		return cram_fail(CRAM_EBUSY, "%s: all %u client slots are taken", name, CLIENTS_MAX);
	return 0;
}

/* The whole object may come to be written: say so now rather than by SIGBUS later. (Others can still fill the file
 * system; a memory-backed anonymous object has no such limit of its own.) */
static int check_room(int fd, uint64_t size, const char *path)
{
	struct statvfs fs;

	if (fstatvfs(fd, &fs) != 0)
		return cram_fail(cram_code_of_errno(errno), "%s: %s", path, strerror(errno));
	if ((uint64_t)fs.f_bavail * fs.f_frsize < size)
		return cram_fail(CRAM_ENOSPC, "%s: the file system has %" PRIu64 " bytes free, a full device takes %" PRIu64,
				 path, (uint64_t)fs.f_bavail * fs.f_frsize, size);
	return 0;
}

static int create_object(const char *path, uint64_t size, int *fd)
{
	const char *name = path != NULL ? path : "device";
	int code = 0;

	*fd = path != NULL ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
			   : memfd_create("cram_emu", MFD_CLOEXEC);
	if (*fd < 0)
		return cram_fail(cram_code_of_errno(errno), "%s: %s", name, strerror(errno));
	if (path != NULL)
		code = check_room(*fd, size, path);
	if (code == 0 && ftruncate(*fd, (off_t)size) != 0)
		code = cram_fail(cram_code_of_errno(errno), "%s: cannot make it %" PRIu64 " bytes long: %s", name, size,
				 strerror(errno));
	if (code != 0) {
		if (path != NULL)
			unlink(path);
		close(*fd);
	}
	return code;
}

int device_create(const char *path, const struct cram_params *params, struct device *device)
{
	struct geometry geometry;
	int code = layout_check_params(params);

	if (code != 0)
		return code;
	memset(device, 0, sizeof(*device));
	layout_plan(params, &geometry);
	code = create_object(path, geometry.size, &device->fd);
	if (code != 0)
		return code;
	code = map_object(device, &geometry, path != NULL ? path : "device");
	if (code == 0)
		code = map_scratch(device);
	if (code == 0) {
		device->poison->limit = params->poison_limit;
		alert_set(device->alert, geometry.sectors, params->sector, params->low_remaining,
			  params->high_remaining, params->low_ratio, params->high_ratio);
		layout_format(device->super, &geometry);
		code = join(device, path != NULL ? path : "device");
	}
	if (code != 0) {
		unmap(device);
		if (path != NULL)
			unlink(path);
	}
	return code;
}

int device_open(const char *path, struct device *device)
{
	struct geometry geometry;
	struct stat st;
	int code;

	memset(device, 0, sizeof(*device));
	device->fd = open(path, O_RDWR | O_CLOEXEC);
	if (device->fd < 0)
		return cram_fail(cram_code_of_errno(errno), "%s: %s", path, strerror(errno));
	if (fstat(device->fd, &st) != 0 || !S_ISREG(st.st_mode))
		code = cram_fail(CRAM_EFORMAT, "%s: not a regular file", path);
	else
		code = layout_recognise(device->fd, (uint64_t)st.st_size, path, &geometry);
	if (code == 0)
		code = map_object(device, &geometry, path);
	if (code == 0)
		code = map_scratch(device);
	if (code == 0)
		code = join(device, path);
	if (code != 0)
		unmap(device);
	return code;
}

void device_close(struct device *device, bool forked)
{
	if (!forked && recovery_lock(device) == 0) {
		clients_leave(device->clients, device->client);
		recovery_unlock(device);
	}
	unmap(device);
}

const struct cram_params *device_params(const struct device *device)
{
	return &device->super->geometry.params;
}

/* ---- entering, locking ---------------------------------------------------------------------------------- */

/* Takes a lock of the superblock; one that a dead client held makes the device suspect. */
static void lock(struct device *device, struct futex_lock *lock)
{
	if (futex_lock(lock, futex_name(device->client, thread_id()), clients_holder_dead, device->clients))
		atomic_store(&device->super->suspect, 1);
}

static struct op *op_at(struct device *device, unsigned place)
{
	uint8_t *memory = device->scratch + place * device->scratch_stride;
	struct op *op = (struct op *)memory;

	if (!op->ready) {
		op->device = device;
		op->place = place;
		op->form = memory + SCRATCH_FORM;
		op->page = memory + SCRATCH_PAGE;
		op->batch = memory + SCRATCH_BATCH;
		/* Places search apart from each other, so that threads do not meet in one word of the bitmap. */
		op->cursor = place * (device->media.sectors / 64 / PLACES_MAX);
		codec_open_space(&device->codec, memory + SCRATCH_CODEC, &op->space);
		op->ready = true;
	}
	return op;
}

struct op *device_enter(struct device *device)
{
	int place;

	while ((place = place_enter(device->clients, device->client, thread_id())) < 0)
		device_reap(device, NULL);
	return op_at(device, (unsigned)place);
}

void device_leave(struct op *op)
{
	place_leave(op->device->clients, op->device->client, op->place);
}

/* Recovers from dead clients in the middle of an op, which stands at a page boundary. */
static uint32_t reap_parked(struct op *op)
{
	struct device *device = op->device;
	uint32_t dead = 0;

	place_park(device->clients, device->client, op->place);
	device_reap(device, &dead);
	while (!place_unpark(device->clients, device->client, op->place))
		device_reap(device, NULL);
	return dead;
}

bool device_trylock_page(struct op *op, uint64_t page)
{
	return pagemap_trylock(&op->device->map, page, op->device->client);
}

void device_lock_page(struct op *op, uint64_t page)
{
	struct device *device = op->device;
	uint64_t slept = 0, nap = 2000;

	for (int i = 0; i < PAGE_SPINS; i++) {
		if (device_trylock_page(op, page))
			return;
		__builtin_ia32_pause();
	}
	/* Parked while asleep: the holder may itself wait for who raised the gate, who waits for us. */
	for (;;) {
		uint64_t entry;

		place_park(device->clients, device->client, op->place);
		sleep_ns(nap);
		slept += nap;
		nap = nap * 2 < PAGE_SLEEP_MAX_NS ? nap * 2 : PAGE_SLEEP_MAX_NS;
		while (!place_unpark(device->clients, device->client, op->place))
			device_reap(device, NULL);
		if (device_trylock_page(op, page))
			return;
		entry = pagemap_entry(&device->map, page);
		if (slept > PAGE_LIVENESS_NS && (entry & ENTRY_LOCK)) {
			slept = 0;
			if (client_dead(&device->clients->table[entry_holder(entry) % CLIENTS_MAX]))
				reap_parked(op);
		}
	}
}

void device_unlock_page(struct op *op, uint64_t page)
{
	pagemap_unlock(&op->device->map, page);
}

bool device_foreign(struct op *op, uint64_t page)
{
	return clients_foreign(op->device->clients, op->device->client, page);
}

void device_count_refused(struct device *device)
{
	atomic_fetch_add(&device->super->refused_writes, 1);
}

/* ---- counters ------------------------------------------------------------------------------------------- */

static void sum_stripes(const struct device *device, struct stripe *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (unsigned i = 0; i < STRIPES; i++) {
		const struct stripe *stripe = &device->super->stripes[i];

		for (unsigned s = 0; s < 6; s++)
			sum->pages[s] += atomic_load_explicit(&stripe->pages[s], memory_order_relaxed);
		sum->payload += atomic_load_explicit(&stripe->payload, memory_order_relaxed);
		sum->poisoned += atomic_load_explicit(&stripe->poisoned, memory_order_relaxed);
	}
}

static struct stripe *stripe_of(struct op *op)
{
	return &op->device->super->stripes[op->place % STRIPES];
}

static void add(_Atomic int64_t *counter, int64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Sums are taken while others count: a sum may be below zero for a moment. */
static uint64_t whole(int64_t n)
{
	return n > 0 ? (uint64_t)n : 0;
}

static uint64_t ratio_of(const struct stripe *sum, uint64_t used_bytes)
{
	int64_t pages = sum->pages[CRAM_PAGE_ZERO] + sum->pages[CRAM_PAGE_SAME] + sum->pages[CRAM_PAGE_STORED] +
			sum->pages[CRAM_PAGE_RAW];

	return used_bytes == 0 ? 0 : (uint64_t)((__uint128_t)whole(pages) * PAGE_SIZE * 1000 / used_bytes);
}

static void read_levels(void *arg, struct alert_reading *reading)
{
	const struct device *device = arg;

	reading->used = atomic_load(device->media.used);
	reading->remaining = (device->media.sectors - reading->used) * device->media.sector_size;
	reading->ratio = 0;
	if (alert_ratio_on(device->alert)) {
		struct stripe sum;

		sum_stripes(device, &sum);
		reading->ratio = ratio_of(&sum, reading->used * device->media.sector_size);
	}
}

void device_evaluate_alerts(struct device *device)
{
	bool raised;

	lock(device, &device->super->alert_lock);
	raised = alert_evaluate(device->alert, read_levels, device);
	futex_unlock(&device->super->alert_lock);
	if (raised)
		clients_ring_all(device->clients);
}

/* After every change of the used sectors. */
static void used_changed(struct op *op)
{
	struct device *device = op->device;
	uint64_t used = atomic_load(device->media.used);
	uint64_t peak = atomic_load_explicit(&device->super->peak, memory_order_relaxed);

	while (used > peak && !atomic_compare_exchange_weak(&device->super->peak, &peak, used))
		;
	if (alert_due(device->alert, used) || alert_ratio_on(device->alert))
		device_evaluate_alerts(device);
}

/* ---- pages ---------------------------------------------------------------------------------------------- */

static uint32_t tag_of(uint64_t page)
{
	return (uint32_t)page;
}

/* The sectors of a page. False: its chain is broken; it must not be followed, nor freed. */
static bool load_chain(const struct device *device, uint64_t page, uint64_t entry, struct chain *chain)
{
	uint32_t count = media_sectors_for(&device->media, entry_length(entry));

	chain->count = 0;
	return count == 0 || media_chain_load(&device->media, entry_first(entry), count, entry & ENTRY_RUN,
					      tag_of(page), chain);
}

/* As load_chain(), for a page that is about to lose its sectors; those of a broken chain stay taken until a rebuild
 * finds that nobody has them. */
static void old_chain(struct op *op, uint64_t page, uint64_t entry, struct chain *chain)
{
	if (!load_chain(op->device, page, entry, chain)) {
		chain->count = 0;
		atomic_store(&op->device->super->suspect, 1);
	}
}

/* Takes the page out of the counters and, unless its lines stay poisoned, out of the poison list. */
static void retire(struct op *op, uint64_t page, uint64_t entry, bool keep_lines)
{
	struct device *device = op->device;
	struct stripe *stripe = stripe_of(op);
	enum cram_page_state state = entry_state(entry);

	if (state != CRAM_PAGE_EMPTY)
		add(&stripe->pages[state], -1);
	if (entry_length(entry) != 0)
		add(&stripe->payload, -(int64_t)entry_length(entry));
	if (keep_lines)
		return;
	if (state == CRAM_PAGE_POISON || (entry & ENTRY_RECORDED))
		add(&stripe->poisoned, -1);
	if (entry & ENTRY_RECORDED) {
		lock(device, &device->super->poison_lock);
		poison_remove(device->poison, page << PAGE_SHIFT, PAGE_SIZE);
		futex_unlock(&device->super->poison_lock);
	} else if (state == CRAM_PAGE_POISON) {
		atomic_fetch_sub(&device->super->poison_overflow, 1);
	}
}

/* Publishes a page's new place and counts it. */
static void arrive(struct op *op, uint64_t page, uint64_t entry, uint32_t check)
{
	struct stripe *stripe = stripe_of(op);

	pagemap_publish(&op->device->map, page, entry, check);
	if (entry_state(entry) != CRAM_PAGE_EMPTY)
		add(&stripe->pages[entry_state(entry)], 1);
	if (entry_length(entry) != 0)
		add(&stripe->payload, entry_length(entry));
}

static void free_chain(struct op *op, struct chain *chain)
{
	uint32_t count = chain->count;

	if (count == 0)
		return;
	media_release(&op->device->media, chain, 0);
	media_unreserve(&op->device->media, count);
}

/* Makes a locked page poison: its data and sectors go. */
static void make_poison(struct op *op, uint64_t page, enum cram_poison_source source)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	struct chain chain;
	bool recorded;

	old_chain(op, page, entry, &chain);
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	retire(op, page, entry, false);
	free_chain(op, &chain);
	lock(device, &device->super->poison_lock);
	recorded = poison_add(device->poison, page << PAGE_SHIFT, PAGE_SIZE, source);
	futex_unlock(&device->super->poison_lock);
	if (!recorded)
		atomic_fetch_add(&device->super->poison_overflow, 1);
	arrive(op, page, entry_make(CRAM_PAGE_POISON, UINT32_MAX, 0) | (recorded ? ENTRY_RECORDED : 0), UINT32_MAX);
	add(&stripe_of(op)->poisoned, 1);
	used_changed(op);
}

/* Nothing is free: do the dead hold something, or a broken chain? True when a recovery has run: look again. */
static bool room_from_the_dead(struct op *op)
{
	struct device *device = op->device;
	bool suspect = atomic_load(&device->super->suspect);

	if (atomic_load(&device->clients->attached) == 1ull << device->client && !suspect)
		return false;
	return reap_parked(op) > 0 || suspect;
}

static bool store(struct op *op, uint64_t page, const uint8_t *from, bool keep_lines)
{
	struct device *device = op->device;
	struct media *media = &device->media;
	uint64_t entry, next;
	uint32_t check = 0, need, had;
	struct encoded encoded;
	struct chain chain;
	bool room;

	codec_encode(&device->codec, &op->space, from, op->form, &encoded);
	need = media_sectors_for(media, encoded.length);
	/* Only growth is reserved: rewriting a full device without growth succeeds, whoever else asks for room. */
	do {
		entry = pagemap_entry(&device->map, page);
		old_chain(op, page, entry, &chain);
		had = chain.count;
		room = need <= had || media_reserve(media, need - had);
	} while (!room && room_from_the_dead(op));
	if (!room) {
		atomic_fetch_add(&device->super->dropped_writes, 1);
		make_poison(op, page, CRAM_POISON_DROPPED);
		return false;
	}
	keep_lines = keep_lines && (entry & ENTRY_RECORDED) && entry_state(entry) != CRAM_PAGE_POISON;
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	retire(op, page, entry, keep_lines);
	if (need < had) {
		media_release(media, &chain, need);
		media_unreserve(media, had - need);
	} else if (need > had) {
		media_take(media, &op->cursor, need - had, &chain);
	}
	next = entry_make(encoded.state, 0, encoded.length) | (keep_lines ? ENTRY_RECORDED : 0);
	if (need > 0) {
		media_chain_link(media, &chain, tag_of(page));
		media_write(media, &chain, encoded.form, encoded.length);
		check = codec_check(encoded.form, encoded.length, page);
		next |= chain.sector[0] | (chain.run ? ENTRY_RUN : 0);
	} else if (encoded.state == CRAM_PAGE_SAME) {
		next |= (uint32_t)encoded.word;
		check = (uint32_t)(encoded.word >> 32);
	}
	arrive(op, page, next, check);
	if (need != had)
		used_changed(op);
	else if (alert_ratio_on(device->alert))
		device_evaluate_alerts(device);
	return true;
}

bool device_store(struct op *op, uint64_t page, const uint8_t *from)
{
	return store(op, page, from, false);
}

static void fill(uint8_t *to, uint64_t word)
{
	for (unsigned i = 0; i < PAGE_SIZE / sizeof(word); i++)
		memcpy(to + i * sizeof(word), &word, sizeof(word));
}

/* The stored form, checked, decoded into to. False: damaged. */
static bool load_form(struct op *op, uint64_t page, uint64_t entry, uint8_t *to)
{
	struct device *device = op->device;
	uint32_t length = entry_length(entry);
	const uint8_t *form;
	struct chain chain;

	if (!load_chain(device, page, entry, &chain))
		return false;
	form = media_run(&device->media, &chain);
	if (form == NULL) {
		media_read(&device->media, &chain, op->form, length);
		form = op->form;
	}
	if (codec_check(form, length, page) != device->map.checks[page])
		return false;
	if (entry_state(entry) == CRAM_PAGE_STORED)
		return codec_decode(&device->codec, &op->space, form, length, to) == 0;
	memcpy(to, form, PAGE_SIZE);
	return true;
}

/* The page's data, whatever lines are poisoned. False: it has none; damaged media has become poison. */
static bool load_data(struct op *op, uint64_t page, uint8_t *to)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);

	switch (entry_state(entry)) {
	case CRAM_PAGE_EMPTY:
	case CRAM_PAGE_ZERO:
		memset(to, 0, PAGE_SIZE);
		return true;
	case CRAM_PAGE_SAME:
		fill(to, pagemap_word(&device->map, page, entry));
		return true;
	case CRAM_PAGE_STORED:
	case CRAM_PAGE_RAW:
		if (load_form(op, page, entry, to))
			return true;
		atomic_fetch_add(&device->super->media_errors, 1);
		make_poison(op, page, CRAM_POISON_MEDIA);
		return false;
	case CRAM_PAGE_POISON:
		break;
	}
	return false;
}

static uint64_t poisoned_lines(struct device *device, uint64_t page)
{
	uint64_t entry = pagemap_entry(&device->map, page);
	uint64_t lines;

	if (entry_state(entry) == CRAM_PAGE_POISON)
		return pagemap_word(&device->map, page, entry);
	if (!(entry & ENTRY_RECORDED))
		return 0;
	lock(device, &device->super->poison_lock);
	lines = poison_lines(device->poison, page << PAGE_SHIFT);
	futex_unlock(&device->super->poison_lock);
	return lines;
}

size_t device_load(struct op *op, uint64_t page, uint8_t *to)
{
	uint64_t lines;

	/* A page without data still has its cleared lines: they read as zeros. */
	if (!load_data(op, page, to))
		memset(to, 0, PAGE_SIZE);
	lines = device_poisoned(op, page) ? poisoned_lines(op->device, page) : 0;
	return lines == 0 ? 0 : PAGE_SIZE - (size_t)__builtin_ctzll(lines) * LINE_SIZE;
}

bool device_poisoned(const struct op *op, uint64_t page)
{
	uint64_t entry = pagemap_entry(&op->device->map, page);

	return entry_state(entry) == CRAM_PAGE_POISON || (entry & ENTRY_RECORDED);
}

void device_drop(struct op *op, uint64_t page)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	struct chain chain;

	if ((entry & ~(ENTRY_LOCK | ENTRY_HOLDER)) == 0)
		return;
	old_chain(op, page, entry, &chain);
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	retire(op, page, entry, false);
	free_chain(op, &chain);
	arrive(op, page, 0, 0);
	used_changed(op);
}

void device_mark_dirty(struct op *op, uint64_t page, bool dirty)
{
	pagemap_change(&op->device->map, page, dirty ? 0 : ENTRY_DIRTY, dirty ? ENTRY_DIRTY : 0);
}

int device_inject(struct op *op, uint64_t page, unsigned line)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	bool recorded;

	if (poisoned_lines(device, page) >> line & 1)
		return 0;
	if (entry_state(entry) == CRAM_PAGE_POISON) {
		uint64_t mask = pagemap_word(&device->map, page, entry) | 1ull << line;

		pagemap_publish(&device->map, page,
				entry_make(CRAM_PAGE_POISON, (uint32_t)mask, 0) | (entry & ENTRY_RECORDED),
				(uint32_t)(mask >> 32));
		return 0;
	}
	lock(device, &device->super->poison_lock);
	recorded = poison_add(device->poison, (page << PAGE_SHIFT) + line * LINE_SIZE, LINE_SIZE,
			      CRAM_POISON_INJECTED);
	futex_unlock(&device->super->poison_lock);
	if (!recorded)
		return CRAM_EBUSY;
	pagemap_change(&device->map, page, 0, ENTRY_RECORDED);
	if (!(entry & ENTRY_RECORDED))
		add(&stripe_of(op)->poisoned, 1);
	return 0;
}

/* Clears one line of a page that has no data. */
static void clear_without_data(struct op *op, uint64_t page, unsigned line)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	uint64_t mask = pagemap_word(&device->map, page, entry) & ~(1ull << line);

	if (mask != 0) {
		pagemap_publish(&device->map, page,
				entry_make(CRAM_PAGE_POISON, (uint32_t)mask, 0) | (entry & ENTRY_RECORDED),
				(uint32_t)(mask >> 32));
		return;
	}
	/* Every line has been zeroed. */
	retire(op, page, entry, false);
	arrive(op, page, entry_make(CRAM_PAGE_ZERO, 0, 0), 0);
}

void device_clear(struct op *op, uint64_t page, unsigned line)
{
	struct device *device = op->device;
	uint64_t dpa = (page << PAGE_SHIFT) + line * LINE_SIZE;

	if (!load_data(op, page, op->page)) {
		clear_without_data(op, page, line);
		return;
	}
	memset(op->page + line * LINE_SIZE, 0, LINE_SIZE);
	if (!store(op, page, op->page, true))
		return;
	if (!(pagemap_entry(&device->map, page) & ENTRY_RECORDED))
		return;
	lock(device, &device->super->poison_lock);
	poison_remove(device->poison, dpa, LINE_SIZE);
	futex_unlock(&device->super->poison_lock);
	if (poisoned_lines(device, page) == 0) {
		pagemap_change(&device->map, page, ENTRY_RECORDED, 0);
		add(&stripe_of(op)->poisoned, -1);
	}
}

/* ---- outside of an op ----------------------------------------------------------------------------------- */

int device_claim(struct device *device, uint64_t first, uint64_t count, int *claim)
{
	int code = recovery_lock(device);

	if (code != 0)
		return code;
	if (clients_dead(device->clients) != 0)
		code = recovery_run(device, NULL);
	if (code == 0)
		*claim = clients_claim(device->clients, device->client, first, count);
	recovery_unlock(device);
	if (code != 0)
		return code;
	if (*claim == -1)
		return cram_fail(CRAM_EBUSY, "range 0x%" PRIx64 " to 0x%" PRIx64 ": a part of it is mapped already",
				 first << PAGE_SHIFT, (first + count) << PAGE_SHIFT);
	if (*claim == -2)
		return cram_fail(CRAM_EBUSY, "this device object has %u mappings already", CLAIMS_MAX);
	return 0;
}

void device_unclaim(struct device *device, int claim)
{
	if (recovery_lock(device) == 0) {
		clients_unclaim(device->clients, device->client, claim);
		recovery_unlock(device);
	}
}

int device_rebuild(struct device *device)
{
	int code = recovery_lock(device);

	if (code == 0) {
		code = recovery_run(device, NULL);
		recovery_unlock(device);
	}
	return code;
}

int device_reap(struct device *device, uint32_t *dead)
{
	uint32_t found = 0;
	int code = recovery_lock(device);

	if (code != 0)
		return code;
	if (clients_dead(device->clients) != 0 || device->super->suspect || atomic_load(&device->clients->gate))
		code = recovery_run(device, &found);
	recovery_unlock(device);
	if (code == 0 && dead != NULL)
		*dead = found;
	return code;
}

int device_set_thresholds(struct device *device, uint64_t low_remaining, uint64_t high_remaining,
			  uint32_t low_ratio, uint32_t high_ratio)
{
	struct cram_params params = *device_params(device);
	int code;

	params.low_remaining = low_remaining;
	params.high_remaining = high_remaining;
	params.low_ratio = low_ratio;
	params.high_ratio = high_ratio;
	code = layout_check_params(&params);
	if (code != 0)
		return code;
	lock(device, &device->super->alert_lock);
	alert_set(device->alert, device->media.sectors, device->media.sector_size, low_remaining, high_remaining,
		  low_ratio, high_ratio);
	futex_unlock(&device->super->alert_lock);
	device_evaluate_alerts(device);
	return 0;
}

int device_request(struct device *device, enum request_kind kind, uint64_t dpa)
{
	uint64_t deadline = now_ns() + REQUEST_TIMEOUT_NS;
	int owner = clients_owner(device->clients, dpa >> PAGE_SHIFT);
	uint32_t number, answered;
	struct client *client;
	struct mailbox *mailbox;
	int code = CRAM_ETIMEDOUT;

	if (owner < 0 || owner == (int)device->client)
		return CRAM_ENOENT;
	client = &device->clients->table[owner];
	mailbox = &client->mailbox;
	lock(device, &mailbox->lock);
	mailbox->kind = kind;
	mailbox->dpa = dpa;
	number = atomic_fetch_add(&mailbox->asked, 1) + 1;
	client_ring(client);
	while ((answered = atomic_load(&mailbox->answered)) != number && now_ns() < deadline) {
		if (!futex_wait(&mailbox->answered, answered, REQUEST_LIVENESS_NS) && client_dead(client))
			break;
	}
	if (answered == number)
		code = mailbox->result;
	futex_unlock(&mailbox->lock);
	if (answered != number && client_dead(client)) {
		code = device_reap(device, NULL);
		return code != 0 ? code : CRAM_ENOENT;
	}
	if (code == CRAM_ETIMEDOUT)
		return cram_fail(code, "process %u, which has mapped address 0x%" PRIx64 ", does not answer",
				 atomic_load(&client->pid), dpa);
	return code;
}

uint32_t device_next_request(struct device *device, uint32_t last, enum request_kind *kind, uint64_t *dpa)
{
	struct mailbox *mailbox = &device->self->mailbox;
	uint32_t asked = atomic_load(&mailbox->asked);

	if (asked != last) {
		*kind = mailbox->kind;
		*dpa = mailbox->dpa;
	}
	return asked;
}

void device_answer(struct device *device, uint32_t number, int result)
{
	struct mailbox *mailbox = &device->self->mailbox;

	mailbox->result = result;
	atomic_store(&mailbox->answered, number);
	futex_wake_all(&mailbox->answered);
}

uint64_t device_next_used(const struct device *device, uint64_t page)
{
	const struct geometry *geometry = &device->super->geometry;
	off_t at = (off_t)(geometry->map + page * sizeof(uint64_t));
	off_t data = lseek(device->fd, at, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? geometry->pages : page;
	return page + (uint64_t)(data - at) / sizeof(uint64_t);
}

void device_read_registers(const struct device *device, struct cram_registers *r)
{
	const struct superblock *super = device->super;
	const struct alert *alert = device->alert;
	uint32_t sector = device->media.sector_size;
	struct stripe sum;

	sum_stripes(device, &sum);
	memset(r, 0, sizeof(*r));
	r->advertised = super->geometry.params.advertised;
	r->real = device->media.sectors * sector;
	r->used = atomic_load(&super->used) * sector;
	r->remaining = r->real - r->used;
	r->peak = atomic_load(&super->peak) * sector;
	r->pages_stored = whole(sum.pages[CRAM_PAGE_STORED]);
	r->pages_raw = whole(sum.pages[CRAM_PAGE_RAW]);
	r->pages_zero = whole(sum.pages[CRAM_PAGE_ZERO]);
	r->pages_same = whole(sum.pages[CRAM_PAGE_SAME]);
	r->payload = whole(sum.payload);
	r->ratio = ratio_of(&sum, r->used);
	r->dropped_writes = atomic_load(&super->dropped_writes);
	r->refused_writes = atomic_load(&super->refused_writes);
	r->media_errors = atomic_load(&super->media_errors);
	r->lost_pages = atomic_load(&super->lost_pages);
	r->poisoned = whole(sum.poisoned);
	r->poison_records = device->poison->count;
	r->poison_overflow = atomic_load(&super->poison_overflow);
	r->lthresh = atomic_load(&alert->raised[0]);
	r->hthresh = atomic_load(&alert->raised[1]);
	r->events = atomic_load(&alert->head);
	r->pressure = atomic_load(&alert->pressure);
	r->no_alloc = atomic_load(&alert->no_alloc);
	for (uint64_t left = atomic_load(&device->clients->attached); left != 0; left &= left - 1) {
		r->clients++;
		r->dirty_frames += atomic_load(&device->clients->table[__builtin_ctzll(left)].dirty_frames);
	}
}

/* Appends the runs of set bits as records. */
static size_t list_runs(uint64_t dpa, uint64_t mask, uint32_t source, struct cram_poison_record *records, size_t at,
			size_t n)
{
	for (unsigned i = 0; i < 64; i++) {
		unsigned from = i;

		if (!(mask >> i & 1))
			continue;
		while (i < 63 && (mask >> (i + 1) & 1))
			i++;
		if (at < n)
			records[at] = (struct cram_poison_record){ dpa + from * LINE_SIZE,
								   (i - from + 1) * LINE_SIZE, source };
		at++;
	}
	return at;
}

static int by_dpa(const void *a, const void *b)
{
	const struct cram_poison_record *x = a, *y = b;

	return (x->dpa > y->dpa) - (x->dpa < y->dpa);
}

size_t device_poison_list(struct device *device, struct cram_poison_record *records, size_t n)
{
	size_t found = 0;

	lock(device, &device->super->poison_lock);
	for (uint32_t i = 0; i < device->poison->count; i++) {
		const struct cram_poison_record *record = &device->poison->records[i];
		uint64_t page = record->dpa >> PAGE_SHIFT;
		uint64_t mask = 1;

		/* A page without data may have had some of its lines cleared: the page map has them. */
		if (record->length == PAGE_SIZE)
			mask = pagemap_word(&device->map, page, pagemap_entry(&device->map, page));
		found = list_runs(record->dpa, mask, record->source, records, found, n);
	}
	futex_unlock(&device->super->poison_lock);
	qsort(records, found < n ? found : n, sizeof(*records), by_dpa);
	return found;
}

void device_page_info(struct op *op, uint64_t page, struct cram_page_info *info)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);

	memset(info, 0, sizeof(*info));
	info->state = entry_state(entry);
	info->length = entry_length(entry);
	info->sectors = media_sectors_for(&device->media, info->length);
	info->dirty = (entry & ENTRY_DIRTY) != 0;
	info->poisoned = poisoned_lines(device, page);
	if (info->sectors > 0)
		info->media = (uint64_t)(device->media.bytes - device->base) +
			      (uint64_t)entry_first(entry) * device->media.sector_size;
}
