/* SPDX-License-Identifier: MIT
 *
 * host.c - the functions of cram.h: what this process keeps of a device and its mappings, composed of the device, the
 * pager, the delivery and the service. Here, and nowhere below, signals are blocked around work on pages.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "delivery.h"
#include "device/device.h"
#include "device/layout.h"
#include "error.h"
#include "memory.h"
#include "pager.h"
#include "service.h"
#include "sigbus.h"
#include "uffd.h"

#define WINDOW_MIN (64u << 10)

struct cram_map {
	struct cram_device *owner;
	struct pager pager;
	struct delivery delivery;
	int claim;
	bool closed;         /* under the owner's maps_lock */
	uint64_t period_ns;  /* of the write-back; 0: off */
	uint64_t next_ns;    /* when it is due; service thread only. 0: nothing was dirty */
};

struct cram_device {
	struct device device;
	struct cram_params params;
	struct service service;
	uint32_t fork_generation;
	/* Held, with signals blocked, by whoever works on the device; for writing, by who changes what is open. Taken
	 * before any op. */
	pthread_rwlock_t maps_lock;
	_Atomic bool closing;           /* changes under maps_lock */
	_Atomic uint32_t waiters;       /* threads in cram_event_wait() */
	struct cram_map *maps[CLAIMS_MAX];
};

/* ---- fork, signals, ops --------------------------------------------------------------------------------- */

static uint32_t fork_generation;

static void count_fork(void)
{
	fork_generation++;
}

__attribute__((constructor)) static void watch_fork(void)
{
	pthread_atfork(NULL, NULL, count_fork);
}

static bool forked(const cram_device *device)
{
	return device->fork_generation != fork_generation;
}

/* May this process work on the device? Under maps_lock, except for the question of fork. */
static int check_open(const cram_device *device)
{
	if (forked(device))
		return cram_fail(CRAM_EFORKED, "this device was opened before fork(): open it again in the child");
	if (atomic_load(&device->closing))
		return cram_fail(CRAM_ECLOSED, "the device is closed");
	return 0;
}

/* Blocks signals: a handler that ran while this thread holds a page or a lock might want the same one. The raw call,
 * because glibc keeps two of its own signals open, and their handlers may wait for other threads. Those that a fault
 * raises stay open: blocked, they kill. */
static void block_signals(sigset_t *before)
{
	sigset_t mask;

	sigfillset(&mask);
	sigdelset(&mask, SIGBUS);
	sigdelset(&mask, SIGSEGV);
	sigdelset(&mask, SIGFPE);
	sigdelset(&mask, SIGILL);
	sigdelset(&mask, SIGTRAP);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, before, _NSIG / 8);
}

static void restore_signals(const sigset_t *before)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, before, NULL, _NSIG / 8);
}

/* One stay of an ordinary thread in the device; op is NULL for one that works on no page. */
struct visit {
	sigset_t before;
	struct cram_device *device;
	struct op *op;
};

static void end(struct visit *visit)
{
	if (visit->op != NULL)
		device_leave(visit->op);
	pthread_rwlock_unlock(&visit->device->maps_lock);
	restore_signals(&visit->before);
}

/* Opens a visit without an op, reading or writing; fails, and there is none, on a device that is closed. */
static int begin_at(const cram_device *device, struct visit *visit, bool write)
{
	int code;

	visit->device = (struct cram_device *)device;
	visit->op = NULL;
	/* Before the lock: in a child it may be held by a thread that is not there. */
	if (forked(device))
		return check_open(device);
	block_signals(&visit->before);
	if (write)
		pthread_rwlock_wrlock(&visit->device->maps_lock);
	else
		pthread_rwlock_rdlock(&visit->device->maps_lock);
	code = check_open(device);
	if (code != 0)
		end(visit);
	return code;
}

static int begin(const cram_device *device, struct visit *visit)
{
	return begin_at(device, visit, false);
}

static int begin_op(cram_device *device, struct visit *visit)
{
	int code = begin(device, visit);

	if (code == 0)
		visit->op = device_enter(&device->device);
	return code;
}

/* ---- lifetime ------------------------------------------------------------------------------------------- */

static const struct service_ops service_ops;

typedef int open_fn(const char *path, const struct cram_params *params, struct device *device);

static int open_existing(const char *path, const struct cram_params *params, struct device *device)
{
	(void)params;
	return device_open(path, device);
}

static int open_with(open_fn *open_device, const char *path, const struct cram_params *params, cram_device **result)
{
	struct cram_device *device = calloc(1, sizeof(*device));
	pthread_rwlockattr_t attributes;
	sigset_t before;
	int code;

	if (device == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for a device handle");
	device->fork_generation = fork_generation;
	/* Writers first: a stream of page operations must not keep a map or unmap waiting for ever. */
	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&device->maps_lock, &attributes);
	pthread_rwlockattr_destroy(&attributes);
	block_signals(&before);
	code = open_device(path, params, &device->device);
	if (code == 0) {
		device->params = *device_params(&device->device);
		code = service_start(&device->service, &device->device, &service_ops, device);
		if (code != 0) {
			device_close(&device->device, false);
			if (open_device == device_create && path != NULL)
				unlink(path);
		}
	}
	restore_signals(&before);
	if (code != 0) {
		free(device);
		return code;
	}
	*result = device;
	return 0;
}

int cram_create(const char *path, const struct cram_params *params, cram_device **device)
{
	return open_with(device_create, path, params, device);
}

int cram_open(const char *path, cram_device **device)
{
	return open_with(open_existing, path, NULL, device);
}

static unsigned count_maps(const struct cram_device *device)
{
	unsigned n = 0;

	for (unsigned i = 0; i < CLAIMS_MAX; i++)
		n += device->maps[i] != NULL;
	return n;
}

/* Says to all that the device closes; from then on nobody begins a visit. */
static int start_closing(cram_device *device)
{
	struct visit visit;
	unsigned maps;
	int code = begin_at(device, &visit, true);

	if (code != 0)
		return code;
	maps = count_maps(device);
	if (maps == 0)
		atomic_store(&device->closing, true);
	end(&visit);
	return maps == 0 ? 0 : cram_fail(CRAM_EBUSY, "%u mappings of this device exist", maps);
}

int cram_close(cram_device *device)
{
	sigset_t before;
	int code;

	if (device == NULL || atomic_load(&device->closing))
		return 0;
	if (forked(device)) {
		atomic_store(&device->closing, true);
		device_close(&device->device, true);
		return 0;
	}
	code = start_closing(device);
	if (code != 0)
		return code == CRAM_ECLOSED ? 0 : code;
	while (atomic_load(&device->waiters) != 0) {
		client_ring(device->device.self);
		sleep_ns(100000);
	}
	block_signals(&before);
	service_stop(&device->service);
	/* The last visits end before the object goes. */
	pthread_rwlock_wrlock(&device->maps_lock);
	device_close(&device->device, false);
	pthread_rwlock_unlock(&device->maps_lock);
	restore_signals(&before);
	return 0;
}

void cram_free(cram_device *device)
{
	free(device);
}

int cram_check(const cram_device *device)
{
	return check_open(device);
}

void cram_get_params(const cram_device *device, struct cram_params *params)
{
	*params = device->params;
}

int cram_fd(const cram_device *device)
{
	return device->device.fd;
}

/* ---- the data plane ------------------------------------------------------------------------------------- */

/* The pager of this process that maps a page of the device, or NULL; *index: its number there. In a visit. */
static struct pager *find_pager(struct cram_device *device, uint64_t page, uint64_t *index)
{
	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		struct cram_map *map = device->maps[i];

		if (map != NULL && page - map->pager.first < map->pager.pages) {
			*index = page - map->pager.first;
			return &map->pager;
		}
	}
	return NULL;
}

void cram_write_page(cram_device *device, uint64_t dpa, const void *from)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	uint8_t bounce[PAGE_SIZE];
	struct pager *pager;
	struct visit visit;

	/* The source may lie on a device: its fault must come before any page is locked. */
	memcpy(bounce, from, PAGE_SIZE);
	if (begin_op(device, &visit) != 0)
		return;
	pager = find_pager(device, page, &index);
	if (page >= device->device.map.pages) {
		device_count_refused(&device->device);
		end(&visit);
		return;
	}
	device_lock_page(visit.op, page);
	if (device_foreign(visit.op, page)) {
		device_count_refused(&device->device);
	} else if (pager != NULL && pager_resident(pager, index)) {
		pager_write(pager, visit.op, index, bounce);
	} else {
		bool marked = pager != NULL && device_poisoned(visit.op, page);

		device_store(visit.op, page, bounce);
		if (marked)
			pager_drop(pager, visit.op, index, false);
	}
	device_unlock_page(visit.op, page);
	end(&visit);
}

size_t cram_read_page(cram_device *device, uint64_t dpa, void *to)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	uint8_t bounce[PAGE_SIZE];
	size_t missing = PAGE_SIZE;
	struct pager *pager;
	struct visit visit;

	if (begin_op(device, &visit) != 0)
		return PAGE_SIZE;
	pager = find_pager(device, page, &index);
	if (page < device->device.map.pages) {
		device_lock_page(visit.op, page);
		if (pager != NULL && pager_resident(pager, index)) {
			memcpy(bounce, pager_frame(pager, index), PAGE_SIZE);
			missing = 0;
		} else if (!device_foreign(visit.op, page)) {
			missing = device_load(visit.op, page, bounce);
		}
		device_unlock_page(visit.op, page);
	}
	end(&visit);
	/* The destination may lie on a device too. */
	memcpy(to, bounce, PAGE_SIZE - missing);
	return missing;
}

static void discard_page(struct cram_device *device, struct op *op, uint64_t page)
{
	uint64_t index = 0;
	struct pager *pager = find_pager(device, page, &index);

	device_lock_page(op, page);
	if (device_foreign(op, page)) {
		device_count_refused(&device->device);
	} else if (pager != NULL && pager_resident(pager, index) && pager_pinned(pager, index)) {
		/* A pinned frame must stay. */
		pager_write(pager, op, index, NULL);
	} else {
		if (pager != NULL)
			pager_drop(pager, op, index, true);
		device_drop(op, page);
	}
	device_unlock_page(op, page);
}

/* Discards the pages from *page that one page of the page map describes, skipping what it does not hold. */
static void discard_some(struct cram_device *device, struct op *op, uint64_t *page, uint64_t last)
{
	uint64_t stop;

	*page = device_next_used(&device->device, *page);
	stop = (*page | (PAGE_SIZE / sizeof(uint64_t) - 1)) + 1;
	for (; *page < stop && *page < last; ++*page)
		discard_page(device, op, *page);
}

void cram_discard(cram_device *device, uint64_t dpa, uint64_t length)
{
	uint64_t page = dpa >> PAGE_SHIFT;
	uint64_t last = page + (length >> PAGE_SHIFT);
	struct visit visit;

	while (page < last) {
		if (begin_op(device, &visit) != 0)
			return;
		if (last > device->device.map.pages)
			last = device->device.map.pages;
		if (page < last)
			discard_some(device, visit.op, &page, last);
		end(&visit);
	}
}

/* ---- registers and commands ----------------------------------------------------------------------------- */

void cram_read_registers(const cram_device *device, struct cram_registers *registers)
{
	struct visit visit;

	memset(registers, 0, sizeof(*registers));
	if (begin(device, &visit) != 0)
		return;
	device_read_registers(&device->device, registers);
	end(&visit);
}

int cram_set_pressure(cram_device *device, uint32_t pressure)
{
	struct visit visit;
	int code;

	if (pressure > 1000)
		return cram_fail(CRAM_EINVAL, "pressure %u: not from 0 to 1000", pressure);
	code = begin(device, &visit);
	if (code != 0)
		return code;
	atomic_store(&device->device.alert->pressure, pressure);
	end(&visit);
	return 0;
}

int cram_set_no_alloc(cram_device *device, int on)
{
	struct visit visit;
	int code = begin(device, &visit);

	if (code != 0)
		return code;
	atomic_store(&device->device.alert->no_alloc, on != 0);
	end(&visit);
	return 0;
}

int cram_set_thresholds(cram_device *device, uint64_t low_remaining, uint64_t high_remaining, uint32_t low_ratio,
			uint32_t high_ratio)
{
	struct visit visit;
	int code = begin(device, &visit);

	if (code != 0)
		return code;
	code = device_set_thresholds(&device->device, low_remaining, high_remaining, low_ratio, high_ratio);
	end(&visit);
	return code;
}

static int check_address(const cram_device *device, uint64_t dpa, uint64_t unit)
{
	uint64_t advertised = device->params.advertised;

	if (dpa >= advertised)
		return cram_fail(CRAM_EINVAL, "address 0x%" PRIx64 ": past the advertised capacity of 0x%" PRIx64, dpa,
				 advertised);
	if (dpa % unit != 0)
		return cram_fail(CRAM_EINVAL, "address 0x%" PRIx64 ": not a multiple of %" PRIu64, dpa, unit);
	return 0;
}

int cram_page_info(cram_device *device, uint64_t dpa, struct cram_page_info *info)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	struct pager *pager;
	struct visit visit;
	int code = check_address(device, dpa, 1);

	if (code == 0)
		code = begin_op(device, &visit);
	if (code != 0)
		return code;
	pager = find_pager(device, page, &index);
	device_lock_page(visit.op, page);
	device_page_info(visit.op, page, info);
	info->resident = pager != NULL && pager_resident(pager, index);
	device_unlock_page(visit.op, page);
	end(&visit);
	return 0;
}

int cram_rebuild(cram_device *device)
{
	struct visit visit;
	int code = begin(device, &visit);

	if (code != 0)
		return code;
	code = device_rebuild(&device->device);
	end(&visit);
	return code;
}

int cram_reap(cram_device *device, uint32_t *dead)
{
	struct visit visit;
	int code = begin(device, &visit);

	if (code != 0)
		return code;
	code = device_reap(&device->device, dead);
	end(&visit);
	return code;
}

/* ---- poison --------------------------------------------------------------------------------------------- */

/* Carries a poison command out here; the page must not be another client's. In an op. */
static int command_page(struct cram_device *device, struct op *op, enum request_kind kind, uint64_t dpa)
{
	uint64_t page = dpa >> PAGE_SHIFT, index = 0;
	unsigned line = (unsigned)(dpa % PAGE_SIZE / LINE_SIZE);
	struct pager *pager = find_pager(device, page, &index);
	int code = 0;

	device_lock_page(op, page);
	if (device_foreign(op, page)) {
		code = CRAM_EBUSY;
	} else if (pager != NULL && pager_resident(pager, index) && pager_pinned(pager, index)) {
		code = CRAM_EPERM;
	} else {
		if (pager != NULL)
			pager_drop(pager, op, index, false);
		if (kind == REQUEST_INJECT)
			code = device_inject(op, page, line) == 0 ? 0 : CRAM_ENOSPC;
		else
			device_clear(op, page, line);
	}
	device_unlock_page(op, page);
	return code;
}

/* The same, by whoever has the page mapped. */
static int command(struct cram_device *device, enum request_kind kind, uint64_t dpa)
{
	struct visit visit;
	int code = check_address(device, dpa, LINE_SIZE);

	if (code != 0)
		return code;
	/* Whom a page belongs to may change between the question and the command: then ask again. */
	do {
		code = begin(device, &visit);
		if (code != 0)
			return code;
		code = device_request(&device->device, kind, dpa);
		if (code == CRAM_ENOENT) {
			visit.op = device_enter(&device->device);
			code = command_page(device, visit.op, kind, dpa);
		}
		end(&visit);
	} while (code == CRAM_EBUSY);
	if (code == CRAM_ENOSPC)
		return cram_fail(CRAM_EBUSY, "address 0x%" PRIx64 ": the poison list is full (%u records)", dpa,
				 device->params.poison_limit);
	if (code == CRAM_EPERM)
		return cram_fail(CRAM_EBUSY, "address 0x%" PRIx64 ": its frame is pinned", dpa);
	return code;
}

int cram_inject_poison(cram_device *device, uint64_t dpa)
{
	return command(device, REQUEST_INJECT, dpa);
}

int cram_clear_poison(cram_device *device, uint64_t dpa)
{
	return command(device, REQUEST_CLEAR, dpa);
}

size_t cram_poison_list(cram_device *device, struct cram_poison_record *records, size_t n)
{
	struct visit visit;
	size_t found;

	if (begin(device, &visit) != 0)
		return 0;
	found = device_poison_list(&device->device, records, n);
	end(&visit);
	return found;
}

/* ---- interrupts ----------------------------------------------------------------------------------------- */

static int next_event(struct cram_device *device, uint64_t *sequence, struct cram_event *event)
{
	struct alert *alert = device->device.alert;
	uint64_t head = atomic_load(&alert->head);
	uint64_t oldest = head > ALERT_RING ? head - ALERT_RING : 0;

	if (*sequence >= head)
		return CRAM_ETIMEDOUT;
	if (*sequence >= oldest && alert_get(alert, *sequence + 1, event)) {
		*sequence += 1;
		return 0;
	}
	oldest = atomic_load(&alert->head) - ALERT_RING + 1;
	*sequence = oldest;
	return cram_fail(CRAM_EOVERFLOW, "the event ring has lapped its reader; the next event is %" PRIu64, oldest + 1);
}

/* Waits as cram_event_wait() does. closing is set before the waiters are counted out, and the object outlives them. */
static int wait_event(struct cram_device *device, uint64_t *sequence, int timeout_ms, struct cram_event *event)
{
	uint64_t deadline = now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000;

	for (;;) {
		uint32_t rung = atomic_load(&device->device.self->bell);
		uint64_t now;
		int code;

		if (atomic_load(&device->closing))
			return cram_fail(CRAM_ECLOSED, "the device is closed");
		code = next_event(device, sequence, event);
		if (code != CRAM_ETIMEDOUT)
			return code;
		now = now_ns();
		if (timeout_ms >= 0 && now >= deadline)
			return cram_fail(code, "no event after number %" PRIu64 " in %d ms", *sequence, timeout_ms);
		futex_wait(&device->device.self->bell, rung, timeout_ms < 0 ? -1 : (int64_t)(deadline - now));
	}
}

int cram_event_wait(cram_device *device, uint64_t *sequence, int timeout_ms, struct cram_event *event)
{
	struct visit visit;
	int code = begin(device, &visit);

	if (code != 0)
		return code;
	atomic_fetch_add(&device->waiters, 1);
	end(&visit);
	code = wait_event(device, sequence, timeout_ms, event);
	atomic_fetch_sub(&device->waiters, 1);
	return code;
}

int cram_event_fd(cram_device *device)
{
	return device->service.event_fd;
}

/* ---- the service's work --------------------------------------------------------------------------------- */

static int serve_request(void *owner, enum request_kind kind, uint64_t dpa)
{
	struct cram_device *device = owner;
	struct visit visit;
	int code = begin_op(device, &visit);

	if (code != 0)
		return code;
	code = command_page(device, visit.op, kind, dpa);
	end(&visit);
	return code;
}

/* When the map's next write-back is due, having done the one that is: UINT64_MAX when nothing is dirty. */
static uint64_t write_back_map(struct cram_map *map, struct op *op, uint64_t now)
{
	if (map->period_ns == 0 || atomic_load(&map->pager.dirty) == 0) {
		map->next_ns = 0;
		return UINT64_MAX;
	}
	if (map->next_ns == 0) {
		map->next_ns = now + map->period_ns;
	} else if (now >= map->next_ns) {
		pager_write_back_due(&map->pager, op, map->period_ns / 1000000);
		/* From the end of the work: a write-back that takes longer than its period does not run all the time. */
		map->next_ns = now_ns() + map->period_ns;
	}
	return map->next_ns;
}

static int write_back_maps(void *owner, uint64_t now)
{
	struct cram_device *device = owner;
	uint64_t next = UINT64_MAX;
	bool worked = false;

	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		struct visit visit;
		struct cram_map *map;

		if (begin_op(device, &visit) != 0)
			return -1;
		map = device->maps[i];
		if (map != NULL) {
			uint64_t due = write_back_map(map, visit.op, now);

			worked |= due != UINT64_MAX;
			next = due < next ? due : next;
		}
		end(&visit);
	}
	if (!worked)
		return -1;
	delivery_reassert();
	now = now_ns();
	return next <= now ? 0 : (int)((next - now) / 1000000) + 1;
}

static const struct service_ops service_ops = { .request = serve_request, .write_back = write_back_maps };

/* ---- the mapping ---------------------------------------------------------------------------------------- */

static int check_map_params(const struct cram_device *device, const struct cram_map_params *p)
{
	uint64_t advertised = device->params.advertised;

	if (p->dpa % PAGE_SIZE != 0 || p->length % PAGE_SIZE != 0 || p->length == 0 || p->dpa > advertised ||
	    p->length > advertised - p->dpa)
		return cram_fail(CRAM_EINVAL,
				 "range of 0x%" PRIx64 " bytes at 0x%" PRIx64 ": not whole pages within the advertised 0x%" PRIx64,
				 p->length, p->dpa, advertised);
	if (p->window % PAGE_SIZE != 0 || p->window < WINDOW_MIN)
		return cram_fail(CRAM_EINVAL, "window of %" PRIu64 " bytes: not a multiple of 4096 from 64 KiB", p->window);
	if (p->delivery != CRAM_MONITOR && p->delivery != CRAM_INLINE)
		return cram_fail(CRAM_EINVAL, "delivery %u: not monitor (0) or inline (1)", p->delivery);
	return 0;
}

static int fail_uffd(int error, bool monitored)
{
	if (error == -EPERM || error == -EACCES)
		return cram_fail(CRAM_EPERM,
				 monitored ? "userfaultfd for the kernel's own faults is not permitted: run as root, set "
					     "vm.unprivileged_userfaultfd to 1, give access to /dev/userfaultfd, or use "
					     "inline delivery"
					   : "userfaultfd is not permitted to this process, not even for user faults");
	if (error == -ENOSYS)
		return cram_fail(CRAM_ENOSYS, "this kernel's userfaultfd lacks %s (Linux %s)",
				 monitored ? "write protection or poison" : "write protection",
				 monitored ? "6.6" : "5.18");
	return cram_fail(cram_code_of_errno(-error), "userfaultfd: %s", strerror(-error));
}

/* The memory itself: reserved, registered, kept from huge pages and from children. */
static int map_memory(struct cram_map *map, uint64_t length, bool monitored)
{
	struct pager *pager = &map->pager;
	int code;

	pager->base = memory_map(length, -1);
	if (pager->base == NULL)
		return cram_fail(CRAM_ENOMEM, "no address space for a mapping of %" PRIu64 " bytes: %s", length,
				 strerror(errno));
	madvise(pager->base, length, MADV_NOHUGEPAGE);
	madvise(pager->base, length, MADV_DONTFORK);
	code = uffd_open(!monitored, &pager->uffd);
	if (code == 0) {
		code = uffd_register(pager->uffd, pager->base, length);
		if (code != 0)
			close(pager->uffd);
	}
	if (code == 0)
		return 0;
	munmap(pager->base, length);
	return fail_uffd(code, monitored);
}

static void unmap_memory(struct cram_map *map)
{
	/* In this order: a thread that still waits for a page wakes when the descriptor closes, and must then find no
	 * memory (SIGSEGV) rather than the kernel's zeros. */
	munmap(map->pager.base, map->pager.pages << PAGE_SHIFT);
	close(map->pager.uffd);
}

static int set_up(struct cram_map *map, const struct cram_map_params *params)
{
	bool monitored = params->delivery == CRAM_MONITOR;
	int code = map_memory(map, params->length, monitored);

	if (code != 0)
		return code;
	code = pager_init(&map->pager);
	if (code == 0) {
		code = delivery_start(&map->delivery, &map->pager, monitored);
		if (code == 0)
			return 0;
		pager_deinit(&map->pager);
	}
	unmap_memory(map);
	return code;
}

static void list_map(struct cram_device *device, struct cram_map *old, struct cram_map *new)
{
	for (unsigned i = 0; i < CLAIMS_MAX; i++) {
		if (device->maps[i] == old) {
			device->maps[i] = new;
			return;
		}
	}
}

static struct cram_map *new_map(cram_device *device, const struct cram_map_params *params)
{
	struct cram_map *map;

	if (posix_memalign((void **)&map, 64, sizeof(*map)) != 0)
		return NULL;
	memset(map, 0, sizeof(*map));
	map->owner = device;
	map->period_ns = (uint64_t)params->writeback_ms * 1000000;
	map->pager.device = &device->device;
	map->pager.pages = params->length >> PAGE_SHIFT;
	map->pager.first = params->dpa >> PAGE_SHIFT;
	map->pager.window = params->window >> PAGE_SHIFT;
	map->pager.wake = params->delivery == CRAM_MONITOR;
	map->pager.timed = params->writeback_ms != 0;
	return map;
}

int cram_map_create(cram_device *device, const struct cram_map_params *params, cram_map **result)
{
	struct cram_map *map;
	struct visit visit;
	int code = check_map_params(device, params);

	if (code != 0)
		return code;
	map = new_map(device, params);
	if (map == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for a mapping handle");
	code = begin_at(device, &visit, true);
	if (code != 0) {
		free(map);
		return code;
	}
	code = device_claim(&device->device, map->pager.first, map->pager.pages, &map->claim);
	if (code == 0) {
		code = set_up(map, params);
		if (code != 0)
			device_unclaim(&device->device, map->claim);
		else
			list_map(device, NULL, map);
	}
	end(&visit);
	if (code != 0) {
		free(map);
		return code;
	}
	*result = map;
	return 0;
}

/* In a child the memory is not there, and nothing in the object is ours. */
static void unmap_in_child(struct cram_map *map)
{
	pager_deinit(&map->pager);
	close(map->pager.uffd);
	map->closed = true;
}

void cram_unmap(cram_map *map)
{
	struct cram_device *device;
	struct visit visit;

	if (map == NULL || map->closed)
		return;
	device = map->owner;
	if (forked(device)) {
		unmap_in_child(map);
		return;
	}
	/* First no fault is answered any more, so that no frame appears; then what there is goes back; only then do
	 * page operations stop to look for frames here. A device with mappings does not close: a visit is to be had. */
	delivery_stop(&map->delivery);
	begin_op(device, &visit);
	pager_evict_all(&map->pager, visit.op);
	end(&visit);
	begin_at(device, &visit, true);
	list_map(device, map, NULL);
	map->closed = true;
	unmap_memory(map);
	device_unclaim(&device->device, map->claim);
	pager_deinit(&map->pager);
	end(&visit);
}

void cram_map_free(cram_map *map)
{
	free(map);
}

void *cram_map_address(const cram_map *map)
{
	return map->pager.base;
}

static int check_range(const cram_map *map, uint64_t offset, uint64_t length)
{
	uint64_t size = map->pager.pages << PAGE_SHIFT;

	if (offset > size || length > size - offset)
		return cram_fail(CRAM_EINVAL, "range of 0x%" PRIx64 " bytes at 0x%" PRIx64 ": outside the mapping of 0x%" PRIx64,
				 length, offset, size);
	return 0;
}

/* The pages that a range of bytes touches. */
static uint64_t page_count(uint64_t offset, uint64_t length)
{
	return length == 0 ? 0 : ((offset + length - 1) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) + 1;
}

/* Opens a visit for work on a range of a mapping that is still there. */
static int begin_range(cram_map *map, struct visit *visit, uint64_t offset, uint64_t length)
{
	int code = check_range(map, offset, length);

	if (code == 0)
		code = begin_op(map->owner, visit);
	if (code == 0 && map->closed) {
		end(visit);
		return cram_fail(CRAM_ECLOSED, "the mapping is closed");
	}
	return code;
}

int cram_flush(cram_map *map, uint64_t offset, uint64_t length)
{
	struct visit visit;
	int code = begin_range(map, &visit, offset, length);

	if (code != 0)
		return code;
	pager_flush(&map->pager, visit.op, offset >> PAGE_SHIFT, page_count(offset, length));
	end(&visit);
	delivery_reassert();
	return 0;
}

int cram_pin(cram_map *map, uint64_t offset, uint64_t length)
{
	struct visit visit;
	int code = begin_range(map, &visit, offset, length);

	if (code != 0)
		return code;
	code = pager_pin(&map->pager, visit.op, offset >> PAGE_SHIFT, page_count(offset, length));
	end(&visit);
	return code;
}

int cram_unpin(cram_map *map, uint64_t offset, uint64_t length)
{
	struct visit visit;
	int code = begin_range(map, &visit, offset, length);

	if (code != 0)
		return code;
	code = pager_unpin(&map->pager, visit.op, offset >> PAGE_SHIFT, page_count(offset, length));
	end(&visit);
	return code;
}

void cram_map_read_stats(const cram_map *map, struct cram_map_stats *stats)
{
	const struct pager *pager = &map->pager;

	memset(stats, 0, sizeof(*stats));
	stats->resident = atomic_load(&pager->resident);
	stats->dirty = atomic_load(&pager->dirty);
	stats->window = pager->window;
	stats->poison_faults = atomic_load(&map->delivery.poison_faults);
	stats->handler_restored = sigbus_reinstalled();
	for (unsigned i = 0; i < PLACES_MAX; i++) {
		const struct lane *lane = &pager->lanes[i];

		stats->read_faults += atomic_load(&lane->read_faults);
		stats->write_faults += atomic_load(&lane->write_faults);
		stats->protect_faults += atomic_load(&lane->protect_faults);
		stats->prefetched += atomic_load(&lane->prefetched);
		stats->evicted += atomic_load(&lane->evicted);
		stats->written_back += atomic_load(&lane->written_back);
	}
}

/* ---- the codec alone ------------------------------------------------------------------------------------ */

int cram_encode(const struct cram_params *params, const void *page, void *form, uint32_t *length)
{
	int code = layout_check_params(params);
	struct codec_space space;
	struct encoded encoded;
	struct codec codec;
	uint8_t buffer[PAGE_SIZE];
	void *memory;

	if (code != 0)
		return code;
	codec_init(&codec, params);
	if (posix_memalign(&memory, 64, codec.compress_space + codec.decompress_space + 64) != 0)
		return cram_fail(CRAM_ENOMEM, "no memory for the codec");
	codec_open_space(&codec, memory, &space);
	codec_encode(&codec, &space, page, buffer, &encoded);
	if (encoded.state == CRAM_PAGE_SAME)
		memcpy(form, &encoded.word, sizeof(encoded.word));
	else
		memcpy(form, encoded.form, encoded.length);
	*length = encoded.length;
	free(memory);
	return (int)encoded.state;
}
