/* SPDX-License-Identifier: MIT
 *
 * delivery.h - how a fault arrives, and how poison is delivered.
 *
 * It does not resolve faults; the pager does. Inline: userfaultfd raises SIGBUS in the faulting thread, and the
 * handler calls the pager there. Monitor: a thread reads the descriptor and calls the pager for whoever sleeps; only
 * poison marks raise SIGBUS. Both need the process's SIGBUS handler: it comes first, and passes on what is not ours.
 *
 * Poison reaches the program as the kernel's memory_failure() delivers it: SIGBUS, BUS_MCEERR_AR, the exact address,
 * si_addr_lsb 12, in the thread that touched it; to the handler that the program had installed, else by the default
 * action.
 */
#ifndef CRAM_DELIVERY_H
#define CRAM_DELIVERY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pager.h"

struct delivery {
	struct pager *pager;
	bool monitored;
	int region;               /* our row of the process's table */
	int fd;                   /* the descriptor that the monitor reads */
	int stop;                 /* eventfd that ends it */
	pthread_t monitor;
	_Atomic uint64_t poison_faults;
};

/* Starts to deliver the pager's faults; its range is mapped, and is registered next: starting a
 * thread may touch memory that it will serve. delivery stays where it is until
 * delivery_stop(). CRAM_EBUSY: too many mappings in this process; CRAM_ENOMEM. */
int delivery_start(struct delivery *delivery, struct pager *pager, bool monitored);
/* Starts the monitor of a delivery that is inline until now: it reads fd, which is to become the pager's. CRAM_ENOMEM. */
int delivery_monitor(struct delivery *delivery, int fd);
/* Lets no thread begin to resolve a fault, and returns when none is at it; they wait until delivery_resume(). */
void delivery_pause(void);
void delivery_resume(void);
/* In a child of fork, first: nothing is delivered any more. */
void delivery_forget(void);

/* Ends it, and returns when no thread is inside. Faults are then not answered any more. */
void delivery_stop(struct delivery *delivery);

/* Puts our SIGBUS handler back in front of one that the program has installed since (sigbus.h). Without a preloaded
 * shim nobody tells us of sigaction(2): called at each flush and write-back; each new mapping does it too. */
void delivery_reassert(void);
#endif
