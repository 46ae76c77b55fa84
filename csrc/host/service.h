/* SPDX-License-Identifier: MIT
 *
 * service.h - the thread that each client has: it raises interrupts in its own process, carries out others' requests
 * on its frames, and writes dirty frames back from time to time.
 *
 * It does not decide thresholds, nor what a request means. Idle means idle: it sleeps on the client's bell, with a
 * timer only while a mapping with a periodic write-back has a dirty frame.
 */
#ifndef CRAM_SERVICE_H
#define CRAM_SERVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "device/device.h"

/* What the service asks of its owner; called in the service's thread, signals blocked. */
struct service_ops {
	/* Carries out a request; its answer. */
	int (*request)(void *owner, enum request_kind kind, uint64_t dpa);
	/* Has the frames follow what the device has lost, and says so (client_followed()). */
	void (*follow)(void *owner);
	/* Writes back what is due. Returns the milliseconds until the next time, or -1 when nothing is dirty. */
	int (*write_back)(void *owner, uint64_t now_ns);
};

struct service {
	struct device *device;
	const struct service_ops *ops;
	void *owner;
	int event_fd;        /* counts interrupts */
	uint64_t last_event; /* raised so far; the thread's, once it runs */
	_Atomic int stop;
	pthread_t thread;
};

/* CRAM_ENOMEM: no thread or no eventfd. */
int service_start(struct service *service, struct device *device, const struct service_ops *ops, void *owner);
void service_stop(struct service *service);

#endif
