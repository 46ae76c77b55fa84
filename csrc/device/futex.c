/* SPDX-License-Identifier: MIT */
#include "futex.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "memory.h"

/* How often a waiter asks whether the holder still lives. */
#define LIVENESS_NS 50000000

/* initial-exec: the dynamic model may call malloc on a thread's first access, which a signal handler must not. */
static _Thread_local uint32_t cached_tid __attribute__((tls_model("initial-exec")));

static void forget_tid(void)
{
	cached_tid = 0;
}

__attribute__((constructor)) static void watch_fork(void)
{
	pthread_atfork(NULL, NULL, forget_tid);
}

uint32_t thread_id(void)
{
	if (cached_tid == 0)
		cached_tid = (uint32_t)syscall(SYS_gettid);
	return cached_tid;
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void sleep_ns(uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u) };

	/* Past the C library: its function is a cancellation point, and who sleeps here may hold a page. */
	memory_call(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)&t, 0, 0, 0);
}

bool futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns)
{
	struct timespec t = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
	int saved = errno;
	bool in_time;

	in_time = syscall(SYS_futex, word, FUTEX_WAIT, value, timeout_ns < 0 ? NULL : &t, NULL, 0) == 0 ||
		  errno != ETIMEDOUT;
	errno = saved;
	return in_time;
}

void futex_wake_all(_Atomic uint32_t *word)
{
	int saved = errno;

	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	errno = saved;
}

bool futex_lock(struct futex_lock *lock, uint32_t self, futex_dead_fn *dead, void *arg)
{
	uint32_t seen = 0;
	uint32_t want = self;

	while (!atomic_compare_exchange_strong(&lock->word, &seen, want)) {
		uint32_t waited = seen | FUTEX_WAITERS;

		if (seen == 0)
			continue;
		if (!(seen & FUTEX_WAITERS) && !atomic_compare_exchange_strong(&lock->word, &seen, waited)) {
			seen = 0;
			continue;
		}
		if (!futex_wait(&lock->word, waited, LIVENESS_NS)) {
			/* The word still names the dead holder only if nobody else has taken it over. */
			if (dead(arg, waited) &&
			    atomic_compare_exchange_strong(&lock->word, &waited, self | FUTEX_WAITERS))
				return true;
		}
		/* Others may wait besides: whoever slept must leave the mark for them. */
		want = self | FUTEX_WAITERS;
		seen = 0;
	}
	return false;
}

static bool nobody_dead(void *arg, uint32_t word)
{
	(void)arg;
	(void)word;
	return false;
}

void futex_lock_private(struct futex_lock *lock)
{
	futex_lock(lock, futex_name(0, thread_id()), nobody_dead, NULL);
}

void futex_unlock(struct futex_lock *lock)
{
	if (atomic_exchange(&lock->word, 0) & FUTEX_WAITERS)
		futex_wake_all(&lock->word);
}
