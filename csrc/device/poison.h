/* SPDX-License-Identifier: MIT
 *
 * poison.h - the poison list: what the device can tell of its poisoned lines.
 *
 * It does not poison pages; the device does, and keeps the list in step. A record is one injected 64-byte line, or one
 * whole page whose data is gone. Callers hold the list's lock (device.c), which comes after a page's lock.
 *
 * A client that dies inside poison_add() leaves the list as it was; inside poison_remove_page(), at worst a record
 * twice, which poison_dedupe() mends.
 */
#ifndef CRAM_POISON_H
#define CRAM_POISON_H

#include <stdbool.h>
#include <stdint.h>

#include "cram.h"

#define POISON_RECORDS_MAX 1024u

struct poison_list {
	uint32_t limit;
	uint32_t count;
	struct cram_poison_record records[POISON_RECORDS_MAX];
};

/* Adds a record; false when the list is full. */
bool poison_add(struct poison_list *list, uint64_t dpa, uint32_t length, enum cram_poison_source source);
/* Removes the records that begin in [dpa, dpa + length); returns how many. */
uint32_t poison_remove(struct poison_list *list, uint64_t dpa, uint64_t length);
/* The lines of the page at dpa that single-line records poison: bit i is line i. */
uint64_t poison_lines(const struct poison_list *list, uint64_t dpa);
/* Removes records that stand twice. */
void poison_dedupe(struct poison_list *list);

#endif
