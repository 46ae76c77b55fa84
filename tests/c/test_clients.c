/* SPDX-License-Identifier: MIT
 *
 * The table of clients, their claims, and the places and the gate that hold their threads at a page boundary.
 *
 * The dead are children that really died.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "check.h"
#include "children.h"
#include "device/clients.h"
#include "threads.h"

#define SECOND 1000000000ull

/* A table of no clients, shared with children. For good. */
static struct clients *make_table(void)
{
	return shared_memory(sizeof(struct clients));
}

/* Joins, as its own client. */
static unsigned join(struct clients *clients)
{
	int index = clients_join(clients);

	CHECK_COMPARE(index, <, CLIENTS_MAX);
	return (unsigned)index;
}

/* A child that joins, and its slot. */
struct joiner {
	struct clients *clients;
	_Atomic uint32_t joined;
	_Atomic uint32_t index;
	void (*then)(struct joiner *joiner);
};

static void join_and_stand(void *arg)
{
	struct joiner *joiner = arg;

	atomic_store(&joiner->index, join(joiner->clients));
	if (joiner->then != NULL)
		joiner->then(joiner);
	stand_still(&joiner->joined);
}

static struct joiner *make_joiner(struct clients *clients)
{
	struct joiner *joiner = shared_memory(sizeof(*joiner));

	joiner->clients = clients;
	return joiner;
}

/* ---- slots ---------------------------------------------------------------------------------------------- */

/* 64 clients find a slot each, the next one none, and a slot that is left is the next one's. */
static void table_has_64_slots(void)
{
	struct clients *clients = make_table();

	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		CHECK_EQ(clients_join(clients), i);
		CHECK_EQ(clients->attached, i == 63 ? UINT64_MAX : (1ull << (i + 1)) - 1);
		CHECK_EQ(clients->table[i].pid, getpid());
	}
	CHECK_EQ(clients_join(clients), -1);
	CHECK_EQ(clients_dead(clients), 0);
	clients_leave(clients, 63);
	clients_leave(clients, 17);
	CHECK_EQ(clients->attached, ~(1ull << 63 | 1ull << 17));
	CHECK_EQ(clients_join(clients), 17);
	CHECK_EQ(clients_join(clients), 63);
	CHECK_EQ(clients_join(clients), -1);
}

/* Nothing of a slot's last client is left to the next one: no claim, no place, no lock, no dirty frame, no answer. */
static void slot_is_left_clean(void)
{
	struct clients *clients = make_table();
	struct client *client = &clients->table[0];

	join(clients);
	for (uint64_t i = 0; i < CLAIMS_MAX; i++)
		CHECK_EQ(clients_claim(clients, 0, i * 10, 10), i);
	for (unsigned i = 0; i < PLACES_MAX; i++)
		CHECK_EQ(place_enter(clients, 0, i), i);
	place_park(clients, 0, 5);
	client->dirty_frames = 7;
	client->mailbox.request = 9ull << REQUEST_NUMBER_SHIFT | REQUEST_CLEAR;
	client->mailbox.answered = 8;
	clients_leave(clients, 0);
	CHECK(client_dead(client));
	CHECK_EQ(clients_owner(clients, 5), -1);
	join(clients);
	CHECK_EQ(clients_owner(clients, 5), -1);
	CHECK_EQ(client->claim_count, 0);
	CHECK_EQ(client->dirty_frames, 0);
	CHECK_EQ(client->mailbox.request, 9ull << REQUEST_NUMBER_SHIFT);
	CHECK_EQ(client->mailbox.answered, 9);
	for (unsigned i = 0; i < PLACES_MAX; i++)
		CHECK_EQ(client->places[i].word, 0);
	CHECK_EQ(clients_claim(clients, 0, 0, 1), 0);
}

/* ---- life and death ------------------------------------------------------------------------------------- */

/* A client is dead when its process is, as a zombie too, and not before. */
static void death_is_seen(void)
{
	struct clients *clients = make_table();
	struct joiner *joiner = make_joiner(clients);
	siginfo_t info;
	uint32_t word;
	pid_t pid;

	join(clients);
	pid = child_start(join_and_stand, joiner);
	word = futex_name(1, (uint32_t)pid);
	wait_for(&joiner->joined);
	CHECK_EQ(joiner->index, 1);
	CHECK(!client_dead(&clients->table[1]));
	CHECK(!clients_holder_dead(clients, word));
	CHECK_EQ(clients_dead(clients), 0);
	CHECK_EQ(kill(pid, SIGSTOP), 0);
	CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT), 0);
	CHECK(!client_dead(&clients->table[1]));
	CHECK_EQ(kill(pid, SIGKILL), 0);
	CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	CHECK(client_dead(&clients->table[1]));
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	CHECK(client_dead(&clients->table[1]));
	CHECK(clients_holder_dead(clients, word | FUTEX_WAITERS));
	CHECK_EQ(clients_dead(clients), 2);
	clients_leave(clients, 1);
	CHECK_EQ(clients_dead(clients), 0);
	CHECK(client_dead(&clients->table[1]));
}

/* A process that got a dead client's number is not taken for it: the start time tells. */
static void reused_pid_is_not_the_client(void)
{
	struct clients *clients = make_table();

	join(clients);
	CHECK(!client_dead(&clients->table[0]));
	clients->table[0].start_time--;
	CHECK(client_dead(&clients->table[0]));
}

static void *name_thread(void *arg)
{
	*(uint32_t *)arg = thread_id();
	return NULL;
}

/* A lock word that names a thread which its client does not have, being an earlier one's of that slot, names nobody. */
static void thread_of_an_earlier_client_is_dead(void)
{
	struct clients *clients = make_table();
	pthread_t thread;
	uint32_t tid = 0;

	join(clients);
	CHECK_EQ(pthread_create(&thread, NULL, name_thread, &tid), 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(clients_holder_dead(clients, futex_name(0, tid)));
	CHECK(!clients_holder_dead(clients, futex_name(0, thread_id())));
	CHECK(!client_dead(&clients->table[0]));
}

static void *keep_and_stand(void *arg)
{
	struct joiner *joiner = arg;

	atomic_store(&joiner->clients->table[joiner->index].keeper, thread_id());
	stand_still(&joiner->joined);
	return NULL;
}

static void join_and_execute(void *arg)
{
	struct joiner *joiner = arg;
	pthread_t thread;

	atomic_store(&joiner->index, join(joiner->clients));
	CHECK_EQ(pthread_create(&thread, NULL, keep_and_stand, joiner), 0);
	wait_for(&joiner->joined);
	execl("/bin/sleep", "sleep", "1000", NULL);
}

/* A client that has executed another program is gone, though its process and start time are what they were: its keeper
 * ended. The twin: without a keeper it seems to live. */
static void executed_client_is_dead(void)
{
	struct clients *clients = make_table();
	struct joiner *joiner = make_joiner(clients);
	pid_t pid = child_start(join_and_execute, joiner);
	unsigned waits = 0;

	wait_for(&joiner->joined);
	while (!client_dead(&clients->table[0]) && waits++ < 100000)
		usleep(100);
	CHECK(client_dead(&clients->table[0]));
	CHECK_EQ(clients_dead(clients), 1);
	CHECK_EQ(kill(pid, 0), 0);
	atomic_store(&clients->table[0].keeper, 0);
	CHECK(!client_dead(&clients->table[0]));
	child_kill(pid);
	CHECK(client_dead(&clients->table[0]));
}

/* Locks of the dead are opened, those of others and of whoever joins are not, and who slept for one goes on. */
static void locks_of_the_dead_are_opened(void)
{
	struct futex_lock lock = { .word = futex_name(5, 100) };

	clients_break_lock(&lock, ~(1ull << 5));
	CHECK_EQ(lock.word, futex_name(5, 100));
	clients_break_lock(&lock, 1ull << 5);
	CHECK_EQ(lock.word, 0);
	clients_break_lock(&lock, UINT64_MAX);
	CHECK_EQ(lock.word, 0);
	atomic_store(&lock.word, futex_name(63, 100) | FUTEX_WAITERS);
	clients_break_lock(&lock, 1ull << 63);
	CHECK_EQ(lock.word, 0);
	atomic_store(&lock.word, futex_name(CLIENT_JOINING, 100));
	clients_break_lock(&lock, UINT64_MAX);
	CHECK_EQ(lock.word, futex_name(CLIENT_JOINING, 100));
}

static void *stand(void *arg)
{
	stand_still(&((struct joiner *)arg)->joined);
	return NULL;
}

static void join_and_end_leader(void *arg)
{
	struct joiner *joiner = arg;
	pthread_t thread;

	atomic_store(&joiner->index, join(joiner->clients));
	CHECK_EQ(pthread_create(&thread, NULL, stand, joiner), 0);
	pthread_exit(NULL);
}

/* A process whose first thread has ended lives as long as another one does. */
static void process_without_leader_lives(void)
{
	struct clients *clients = make_table();
	struct joiner *joiner = make_joiner(clients);
	pid_t pid = child_start(join_and_end_leader, joiner);
	char path[64], state = 0;

	wait_for(&joiner->joined);
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	/* Until it looks like a zombie. */
	while (state != 'Z') {
		FILE *file = fopen(path, "r");

		CHECK(file != NULL);
		CHECK_EQ(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
		fclose(file);
	}
	CHECK(!client_dead(&clients->table[joiner->index]));
	child_kill(pid);
	CHECK(client_dead(&clients->table[joiner->index]));
}

static void end_at_once(void *arg)
{
	(void)arg;
}

/* Who has no slot yet is named by its thread alone, and that one's death is seen as well. */
static void joining_holder_is_known(void)
{
	struct clients *clients = make_table();
	pid_t pid;

	CHECK(!clients_holder_dead(clients, futex_name(CLIENT_JOINING, thread_id())));
	pid = child_start(end_at_once, NULL);
	child_join(pid);
	CHECK(clients_holder_dead(clients, futex_name(CLIENT_JOINING, (uint32_t)pid)));
}

/* Every client that is attached is rung, and nobody else. */
static void bells_ring(void)
{
	struct clients *clients = make_table();

	join(clients);
	join(clients);
	join(clients);
	clients_leave(clients, 1);
	clients_ring_all(clients);
	client_ring(&clients->table[2]);
	CHECK_EQ(clients->table[0].bell, 1);
	CHECK_EQ(clients->table[1].bell, 0);
	CHECK_EQ(clients->table[2].bell, 2);
}

/* ---- claims --------------------------------------------------------------------------------------------- */

/* A range that shares a page with a claim, anybody's, is refused; one that only touches it is not. */
static void overlap_is_refused(void)
{
	struct clients *clients = make_table();
	unsigned a = join(clients), b = join(clients);

	CHECK_EQ(clients_claim(clients, a, 100, 50), 0);
	for (unsigned who = 0; who < 2; who++) {
		CHECK_EQ(clients_claim(clients, who, 149, 1), -1);
		CHECK_EQ(clients_claim(clients, who, 100, 1), -1);
		CHECK_EQ(clients_claim(clients, who, 0, 101), -1);
		CHECK_EQ(clients_claim(clients, who, 0, 1000), -1);
		CHECK_EQ(clients_claim(clients, who, 120, 5), -1);
	}
	CHECK_EQ(clients_claim(clients, b, 150, 10), 0);
	CHECK_EQ(clients_claim(clients, b, 0, 100), 1);
	CHECK_EQ(clients_owner(clients, 99), b);
	CHECK_EQ(clients_owner(clients, 100), a);
	CHECK_EQ(clients_owner(clients, 149), a);
	CHECK_EQ(clients_owner(clients, 150), b);
	CHECK_EQ(clients_owner(clients, 160), -1);
	clients_unclaim(clients, a, 0);
	CHECK_EQ(clients_owner(clients, 100), -1);
	CHECK_EQ(clients_claim(clients, b, 149, 1), 2);
}

/* A client has 16 claims; the next one is refused until one is given up. */
static void claims_are_limited(void)
{
	struct clients *clients = make_table();

	join(clients);
	for (uint64_t i = 0; i < CLAIMS_MAX; i++)
		CHECK_EQ(clients_claim(clients, 0, 2 * i, 1), i);
	CHECK_EQ(clients_claim(clients, 0, 1, 1), -2);
	clients_unclaim(clients, 0, 6);
	CHECK_EQ(clients_claim(clients, 0, 1, 1), 6);
	CHECK_EQ(clients_owner(clients, 1), 0);
	CHECK_EQ(clients_owner(clients, 12), -1);
	CHECK_EQ(clients_owner(clients, 30), 0);
}

/* A page is foreign when another client, and not oneself, has claimed it. */
static void others_claims_are_foreign(void)
{
	struct clients *clients = make_table();

	join(clients);
	CHECK_EQ(clients_claim(clients, 0, 10, 10), 0);
	CHECK(!clients_foreign(clients, 0, 15));
	join(clients);
	CHECK(!clients_foreign(clients, 0, 15));
	CHECK(clients_foreign(clients, 1, 15));
	CHECK(!clients_foreign(clients, 1, 20));
	clients_leave(clients, 0);
	CHECK(!clients_foreign(clients, 1, 15));
}

/* ---- places and the gate -------------------------------------------------------------------------------- */

/* Threads get places of their own, the hinted one if it is free, and a running one shows until it parks or leaves. */
static void places_show_who_runs(void)
{
	struct clients *clients = make_table();
	int first, second;

	join(clients);
	CHECK(places_still(clients, 0));
	first = place_enter(clients, 0, 100);
	CHECK_EQ(first, 100 % PLACES_MAX);
	second = place_enter(clients, 0, 100);
	CHECK_COMPARE(second, !=, first);
	CHECK(!places_still(clients, 1000000));
	place_leave(clients, 0, (unsigned)first);
	CHECK(!places_still(clients, 1000000));
	place_park(clients, 0, (unsigned)second);
	CHECK(places_still(clients, 0));
	CHECK(place_unpark(clients, 0, (unsigned)second));
	CHECK(!places_still(clients, 1000000));
	place_leave(clients, 0, (unsigned)second);
	CHECK(places_still(clients, 0));
}

struct crossing {
	struct clients *clients;
	unsigned index;
	bool gated;                /* false: the twin */
	_Atomic uint32_t stop;
	_Atomic uint64_t passed;   /* times that somebody worked */
	_Atomic uint64_t inside;
	_Atomic uint64_t met;      /* times that somebody was inside while all should stand still */
	uint64_t shared[THREADS_MAX]; /* for thread sanitizer's eyes: written inside, read at the gate */
};

static void cross(void *arg, unsigned index)
{
	struct crossing *c = arg;

	for (unsigned i = 0; atomic_load(&c->stop) == 0; i++) {
		int place = place_enter(c->clients, c->index, index);

		CHECK_COMPARE(place, <, PLACES_MAX);
		atomic_fetch_add(&c->inside, 1);
		if (c->gated)
			c->shared[index]++;
		if (i % 16 == 0)
			sched_yield();
		atomic_fetch_add(&c->passed, 1);
		atomic_fetch_sub(&c->inside, 1);
		if (i % 4 == 0) {
			place_park(c->clients, c->index, (unsigned)place);
			CHECK(place_unpark(c->clients, c->index, (unsigned)place));
			if (c->gated)
				c->shared[index]++;
		}
		place_leave(c->clients, c->index, (unsigned)place);
	}
}

/* As a rebuild does: nobody may be inside from the raising of the gate to its lowering. */
static void look_at_the_gate(struct crossing *c, unsigned threads)
{
	for (int i = 0; i < 60; i++) {
		uint64_t passed, sum = 0;

		/* The lock says that the gate's owner lives. */
		CHECK(!futex_lock(&c->clients->lock, futex_name(c->index, thread_id()), clients_holder_dead,
				  c->clients));
		if (c->gated) {
			gate_raise(c->clients);
			CHECK(places_still(c->clients, 10 * SECOND));
		}
		passed = atomic_load(&c->passed);
		for (int j = 0; j < 20; j++) {
			if (atomic_load(&c->inside) != 0)
				c->met++;
			for (unsigned k = 0; c->gated && k < threads; k++)
				sum += c->shared[k];
			sched_yield();
		}
		if (atomic_load(&c->passed) != passed)
			c->met++;
		CHECK(!c->gated || sum % 20 == 0);
		if (c->gated)
			gate_lower(c->clients);
		futex_unlock(&c->clients->lock);
		/* Until somebody works again: the gate is down. */
		while (atomic_load(&c->passed) == passed)
			sched_yield();
	}
	atomic_store(&c->stop, 1);
}

static void run_crossing(struct crossing *c, bool gated)
{
	const unsigned threads = 4;
	struct team team;

	memset(c, 0, sizeof(*c));
	c->clients = make_table();
	c->index = join(c->clients);
	c->gated = gated;
	team_start(&team, threads, cross, c);
	look_at_the_gate(c, threads);
	team_join(&team);
}

/* While the gate is up and the places are still, no thread works; when it is lowered they go on. */
static void gate_holds_everybody(void)
{
	struct crossing c;

	run_crossing(&c, true);
	CHECK_EQ(c.met, 0);
}

/* The twin: without the gate, they are met at work. */
static void workers_are_met_without_gate(void)
{
	struct crossing c;

	run_crossing(&c, false);
	CHECK(c.met > 0);
}

static void enter_and_stay(void *arg, unsigned index)
{
	struct crossing *c = arg;
	int place = place_enter(c->clients, c->index, 0);

	(void)index;
	atomic_fetch_add(&c->inside, 1);
	while (atomic_load(&c->stop) == 0)
		usleep(100);
	place_leave(c->clients, c->index, (unsigned)place);
	atomic_fetch_sub(&c->inside, 1);
	atomic_fetch_add(&c->passed, 1);
}

/* More threads than places take turns. */
static void places_are_shared_out(void)
{
	struct crossing c = { .clients = make_table() };
	struct team team;

	c.index = join(c.clients);
	team_start(&team, PLACES_MAX + 10, enter_and_stay, &c);
	while (atomic_load(&c.inside) < PLACES_MAX)
		usleep(100);
	usleep(20000);
	CHECK_EQ(c.inside, PLACES_MAX);
	atomic_store(&c.stop, 1);
	team_join(&team);
	CHECK_EQ(c.passed, PLACES_MAX + 10);
	CHECK(places_still(c.clients, 0));
}

static void run_in_place(struct joiner *joiner)
{
	place_enter(joiner->clients, joiner->index, 3);
}

static void raise_gate(struct joiner *joiner)
{
	futex_lock(&joiner->clients->lock, futex_name(joiner->index, thread_id()), clients_holder_dead,
		   joiner->clients);
	gate_raise(joiner->clients);
}

/* A thread that runs for ever is waited for, as long as was asked; a dead one is not. */
static void dead_threads_stand_still(void)
{
	struct clients *clients = make_table();
	struct joiner *joiner = make_joiner(clients);
	uint64_t start;
	pid_t pid;

	join(clients);
	joiner->then = run_in_place;
	pid = child_start(join_and_stand, joiner);
	wait_for(&joiner->joined);
	start = now_ns();
	CHECK(!places_still(clients, 100000000));
	CHECK_COMPARE(now_ns() - start, >=, 100000000);
	child_kill(pid);
	CHECK(places_still(clients, 100000000));
}

struct waiting {
	struct clients *clients;
	_Atomic int entered; /* what place_enter() answered, + 2; 0: still waiting */
	_Atomic int unparked;
	int parked;
	_Atomic bool ready;
};

static void wait_at_the_gate(void *arg, unsigned index)
{
	struct waiting *w = arg;

	if (index == 0)
		w->entered = place_enter(w->clients, 0, 0) + 2;
	else
		w->unparked = place_unpark(w->clients, 0, (unsigned)w->parked) + 2;
}

/* Who waits below the gate of a client that dies is told so; while that one lives he waits. */
static void dead_gate_is_reported(void)
{
	struct waiting w = { .clients = make_table() };
	struct joiner *joiner = make_joiner(w.clients);
	struct team team;
	pid_t pid;

	join(w.clients);
	w.parked = place_enter(w.clients, 0, 9);
	place_park(w.clients, 0, (unsigned)w.parked);
	joiner->then = raise_gate;
	pid = child_start(join_and_stand, joiner);
	wait_for(&joiner->joined);
	team_start(&team, 2, wait_at_the_gate, &w);
	usleep(250000);
	CHECK_EQ(w.entered, 0);
	CHECK_EQ(w.unparked, 0);
	child_kill(pid);
	team_join(&team);
	CHECK_EQ(w.entered, -1 + 2);
	CHECK_EQ(w.unparked, false + 2);
	/* Neither of them runs now. */
	CHECK(places_still(w.clients, 0));
}

static const struct test tests[] = {
	TEST(table_has_64_slots),
	TEST(slot_is_left_clean),
	TEST(death_is_seen),
	TEST(reused_pid_is_not_the_client),
	TEST(thread_of_an_earlier_client_is_dead),
	TEST(executed_client_is_dead),
	TEST(locks_of_the_dead_are_opened),
	TEST(process_without_leader_lives),
	TEST(joining_holder_is_known),
	TEST(bells_ring),
	TEST(overlap_is_refused),
	TEST(claims_are_limited),
	TEST(others_claims_are_foreign),
	TEST(places_show_who_runs),
	TEST(gate_holds_everybody),
	TEST(workers_are_met_without_gate),
	TEST(places_are_shared_out),
	TEST(dead_threads_stand_still),
	TEST(dead_gate_is_reported),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
