/* SPDX-License-Identifier: MIT
 *
 * children.h - processes that a test starts, to live, to stand still and to die as it wants.
 */
#ifndef CHILDREN_H
#define CHILDREN_H

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "check.h"

/* Memory of zeros that children share. For good. */
static inline void *shared_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

typedef void child_fn(void *arg);

/* Starts a child that runs body(arg) and ends with status 0. It dies with its parent. */
static inline pid_t child_start(child_fn *body, void *arg)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		body(arg);
		_exit(0);
	}
	return pid;
}

/* Its own checks, and the sanitizer's, have passed. */
static inline void child_join(pid_t pid)
{
	int status = -1;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
}

static inline void child_kill(pid_t pid)
{
	int status = -1;

	CHECK_EQ(kill(pid, SIGKILL), 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Waits until another process or thread sets *flag. */
static inline void wait_for(_Atomic uint32_t *flag)
{
	while (atomic_load(flag) == 0)
		usleep(200);
}

/* What a child does that is to be killed where it stands. */
static inline void stand_still(_Atomic uint32_t *flag)
{
	atomic_store(flag, 1);
	for (;;)
		pause();
}

#endif
