/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "service.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "thread.h"

static bool handled(int number)
{
	struct sigaction action;

	return number != 0 && sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL &&
	       action.sa_handler != SIG_IGN;
}

/* One interrupt, in this process: the eventfd, and the signal where the program waits for it. */
static void raise_interrupt(struct service *service, const struct cram_event *event)
{
	int number = device_params(service->device)->signal;

	eventfd_write(service->event_fd, 1);
	if (handled(number))
		sigqueue(getpid(), number, (union sigval){ .sival_int = (int)event->vector });
}

/* Raises what is new in the ring; *wait_ns: until the next one arrives, which is late, or -1. One that was overwritten before we
 * came is in the sequence numbers for all to see. */
static uint64_t raise_new(struct service *service, uint64_t last, int64_t *wait_ns)
{
	uint64_t head = atomic_load(&service->device->alert->head);
	struct cram_event event;

	*wait_ns = -1;
	for (; last < head; last++) {
		uint64_t now;

		if (!alert_get(service->device->alert, last + 1, &event))
			continue;
		now = now_ns();
		if (event.time_ns > now) {
			*wait_ns = (int64_t)(event.time_ns - now);
			break;
		}
		if (alert_is_interrupt(event.vector))
			raise_interrupt(service, &event);
	}
	return last;
}

static void *serve(void *argument)
{
	struct service *service = argument;
	struct device *device = service->device;
	_Atomic uint32_t *bell = &device->self->bell;

	atomic_store(&device->self->keeper, thread_id());
	futex_wake_all(&device->self->keeper);
	while (!atomic_load(&service->stop)) {
		/* Read before looking: what comes after changes the bell, and the wait returns at once. */
		uint32_t rung = atomic_load(bell);
		struct request request;
		int64_t wait_ns;
		int wait_ms;

		service->last_event = raise_new(service, service->last_event, &wait_ns);
		/* Before anything is written back that is lost. */
		if (!client_followed(device->clients, device->self))
			service->ops->follow(service->owner);
		if (device_take_request(device, &request))
			device_answer(device, request.number,
				      service->ops->request(service->owner, request.kind, request.dpa));
		wait_ms = service->ops->write_back(service->owner, now_ns());
		if (wait_ms >= 0 && (wait_ns < 0 || (int64_t)wait_ms * 1000000 < wait_ns))
			wait_ns = (int64_t)wait_ms * 1000000;
		if (!atomic_load(&service->stop))
			futex_wait(bell, rung, wait_ns);
	}
	/* A client whose keeper has ended counts as dead: this one is only about to leave. */
	atomic_store(&device->self->keeper, 0);
	return NULL;
}

int service_start(struct service *service, struct device *device, const struct service_ops *ops, void *owner)
{
	int code;

	service->device = device;
	service->ops = ops;
	service->owner = owner;
	atomic_store(&service->stop, 0);
	/* Here, not in the thread: what is raised before it first runs is its to tell. */
	service->last_event = atomic_load(&device->alert->head);
	service->event_fd = descriptor_take(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	if (service->event_fd < 0)
		return cram_fail(cram_code_of_errno(errno), "no eventfd: %s", strerrordesc_np(errno));
	code = thread_start(&service->thread, serve, service, "service");
	if (code != 0) {
		descriptor_close(service->event_fd);
		return code;
	}
	/* The race: a child of fork calls execve(2) before the thread has run. Without a keeper nobody could tell: the client would
	 * count as alive as long as the new program is there, and a thread of it that was at work as running. */
	while (atomic_load(&device->self->keeper) == 0)
		futex_wait(&device->self->keeper, 0, -1);
	return 0;
}

void service_stop(struct service *service)
{
	atomic_store(&service->stop, 1);
	client_ring(service->device->self);
	pthread_join(service->thread, NULL);
	descriptor_close(service->event_fd);
}
