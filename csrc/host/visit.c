/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "visit.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"

static uint32_t fork_generation;

void visits_forget(void)
{
	fork_generation++;
}

void visits_init(cram_device *device)
{
	pthread_rwlockattr_t attributes;

	/* Also for a handle that a child of fork takes over. */
	device->fork_generation = fork_generation;
	/* Writers first: a stream of page operations must not keep a map or unmap waiting for ever. */
	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&device->maps_lock, &attributes);
	pthread_rwlockattr_destroy(&attributes);
}

void visits_deinit(cram_device *device)
{
	pthread_rwlock_destroy(&device->maps_lock);
}

bool host_forked(const cram_device *device)
{
	return device->fork_generation != fork_generation;
}

int host_check(const cram_device *device)
{
	if (host_forked(device))
		return cram_fail(CRAM_EFORKED, "this device was opened before fork(): open it again in the child");
	if (atomic_load(&device->closing))
		return cram_fail(CRAM_ECLOSED, "the device is closed");
	return 0;
}

/* Blocks signals: a handler that ran while this thread holds a page or a lock might want the same one. The raw call,
 * because glibc keeps two of its own signals open, and their handlers may wait for other threads. Those that a fault
 * raises stay open: blocked, they kill. */
void host_block_signals(sigset_t *before)
{
	sigset_t mask;

	/* sigfillset() leaves out those by which glibc cancels threads. */
	memset(&mask, 0xff, sizeof(mask));
	sigdelset(&mask, SIGBUS);
	sigdelset(&mask, SIGSEGV);
	sigdelset(&mask, SIGFPE);
	sigdelset(&mask, SIGILL);
	sigdelset(&mask, SIGTRAP);
	sigdelset(&mask, SIGSYS);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, before, _NSIG / 8);
}

void host_restore_signals(const sigset_t *before)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, before, NULL, _NSIG / 8);
}

void visit_end(struct visit *visit)
{
	if (visit->op != NULL)
		device_leave(visit->op);
	pthread_rwlock_unlock(&visit->device->maps_lock);
	host_restore_signals(&visit->before);
}

int visit_begin_at(const cram_device *device, struct visit *visit, bool write)
{
	int code;

	visit->device = (struct cram_device *)device;
	visit->op = NULL;
	/* Before the lock: in a child it may be held by a thread that is not there. */
	if (host_forked(device))
		return host_check(device);
	host_block_signals(&visit->before);
	if (write)
		pthread_rwlock_wrlock(&visit->device->maps_lock);
	else
		pthread_rwlock_rdlock(&visit->device->maps_lock);
	code = host_check(device);
	if (code != 0)
		visit_end(visit);
	return code;
}

int visit_begin(const cram_device *device, struct visit *visit)
{
	return visit_begin_at(device, visit, false);
}

int visit_begin_op(cram_device *device, struct visit *visit)
{
	int code = visit_begin(device, visit);

	if (code == 0)
		visit->op = device_enter(&device->device);
	return code;
}
