/* SPDX-License-Identifier: MIT
 *
 * table.h - system calls: which of their arguments are addresses, and how each is served when one lies in the region.
 *
 * Source: the prototypes in the kernel's include/linux/syscalls.h.
 */
#ifndef CRAM_TABLE_H
#define CRAM_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Numbers from here on pass. */
#define TABLE_NUMBERS 512
/* A call that is not listed: each of its arguments may be an address. */
#define TABLE_UNKNOWN_ADDRESSES 0x3fu

enum call_kind {
	CALL_PIN,     /* what the addresses point to, at most a page each, stays resident meanwhile */
	CALL_COPY,    /* its parts are copied through ordinary memory: it may block, or move much */
	CALL_SPACE,   /* mmap's kin */
	CALL_FUTEX,
	CALL_VECTOR,  /* readv's kin */
	CALL_MESSAGE, /* recvmsg's kin */
	CALL_EXEC,
	CALL_REFUSE,  /* EINVAL */
};

/* What an argument points to. */
struct part {
	uint8_t argument;
	uint8_t how;      /* PART_... */
	uint8_t count;    /* with PART_COUNTED: the argument that says how many items */
	uint8_t item;     /* bytes of one; without PART_COUNTED, of all, in units of PART_UNIT */
};
#define PART_UNIT 4u
#define PART_IN 1u      /* the kernel reads it */
#define PART_OUT 2u     /* the kernel writes it */
#define PART_COUNTED 4u
#define PART_RESULT 8u  /* as many items are written as the call returns */
#define PART_STRING 16u
#define PART_LENGTH 32u /* with PART_COUNTED: the argument points to an int that says how many bytes */
#define PART_FDS 64u    /* descriptor sets of as many descriptors as argument 0 says */

struct call {
	bool listed;
	uint8_t addresses; /* bit i: argument i */
	uint8_t kind;
	uint8_t count;
	struct part parts[4];
};

/* NULL: not listed. */
const struct call *table_find(long number);
/* The errno with which a call fails, whatever it is given; 0: it does not. */
int table_error(long number);

#endif
