/* SPDX-License-Identifier: MIT
 *
 * team.h - the threads that run one loop together.
 *
 * The calling thread is the first of them, so a loop of one thread runs in a process that is single-threaded as far
 * as this code is concerned: a second thread, even asleep, would make every change of a page table dearer.
 */
#ifndef CRAM_LAB_TEAM_H
#define CRAM_LAB_TEAM_H

#include <stdint.h>

#include "content.h"

struct lab_team;

struct lab_worker {
	struct lab_team *team;
	uint32_t index;
	uint64_t begin_ns; /* stamped by lab_begin() and lab_end() */
	uint64_t end_ns;
	uint64_t digest; /* of the values read */
	uint64_t wrong;
};

struct lab_team {
	const struct cram_lab_range *range;
	void (*run)(struct lab_worker *worker); /* calls lab_begin() and lab_end() around its timed part */
	const void *argument;
	uint64_t accesses;    /* of the whole team */
	uint32_t *latency_ns; /* one entry an access */
	struct lab_worker worker[LAB_THREADS];
	void *gate; /* struct lab_gate, while the team runs */
};

uint64_t lab_now_ns(void);

/* Waits until every thread of the team is here, then stamps the start. */
void lab_begin(struct lab_worker *worker);
void lab_end(struct lab_worker *worker);

/* The worker's share [*first, *last) of n things. */
void lab_share(const struct lab_worker *worker, uint64_t n, uint64_t *first, uint64_t *last);

/* Runs team->run in range->threads threads. result: from the first start to the last end, the sum of wrong.
 * CRAM_ENOMEM when a thread cannot be had: nothing has run then. */
int lab_team_run(struct lab_team *team, struct cram_lab_result *result);

#endif
