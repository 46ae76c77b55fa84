/* SPDX-License-Identifier: MIT
 *
 * futex.h - sleeping on, and locking with, words of the device object.
 *
 * Not pthread locks: these live in memory that several processes share, may be taken in a SIGBUS handler, and name
 * the client and the thread that hold them, so that one left by a dead client can be taken over. (glibc's robust
 * mutexes keep a per-thread list that a signal can find half changed.) Not recursive.
 */
#ifndef CRAM_FUTEX_H
#define CRAM_FUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* 0: free. Bit 31: somebody waits. Bits 30..22: client. Bits 21..0: thread (pid_max is at most 2^22). */
struct futex_lock {
	_Atomic uint32_t word;
};

/* Who asks: a client and a thread, as futex_lock words name them. */
#define FUTEX_CLIENT_SHIFT 22
#define FUTEX_WAITERS 0x80000000u
static inline uint32_t futex_name(unsigned client, uint32_t tid)
{
	return (uint32_t)client << FUTEX_CLIENT_SHIFT | tid;
}

static inline unsigned futex_holder(uint32_t word)
{
	return (word & ~FUTEX_WAITERS) >> FUTEX_CLIENT_SHIFT;
}

static inline uint32_t futex_thread(uint32_t word)
{
	return word & ((1u << FUTEX_CLIENT_SHIFT) - 1);
}

/* Says whether whom a lock word names is dead; async-signal-safe. */
typedef bool futex_dead_fn(void *arg, uint32_t word);

/* Takes the lock as self (futex_name()). Returns true when it was taken over from a dead client: what it protects
 * may be half changed. Async-signal-safe; callers block signals, or are in a handler that does. */
bool futex_lock(struct futex_lock *lock, uint32_t self, futex_dead_fn *dead, void *arg);
/* The same for a lock in memory of this process alone, whose threads do not die by themselves. */
void futex_lock_private(struct futex_lock *lock);
void futex_unlock(struct futex_lock *lock);

/* Sleeps while *word == value, at most timeout_ns (negative: for ever). Returns false when the time ran out; may
 * also return true for no reason. */
bool futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t timeout_ns);
void futex_wake_all(_Atomic uint32_t *word);

/* The calling thread's id, cached; right in a child of fork too. */
uint32_t thread_id(void);
/* CLOCK_MONOTONIC. */
uint64_t now_ns(void);
void sleep_ns(uint64_t ns);

#endif
