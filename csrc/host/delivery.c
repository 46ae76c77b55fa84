/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "delivery.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <ucontext.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "sigbus.h"
#include "thread.h"

#define REGIONS_MAX 64u
#define USER_STRIPES 16u
#define POISON_LSB 12
#define MESSAGES 16

/* ---- the process's mappings ----------------------------------------------------------------------------- */

/* What the SIGBUS handler looks an address up in. A row is in use while base is not 0. Its users are counted in
 * stripes, so that threads that fault at once do not meet in one cache line. */
struct region {
	_Atomic uintptr_t base, end;
	struct delivery *delivery;
	struct {
		_Alignas(64) _Atomic uint32_t n;
	} users[USER_STRIPES];
};

static struct region regions[REGIONS_MAX];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned stripe(void)
{
	return thread_id() % USER_STRIPES;
}

/* 1: paused. A futex. */
static _Atomic uint32_t paused;

/* Counts a user of a row, unless deliveries pause. */
static void enter(struct region *region)
{
	for (;;) {
		atomic_fetch_add(&region->users[stripe()].n, 1);
		if (atomic_load(&paused) == 0)
			return;
		atomic_fetch_sub(&region->users[stripe()].n, 1);
		futex_wait(&paused, 1, -1);
	}
}

static void leave_region(struct region *region)
{
	atomic_fetch_sub(&region->users[stripe()].n, 1);
}

/* The row that holds the address, with its user counted, or NULL. */
static struct region *enter_region(uintptr_t address)
{
	for (unsigned i = 0; i < REGIONS_MAX; i++) {
		struct region *region = &regions[i];
		uintptr_t base = atomic_load(&region->base);

		if (base == 0 || address < base || address >= atomic_load(&region->end))
			continue;
		/* The race: delivery_stop() takes the row away between. It waits for users after that; look again. */
		enter(region);
		if (atomic_load(&region->base) == base && address < atomic_load(&region->end))
			return region;
		leave_region(region);
	}
	return NULL;
}

static void wait_for_users(struct region *region)
{
	for (unsigned i = 0; i < USER_STRIPES; i++)
		while (atomic_load(&region->users[i].n) != 0)
			sleep_ns(50000);
}

static unsigned count_regions(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < REGIONS_MAX; i++)
		n += atomic_load(&regions[i].base) != 0;
	return n;
}

static void on_sigbus(unsigned depth, siginfo_t *info, ucontext_t *context);

static int add_region(struct delivery *delivery)
{
	struct pager *pager = delivery->pager;
	int row = -1;

	pthread_mutex_lock(&table_lock);
	for (unsigned i = 0; i < REGIONS_MAX && row < 0; i++) {
		if (atomic_load(&regions[i].base) != 0)
			continue;
		row = (int)i;
		regions[i].delivery = delivery;
		atomic_store(&regions[i].end, (uintptr_t)pager->base + (pager->pages << PAGE_SHIFT));
		atomic_store(&regions[i].base, (uintptr_t)pager->base);
		/* What was installed while nothing was mapped is no surprise. */
		sigbus_install(on_sigbus, count_regions() == 1);
	}
	pthread_mutex_unlock(&table_lock);
	return row;
}

static void remove_region(int row)
{
	struct region *region = &regions[row];

	pthread_mutex_lock(&table_lock);
	atomic_store(&region->end, 0);
	wait_for_users(region);
	atomic_store(&region->base, 0);
	pthread_mutex_unlock(&table_lock);
}

/* ---- faults as SIGBUS ------------------------------------------------------------------------------------ */

static bool is_write(const ucontext_t *context)
{
#if defined(__x86_64__)
	/* The page fault's error code: bit 1 is set for a write. */
	return context->uc_mcontext.gregs[REG_ERR] & 2;
#else
#error "no way known to tell a write fault on this machine"
#endif
}

static void deliver_poison(struct delivery *delivery, unsigned depth, uintptr_t address, ucontext_t *context)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	info.si_signo = SIGBUS;
	info.si_code = BUS_MCEERR_AR;
	info.si_addr = (void *)address;
	info.si_addr_lsb = POISON_LSB;
	atomic_fetch_add_explicit(&delivery->poison_faults, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&delivery->pager->device->self->poison_faults, 1, memory_order_relaxed);
	sigbus_pass_on(depth, &info, context);
}

/* A SIGBUS in a monitored mapping is a poison mark. The page may have been repaired since: then try again. */
static enum fault_result check_mark(struct pager *pager, struct op *op, uint64_t page)
{
	enum fault_result result = FAULT_DONE;

	if (!pager_lock_known(pager, op, page, true))
		return FAULT_DONE;
	if (!pager_resident(pager, page)) {
		if (pager_poisoned(pager, op, page))
			result = FAULT_POISON;
		else
			pager_drop(pager, op, page, false);
	}
	pager_unlock(pager, op, page);
	return result;
}

static void tell_consumed(struct pager *pager, struct op *op, uint64_t page)
{
	/* Locked, so that it stays what it is, or on its node; without a page, as of a device that is gone, there is nothing to tell. */
	if (!pager_lock_known(pager, op, page, true))
		return;
	if (pager->managed == NULL)
		device_consumed(pager->device, pager_dpa(pager, page));
	else
		zswap_consumed(pager->managed, page);
	pager_unlock(pager, op, page);
}

static void on_sigbus(unsigned depth, siginfo_t *info, ucontext_t *context)
{
	uintptr_t address = (uintptr_t)info->si_addr;
	enum fault_result result;
	struct delivery *delivery;
	struct region *region;
	int saved = errno;

	/* si_addr means something only when the kernel raised it. */
	region = info->si_code > 0 ? enter_region(address) : NULL;
	if (region == NULL) {
		sigbus_pass_on(depth, info, context);
	} else {
		struct pager *pager;
		struct op *op;
		uint64_t page;

		delivery = region->delivery;
		pager = delivery->pager;
		page = (address - (uintptr_t)pager->base) >> PAGE_SHIFT;
		op = device_enter(pager->device);
		if (delivery->monitored)
			result = check_mark(pager, op, page);
		else
			result = pager_fault(pager, op, page, is_write(context));
		if (result == FAULT_POISON)
			tell_consumed(pager, op, page);
		device_leave(op);
		/* Before the program's handler, which may never return. */
		leave_region(region);
		if (result == FAULT_POISON)
			deliver_poison(delivery, depth, address, context);
		else if (result == FAULT_FAILED)
			sigbus_pass_on(depth, info, context);
	}
	errno = saved;
}

void delivery_pause(void)
{
	atomic_store(&paused, 1);
	for (unsigned i = 0; i < REGIONS_MAX; i++)
		wait_for_users(&regions[i]);
}

void delivery_resume(void)
{
	atomic_store(&paused, 0);
	futex_wake_all(&paused);
}

/* A thread that held the lock is not there to release it. */
void delivery_forget(void)
{
	atomic_store(&paused, 0);
	for (unsigned i = 0; i < REGIONS_MAX; i++) {
		atomic_store(&regions[i].base, 0);
		for (unsigned j = 0; j < USER_STRIPES; j++)
			atomic_store(&regions[i].users[j].n, 0);
	}
	pthread_mutex_init(&table_lock, NULL);
}

void delivery_reassert(void)
{
	pthread_mutex_lock(&table_lock);
	if (count_regions() > 0)
		sigbus_install(on_sigbus, false);
	pthread_mutex_unlock(&table_lock);
}

/* ---- the monitor ---------------------------------------------------------------------------------------- */

static void answer(struct delivery *delivery, const struct uffd_msg *message)
{
	struct pager *pager = delivery->pager;
	uint64_t flags = message->arg.pagefault.flags;
	uint64_t page = (message->arg.pagefault.address - (uintptr_t)pager->base) >> PAGE_SHIFT;
	struct op *op;

	if (message->event != UFFD_EVENT_PAGEFAULT)
		return;
	enter(&regions[delivery->region]);
	op = device_enter(pager->device);
	/* Out of frames: whoever faulted is left asleep while others free memory, and the fault is tried again. */
	while (pager_fault(pager, op, page, flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP)) ==
	       FAULT_FAILED) {
		device_leave(op);
		sleep_ns(1000000);
		op = device_enter(pager->device);
	}
	device_leave(op);
	leave_region(&regions[delivery->region]);
}

static void *monitor(void *argument)
{
	struct delivery *delivery = argument;
	struct pollfd fds[2] = { { .fd = delivery->fd, .events = POLLIN },
				 { .fd = delivery->stop, .events = POLLIN } };
	struct uffd_msg messages[MESSAGES];

	for (;;) {
		ssize_t n;

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents != 0)
			return NULL;
		n = read(delivery->fd, messages, sizeof(messages));
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(messages[0]); i++)
			answer(delivery, &messages[i]);
	}
}

int delivery_monitor(struct delivery *delivery, int fd)
{
	int code;

	delivery->fd = fd;
	delivery->stop = descriptor_take(eventfd(0, EFD_CLOEXEC));
	if (delivery->stop < 0)
		return cram_fail(cram_code_of_errno(errno), "no eventfd for the monitor thread: %s", strerrordesc_np(errno));
	code = thread_start(&delivery->monitor, monitor, delivery, "monitor");
	if (code != 0)
		descriptor_close(delivery->stop);
	return code;
}

static void stop_monitor(struct delivery *delivery)
{
	eventfd_write(delivery->stop, 1);
	pthread_join(delivery->monitor, NULL);
	descriptor_close(delivery->stop);
}

/* ---- start and stop ------------------------------------------------------------------------------------- */

int delivery_start(struct delivery *delivery, struct pager *pager, bool monitored)
{
	int code = 0;

	memset(delivery, 0, sizeof(*delivery));
	delivery->pager = pager;
	delivery->monitored = monitored;
	delivery->region = add_region(delivery);
	if (delivery->region < 0)
		return cram_fail(CRAM_EBUSY, "this process has %u mappings already", REGIONS_MAX);
	if (monitored)
		code = delivery_monitor(delivery, pager->uffd);
	if (code != 0)
		remove_region(delivery->region);
	return code;
}

void delivery_stop(struct delivery *delivery)
{
	remove_region(delivery->region);
	if (delivery->monitored)
		stop_monitor(delivery);
}
