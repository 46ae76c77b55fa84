/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "sigbus.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "device/futex.h"

/* The C library's own name for it: a preloaded library may stand in front of the other. */
extern int __sigaction(int number, const struct sigaction *action, struct sigaction *old);

/* The program may install a handler over ours, and ours then comes in front of that again: a chain in which our
 * function appears several times. Each appearance is a function of its own, so that it knows what came before it; a
 * program that calls, or puts back, what it found there reaches the right one. */
#define DEPTHS 8u

/* What the function at each depth passes on to. Two copies of each, so that a reader never sees half of a change. */
struct next {
	struct sigaction action[2];
	_Atomic unsigned current;
};

static struct next nexts[DEPTHS];
static unsigned depths; /* in use */
static sigbus_fn *faulted;
static _Atomic uint64_t reinstalled;
static _Atomic bool dying;

#define HANDLER(depth)                                                              \
	static void on_sigbus_##depth(int number, siginfo_t *info, void *context) \
	{                                                                           \
		(void)number;                                                       \
		faulted(depth, info, context);                                      \
	}
HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)
HANDLER(4)
HANDLER(5)
HANDLER(6)
HANDLER(7)
#undef HANDLER

typedef void handler_fn(int number, siginfo_t *info, void *context);
static handler_fn *const handlers[DEPTHS] = { on_sigbus_0, on_sigbus_1, on_sigbus_2, on_sigbus_3,
					      on_sigbus_4, on_sigbus_5, on_sigbus_6, on_sigbus_7 };

static const struct sigaction *next_of(unsigned depth)
{
	return &nexts[depth].action[atomic_load(&nexts[depth].current)];
}

static void set_next(unsigned depth, const struct sigaction *action)
{
	unsigned other = !atomic_load(&nexts[depth].current);

	nexts[depth].action[other] = *action;
	atomic_store(&nexts[depth].current, other);
}

/* Ends the program as the kernel would: by SIGBUS, with this siginfo, before the instruction is tried again. */
static void die(siginfo_t *info)
{
	struct sigaction action = { .sa_handler = SIG_DFL };

	atomic_store(&dying, true);
	__sigaction(SIGBUS, &action, NULL);
	/* Queued while the handler has it blocked, delivered as the handler returns. A thread may send itself any
	 * siginfo (kernel/signal.c, do_rt_tgsigqueueinfo()). All six arguments: what a register that is not used holds by
	 * chance may look like an address to a program's seccomp filter, and the trap would kill by SIGSYS, blocked here. */
	syscall(SYS_rt_tgsigqueueinfo, getpid(), thread_id(), SIGBUS, info, 0, 0);
}

/* Calls a handler of the program's as the kernel would have, but with SIGBUS open: it may touch other pages of ours. */
static void call_handler(const struct sigaction *action, siginfo_t *info, ucontext_t *context)
{
	sigset_t mask, before;

	sigorset(&mask, &context->uc_sigmask, &action->sa_mask);
	sigdelset(&mask, SIGBUS);
	pthread_sigmask(SIG_SETMASK, &mask, &before);
	if (action->sa_flags & SA_SIGINFO)
		action->sa_sigaction(SIGBUS, info, context);
	else
		action->sa_handler(SIGBUS);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static sigbus_rescue_fn *rescue;

void sigbus_rescue(sigbus_rescue_fn *fn)
{
	rescue = fn;
}

void sigbus_program_action(const struct sigaction *action, struct sigaction *old)
{
	if (old != NULL)
		*old = *next_of(0);
	if (action != NULL)
		set_next(0, action);
}

void sigbus_pass_on(unsigned depth, siginfo_t *info, ucontext_t *context)
{
	struct sigaction action = *next_of(depth);

	if (rescue != NULL && rescue(info, context))
		return;
	if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
		/* A fault that is ignored kills as well (kernel/signal.c, force_sig_info_to_task()). One that some
		 * process sent may be ignored. */
		if (action.sa_handler == SIG_DFL || info->si_code > 0)
			die(info);
		return;
	}
	if (action.sa_flags & SA_RESETHAND)
		set_next(depth, &(struct sigaction){ .sa_handler = SIG_DFL });
	call_handler(&action, info, context);
}

static bool is_ours(const struct sigaction *action)
{
	for (unsigned i = 0; i < DEPTHS; i++)
		if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handlers[i])
			return true;
	return false;
}

/* The depth whose function passes on to this action: one that did so before, or a new one; the last when there are no
 * more. */
static unsigned depth_before(const struct sigaction *action)
{
	for (unsigned i = 0; i < depths; i++)
		if (next_of(i)->sa_sigaction == action->sa_sigaction && next_of(i)->sa_flags == action->sa_flags)
			return i;
	if (depths < DEPTHS)
		depths++;
	return depths - 1;
}

static void warn_once(void)
{
	static const char text[] = "cram_emu: this program installed a SIGBUS handler after mapping a device; cram_emu's "
				   "is in front of it again and passes on what is not its own\n";
	ssize_t ignored;

	if (atomic_fetch_add(&reinstalled, 1) == 0) {
		ignored = write(STDERR_FILENO, text, sizeof(text) - 1);
		(void)ignored;
	}
}

void sigbus_install(sigbus_fn *fn, bool expected)
{
	struct sigaction ours = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct sigaction now;
	unsigned depth;

	__sigaction(SIGBUS, NULL, &now);
	if (is_ours(&now) || atomic_load(&dying))
		return;
	faulted = fn;
	depth = depth_before(&now);
	set_next(depth, &now);
	ours.sa_sigaction = handlers[depth];
	/* The whole handler runs with every signal blocked: nothing may interrupt a thread that holds a page. Those too that
	 * sigfillset() leaves out: glibc cancels threads by them. */
	memset(&ours.sa_mask, 0xff, sizeof(ours.sa_mask));
	__sigaction(SIGBUS, &ours, NULL);
	if (!expected)
		warn_once();
}

uint64_t sigbus_reinstalled(void)
{
	return atomic_load(&reinstalled);
}
