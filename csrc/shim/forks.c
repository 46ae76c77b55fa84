/* SPDX-License-Identifier: MIT
 *
 * forks.c - fork and its other names: a child that shares nothing must take its memory over, whichever way it came to be.
 *
 * A child of vfork would share the memory and not the handlers: it gets fork's, which POSIX allows. What clone(2) makes with
 * CLONE_VM is a thread, or as good as one.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "host/space.h"
#include "memory.h"
#include "shim.h"

static bool may_fork(void)
{
	if (space_can_fork())
		return true;
	errno = EAGAIN;
	return false;
}

EXPORT pid_t fork(void)
{
	pid_t pid;

	if (!may_fork())
		return -1;
	pid = NEXT(fork)();
	if (pid != 0)
		space_forked(pid);
	return pid;
}

EXPORT pid_t vfork(void)
{
	return fork();
}

/* ---- forks that run no handlers of pthread_atfork() ------------------------------------------------------ */

static void before_fork(void)
{
	shim_fork_prepare();
	space_fork_prepare();
}

static void after_fork(long pid)
{
	if (pid == 0) {
		space_fork_child();
		shim_fork_child();
		return;
	}
	space_fork_parent();
	shim_fork_parent();
	space_forked((int)pid);
}

extern pid_t _Fork(void);

EXPORT pid_t _Fork(void)
{
	pid_t pid;

	if (!may_fork())
		return -1;
	before_fork();
	pid = NEXT(_Fork)();
	after_fork(pid);
	return pid;
}

typedef int clone_fn(int (*run)(void *), void *stack, int flags, void *argument, ...);

struct child {
	int (*run)(void *);
	void *argument;
};

static int begin_child(void *argument)
{
	/* On a stack that the child has for itself, as all the rest. */
	struct child *child = argument;

	after_fork(0);
	/* Not by returning: that would end this thread alone, and ours would stay (clone.S ends by exit, not exit_group). */
	_exit(child->run(child->argument));
}

/* The child's stack lies in ordinary memory: its own may be in the region, which is not there until it has been taken over.
 * Nobody else sees which one it has. */
#define CHILD_STACK (8ul << 20)

EXPORT int clone(int (*run)(void *), void *stack, int flags, void *argument, ...)
{
	struct child child = { run, argument };
	clone_fn *real = (clone_fn *)NEXT(clone);
	void *parent_tid, *tls, *child_tid;
	uint8_t *memory;
	va_list list;
	int pid;

	va_start(list, argument);
	parent_tid = va_arg(list, void *);
	tls = va_arg(list, void *);
	child_tid = va_arg(list, void *);
	va_end(list);
	if ((flags & CLONE_VM) || run == NULL || stack == NULL)
		return real(run, stack, flags, argument, parent_tid, tls, child_tid);
	if (!may_fork())
		return -1;
	memory = memory_map(CHILD_STACK, -1);
	if (memory == NULL)
		return -1;
	before_fork();
	pid = real(begin_child, memory + CHILD_STACK, flags, &child, parent_tid, tls, child_tid);
	after_fork(pid);
	memory_unmap(memory, CHILD_STACK);
	return pid;
}

/* ---- syscall(2) ------------------------------------------------------------------------------------------ */

/* Called with the arguments of syscall(2), for a fork without a stack of its own; returns as it does. */
__attribute__((used, visibility("hidden"))) long fork_by_number(long number, long a, long b, long c, long d, long e)
{
	long result;

	if (!may_fork())
		return -1;
	/* A child of vfork's would share the memory. */
	if (number == SYS_vfork)
		number = SYS_fork;
	before_fork();
	result = memory_call(number, a, b, c, d, e, 0);
	after_fork(result);
	return shim_result(result);
}

__attribute__((used, visibility("hidden"))) long return_error(long result)
{
	return shim_result(result);
}

/* In assembler, for what it makes may go on on another stack, where no frame of ours is. Constants: asm/unistd_64.h;
 * CLONE_VM is 0x100. */
__asm__(".text\n"
	".globl syscall\n"
	".type syscall, @function\n"
	"syscall:\n"
	"	cmp $57, %rdi\n" /* fork */
	"	je fork_by_number\n"
	"	cmp $58, %rdi\n" /* vfork */
	"	je fork_by_number\n"
	"	cmp $56, %rdi\n" /* clone */
	"	jne 1f\n"
	"	test $0x100, %rsi\n"
	"	jnz 1f\n"
	"	test %rdx, %rdx\n"
	"	jz fork_by_number\n"
	"1:\n"
	SYSCALL_CODE
	"	cmp $-4095, %rax\n"
	"	jae 2f\n"
	"	ret\n"
	"2:	mov %rax, %rdi\n"
	"	jmp return_error\n"
	".size syscall, . - syscall\n");
