/* SPDX-License-Identifier: MIT
 *
 * memory.h - address space that costs nothing until it is touched.
 *
 * Not an allocator. It keeps mlockall(MCL_FUTURE) from filling what must stay sparse.
 */
#ifndef CRAM_MEMORY_H
#define CRAM_MEMORY_H

#include <stdint.h>

/* Maps size bytes, readable and writable: of the file fd, shared, or with fd -1 private zeros. NULL, with errno set,
 * when there is no room. munmap() ends it. */
void *memory_map(uint64_t size, int fd);

#endif
