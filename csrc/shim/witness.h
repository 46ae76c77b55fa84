/* SPDX-License-Identifier: MIT
 *
 * witness.h - what is known of an address of the region: which of the program's mappings it is in, or that it is the heap, and
 * which call asked for it. And the book in which whoever runs the program reads who met poison, and where.
 *
 * It knows of heap allocations only what it is told (witness_allocated()), which nobody does unless poison has a target
 * (target.h). Any thread; async-signal-safe, but that dladdr(3) takes the linker's lock.
 */
#ifndef CRAM_WITNESS_H
#define CRAM_WITNESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BOOK_LINE 256u
#define BOOK_LINES 1023u
#define BOOK_STRUCK UINT32_MAX

/* In a file that all programs of a run share: cram_emu/lab/witness.py has the same layout. */
struct book {
	_Atomic uint32_t due;     /* 1: poison may be put where it is wanted */
	_Atomic uint32_t taken;   /* the process that tries to put it, or BOOK_STRUCK; 0: nobody */
	_Atomic uint32_t found;   /* 1: somebody has the function that the target names */
	_Atomic uint32_t reached; /* the most that anybody has counted up to */
	_Atomic uint32_t lines;
	uint8_t unused[BOOK_LINE - 20];
	char line[BOOK_LINES][BOOK_LINE]; /* words separated by tabs */
};

/* NULL: whoever runs us keeps none. */
extern struct book *book;

/* Opens the book at that path; false: it cannot be had. */
bool witness_open(const char *path);
/* Writes a line, unless the book is full. */
void witness_write(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The program has made a mapping in the region; its number, from 1. */
uint32_t witness_mapped(const void *start, size_t length, const void *caller);
/* It is gone, as far as it lay there. */
void witness_unmapped(const void *start, size_t length);
/* It has grown, and may be elsewhere. */
void witness_moved(const void *from, const void *to, size_t length);
/* Where the mapping of that number lies, as far as it does; false: nowhere. */
bool witness_mapping(uint32_t number, const void **start, size_t *length);

/* From now on allocations may be told; false: no memory. */
bool witness_allocations(void);
/* A block of so many bytes has been allocated; is about to be freed, with all the room that it has. */
void witness_allocated(const void *memory, size_t size, const void *caller);
void witness_freed(const void *memory, size_t room);
/* Does the page at that address have anything of the heap that was told of? Then *memory is the first of it. */
bool witness_in_use(const void *page, const void **memory);

/* "where<TAB>by whom", each possibly empty but for the first; of at most size bytes. */
void witness_describe(const void *address, char *text, size_t size);
/* An access of this process has met poison. The first few are written. */
void witness_met(const void *address);
/* In a child of fork: it has met none. */
void witness_forked(void);

#endif
