/* SPDX-License-Identifier: MIT
 *
 * sigbus.h - our place in the program's chain of SIGBUS handlers: first, and a good neighbour.
 *
 * It does not know whose faults are ours.
 */
#ifndef CRAM_SIGBUS_H
#define CRAM_SIGBUS_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <ucontext.h>

/* Called for each SIGBUS with all signals blocked; async-signal-safe. depth is for sigbus_pass_on(). */
typedef void sigbus_fn(unsigned depth, siginfo_t *info, ucontext_t *context);

/* Puts fn in front of whatever handler there is, unless it is there already. One that the program has installed over
 * ours is warned about once on stderr, unless it was to be expected. Callers take turns. */
void sigbus_install(sigbus_fn *fn, bool expected);
/* For a library that stands in front of sigaction(2): sets what comes after our first handler, and says what did. Either may
 * be NULL. */
void sigbus_program_action(const struct sigaction *action, struct sigaction *old);
/* Asked before a signal that is not ours to resolve is passed on: true, and the context is where to go on instead. NULL: nobody
 * is. */
typedef bool sigbus_rescue_fn(const siginfo_t *info, ucontext_t *context);
void sigbus_rescue(sigbus_rescue_fn *fn);
/* How often ours was put back in front of another. */
uint64_t sigbus_reinstalled(void);

/* Hands a signal, as info describes it, to what came before our handler at this depth: a handler of the program's,
 * which may never return, or the default action, which ends the program as the kernel would. */
void sigbus_pass_on(unsigned depth, siginfo_t *info, ucontext_t *context);

#endif
