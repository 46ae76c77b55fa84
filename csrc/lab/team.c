/* SPDX-License-Identifier: MIT */
#include "team.h"

#include <pthread.h>
#include <time.h>

#include "../error.h"

struct lab_gate {
	pthread_mutex_t lock; /* held while threads are made: none may run before all exist */
	pthread_barrier_t barrier;
	int cancelled;
};

uint64_t lab_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void lab_begin(struct lab_worker *worker)
{
	struct lab_gate *gate = worker->team->gate;

	pthread_barrier_wait(&gate->barrier);
	worker->begin_ns = lab_now_ns();
}

void lab_end(struct lab_worker *worker)
{
	worker->end_ns = lab_now_ns();
}

void lab_share(const struct lab_worker *worker, uint64_t n, uint64_t *first, uint64_t *last)
{
	uint32_t threads = worker->team->range->threads;

	*first = n * worker->index / threads;
	*last = n * (worker->index + 1) / threads;
}

static void *worker_main(void *argument)
{
	struct lab_worker *worker = argument;
	struct lab_gate *gate = worker->team->gate;
	int cancelled;

	pthread_mutex_lock(&gate->lock);
	cancelled = gate->cancelled;
	pthread_mutex_unlock(&gate->lock);
	if (!cancelled)
		worker->team->run(worker);
	return NULL;
}

static void collect(const struct lab_team *team, struct cram_lab_result *result)
{
	uint64_t begin = UINT64_MAX, end = 0, wrong = 0;

	for (uint32_t i = 0; i < team->range->threads; i++) {
		const struct lab_worker *worker = &team->worker[i];

		begin = worker->begin_ns < begin ? worker->begin_ns : begin;
		end = worker->end_ns > end ? worker->end_ns : end;
		wrong += worker->wrong;
	}
	result->elapsed_ns = end - begin;
	result->wrong = wrong;
}

int lab_team_run(struct lab_team *team, struct cram_lab_result *result)
{
	uint32_t threads = team->range->threads, made = 1;
	struct lab_gate gate = { .lock = PTHREAD_MUTEX_INITIALIZER };
	pthread_t thread[LAB_THREADS];

	if (pthread_barrier_init(&gate.barrier, NULL, threads))
		return cram_fail(CRAM_ENOMEM, "no barrier for %u threads", threads);
	team->gate = &gate;
	pthread_mutex_lock(&gate.lock);
	for (uint32_t i = 0; i < threads; i++)
		team->worker[i] = (struct lab_worker){ .team = team, .index = i };
	while (made < threads && !pthread_create(&thread[made], NULL, worker_main, &team->worker[made]))
		made++;
	gate.cancelled = made < threads;
	pthread_mutex_unlock(&gate.lock);
	if (!gate.cancelled)
		team->run(&team->worker[0]);
	for (uint32_t i = 1; i < made; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&gate.barrier);
	if (gate.cancelled)
		return cram_fail(CRAM_ENOMEM, "%u threads wanted, %u could be had", threads, made);
	collect(team, result);
	return 0;
}
