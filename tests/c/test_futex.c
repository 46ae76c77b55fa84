/* SPDX-License-Identifier: MIT
 *
 * The lock words, and who they are taken over from.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/syscall.h>

#include "check.h"
#include "children.h"
#include "device/futex.h"
#include "threads.h"

#define CLIENT 3u

static bool never_dead(void *arg, uint32_t word)
{
	_Atomic uint64_t *asked = arg;

	(void)word;
	if (asked != NULL)
		atomic_fetch_add(asked, 1);
	return false;
}

static bool dead_by_flag(void *arg, uint32_t word)
{
	(void)word;
	return atomic_load((_Atomic bool *)arg);
}

static uint32_t self(void)
{
	return futex_name(CLIENT, thread_id());
}

/* A free lock is taken and released without anything else in its word. */
static void free_lock_is_taken(void)
{
	struct futex_lock lock = { .word = 0 };

	CHECK(!futex_lock(&lock, self(), never_dead, NULL));
	CHECK_EQ(lock.word, self());
	futex_unlock(&lock);
	CHECK_EQ(lock.word, 0);
}

/* A word names the largest client and the largest thread apart, whether somebody waits or not. */
static void word_names_its_holder(void)
{
	static const unsigned clients[] = { 0, 1, 63, 511 };
	static const uint32_t tids[] = { 1, 2, 32768, (1u << 22) - 1 };

	for (unsigned i = 0; i < COUNT(clients); i++) {
		for (unsigned j = 0; j < COUNT(tids); j++) {
			uint32_t word = futex_name(clients[i], tids[j]);

			CHECK_EQ(word & FUTEX_WAITERS, 0);
			CHECK_EQ(futex_holder(word), clients[i]);
			CHECK_EQ(futex_thread(word), tids[j]);
			CHECK_EQ(futex_holder(word | FUTEX_WAITERS), clients[i]);
			CHECK_EQ(futex_thread(word | FUTEX_WAITERS), tids[j]);
		}
	}
}

/* ---- mutual exclusion ----------------------------------------------------------------------------------- */

struct counting {
	struct futex_lock lock;
	bool locked;             /* false: the twin */
	uint64_t plain;          /* for thread sanitizer's eyes */
	_Atomic uint64_t count;
	_Atomic uint32_t inside;
	_Atomic uint64_t meetings;
	_Atomic uint64_t asked;
};

static void count_up(void *arg, unsigned index)
{
	struct counting *c = arg;

	(void)index;
	for (int i = 0; i < ROUNDS(20000); i++) {
		if (c->locked) {
			CHECK(!futex_lock(&c->lock, self(), never_dead, NULL));
			c->plain++;
		}
		if (atomic_fetch_add(&c->inside, 1) != 0)
			c->meetings++;
		uint64_t seen = atomic_load(&c->count);
		if (i % 64 == 0)
			sched_yield();
		atomic_store(&c->count, seen + 1);
		atomic_fetch_sub(&c->inside, 1);
		if (c->locked)
			futex_unlock(&c->lock);
	}
}

/* Of threads that take the lock at once one is inside, and what it wrote the next one sees. */
static void lock_excludes(void)
{
	struct counting c = { .locked = true };

	run_threads(6, count_up, &c);
	CHECK_EQ(c.meetings, 0);
	CHECK_EQ(c.count, 6 * ROUNDS(20000));
	CHECK_EQ(c.plain, c.count);
	CHECK_EQ(c.lock.word, 0);
}

static void take_once(void *arg, unsigned index)
{
	struct counting *c = arg;

	(void)index;
	CHECK(!futex_lock(&c->lock, self(), never_dead, (void *)&c->asked));
	c->count++;
	futex_unlock(&c->lock);
}

/* Who sleeps for the lock is woken by its release, and not by the clock that asks for the holder's health. */
static void release_wakes_the_sleepers(void)
{
	struct counting c = { .count = 0 };
	unsigned prompt = 0;

	for (unsigned round = 1; round <= 10; round++) {
		uint64_t asked = c.asked;
		struct team team;

		CHECK(!futex_lock(&c.lock, self(), never_dead, NULL));
		team_start(&team, 4, take_once, &c);
		sleep_ns(10000000);
		CHECK_EQ(c.lock.word & FUTEX_WAITERS, FUTEX_WAITERS);
		futex_unlock(&c.lock);
		team_join(&team);
		CHECK_EQ(c.count, 4 * round);
		prompt += c.asked == asked;
	}
	/* On a busy machine some have slept so long before the release; without the wake-up all do, each time. */
	CHECK(prompt > 0);
}

/* The twin: without the lock they meet, and updates are lost. */
static void meetings_are_seen(void)
{
	struct counting c = { .locked = false };

	run_threads(6, count_up, &c);
	CHECK(c.meetings > 0);
	CHECK_COMPARE(c.count, <, 6 * ROUNDS(20000));
}

/* ---- the dead ------------------------------------------------------------------------------------------- */

struct inheritance {
	struct futex_lock lock;
	_Atomic bool dead;
	_Atomic uint32_t taken_over, taken, inside;
};

static void inherit(void *arg, unsigned index)
{
	struct inheritance *h = arg;

	(void)index;
	if (futex_lock(&h->lock, self(), dead_by_flag, (void *)&h->dead)) {
		h->taken_over++;
		/* From now on the word names the living. */
		atomic_store(&h->dead, false);
	}
	CHECK_EQ(atomic_fetch_add(&h->inside, 1), 0);
	h->taken++;
	usleep(1000);
	atomic_fetch_sub(&h->inside, 1);
	futex_unlock(&h->lock);
}

/* The lock of a dead client is taken over by exactly one of those who wait, and all of them get it. */
static void dead_holder_is_replaced_once(void)
{
	struct inheritance h = { .lock.word = futex_name(CLIENT + 1, 1), .dead = true };

	run_threads(5, inherit, &h);
	CHECK_EQ(h.taken_over, 1);
	CHECK_EQ(h.taken, 5);
	CHECK_EQ(h.lock.word, 0);
}

/* The twin: while the holder lives nobody takes the lock over, and after the release nobody says that he did. */
static void living_holder_is_waited_for(void)
{
	struct inheritance h = { .lock.word = futex_name(CLIENT + 1, 1) };
	struct team team;

	team_start(&team, 5, inherit, &h);
	sleep_ns(200000000);
	CHECK_EQ(h.taken, 0);
	CHECK_EQ(futex_holder(h.lock.word), CLIENT + 1);
	futex_unlock(&h.lock);
	team_join(&team);
	CHECK_EQ(h.taken_over, 0);
	CHECK_EQ(h.taken, 5);
}

struct shared_lock {
	struct futex_lock lock;
	uint64_t value;
	_Atomic uint32_t ready;
	_Atomic bool dead;
};

static void hold_and_stand(void *arg)
{
	struct shared_lock *s = arg;

	futex_lock(&s->lock, futex_name(CLIENT + 1, thread_id()), never_dead, NULL);
	s->value = 42;
	stand_still(&s->ready);
}

static void hold_for_a_while(void *arg)
{
	struct shared_lock *s = arg;

	futex_lock(&s->lock, futex_name(CLIENT + 1, thread_id()), never_dead, NULL);
	atomic_store(&s->ready, 1);
	sleep_ns(30000000);
	s->value = 43;
	futex_unlock(&s->lock);
}

/* The lock works between processes: who waits is woken by the holder's release, and survives the holder's death. */
static void lock_works_between_processes(void)
{
	struct shared_lock *s = shared_memory(sizeof(*s));
	pid_t pid = child_start(hold_for_a_while, s);

	wait_for(&s->ready);
	CHECK(!futex_lock(&s->lock, self(), never_dead, NULL));
	CHECK_EQ(s->value, 43);
	futex_unlock(&s->lock);
	child_join(pid);
	atomic_store(&s->ready, 0);
	pid = child_start(hold_and_stand, s);
	wait_for(&s->ready);
	child_kill(pid);
	atomic_store(&s->dead, true);
	CHECK(futex_lock(&s->lock, self(), dead_by_flag, (void *)&s->dead));
	CHECK_EQ(s->value, 42);
	futex_unlock(&s->lock);
}

/* ---- sleeping, names, time ------------------------------------------------------------------------------ */

struct bell {
	_Atomic uint32_t word;
	_Atomic uint32_t asleep, woken;
};

static void sleep_on_bell(void *arg, unsigned index)
{
	struct bell *bell = arg;

	(void)index;
	bell->asleep++;
	while (atomic_load(&bell->word) == 0)
		CHECK(futex_wait(&bell->word, 0, 60000000000));
	bell->woken++;
}

/* One call wakes everybody who sleeps on the word. */
static void all_are_woken(void)
{
	struct bell bell = { .word = 0 };
	struct team team;

	team_start(&team, 5, sleep_on_bell, &bell);
	while (atomic_load(&bell.asleep) < 5)
		usleep(100);
	sleep_ns(20000000);
	CHECK_EQ(bell.woken, 0);
	atomic_store(&bell.word, 1);
	futex_wake_all(&bell.word);
	team_join(&team);
	CHECK_EQ(bell.woken, 5);
}

/* A wait ends when its time is up and says so; on another value than the word's it does not begin. */
static void wait_is_timed(void)
{
	_Atomic uint32_t word = 5;
	uint64_t start = now_ns();

	CHECK(futex_wait(&word, 6, 1000000000));
	CHECK(futex_wait(&word, 4, -1));
	CHECK_COMPARE(now_ns() - start, <, 1000000000);
	start = now_ns();
	CHECK(!futex_wait(&word, 5, 20000000));
	CHECK_COMPARE(now_ns() - start, >=, 20000000);
	start = now_ns();
	sleep_ns(20000000);
	CHECK_COMPARE(now_ns() - start, >=, 20000000);
}

static void check_own_id(void *arg)
{
	(void)arg;
	CHECK_EQ(thread_id(), syscall(SYS_gettid));
	CHECK_EQ(thread_id(), getpid());
}

static void check_thread_id(void *arg, unsigned index)
{
	(void)arg;
	(void)index;
	CHECK_EQ(thread_id(), syscall(SYS_gettid));
	CHECK_EQ(thread_id(), syscall(SYS_gettid));
}

/* A thread's id is its own, in a child of fork too, where the parent's was cached. */
static void thread_id_is_its_own(void)
{
	check_own_id(NULL);
	run_threads(3, check_thread_id, NULL);
	child_join(child_start(check_own_id, NULL));
}

static const struct test tests[] = {
	TEST(free_lock_is_taken),
	TEST(word_names_its_holder),
	TEST(lock_excludes),
	TEST(release_wakes_the_sleepers),
	TEST(meetings_are_seen),
	TEST(dead_holder_is_replaced_once),
	TEST(living_holder_is_waited_for),
	TEST(lock_works_between_processes),
	TEST(all_are_woken),
	TEST(wait_is_timed),
	TEST(thread_id_is_its_own),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
