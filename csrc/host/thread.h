/* SPDX-License-Identifier: MIT
 *
 * thread.h - the threads that the core starts in a program: small, and deaf to its signals.
 */
#ifndef CRAM_THREAD_H
#define CRAM_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/* Starts a thread with every signal blocked, so that the program's handlers run in its own threads. CRAM_ENOMEM,
 * naming it as what. */
int thread_start(pthread_t *thread, void *(*run)(void *), void *argument, const char *what);
/* Is the calling thread in thread_start()? For a library that stands in front of pthread_create(3). */
bool thread_starting(void);
/* In a child of fork: they are not there. */
void threads_forget(void);
/* Asked by a thread of the program with signals blocked: is it the only one, apart from those started here, and so for
 * as long as it does not go on? False when /proc cannot tell. Not seen: a process that shares the memory without being a
 * thread (CLONE_VM alone), and one that writes to it from outside (ptrace, process_vm_writev). Async-signal-safe. */
bool thread_alone(void);

#endif
