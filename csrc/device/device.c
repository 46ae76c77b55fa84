/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "inner.h"
#include "memory.h"
#include "recovery.h"

#define PAGE_SPINS 100
#define PAGE_SLEEP_MAX_NS 1000000
/* Waiting so long for a page lock raises the question whether its holder lives. */
#define PAGE_LIVENESS_NS 50000000
#define REQUEST_TIMEOUT_NS 2000000000
#define REQUEST_LIVENESS_NS 10000000

/* ---- lifetime -------------------------------------------------------------------------------------------- */

/* A place's part of the scratch memory: the op, then its buffers. */
#define SCRATCH_HEAD 192u
#define SCRATCH_FORM SCRATCH_HEAD
#define SCRATCH_PAGE (SCRATCH_FORM + CODEC_BUFFER)
#define SCRATCH_BATCH (SCRATCH_PAGE + PAGE_SIZE)
#define SCRATCH_WORK (SCRATCH_BATCH + DEVICE_BATCH * PAGE_SIZE)
#define SCRATCH_CODEC (SCRATCH_WORK + DEVICE_WORK)
_Static_assert(sizeof(struct op) <= SCRATCH_HEAD, "an op fits its head");

static int map_object(struct device *device, const struct geometry *geometry, const char *name)
{
	void *base = memory_map(geometry->size, device->fd);

	if (base == NULL)
		return cram_fail(cram_code_of_errno(errno), "%s: cannot map %" PRIu64 " bytes: %s", name, geometry->size,
				 strerrordesc_np(errno));
	memory_advise(base, geometry->size, MADV_DONTDUMP);
	device->base = base;
	device->super = base;
	device->clients = (struct clients *)(device->base + geometry->clients);
	device->alert = (struct alert *)(device->base + geometry->alert);
	device->poison = (struct poison_list *)(device->base + geometry->poison);
	device->map.entries = (_Atomic uint64_t *)(device->base + geometry->map);
	device->map.checks = (_Atomic uint32_t *)(device->base + geometry->checks);
	device->map.pages = geometry->pages;
	dpas_init(&device->dpas, device->base + geometry->references, device->base + geometry->tables, geometry->pages);
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
		return cram_fail(CRAM_ENOMEM, "no memory for the work areas: %s", strerrordesc_np(errno));
	return 0;
}

static void unmap(struct device *device)
{
	if (device->scratch != NULL)
		memory_unmap(device->scratch, device->scratch_stride * PLACES_MAX);
	if (device->base != NULL)
		memory_unmap(device->base, device->super->geometry.size);
	descriptor_close(device->fd);
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
		return cram_fail(cram_code_of_errno(errno), "%s: %s", path, strerrordesc_np(errno));
	if ((uint64_t)fs.f_bavail * fs.f_frsize < size)
		return cram_fail(CRAM_ENOSPC, "%s: the file system has %" PRIu64 " bytes free, a full device takes %" PRIu64,
				 path, (uint64_t)fs.f_bavail * fs.f_frsize, size);
	return 0;
}

/* Tables have room for far more than they can name. */
static uint64_t most_written(const struct geometry *geometry)
{
	return geometry->size - CLIENTS_MAX * dpas_table_size(geometry->pages) + geometry->pages * sizeof(uint32_t);
}

static int create_object(const char *path, const struct geometry *geometry, int *fd)
{
	uint64_t size = geometry->size;
	const char *name = path != NULL ? path : "device";
	int code = 0;

	*fd = descriptor_take(path != NULL ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
					   : memfd_create("cram_emu", MFD_CLOEXEC));
	if (*fd < 0)
		return cram_fail(cram_code_of_errno(errno), "%s: %s", name, strerrordesc_np(errno));
	if (path != NULL)
		code = check_room(*fd, most_written(geometry), path);
	if (code == 0 && ftruncate(*fd, (off_t)size) != 0)
		code = cram_fail(cram_code_of_errno(errno), "%s: cannot make it %" PRIu64 " bytes long: %s", name, size,
				 strerrordesc_np(errno));
	if (code != 0) {
		if (path != NULL)
			unlink(path);
		descriptor_close(*fd);
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
	code = create_object(path, &geometry, &device->fd);
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
	device->fd = descriptor_take(open(path, O_RDWR | O_CLOEXEC));
	if (device->fd < 0)
		return cram_fail(cram_code_of_errno(errno), "%s: %s", path, strerrordesc_np(errno));
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

/* ---- entering, locking ----------------------------------------------------------------------------------- */

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
		op->work = memory + SCRATCH_WORK;
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

void device_park(struct op *op)
{
	place_park(op->device->clients, op->device->client, op->place);
}

void device_unpark(struct op *op)
{
	while (!place_unpark(op->device->clients, op->device->client, op->place))
		device_reap(op->device, NULL);
}

void device_nap(struct op *op, uint64_t ns)
{
	device_park(op);
	sleep_ns(ns);
	device_unpark(op);
}

uint32_t device_reap_parked(struct op *op)
{
	struct device *device = op->device;
	uint32_t dead = 0;

	device_park(op);
	device_reap(device, &dead);
	device_unpark(op);
	return dead;
}

bool device_trylock_page(struct op *op, uint64_t page)
{
	return pagemap_trylock(&op->device->map, page, op->device->client);
}

/* A page lock has been held for long: is its holder dead, or, by a damaged entry, nobody? */
static void reap_holder(struct op *op, const struct client *holder)
{
	bool nobody = !client_inside(holder);

	if (nobody)
		atomic_store(&op->device->super->suspect, 1);
	if (nobody || client_dead(holder))
		device_reap_parked(op);
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
	for (;;) {
		uint64_t entry;

		device_nap(op, nap);
		slept += nap;
		nap = nap * 2 < PAGE_SLEEP_MAX_NS ? nap * 2 : PAGE_SLEEP_MAX_NS;
		if (device_trylock_page(op, page))
			return;
		entry = pagemap_entry(&device->map, page);
		if (slept > PAGE_LIVENESS_NS && (entry & ENTRY_LOCK)) {
			slept = 0;
			reap_holder(op, &device->clients->table[entry_holder(entry) % CLIENTS_MAX]);
		}
	}
}

void device_unlock_page(struct op *op, uint64_t page)
{
	pagemap_unlock(&op->device->map, page);
}

bool device_foreign(struct op *op, uint64_t page)
{
	return clients_foreign(op->device->clients, op->device->client, page) || dpas_taken(&op->device->dpas, page);
}

void device_count_refused(struct device *device)
{
	atomic_fetch_add(&device->super->refused_writes, 1);
}

/* ---- outside of an op ------------------------------------------------------------------------------------ */

/* Has anonymous memory a page of the range? */
static bool anonymous_within(const struct device *device, uint64_t first, uint64_t end)
{
	uint64_t start = device->super->geometry.references;

	for (uint64_t page = first; page < end; page++) {
		if (page == first || page % PAGE_SIZE == 0) {
			uint64_t data = device_next_data(device, start + page);

			page = data == UINT64_MAX ? end : data - start > page ? data - start : page;
		}
		if (page < end && dpas_taken(&device->dpas, page))
			return true;
	}
	return false;
}

int device_claim(struct device *device, uint64_t first, uint64_t count, int *claim)
{
	int code = recovery_lock(device);

	if (code != 0)
		return code;
	if (clients_dead(device->clients) != 0)
		code = recovery_run(device, NULL);
	if (code == 0)
		*claim = clients_claim(device->clients, device->client, first, count);
	/* After the claim: see device_take_page(). */
	if (code == 0 && *claim >= 0 && anonymous_within(device, first, first + count)) {
		clients_unclaim(device->clients, device->client, *claim);
		*claim = -1;
	}
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

/* Takes what is in the mailbox, unless somebody has: the owner to carry it out, or who asked to withdraw it. */
static bool take(struct mailbox *mailbox, uint64_t request)
{
	return (request & REQUEST_KIND_MASK) != REQUEST_NONE &&
	       atomic_compare_exchange_strong(&mailbox->request, &request, request & ~REQUEST_KIND_MASK);
}

static int ask(struct device *device, struct client *client, enum request_kind kind, uint64_t dpa)
{
	uint64_t deadline = now_ns() + REQUEST_TIMEOUT_NS;
	uint32_t number, answered;
	struct mailbox *mailbox = &client->mailbox;
	int code = CRAM_ETIMEDOUT;
	uint64_t request;

	device_lock(device, &mailbox->lock);
	number = (request_number(atomic_load(&mailbox->request)) + 1) & REQUEST_NUMBER_MASK;
	request = (uint64_t)number << REQUEST_NUMBER_SHIFT | dpa / LINE_SIZE << REQUEST_LINE_SHIFT | kind;
	atomic_store(&mailbox->request, request);
	client_ring(client);
	while ((answered = atomic_load(&mailbox->answered)) != number && now_ns() < deadline) {
		if (!futex_wait(&mailbox->answered, answered, REQUEST_LIVENESS_NS) && client_dead(client))
			break;
	}
	if (answered == number)
		code = mailbox->result;
	else
		/* The owner may go on later, when nobody expects it any more. */
		take(mailbox, request);
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

bool device_removed(const struct device *device)
{
	return __builtin_expect(atomic_load(&device->super->removed), 0);
}

int device_check_removed(const struct device *device)
{
	return device_removed(device) ? cram_fail(CRAM_ENODEV, "the device has been removed") : 0;
}

int device_await_followers(struct device *device)
{
	uint64_t deadline = now_ns() + REQUEST_TIMEOUT_NS;

	for (uint64_t left = atomic_load(&device->clients->attached); left != 0; left &= left - 1) {
		struct client *client = &device->clients->table[__builtin_ctzll(left)];
		uint32_t followed;

		while (followed = atomic_load(&client->followed), followed != atomic_load(&device->clients->losses)) {
			if (now_ns() >= deadline)
				return cram_fail(CRAM_ETIMEDOUT, "process %u has not dropped its frames yet",
						 atomic_load(&client->pid));
			if (!futex_wait(&client->followed, followed, REQUEST_LIVENESS_NS) && client_dead(client))
				break;
		}
	}
	return 0;
}

/* Asks all whose anonymous memory may have the page: forks share it. */
static int ask_all(struct device *device, enum request_kind kind, uint64_t dpa)
{
	int result = CRAM_ENOENT;

	for (uint64_t left = atomic_load(&device->clients->attached); left != 0; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		int code;

		if (i == device->client || !atomic_load(&device->clients->table[i].anonymous))
			continue;
		code = ask(device, &device->clients->table[i], kind, dpa);
		if (code != CRAM_ENOENT && (result == CRAM_ENOENT || code != 0))
			result = code;
	}
	return result;
}

int device_request(struct device *device, enum request_kind kind, uint64_t dpa)
{
	int owner = clients_owner(device->clients, dpa >> PAGE_SHIFT);

	if (owner >= 0 && owner != (int)device->client)
		return ask(device, &device->clients->table[owner], kind, dpa);
	return dpas_taken(&device->dpas, dpa >> PAGE_SHIFT) ? ask_all(device, kind, dpa) : CRAM_ENOENT;
}

bool device_take_request(struct device *device, struct request *request)
{
	struct mailbox *mailbox = &device->self->mailbox;
	uint64_t word = atomic_load(&mailbox->request);

	if (!take(mailbox, word))
		return false;
	request->number = request_number(word);
	request->kind = (enum request_kind)(word & REQUEST_KIND_MASK);
	request->dpa = (word >> REQUEST_LINE_SHIFT & REQUEST_LINE_MASK) * LINE_SIZE;
	return true;
}

void device_answer(struct device *device, uint32_t number, int result)
{
	struct mailbox *mailbox = &device->self->mailbox;

	mailbox->result = result;
	atomic_store(&mailbox->answered, number);
	futex_wake_all(&mailbox->answered);
}
