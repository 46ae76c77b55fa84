/* SPDX-License-Identifier: MIT
 *
 * threads.h - several threads that start together.
 */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>

#include "check.h"

#define THREADS_MAX 80u

typedef void thread_fn(void *arg, unsigned index);

struct team {
	pthread_barrier_t start;
	pthread_t threads[THREADS_MAX];
	unsigned count;
	thread_fn *body;
	void *arg;
};

struct member {
	struct team *team;
	unsigned index;
};

static inline void *team_member(void *argument)
{
	struct member member = *(struct member *)argument;

	/* Only now may the starter reuse the argument. */
	pthread_barrier_wait(&member.team->start);
	pthread_barrier_wait(&member.team->start);
	member.team->body(member.team->arg, member.index);
	return NULL;
}

/* Starts n threads that call body(arg, 0), body(arg, 1) ... at about the same time. */
static inline void team_start(struct team *team, unsigned n, thread_fn *body, void *arg)
{
	struct member members[THREADS_MAX];

	CHECK(n <= THREADS_MAX);
	team->count = n;
	team->body = body;
	team->arg = arg;
	CHECK_EQ(pthread_barrier_init(&team->start, NULL, n + 1), 0);
	for (unsigned i = 0; i < n; i++) {
		members[i] = (struct member){ team, i };
		CHECK_EQ(pthread_create(&team->threads[i], NULL, team_member, &members[i]), 0);
	}
	pthread_barrier_wait(&team->start);
	pthread_barrier_wait(&team->start);
}

static inline void team_join(struct team *team)
{
	for (unsigned i = 0; i < team->count; i++)
		CHECK_EQ(pthread_join(team->threads[i], NULL), 0);
	pthread_barrier_destroy(&team->start);
}

static inline void run_threads(unsigned n, thread_fn *body, void *arg)
{
	struct team team;

	team_start(&team, n, body, arg);
	team_join(&team);
}

#endif
