/* SPDX-License-Identifier: MIT
 *
 * uffd.h - the kernel interface of user-space paging, and nothing else: no page tables of ours, no policy.
 *
 * All functions are async-signal-safe and keep errno. Those that can fail return 0 or -errno.
 */
#ifndef CRAM_UFFD_H
#define CRAM_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Opens a descriptor: with sigbus, faults raise SIGBUS in the faulting thread and user mode suffices; without, they
 * are read from the descriptor, the kernel's own accesses too. *move: can this kernel move pages (Linux 6.8)? -EPERM: not
 * permitted; -ENOSYS: a feature is missing. */
int uffd_open(bool sigbus, int *fd, bool *move);
/* Registers a range for missing pages, and for write protection or not. */
int uffd_register(int fd, void *start, size_t length, bool protect);
/* Fills missing pages from memory, write-protected or not, and wakes who waits for them. *done: the bytes filled,
 * also after a failure. -EEXIST: the page there is filled already. */
int uffd_copy(int fd, void *to, const void *from, size_t length, bool protect, size_t *done);
/* Moves pages to missing ones of a registered range, and wakes who waits there. They arrive writable, whatever they were,
 * except those that the kernel had swapped out: these stay protected (mm/userfaultfd.c, move_swap_pte()).
 * *done: the bytes moved, also after a failure. -EBUSY: the kernel uses a page for input or output just now. */
int uffd_move(int fd, void *to, void *from, size_t length, size_t *done);
/* Protects or unprotects the pages that are there; unprotecting wakes. */
int uffd_protect(int fd, void *start, size_t length, bool protect);
void uffd_wake(int fd, void *start, size_t length);
/* Marks a missing page: whoever touches it gets SIGBUS. */
int uffd_poison(int fd, void *start, size_t length);
/* Drops the ranges' pages, and poison marks, in one call where the kernel can (Linux 6.13). */
int uffd_drop(const struct iovec *ranges, int n);

#endif
