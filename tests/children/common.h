/* SPDX-License-Identifier: MIT
 *
 * common.h - what the test programs share. They print one JSON object a line, and end with status 3 where something
 * fails that is not what is tested.
 */
#ifndef CHILD_COMMON_H
#define CHILD_COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cram.h"
#include "error.h"

#define PAGE 4096u
#define LINE 64u

/* Ends the program unless code says success. */
static inline void must(const char *what, int code)
{
	if (code == 0)
		return;
	fprintf(stderr, "%s: %d: %s\n", what, code, cram_error_detail());
	exit(3);
}

static inline enum cram_delivery delivery_named(const char *name)
{
	return strcmp(name, "inline") == 0 ? CRAM_INLINE : CRAM_MONITOR;
}

/* A device in anonymous memory, or in a new file. */
static inline cram_device *create(const char *path, uint64_t advertised, uint64_t real)
{
	struct cram_params params = { .advertised = advertised, .real = real };
	cram_device *device;

	cram_params_default(&params);
	must("cram_create", cram_create(path, &params, &device));
	return device;
}

static inline cram_map *map_all(cram_device *device, enum cram_delivery delivery, uint64_t window,
				uint32_t writeback_ms)
{
	struct cram_map_params params = { .window = window, .delivery = delivery, .writeback_ms = writeback_ms };
	struct cram_params geometry;
	cram_map *map;

	cram_get_params(device, &geometry);
	params.length = geometry.advertised;
	must("cram_map_create", cram_map_create(device, &params, &map));
	return map;
}

/* Well-mixed 64 bits of a counter (splitmix64). */
static inline uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

#endif
