/* SPDX-License-Identifier: MIT
 *
 * signals.h - what signals.c has for the rest of the shim.
 */
#ifndef CRAM_SHIM_SIGNALS_H
#define CRAM_SHIM_SIGNALS_H

#include <signal.h>
#include <stdbool.h>
#include <ucontext.h>

/* Ours are installed: from now on the program's stay behind them. */
extern bool signals_started;

/* The C library's own name for sigaction(). */
extern int __sigaction(int number, const struct sigaction *action, struct sigaction *old);

/* A SIGSYS that is not the filter's. */
void signals_pass_on(int number, siginfo_t *info, ucontext_t *context);

#endif
