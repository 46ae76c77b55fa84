/* SPDX-License-Identifier: MIT
 *
 * threads.c - what a thread of the program gets: memory outside the region, for its signals and for copies. And its count: ours
 * keep running when the program's last one has ended.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include "host/thread.h"
#include "memory.h"
#include "shim.h"
#include "signals.h"

/* One mapping: room to copy through, then the signal stack. Threads and coroutines may run on stacks in the region: no
 * signal could be delivered there while the page is not resident. */
#define SCRATCH_SIZE (288u << 10)
#define SIGNAL_STACK_SIZE (256u << 10)

static _Thread_local FAST_TLS uint8_t *thread_memory;
static _Thread_local FAST_TLS bool scratch_busy;
static pthread_key_t thread_key;
static pthread_once_t thread_once = PTHREAD_ONCE_INIT;

/* The program's threads. glibc ends a process whose last thread ends (nptl/pthread_create.c); it does not know that ours are
 * nobody's. */
static _Atomic unsigned program_threads = 1;

static void end_thread(void *memory)
{
	stack_t none = { .ss_flags = SS_DISABLE };

	gate_call(SYS_sigaltstack, (long)&none, 0, 0, 0, 0, 0);
	thread_memory = NULL;
	memory_unmap(memory, SCRATCH_SIZE + SIGNAL_STACK_SIZE);
	if (atomic_fetch_sub(&program_threads, 1) == 1)
		exit(0);
}

static void make_key(void)
{
	pthread_key_create(&thread_key, end_thread);
}

void threads_forked(void)
{
	atomic_store(&program_threads, 1);
}

void thread_prepare(void)
{
	stack_t stack = { .ss_size = SIGNAL_STACK_SIZE };

	pthread_once(&thread_once, make_key);
	thread_memory = memory_map(SCRATCH_SIZE + SIGNAL_STACK_SIZE, -1);
	if (thread_memory == NULL)
		return;
	stack.ss_sp = thread_memory + SCRATCH_SIZE;
	gate_call(SYS_sigaltstack, (long)&stack, 0, 0, 0, 0, 0);
	pthread_setspecific(thread_key, thread_memory);
}

bool scratch_take(size_t size, struct scratch *scratch)
{
	scratch->mapped = size > SCRATCH_SIZE || scratch_busy || thread_memory == NULL;
	scratch->size = page_up(size + 1);
	if (scratch->mapped) {
		scratch->memory = memory_map(scratch->size, -1);
	} else {
		scratch_busy = true;
		scratch->memory = thread_memory;
	}
	return scratch->memory != NULL;
}

void scratch_return(struct scratch *scratch)
{
	if (scratch->mapped)
		memory_unmap(scratch->memory, scratch->size);
	else
		scratch_busy = false;
}

struct start {
	void *(*run)(void *);
	void *argument;
};

static void *begin(void *memory)
{
	struct start start = *(struct start *)memory;

	free(memory);
	thread_prepare();
	return start.run(start.argument);
}

static bool stack_in_region(const pthread_attr_t *attributes)
{
	void *stack;
	size_t size;

	return pthread_attr_getstack(attributes, &stack, &size) == 0 && stack != NULL && in_region(stack);
}

/* The same attributes with a stack of glibc's: a thread begins and ends with all signals blocked, and its own data is on its
 * stack. */
static void replace_stack(const pthread_attr_t *from, pthread_attr_t *to)
{
	struct sched_param parameters;
	int state, inherit, policy, scope;
	size_t size;

	pthread_attr_init(to);
	if (pthread_attr_getstacksize(from, &size) == 0)
		pthread_attr_setstacksize(to, size);
	if (pthread_attr_getdetachstate(from, &state) == 0)
		pthread_attr_setdetachstate(to, state);
	if (pthread_attr_getschedpolicy(from, &policy) == 0)
		pthread_attr_setschedpolicy(to, policy);
	if (pthread_attr_getschedparam(from, &parameters) == 0)
		pthread_attr_setschedparam(to, &parameters);
	if (pthread_attr_getinheritsched(from, &inherit) == 0)
		pthread_attr_setinheritsched(to, inherit);
	if (pthread_attr_getscope(from, &scope) == 0)
		pthread_attr_setscope(to, scope);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
	struct start *start;
	pthread_attr_t copy;
	bool replaced = false;
	int error;

	if (!signals_started || thread_starting())
		return NEXT(pthread_create)(thread, attributes, run, argument);
	start = malloc(sizeof(*start));
	if (start == NULL)
		return EAGAIN;
	*start = (struct start){ run, argument };
	/* glibc reads them with all signals blocked. */
	if (attributes != NULL)
		copy = *attributes;
	if (attributes != NULL && stack_in_region(&copy)) {
		replace_stack(attributes, &copy);
		replaced = true;
	}
	atomic_fetch_add(&program_threads, 1);
	error = NEXT(pthread_create)(thread, attributes != NULL ? &copy : NULL, begin, start);
	if (replaced)
		pthread_attr_destroy(&copy);
	if (error != 0) {
		atomic_fetch_sub(&program_threads, 1);
		free(start);
	}
	return error;
}
