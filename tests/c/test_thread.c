/* SPDX-License-Identifier: MIT
 *
 * Who else is in the process: what moving frames without protection rests on.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "check.h"
#include "host/thread.h"
#include "host/visit.h"
#include "threads.h"

static _Atomic int wanted;

static void *wait_until_unwanted(void *unused)
{
	while (atomic_load(&wanted))
		sched_yield();
	return unused;
}

/* A thread that has been joined is counted by the kernel for a moment longer. */
static void await_alone(void)
{
	while (!thread_alone())
		sched_yield();
}

/* Threads that the core started do not count. */
static void own_threads_are_no_company(void)
{
	pthread_t thread;

	await_alone();
	atomic_store(&wanted, 1);
	CHECK_EQ(thread_start(&thread, wait_until_unwanted, NULL, "test"), 0);
	/* Until it runs it is taken for another's. */
	await_alone();
	atomic_store(&wanted, 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	await_alone();
}

/* The twin: any other thread does, from its creation on. */
static void other_threads_are_company(void)
{
	pthread_t thread;

	await_alone();
	atomic_store(&wanted, 1);
	CHECK_EQ(pthread_create(&thread, NULL, wait_until_unwanted, NULL), 0);
	for (unsigned i = 0; i < 1000; i++)
		CHECK(!thread_alone());
	atomic_store(&wanted, 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	await_alone();
}

/* A child of fork has only the thread that forked. */
static void child_begins_anew(void)
{
	pthread_t thread;
	int status;
	pid_t pid;

	fork_watch();
	atomic_store(&wanted, 1);
	CHECK_EQ(thread_start(&thread, wait_until_unwanted, NULL, "test"), 0);
	await_alone();
	pid = fork();
	if (pid == 0)
		_exit(thread_alone() ? 0 : 1);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	atomic_store(&wanted, 0);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

static const struct test tests[] = {
	TEST(own_threads_are_no_company),
	TEST(other_threads_are_company),
	TEST(child_begins_anew),
};

int main(int argc, char **argv)
{
	/* Thread sanitizer has a thread of its own: nobody is alone there. */
#ifdef __SANITIZE_THREAD__
	return 0;
#endif
	return check_main(tests, COUNT(tests), argc, argv);
}
