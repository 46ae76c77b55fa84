/* SPDX-License-Identifier: MIT
 *
 * layout.h - the shape of the device object: where each part lies, and how a foreign one is told from ours.
 *
 * It does not interpret any part. Offsets only: each process maps the object where it likes. Sparse: a part that
 * nobody has touched costs no memory.
 */
#ifndef CRAM_LAYOUT_H
#define CRAM_LAYOUT_H

#include <stdatomic.h>
#include <stdint.h>

#include "cram.h"
#include "futex.h"
#include "inject.h"

/* Raise it with every change of the layout or of the meaning of a field. */
#define LAYOUT_VERSION 5u
#define LAYOUT_MAGIC "CRAMEMU"

struct geometry {
	struct cram_params params;
	uint64_t pages;
	uint64_t sectors;
	uint64_t clients;  /* offsets of the parts */
	uint64_t alert;
	uint64_t poison;
	uint64_t bitmap;
	uint64_t groups;
	uint64_t map;
	uint64_t checks;
	uint64_t references;
	uint64_t tables;
	uint64_t links;
	uint64_t media;
	uint64_t size;     /* of the object */
};

#define STRIPES 16u

/* Counters of what the page map holds, spread over cache lines by thread; only their sums mean something. */
struct stripe {
	_Alignas(64) _Atomic int64_t pages[6]; /* by enum cram_page_state */
	_Atomic int64_t payload;
	_Atomic int64_t poisoned;
};

struct superblock {
	char magic[8];
	uint32_t version;
	uint32_t geometry_check;
	struct geometry geometry;
	_Alignas(64) _Atomic uint64_t used; /* sectors; the exact counter that room is reserved in */
	_Atomic uint64_t peak;
	_Alignas(64) _Atomic uint64_t dropped_writes;
	_Atomic uint64_t refused_writes;
	_Atomic uint64_t media_errors;
	_Atomic uint64_t lost_pages;
	_Atomic uint64_t poison_overflow;
	_Atomic uint32_t suspect;           /* 1: a lock was taken over, or a chain is broken: rebuild when you can */
	struct futex_lock poison_lock;
	struct futex_lock alert_lock;
	struct stripe stripes[STRIPES];
	struct inject inject;
	_Atomic uint64_t lost;              /* sectors of used that capacity faults have taken */
	_Atomic uint64_t told_at;           /* what stale registers tell, and since when: CLOCK_MONOTONIC, ns. Under the alert lock */
	struct cram_registers told;
	/* 1, and never 0 again: the device is gone, whatever else the object says. Every load and store looks at it. */
	_Alignas(64) _Atomic uint32_t removed;
};

/* CRAM_EINVAL, naming the value, or 0. */
int layout_check_params(const struct cram_params *params);
/* Computes the geometry; padding included, so that two of the same parameters compare equal. */
void layout_plan(const struct cram_params *params, struct geometry *geometry);
/* Writes the head of a new object; the magic last. */
void layout_format(struct superblock *super, const struct geometry *geometry);
/* Is fd's content, file_size bytes long, one of ours? CRAM_EFORMAT, CRAM_EVERSION. name is for the message. */
int layout_recognise(int fd, uint64_t file_size, const char *name, struct geometry *geometry);

#endif
