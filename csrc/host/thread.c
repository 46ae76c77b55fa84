/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "thread.h"

#include <signal.h>
#include <string.h>

#include "error.h"

/* The deepest call holds a chain and a batch; a program near its limits must not fail for the usual 8 MiB. */
#define STACK_SIZE (256u << 10)

int thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *what)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, &attributes, run, argument);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return error == 0 ? 0 : cram_fail(CRAM_ENOMEM, "no %s thread: %s", what, strerror(error));
}
