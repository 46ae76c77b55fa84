/* SPDX-License-Identifier: MIT
 *
 * library.h - where a loaded library lies, and what functions are in it.
 *
 * Unlike dlsym(3) it allocates nothing, and finds a function past those of the same name that stand in front of it.
 */
#ifndef CRAM_LIBRARY_H
#define CRAM_LIBRARY_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct library {
	uintptr_t start, size; /* size 0: not found */
	const Elf64_Dyn *dynamic;
};

/* The library of that file name, or, with NULL, the one that holds an address. */
void library_find(const char *name, const void *address, struct library *library);
/* A function of it, or NULL. */
void *library_symbol(const struct library *library, const char *name);

static inline bool library_has(const struct library *library, const void *address)
{
	return (uintptr_t)address - library->start < library->size;
}

#endif
