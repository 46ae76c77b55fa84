/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "thread.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "memory.h"

/* The deepest call holds a chain and a batch; a program near its limits must not fail for the usual 8 MiB. */
#define STACK_SIZE (256u << 10)

struct start {
	void *(*run)(void *);
	void *argument;
};

/* Threads of ours that run: never more than there are, so that thread_alone() errs on the safe side. */
static _Atomic unsigned long running;

static _Thread_local bool starting __attribute__((tls_model("initial-exec")));

bool thread_starting(void)
{
	return starting;
}

static void *begin(void *memory)
{
	struct start start = *(struct start *)memory;
	void *result;

	memory_unmap(memory, sizeof(start));
	atomic_fetch_add(&running, 1);
	result = start.run(start.argument);
	atomic_fetch_sub(&running, 1);
	return result;
}

int thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *what)
{
	struct start *start = memory_map(sizeof(*start), -1);
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (start == NULL)
		return cram_fail(CRAM_ENOMEM, "no memory for the %s thread", what);
	*start = (struct start){ run, argument };
	sigfillset(&all);
	/* Not what a seccomp filter raises: blocked, it kills. */
	sigdelset(&all, SIGSYS);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	starting = true;
	error = pthread_create(thread, &attributes, begin, start);
	starting = false;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error == 0)
		return 0;
	memory_unmap(start, sizeof(*start));
	return cram_fail(CRAM_ENOMEM, "no %s thread: %s", what, strerrordesc_np(error));
}

bool thread_alone(void)
{
	int saved = errno;
	unsigned long ours = atomic_load(&running);
	struct stat tasks;
	/* A link each for the directory, its parent and every thread (fs/proc/base.c, proc_task_getattr()). */
	bool alone = stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink == 2 + 1 + ours;

	errno = saved;
	return alone;
}

void threads_forget(void)
{
	atomic_store(&running, 0);
}
