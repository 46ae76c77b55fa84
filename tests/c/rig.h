/* SPDX-License-Identifier: MIT
 *
 * rig.h - a device under test: pages that say which they are, and an audit of the whole object.
 *
 * The audit is the oracle of everything that is derived: it reads the page map and the links by itself and compares
 * the sectors' bits, the groups, the counters and the poison list with them. Nobody may be at work meanwhile.
 */
#ifndef RIG_H
#define RIG_H

#include <stdlib.h>

#include "check.h"
#include "content.h"
#include "device/device.h"
#include "device/layout.h"
#include "device/recovery.h"
#include "error.h"

#define MIB (1ull << 20)

/* ---- devices -------------------------------------------------------------------------------------------- */

/* 1 MiB advertised and so much of it real; lz4, no thresholds. */
static inline struct cram_params rig_params(uint64_t real)
{
	struct cram_params params = { .advertised = MIB, .real = real };

	cram_params_default(&params);
	params.low_remaining = params.high_remaining = 0;
	return params;
}

static inline void rig_create(struct device *device, const struct cram_params *params)
{
	CHECK_EQ(device_create(NULL, params, device), 0);
}

static inline void rig_create_small(struct device *device, uint64_t real)
{
	struct cram_params params = rig_params(real);

	rig_create(device, &params);
}

/* Opens a device a second time, as another client. */
static inline void rig_open_again(const struct device *device, struct device *again)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), device->fd);
	CHECK_EQ(device_open(path, again), 0);
}

/* ---- pages ---------------------------------------------------------------------------------------------- */

/* Compressibility of a page, from one word to random bytes. */
#define KINDS 6u

/* Fills a page with what says that it is this version of this page: its first word names both, the rest follows. */
static inline void rig_fill(uint8_t *to, uint64_t page, uint32_t version, unsigned kind)
{
	static const unsigned noises[KINDS] = { 0, 2, 20, 40, 60, NOISE_MAX };
	uint64_t word = 1ull << 63 | page << 40 | (uint64_t)(kind % KINDS) << 32 | version;

	if (kind % KINDS == 0) {
		for (unsigned at = 0; at < PAGE_SIZE; at += 8)
			memcpy(to + at, &word, 8);
		return;
	}
	memcpy(to, &word, 8);
	fill_content(to + 8, PAGE_SIZE - 8, word, noises[kind % KINDS]);
}

/* Is it some version of this page, whole? */
static inline bool rig_recognise(const uint8_t *bytes, uint64_t page, uint32_t *version)
{
	uint8_t expected[PAGE_SIZE];
	uint64_t word;

	memcpy(&word, bytes, 8);
	if (word >> 40 != (1ull << 23 | page) || (word >> 32 & 0xff) >= KINDS)
		return false;
	*version = (uint32_t)word;
	rig_fill(expected, page, *version, word >> 32 & 0xff);
	return memcmp(expected, bytes, PAGE_SIZE) == 0;
}

/* ---- one page at a time --------------------------------------------------------------------------------- */

static inline bool rig_store_bytes(struct device *device, uint64_t page, const uint8_t *bytes)
{
	struct op *op = device_enter(device);
	bool stored;

	device_lock_page(op, page);
	stored = device_store(op, page, bytes);
	device_unlock_page(op, page);
	device_leave(op);
	return stored;
}

static inline bool rig_store(struct device *device, uint64_t page, uint32_t version, unsigned kind)
{
	uint8_t bytes[PAGE_SIZE];

	rig_fill(bytes, page, version, kind);
	return rig_store_bytes(device, page, bytes);
}

/* The poisoned lines. */
static inline uint64_t rig_load(struct device *device, uint64_t page, uint8_t *to)
{
	struct op *op = device_enter(device);
	uint64_t lines;

	device_lock_page(op, page);
	lines = device_load(op, page, to);
	device_unlock_page(op, page);
	device_leave(op);
	return lines;
}

static inline void rig_drop(struct device *device, uint64_t page)
{
	struct op *op = device_enter(device);

	device_lock_page(op, page);
	device_drop(op, page);
	device_unlock_page(op, page);
	device_leave(op);
}

static inline int rig_inject(struct device *device, uint64_t page, unsigned line)
{
	struct op *op = device_enter(device);
	int code;

	device_lock_page(op, page);
	code = device_inject(op, page, line);
	device_unlock_page(op, page);
	device_leave(op);
	return code;
}

static inline void rig_clear(struct device *device, uint64_t page, unsigned line)
{
	struct op *op = device_enter(device);

	device_lock_page(op, page);
	device_clear(op, page, line);
	device_unlock_page(op, page);
	device_leave(op);
}

static inline void rig_mark_dirty(struct device *device, uint64_t page, bool dirty)
{
	struct op *op = device_enter(device);

	device_lock_page(op, page);
	device_mark_dirty(op, page, dirty);
	device_unlock_page(op, page);
	device_leave(op);
}

static inline struct cram_page_info rig_info(struct device *device, uint64_t page)
{
	struct op *op = device_enter(device);
	struct cram_page_info info;

	device_lock_page(op, page);
	device_page_info(op, page, &info);
	device_unlock_page(op, page);
	device_leave(op);
	return info;
}

static inline struct cram_registers rig_registers(struct device *device)
{
	struct op *op = device_enter(device);
	struct cram_registers registers;

	device_read_registers(op, &registers);
	device_leave(op);
	return registers;
}

/* Does the page read as this version? */
static inline bool rig_holds(struct device *device, uint64_t page, uint32_t version)
{
	uint8_t bytes[PAGE_SIZE];
	uint32_t found = 0;

	return rig_load(device, page, bytes) == 0 && rig_recognise(bytes, page, &found) && found == version;
}

/* ---- the audit ------------------------------------------------------------------------------------------ */

struct audit {
	struct device *device;
	uint8_t *taken;          /* a flag for each sector */
	uint64_t used;
	int64_t pages[6];
	int64_t payload, poisoned, overflow;
};

/* Notes the sectors of a page; false when one is outside, taken twice, or the chain does not end at this page. */
static inline bool audit_chain(struct audit *audit, uint64_t page, uint64_t entry)
{
	const struct media *media = &audit->device->media;
	uint32_t count = (entry_length(entry) + media->sector_size - 1) / media->sector_size;
	uint64_t sector = entry_first(entry);

	for (uint32_t i = 0; i < count; i++) {
		if (sector >= media->sectors || audit->taken[sector]++)
			return false;
		audit->used++;
		sector = entry & ENTRY_RUN ? sector + 1 : media->links[sector];
	}
	return count == 0 || (entry & ENTRY_RUN) || sector == page;
}

static inline unsigned audit_records(const struct poison_list *list, uint64_t page, uint32_t length)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < list->count; i++)
		n += list->records[i].dpa >> PAGE_SHIFT == page && list->records[i].length == length;
	return n;
}

static inline const char *audit_page(struct audit *audit, uint64_t page)
{
	uint64_t entry = audit->device->map.entries[page];
	enum cram_page_state state = entry_state(entry);
	bool recorded = entry & ENTRY_RECORDED;
	unsigned whole = audit_records(audit->device->poison, page, PAGE_SIZE);
	unsigned lines = audit_records(audit->device->poison, page, LINE_SIZE);

	if (entry & (ENTRY_LOCK | ENTRY_BUSY | ENTRY_HOLDER))
		return "a page is locked or busy";
	if (state > CRAM_PAGE_POISON)
		return "a page has no state";
	if (!audit_chain(audit, page, entry))
		return "a chain is broken";
	if (whole > 1 || (whole == 1 && state != CRAM_PAGE_POISON))
		return "a poisoned page and its record disagree";
	/* A page without data that a power cycle has made so keeps the records of its lines. */
	if ((whole == 0 && lines == 0) == recorded || (whole == 1 && lines > 0))
		return "a page's flag and its records disagree";
	if (state != CRAM_PAGE_EMPTY)
		audit->pages[state]++;
	audit->payload += entry_length(entry);
	audit->poisoned += state == CRAM_PAGE_POISON || recorded;
	audit->overflow += state == CRAM_PAGE_POISON && !recorded;
	return NULL;
}

static inline const char *audit_media(const struct audit *audit)
{
	const struct media *media = &audit->device->media;
	uint64_t in_group = 0;

	for (uint64_t sector = 0; sector < (media->sectors + 63) / 64 * 64; sector++) {
		bool bit = media->bitmap[sector / 64] >> sector % 64 & 1;

		if (bit != (sector < media->sectors && audit->taken[sector]))
			return "a sector's bit is not its use";
		in_group += bit;
		if (sector % MEDIA_GROUP_SECTORS != MEDIA_GROUP_SECTORS - 1 &&
		    sector + 1 < (media->sectors + 63) / 64 * 64)
			continue;
		if (media->groups[sector / MEDIA_GROUP_SECTORS] != in_group)
			return "a group is not the sum of its words";
		in_group = 0;
	}
	return *media->used == audit->used ? NULL : "the counter of sectors is not their use";
}

static inline const char *audit_counters(const struct audit *audit)
{
	const struct superblock *super = audit->device->super;
	struct cram_registers r = rig_registers(audit->device);
	int64_t payload = 0, poisoned = 0;

	for (unsigned state = 0; state < 6; state++) {
		int64_t n = 0;

		for (unsigned i = 0; i < STRIPES; i++)
			n += super->stripes[i].pages[state];
		if (n != audit->pages[state])
			return "a count of pages is wrong";
	}
	for (unsigned i = 0; i < STRIPES; i++) {
		payload += super->stripes[i].payload;
		poisoned += super->stripes[i].poisoned;
	}
	if (payload != audit->payload || poisoned != audit->poisoned)
		return "payload or poisoned pages are miscounted";
	if (super->poison_overflow != (uint64_t)audit->overflow)
		return "the pages without a record are miscounted";
	if (r.used != audit->used * audit->device->media.sector_size || r.used + r.remaining != r.real)
		return "the registers of capacity are wrong";
	if (r.peak < r.used || r.peak > r.real)
		return "the peak is below the use, or above what is real";
	return NULL;
}

/* What contradicts the page map, or NULL. */
static inline const char *rig_audit(struct device *device)
{
	struct audit audit = { .device = device, .taken = calloc(device->media.sectors, 1) };
	const char *fault = NULL;

	for (uint32_t i = 0; i < device->poison->count && fault == NULL; i++)
		for (uint32_t j = 0; j < i; j++)
			if (device->poison->records[i].dpa == device->poison->records[j].dpa)
				fault = "a record stands twice";
	for (uint64_t page = 0; page < device->map.pages && fault == NULL; page++)
		fault = audit_page(&audit, page);
	if (fault == NULL)
		fault = audit_media(&audit);
	if (fault == NULL)
		fault = audit_counters(&audit);
	if (fault == NULL && device->poison->count > device->poison->limit)
		fault = "more records than the limit";
	free(audit.taken);
	return fault;
}

#define CHECK_AUDIT(device) check_audit(__FILE__, __LINE__, rig_audit(device))
static inline void check_audit(const char *file, int line, const char *fault)
{
	if (fault != NULL)
		check_true(file, line, fault, 0);
}

#endif
