/* SPDX-License-Identifier: MIT
 *
 * thread.h - the threads that the core starts in a program: small, and deaf to its signals.
 */
#ifndef CRAM_THREAD_H
#define CRAM_THREAD_H

#include <pthread.h>

/* Starts a thread with every signal blocked, so that the program's handlers run in its own threads. CRAM_ENOMEM,
 * naming it as what. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *what);

#endif
