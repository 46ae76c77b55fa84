/* SPDX-License-Identifier: MIT
 *
 * signals.c - the program's handlers for SIGBUS and SIGSYS stay behind ours, and no mask of its blocks the two: blocked, a
 * fault kills.
 *
 * What the program asks of them it gets, as far as it can tell: its handlers are called, and told when it asks. A mask it
 * reads back lacks the two.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <ucontext.h>

#include "host/sigbus.h"
#include "shim.h"
#include "signals.h"

/* linux/signal.h, which does not go with <signal.h>. */
#define STACK_AUTODISARM (1u << 31)

static struct sigaction program_sigsys = { .sa_handler = SIG_DFL };

void signals_pass_on(int number, siginfo_t *info, ucontext_t *context)
{
	struct sigaction action = program_sigsys;

	if (action.sa_handler == SIG_DFL || (action.sa_handler == SIG_IGN && info->si_code > 0)) {
		struct sigaction end = { .sa_handler = SIG_DFL };

		__sigaction(number, &end, NULL);
		raise(number);
		return;
	}
	if (action.sa_handler == SIG_IGN)
		return;
	if (action.sa_flags & SA_RESETHAND)
		program_sigsys = (struct sigaction){ .sa_handler = SIG_DFL };
	if (action.sa_flags & SA_SIGINFO)
		action.sa_sigaction(number, info, context);
	else
		action.sa_handler(number);
}

/* A mask without the two; NULL for NULL. */
static const sigset_t *open_mask(const sigset_t *mask, sigset_t *copy)
{
	if (mask == NULL)
		return NULL;
	*copy = *mask;
	sigdelset(copy, SIGBUS);
	sigdelset(copy, SIGSYS);
	return copy;
}

/* ---- actions --------------------------------------------------------------------------------------------- */

EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
	struct sigaction copy, before;

	if (action != NULL) {
		copy = *action;
		open_mask(&action->sa_mask, &copy.sa_mask);
		action = &copy;
	}
	if (!signals_started || (number != SIGBUS && number != SIGSYS))
		return __sigaction(number, action, old);
	if (number == SIGBUS) {
		sigbus_program_action(action, &before);
	} else {
		before = program_sigsys;
		if (action != NULL)
			program_sigsys = *action;
	}
	if (old != NULL)
		*old = before;
	return 0;
}

static sighandler_t set_handler(int number, sighandler_t handler, int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags }, old;

	return sigaction(number, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

EXPORT sighandler_t signal(int number, sighandler_t handler)
{
	return set_handler(number, handler, SA_RESTART);
}

EXPORT sighandler_t bsd_signal(int number, sighandler_t handler)
{
	return set_handler(number, handler, SA_RESTART);
}

EXPORT sighandler_t ssignal(int number, sighandler_t handler)
{
	return set_handler(number, handler, SA_RESTART);
}

EXPORT sighandler_t sysv_signal(int number, sighandler_t handler)
{
	return set_handler(number, handler, SA_RESETHAND | SA_NODEFER);
}

EXPORT sighandler_t __sysv_signal(int number, sighandler_t handler)
{
	return set_handler(number, handler, SA_RESETHAND | SA_NODEFER);
}

/* ---- masks ----------------------------------------------------------------------------------------------- */

EXPORT int sigprocmask(int how, const sigset_t *mask, sigset_t *old)
{
	sigset_t copy;

	return NEXT(sigprocmask)(how, how == SIG_UNBLOCK ? mask : open_mask(mask, &copy), old);
}

EXPORT int pthread_sigmask(int how, const sigset_t *mask, sigset_t *old)
{
	sigset_t copy;

	return NEXT(pthread_sigmask)(how, how == SIG_UNBLOCK ? mask : open_mask(mask, &copy), old);
}

EXPORT int sigsuspend(const sigset_t *mask)
{
	sigset_t copy;

	return NEXT(sigsuspend)(open_mask(mask, &copy));
}

EXPORT int pselect(int n, fd_set *in, fd_set *out, fd_set *other, const struct timespec *timeout, const sigset_t *mask)
{
	sigset_t copy;

	return NEXT(pselect)(n, in, out, other, timeout, open_mask(mask, &copy));
}

EXPORT int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
	sigset_t copy;

	return NEXT(ppoll)(fds, n, timeout, open_mask(mask, &copy));
}

EXPORT int epoll_pwait(int fd, struct epoll_event *events, int n, int timeout, const sigset_t *mask)
{
	sigset_t copy;

	return NEXT(epoll_pwait)(fd, events, n, timeout, open_mask(mask, &copy));
}

EXPORT int epoll_pwait2(int fd, struct epoll_event *events, int n, const struct timespec *timeout, const sigset_t *mask)
{
	sigset_t copy;

	return NEXT(epoll_pwait2)(fd, events, n, timeout, open_mask(mask, &copy));
}

/* ---- the signal stack ------------------------------------------------------------------------------------ */

/* Every thread keeps ours, which is large and in ordinary memory; the program is told what it wishes to hear. */
static _Thread_local FAST_TLS stack_t program_stack = { .ss_flags = SS_DISABLE };

EXPORT int sigaltstack(const stack_t *new, stack_t *old)
{
	stack_t before = program_stack, now;

	if (!signals_started)
		return NEXT(sigaltstack)(new, old);
	if (new != NULL && ((unsigned)new->ss_flags & ~(SS_DISABLE | SS_ONSTACK | STACK_AUTODISARM)) != 0) {
		errno = EINVAL;
		return -1;
	}
	if (new != NULL && !(new->ss_flags & SS_DISABLE) && new->ss_size < (size_t)MINSIGSTKSZ) {
		errno = ENOMEM;
		return -1;
	}
	NEXT(sigaltstack)(NULL, &now);
	if (now.ss_flags & SS_ONSTACK) {
		if (new != NULL) {
			errno = EPERM;
			return -1;
		}
		if (!(before.ss_flags & SS_DISABLE))
			before.ss_flags |= SS_ONSTACK;
	}
	if (new != NULL)
		program_stack = *new;
	if (old != NULL)
		*old = before;
	return 0;
}

bool signals_started;
