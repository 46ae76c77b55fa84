/* SPDX-License-Identifier: MIT
 *
 * What happens to pages: stored, loaded, dropped, damaged and poisoned, by one thread and by many, in media of exactly
 * its size.
 *
 * Oracles: pages that say which version of which page they are; a model of the versions; the audit of rig.h.
 */
#include <sched.h>

#include "rig.h"
#include "threads.h"

#define PAGES (MIB / PAGE_SIZE)

/* ---- one page ------------------------------------------------------------------------------------------- */

static const uint32_t sectors_tried[] = { 64, 512, 4096 };

/* Pages of every compressibility come back, through every codec, block and sector, with what the page map says. */
static void page_comes_back(void)
{
	static const struct {
		uint32_t codec;
		int32_t level;
		uint32_t block;
	} codecs[] = { { CRAM_CODEC_NONE, 0, 4096 }, { CRAM_CODEC_LZ4, 1, 4096 },  { CRAM_CODEC_LZ4, 1, 1024 },
		       { CRAM_CODEC_ZSTD, 1, 4096 }, { CRAM_CODEC_ZSTD, 9, 2048 }, { CRAM_CODEC_ZSTD, 19, 1024 } };

	for (unsigned i = 0; i < COUNT(codecs) * COUNT(sectors_tried); i++) {
		struct cram_params params = rig_params(MIB);
		struct device device;

		params.codec = codecs[i % COUNT(codecs)].codec;
		params.level = codecs[i % COUNT(codecs)].level;
		params.block = codecs[i % COUNT(codecs)].block;
		params.sector = sectors_tried[i / COUNT(codecs)];
		rig_create(&device, &params);
		for (uint32_t round = 0; round < 2; round++) {
			for (uint64_t page = 0; page < 60; page++) {
				CHECK(rig_store(&device, page * 3, round, (unsigned)(page + round)));
				CHECK(rig_holds(&device, page * 3, round));
			}
			for (uint64_t page = 0; page < 60; page++) {
				struct cram_page_info info = rig_info(&device, page * 3);

				CHECK(rig_holds(&device, page * 3, round));
				CHECK_EQ(info.state == CRAM_PAGE_SAME, (page + round) % KINDS == 0);
				CHECK_EQ(info.sectors, (info.length + params.sector - 1) / params.sector);
				CHECK_EQ(info.length == PAGE_SIZE, info.state == CRAM_PAGE_RAW);
				CHECK_EQ(info.media != 0, info.sectors != 0);
				CHECK_EQ(info.dirty, 0);
				CHECK_EQ(info.poisoned, 0);
			}
			CHECK_AUDIT(&device);
		}
		for (uint64_t page = 0; page < PAGES; page++)
			rig_drop(&device, page);
		CHECK_EQ(rig_registers(&device).used, 0);
		CHECK_EQ(rig_registers(&device).ratio, 0);
		CHECK_AUDIT(&device);
		device_close(&device, false);
	}
}

/* A page never written, one written with zeros, and a dropped one read as zeros, and none has sectors. */
static void zeros_take_no_room(void)
{
	uint8_t zeros[PAGE_SIZE] = { 0 }, bytes[PAGE_SIZE];
	struct device device;

	rig_create_small(&device, MIB / 4);
	CHECK(rig_store_bytes(&device, 1, zeros));
	CHECK(rig_store(&device, 2, 1, 5));
	rig_drop(&device, 2);
	for (uint64_t page = 0; page < 3; page++) {
		memset(bytes, 0xee, sizeof(bytes));
		CHECK_EQ(rig_load(&device, page, bytes), 0);
		CHECK_BYTES(bytes, zeros, PAGE_SIZE);
		CHECK_EQ(rig_info(&device, page).state, page == 1 ? CRAM_PAGE_ZERO : CRAM_PAGE_EMPTY);
	}
	CHECK_EQ(rig_registers(&device).used, 0);
	CHECK_EQ(rig_registers(&device).pages_zero, 1);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

/* The mark of a newer frame stays until whoever set it takes it away, whatever happens to the page meanwhile: a death
 * in between must not leave old bytes. */
static void dirty_mark_is_kept(void)
{
	struct device device;

	rig_create_small(&device, 4 * PAGE_SIZE);
	CHECK(rig_store(&device, 1, 1, 2));
	CHECK_EQ(rig_info(&device, 1).dirty, 0);
	rig_mark_dirty(&device, 1, true);
	CHECK(rig_holds(&device, 1, 1));
	CHECK_EQ(rig_info(&device, 1).dirty, 1);
	CHECK(rig_store(&device, 1, 2, 4));
	CHECK_EQ(rig_info(&device, 1).dirty, 1);
	rig_drop(&device, 1);
	CHECK_EQ(rig_info(&device, 1).dirty, 1);
	for (uint64_t page = 1; page < 8; page++)
		rig_store(&device, 9 - page, 1, 5);
	CHECK_EQ(rig_info(&device, 1).state, CRAM_PAGE_EMPTY);
	CHECK(!rig_store(&device, 1, 3, 5));
	CHECK_EQ(rig_info(&device, 1).dirty, 1);
	rig_mark_dirty(&device, 1, false);
	CHECK_EQ(rig_info(&device, 1).dirty, 0);
	CHECK_EQ(rig_info(&device, 1).state, CRAM_PAGE_POISON);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

/* ---- the media's size ----------------------------------------------------------------------------------- */

/* The media never holds more sectors than fit: what finds no room is dropped, counted and poison, the rest intact. */
static void media_is_exact(void)
{
	static const uint64_t reals[] = { 4096, 8192, MIB / 4 };

	for (unsigned i = 0; i < COUNT(reals) * COUNT(sectors_tried); i++) {
		struct cram_params params = rig_params(reals[i / COUNT(sectors_tried)]);
		uint64_t dropped = 0;
		struct device device;

		params.sector = sectors_tried[i % COUNT(sectors_tried)];
		rig_create(&device, &params);
		for (uint32_t round = 0; round < 3; round++) {
			for (uint64_t page = 0; page < PAGES; page++) {
				uint64_t before = rig_registers(&device).remaining;
				bool stored = rig_store(&device, page, round, (unsigned)(page + round));
				struct cram_page_info info = rig_info(&device, page);
				struct cram_registers r = rig_registers(&device);

				CHECK_LE(r.used, params.real);
				CHECK_EQ(info.state == CRAM_PAGE_POISON, !stored);
				if (!stored) {
					dropped++;
					/* Nothing that needs less than a whole page more was refused. */
					CHECK_COMPARE(before, <, PAGE_SIZE);
					CHECK_EQ(info.poisoned, UINT64_MAX);
				}
			}
			CHECK_EQ(rig_registers(&device).dropped_writes, dropped);
			for (uint64_t page = 0; page < PAGES; page++)
				if (rig_info(&device, page).state != CRAM_PAGE_POISON)
					CHECK(rig_holds(&device, page, round));
			CHECK_AUDIT(&device);
		}
		CHECK(dropped > 0);
		/* With 4096-byte sectors, and a page of real capacity, the last sector is in use. */
		if (params.sector == 4096)
			CHECK_EQ(rig_registers(&device).peak, params.real);
		device_close(&device, false);
	}
}

/* A dropped page is repaired by a later write that finds room. */
static void dropped_page_is_repaired(void)
{
	struct device device;

	rig_create_small(&device, 4096);
	CHECK(rig_store(&device, 0, 1, 5));
	CHECK(!rig_store(&device, 1, 1, 5));
	CHECK_EQ(rig_registers(&device).poisoned, 1);
	CHECK(rig_store(&device, 0, 2, 0));
	CHECK(rig_store(&device, 1, 2, 5));
	CHECK(rig_holds(&device, 0, 2));
	CHECK(rig_holds(&device, 1, 2));
	CHECK_EQ(rig_registers(&device).poisoned, 0);
	CHECK_EQ(rig_registers(&device).poison_records, 0);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

#define FULL_PAGES 32u

/* A device of so many raw pages, all written, to the last sector. */
static void fill_raw(struct device *device)
{
	rig_create_small(device, FULL_PAGES * PAGE_SIZE);
	for (uint64_t page = 0; page < FULL_PAGES; page++)
		CHECK(rig_store(device, page, 0, 5));
	CHECK_EQ(rig_registers(device).remaining, 0);
}

/* Rewriting a full device without growth succeeds, page by page; the twin beside it, growth by a page, does not. */
static void full_device_is_rewritten(void)
{
	struct device device;

	fill_raw(&device);
	for (uint32_t version = 1; version < 4; version++) {
		for (uint64_t page = 0; page < FULL_PAGES; page++)
			CHECK(rig_store(&device, page, version, 5));
		CHECK_EQ(rig_registers(&device).remaining, 0);
	}
	CHECK(!rig_store(&device, FULL_PAGES, 1, 5));
	for (uint64_t page = 0; page < FULL_PAGES; page++)
		CHECK(rig_holds(&device, page, 3));
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

struct contest {
	struct device device;
	bool drop_first;         /* the twin: gives the old sectors up before it asks for new ones */
	_Atomic unsigned at_work;
	_Atomic uint64_t lost;   /* rewrites without growth that were dropped */
	_Atomic uint64_t refused;
};

#define REWRITERS 2u

static void rewrite_or_ask(void *arg, unsigned index)
{
	struct contest *c = arg;

	if (index >= REWRITERS) {
		/* Asks for room all the time, and gives back at once what it gets. */
		while (atomic_load(&c->at_work) > 0) {
			if (!rig_store(&c->device, FULL_PAGES + index, 1, 3))
				c->refused++;
			rig_drop(&c->device, FULL_PAGES + index);
		}
		return;
	}
	while (atomic_load(&c->refused) == 0)
		sched_yield();
	for (unsigned i = 0; i < ROUNDS(4000u); i++) {
		uint64_t page = (i * REWRITERS + index) % FULL_PAGES;

		if (c->drop_first) {
			rig_drop(&c->device, page);
			sched_yield();
		}
		if (!rig_store(&c->device, page, i + 1, 5) && c->lost++ > 10)
			break;
	}
	c->at_work--;
}

static void run_contest(struct contest *c, bool drop_first)
{
	memset(c, 0, sizeof(*c));
	fill_raw(&c->device);
	c->drop_first = drop_first;
	c->at_work = REWRITERS;
	run_threads(REWRITERS + 2, rewrite_or_ask, c);
	CHECK(c->refused > 0);
}

/* A full device is rewritten without growth also while others ask for room. */
static void rewriting_loses_nothing_to_others(void)
{
	struct contest c;

	run_contest(&c, false);
	CHECK_EQ(c.lost, 0);
	for (uint64_t page = 0; page < FULL_PAGES; page++)
		CHECK_EQ(rig_info(&c.device, page).state, CRAM_PAGE_RAW);
	CHECK_AUDIT(&c.device);
	device_close(&c.device, false);
}

/* The twin: who gives its sectors up first loses them to others. */
static void lost_rewrites_are_seen(void)
{
	struct contest c;

	run_contest(&c, true);
	CHECK(c.lost > 0);
	CHECK_AUDIT(&c.device);
	device_close(&c.device, false);
}

/* ---- the audit itself ----------------------------------------------------------------------------------- */

/* The twin of every audit: it notices each derived structure that does not follow from the page map. */
static void audit_notices_damage(void)
{
	struct device device;

	rig_create_small(&device, MIB / 4);
	for (uint64_t page = 0; page < 20; page++)
		CHECK(rig_store(&device, page, 1, (unsigned)page));
	CHECK_EQ(rig_inject(&device, 3, 7), 0);
	CHECK_AUDIT(&device);
#define NOTICED(field, change)                              \
	do {                                                \
		__typeof__(field) before = (field);         \
		(field) = before + (change);                \
		CHECK(rig_audit(&device) != NULL);          \
		(field) = before;                           \
		CHECK_AUDIT(&device);                       \
	} while (0)
	NOTICED(device.media.bitmap[0], 1);
	NOTICED(device.media.bitmap[10], 1ull << 62);
	NOTICED(device.media.groups[0], 1);
	NOTICED(device.super->used, 1);
	NOTICED(device.super->peak, MIB);
	NOTICED(device.super->stripes[3].pages[CRAM_PAGE_RAW], 1);
	NOTICED(device.super->stripes[3].payload, 1);
	NOTICED(device.super->stripes[3].poisoned, -1);
	NOTICED(device.super->poison_overflow, 1);
	NOTICED(device.poison->count, -1);
	NOTICED(device.poison->records[0].dpa, PAGE_SIZE);
	NOTICED(device.map.entries[5], 1);
	NOTICED(device.map.entries[3], ENTRY_LOCK);
	NOTICED(device.map.entries[9], ENTRY_RECORDED);
	device_close(&device, false);
}

/* ---- damage --------------------------------------------------------------------------------------------- */

/* A page whose stored form has changed by as much as a bit reads as poison; its neighbours are intact. */
static void damaged_form_is_poison(void)
{
	uint64_t state = 1, errors = 0;
	struct device device;

	rig_create_small(&device, MIB);
	for (uint32_t round = 1; round <= ROUNDS(16u); round++) {
		for (uint64_t page = 0; page < PAGES; page++) {
			struct cram_page_info info;
			uint8_t bytes[PAGE_SIZE];

			CHECK(rig_store(&device, page, round, (unsigned)(1 + page % 5)));
			info = rig_info(&device, page);
			if (info.state != CRAM_PAGE_STORED && info.state != CRAM_PAGE_RAW)
				continue;
			if (page % 3 != 0)
				continue;
			/* The first sector is whole unless it is the last one. */
			device.base[info.media + random_below(&state, info.length < 64 ? info.length : 64)] ^=
				(uint8_t)(1u << random_below(&state, 8));
			CHECK_EQ(rig_load(&device, page, bytes), UINT64_MAX);
			CHECK_EQ(rig_registers(&device).media_errors, ++errors);
			CHECK_EQ(rig_info(&device, page).state, CRAM_PAGE_POISON);
			CHECK_EQ(rig_load(&device, page, bytes), UINT64_MAX);
			CHECK_EQ(rig_registers(&device).media_errors, errors);
		}
		for (uint64_t page = 0; page < PAGES; page++)
			if (page % 3 != 0)
				CHECK(rig_holds(&device, page, round));
		CHECK_AUDIT(&device);
	}
	CHECK(errors > 0);
	device_close(&device, false);
}

/* A form that was moved to another page, whole and with its check word, is not taken for that page's. */
static void other_pages_form_is_poison(void)
{
	uint8_t bytes[PAGE_SIZE];
	struct device device;

	rig_create_small(&device, MIB / 4);
	CHECK(rig_store(&device, 1, 1, 2));
	device.map.entries[2] = device.map.entries[1];
	device.map.checks[2] = device.map.checks[1];
	CHECK(rig_holds(&device, 1, 1));
	CHECK_EQ(rig_load(&device, 2, bytes), UINT64_MAX);
	CHECK_EQ(rig_info(&device, 2).state, CRAM_PAGE_POISON);
	device_close(&device, false);
}

enum part { PART_MEDIA, PART_LINKS, PART_CHECKS, PART_BITMAP, PART_MAP, PARTS };

/* Overwrites some random bytes of a part that is in use. */
static void damage_part(struct device *device, enum part part, uint64_t *state)
{
	const struct geometry *g = &device->super->geometry;
	const struct {
		uint64_t at, size;
	} parts[PARTS] = { { g->media, g->params.real }, { g->links, g->sectors * 4 }, { g->checks, g->pages * 4 },
			   { g->bitmap, g->sectors / 8 }, { g->map, g->pages * 8 } };

	for (unsigned i = 0; i < 40; i++)
		device->base[parts[part].at + random_below(state, parts[part].size)] = (uint8_t)random_next(state);
}

/* Scatters the free sectors, so that many chains are linked. */
static void fill_scattered(struct device *device, uint32_t version)
{
	for (uint64_t page = 0; page < PAGES; page++)
		rig_store(device, page, 1, 3);
	for (uint64_t page = 0; page < PAGES; page += 2)
		rig_drop(device, page);
	for (uint64_t page = 0; page < PAGES; page++)
		CHECK(rig_store(device, page, version, (unsigned)(1 + page % 4)));
}

/* Whatever of media, links, check words and sector bits is damaged: every page reads as written, or is poison. */
static void damage_is_never_read_as_data(void)
{
	uint64_t state = 2, poisoned = 0, intact = 0;

	for (unsigned round = 0; round < ROUNDS(40u); round++) {
		struct device device;

		rig_create_small(&device, MIB);
		fill_scattered(&device, 2);
		damage_part(&device, (enum part)(round % PART_MAP), &state);
		for (uint64_t page = 0; page < PAGES; page++) {
			uint8_t bytes[PAGE_SIZE];
			uint32_t version;

			if (rig_load(&device, page, bytes) == UINT64_MAX) {
				poisoned++;
				CHECK_EQ(rig_info(&device, page).state, CRAM_PAGE_POISON);
				continue;
			}
			intact++;
			CHECK(rig_recognise(bytes, page, &version));
			CHECK_EQ(version, 2);
		}
		CHECK_EQ(device_rebuild(&device), 0);
		CHECK_AUDIT(&device);
		device_close(&device, false);
	}
	CHECK(poisoned > 0);
	CHECK(intact > 0);
}

/* Even a damaged page map leads nowhere outside the object, and after a rebuild everything agrees with it. */
static void damaged_map_stays_inside(void)
{
	uint64_t state = 3;

	for (unsigned round = 0; round < ROUNDS(40u); round++) {
		struct device device;
		uint8_t bytes[PAGE_SIZE];

		rig_create_small(&device, MIB);
		fill_scattered(&device, 2);
		damage_part(&device, PART_MAP, &state);
		/* Bits that say who holds a lock would only keep us waiting. */
		for (uint64_t page = 0; page < PAGES; page++)
			device.map.entries[page] &= ~(ENTRY_LOCK | ENTRY_HOLDER | ENTRY_BUSY);
		for (uint64_t page = 0; page < PAGES; page++)
			rig_load(&device, page, bytes);
		CHECK_EQ(device_rebuild(&device), 0);
		CHECK_AUDIT(&device);
		for (uint64_t page = 0; page < PAGES; page++) {
			rig_load(&device, page, bytes);
			CHECK(rig_store(&device, page, 3, 2));
			CHECK(rig_holds(&device, page, 3));
		}
		CHECK_AUDIT(&device);
		device_close(&device, false);
	}
}

/* ---- poison --------------------------------------------------------------------------------------------- */

static const uint8_t zero_line[LINE_SIZE];

/* A poisoned line is reported, in a page of any state, and the others keep their bytes; a write repairs it. */
static void poisoned_line_is_reported(void)
{
	struct device device;

	rig_create_small(&device, MIB / 4);
	for (uint64_t page = 0; page <= KINDS; page++) {
		uint8_t before[PAGE_SIZE], bytes[PAGE_SIZE];

		if (page < KINDS)
			CHECK(rig_store(&device, page, 1, (unsigned)page));
		CHECK_EQ(rig_load(&device, page, before), 0);
		CHECK_EQ(rig_inject(&device, page, 5), 0);
		CHECK_EQ(rig_inject(&device, page, 63), 0);
		CHECK_EQ(rig_inject(&device, page, 5), 0);
		CHECK_EQ(rig_registers(&device).poison_records, 2);
		CHECK_EQ(rig_registers(&device).poisoned, 1);
		CHECK_EQ(rig_load(&device, page, bytes), 1ull << 5 | 1ull << 63);
		CHECK_EQ(rig_info(&device, page).poisoned, 1ull << 5 | 1ull << 63);
		CHECK_BYTES(bytes, before, 5 * LINE_SIZE);
		CHECK_BYTES(bytes + 6 * LINE_SIZE, before + 6 * LINE_SIZE, 57 * LINE_SIZE);
		CHECK_AUDIT(&device);
		if (page % 2 == 0)
			CHECK(rig_store(&device, page, 2, 3));
		else
			rig_drop(&device, page);
		CHECK_EQ(rig_load(&device, page, bytes), 0);
		CHECK_EQ(rig_registers(&device).poisoned, 0);
		CHECK_AUDIT(&device);
	}
	device_close(&device, false);
}

/* Clearing zeroes the line, poisoned or not, repairs it, and leaves the rest of the page and its poison alone. */
static void cleared_line_is_zero(void)
{
	struct device device;

	rig_create_small(&device, MIB / 4);
	for (uint64_t page = 0; page <= KINDS; page++) {
		uint8_t expected[PAGE_SIZE], bytes[PAGE_SIZE];

		if (page < KINDS)
			CHECK(rig_store(&device, page, 1, (unsigned)page));
		CHECK_EQ(rig_load(&device, page, expected), 0);
		CHECK_EQ(rig_inject(&device, page, 0), 0);
		CHECK_EQ(rig_inject(&device, page, 9), 0);
		rig_clear(&device, page, 9);
		rig_clear(&device, page, 20);
		memcpy(expected + 9 * LINE_SIZE, zero_line, LINE_SIZE);
		memcpy(expected + 20 * LINE_SIZE, zero_line, LINE_SIZE);
		CHECK_EQ(rig_load(&device, page, bytes), 1);
		CHECK_BYTES(bytes + LINE_SIZE, expected + LINE_SIZE, 63 * LINE_SIZE);
		CHECK_AUDIT(&device);
		rig_clear(&device, page, 0);
		memcpy(expected, zero_line, LINE_SIZE);
		CHECK_EQ(rig_load(&device, page, bytes), 0);
		CHECK_BYTES(bytes, expected, PAGE_SIZE);
		CHECK_EQ(rig_registers(&device).poisoned, 0);
		CHECK_AUDIT(&device);
	}
	device_close(&device, false);
}

/* A page without data is cleared line by line; when the last one is, it is a page of zeros. */
static void dropped_page_is_cleared(void)
{
	struct cram_poison_record records[4];
	uint8_t bytes[PAGE_SIZE];
	struct device device;

	rig_create_small(&device, 4096);
	CHECK(rig_store(&device, 0, 1, 5));
	CHECK(!rig_store(&device, 1, 1, 5));
	for (unsigned line = 0; line < 63; line++) {
		CHECK_EQ(rig_load(&device, 1, bytes), UINT64_MAX << line);
		rig_clear(&device, 1, line);
		CHECK_AUDIT(&device);
	}
	CHECK_EQ(device_poison_list(&device, records, COUNT(records)), 1);
	CHECK_EQ(records[0].dpa, PAGE_SIZE + 63 * LINE_SIZE);
	CHECK_EQ(records[0].length, LINE_SIZE);
	CHECK_EQ(records[0].source, CRAM_POISON_DROPPED);
	CHECK_EQ(rig_inject(&device, 1, 10), 0);
	CHECK_EQ(rig_load(&device, 1, bytes), 1ull << 63 | 1ull << 10);
	rig_clear(&device, 1, 10);
	rig_clear(&device, 1, 63);
	CHECK_EQ(rig_load(&device, 1, bytes), 0);
	for (unsigned line = 0; line < 64; line++)
		CHECK_BYTES(bytes + line * LINE_SIZE, zero_line, LINE_SIZE);
	CHECK_EQ(rig_info(&device, 1).state, CRAM_PAGE_ZERO);
	CHECK_EQ(device_poison_list(&device, records, COUNT(records)), 0);
	CHECK_AUDIT(&device);
	device_close(&device, false);
}

/* The list comes in ascending order, whole pages as one record, and its true length even where it does not fit. */
static void list_is_sorted(void)
{
	struct cram_poison_record records[8];
	struct device device;

	rig_create_small(&device, 4096);
	CHECK(rig_store(&device, 9, 1, 5));
	CHECK(!rig_store(&device, 5, 1, 5));
	CHECK(!rig_store(&device, 2, 1, 5));
	CHECK_EQ(rig_inject(&device, 7, 3), 0);
	CHECK_EQ(rig_inject(&device, 7, 2), 0);
	CHECK_EQ(rig_inject(&device, 3, 60), 0);
	CHECK_EQ(device_poison_list(&device, records, 0), 5);
	memset(records, 0x55, sizeof(records));
	CHECK_EQ(device_poison_list(&device, records, 3), 5);
	CHECK_EQ(records[3].dpa, 0x5555555555555555);
	CHECK_EQ(device_poison_list(&device, records, COUNT(records)), 5);
	CHECK_EQ(records[0].dpa, 2 * PAGE_SIZE);
	CHECK_EQ(records[0].length, PAGE_SIZE);
	CHECK_EQ(records[1].dpa, 3 * PAGE_SIZE + 60 * LINE_SIZE);
	CHECK_EQ(records[1].length, LINE_SIZE);
	CHECK_EQ(records[1].source, CRAM_POISON_INJECTED);
	CHECK_EQ(records[2].dpa, 5 * PAGE_SIZE);
	CHECK_EQ(records[3].dpa, 7 * PAGE_SIZE + 2 * LINE_SIZE);
	CHECK_EQ(records[4].dpa, 7 * PAGE_SIZE + 3 * LINE_SIZE);
	device_close(&device, false);
}

/* A full list refuses an injection and changes nothing; dropped pages beyond it are counted, and are poison too. */
static void full_list_overflows(void)
{
	struct cram_params params = rig_params(4096);
	uint8_t bytes[PAGE_SIZE];
	struct device device;

	params.poison_limit = 3;
	rig_create(&device, &params);
	CHECK(rig_store(&device, 0, 1, 5));
	CHECK_EQ(rig_inject(&device, 0, 1), 0);
	for (uint64_t page = 1; page < 6; page++)
		CHECK(!rig_store(&device, page, 1, 5));
	CHECK_EQ(rig_registers(&device).poison_records, 3);
	CHECK_EQ(rig_registers(&device).poison_overflow, 3);
	CHECK_EQ(rig_registers(&device).poisoned, 6);
	CHECK_EQ(rig_inject(&device, 9, 0), CRAM_EBUSY);
	CHECK_EQ(rig_load(&device, 9, bytes), 0);
	CHECK_EQ(rig_inject(&device, 0, 2), CRAM_EBUSY);
	CHECK_EQ(rig_load(&device, 0, bytes), 1ull << 1);
	CHECK_EQ(rig_inject(&device, 0, 1), 0);
	CHECK_EQ(rig_inject(&device, 5, 1), 0);
	CHECK_AUDIT(&device);
	for (uint64_t page = 1; page < 6; page++)
		CHECK_EQ(rig_load(&device, page, bytes), UINT64_MAX);
	CHECK_EQ(device_rebuild(&device), 0);
	CHECK_AUDIT(&device);
	for (uint64_t page = 1; page < 6; page++) {
		CHECK_EQ(rig_load(&device, page, bytes), UINT64_MAX);
		rig_drop(&device, page);
		CHECK_AUDIT(&device);
	}
	CHECK_EQ(rig_registers(&device).poison_overflow, 0);
	CHECK_EQ(rig_inject(&device, 9, 0), 0);
	device_close(&device, false);
}

struct listing {
	struct device device;
	_Atomic bool stop;
	_Atomic uint64_t listed, wrong;
};

static void list_or_poison(void *arg, unsigned index)
{
	struct listing *l = arg;

	if (index == 0) {
		for (unsigned i = 0; i < ROUNDS(20000u); i++) {
			rig_store(&l->device, 1, i, 5);
			rig_store(&l->device, 1, i, 1);
			if (i % 256 == 0)
				sched_yield();
		}
		atomic_store(&l->stop, true);
		return;
	}
	while (!atomic_load(&l->stop)) {
		struct cram_poison_record records[8];
		size_t n = device_poison_list(&l->device, records, COUNT(records));

		/* The page is poisoned whole, or not. */
		l->listed += n;
		if (n > 1 || (n == 1 && records[0].length != PAGE_SIZE))
			l->wrong++;
	}
}

/* A list that is read while pages become poison and are repaired has whole pages only, and no lines of garbage. */
static void list_is_right_under_threads(void)
{
	struct listing l = { .stop = false };

	rig_create_small(&l.device, 4096);
	CHECK(rig_store(&l.device, 0, 1, 3));
	run_threads(3, list_or_poison, &l);
	CHECK(l.listed > 0);
	CHECK_EQ(l.wrong, 0);
	CHECK_AUDIT(&l.device);
	device_close(&l.device, false);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

#define MODEL_PAGES 48u
#define MODEL_EMPTY UINT32_MAX

struct model {
	struct device device;
	/* What each page holds; protected by the page's lock, as the page is. */
	uint32_t version[MODEL_PAGES];
	bool poison[MODEL_PAGES];
	uint64_t lines[MODEL_PAGES]; /* injected */
	_Atomic uint64_t dropped, wrong, loads;
	_Atomic uint32_t next_version;
	_Atomic bool stop;
};

static void model_load(struct model *m, struct op *op, uint64_t page)
{
	uint8_t bytes[PAGE_SIZE];
	uint64_t lines = device_load(op, page, bytes);
	uint32_t version = 0;

	m->loads++;
	if (lines != (m->poison[page] ? UINT64_MAX : m->lines[page]))
		m->wrong++;
	else if (lines == 0 && m->version[page] == MODEL_EMPTY)
		m->wrong += bytes[0] != 0 || memcmp(bytes, bytes + 1, PAGE_SIZE - 1) != 0;
	else if (lines == 0)
		m->wrong += !rig_recognise(bytes, page, &version) || version != m->version[page];
}

static void model_store(struct model *m, struct op *op, uint64_t page, unsigned kind)
{
	uint8_t bytes[PAGE_SIZE];
	uint32_t version = atomic_fetch_add(&m->next_version, 1);

	rig_fill(bytes, page, version, kind);
	m->lines[page] = 0;
	m->version[page] = version;
	m->poison[page] = !device_store(op, page, bytes);
	m->dropped += m->poison[page];
}

static void model_step(struct model *m, struct op *op, uint64_t page, uint64_t choice)
{
	if (choice < 40) {
		model_store(m, op, page, (unsigned)choice);
	} else if (choice < 85) {
		model_load(m, op, page);
	} else if (choice < 95) {
		device_drop(op, page);
		m->version[page] = MODEL_EMPTY;
		m->poison[page] = false;
		m->lines[page] = 0;
	} else if (device_inject(op, page, (unsigned)choice % 64) == 0) {
		m->lines[page] |= 1ull << choice % 64;
	}
}

static void work_on_model(void *arg, unsigned index)
{
	struct model *m = arg;
	uint64_t state = index;

	for (unsigned i = 0; i < ROUNDS(12000u); i++) {
		/* Half of the work on a few pages, where threads meet. */
		uint64_t page = random_below(&state, i % 2 == 0 ? 4 : MODEL_PAGES);
		struct op *op = device_enter(&m->device);

		if (i % 8 == 0) {
			if (!device_trylock_page(op, page)) {
				device_leave(op);
				continue;
			}
		} else {
			device_lock_page(op, page);
		}
		model_step(m, op, page, random_below(&state, 100));
		device_unlock_page(op, page);
		device_leave(op);
	}
}

static void model_init(struct model *m, uint64_t real)
{
	memset(m, 0, sizeof(*m));
	rig_create_small(&m->device, real);
	for (unsigned page = 0; page < MODEL_PAGES; page++)
		m->version[page] = MODEL_EMPTY;
}

/* Loads every page once more; how many are not as the model says. */
static uint64_t model_errors(struct model *m)
{
	struct op *op = device_enter(&m->device);

	for (uint64_t page = 0; page < MODEL_PAGES; page++) {
		device_lock_page(op, page);
		model_load(m, op, page);
		device_unlock_page(op, page);
	}
	device_leave(op);
	return m->wrong;
}

/* Threads that store, load, drop and poison the same pages read what was stored last, or poison, with any room. */
static void threads_read_what_was_stored_last(void)
{
	static const uint64_t reals[] = { 16 * PAGE_SIZE, MIB };

	for (unsigned i = 0; i < COUNT(reals); i++) {
		struct model m;

		model_init(&m, reals[i]);
		run_threads(4, work_on_model, &m);
		CHECK_EQ(model_errors(&m), 0);
		CHECK(m.loads > 0);
		CHECK_EQ(m.dropped > 0, i == 0);
		CHECK_EQ(rig_registers(&m.device).dropped_writes, m.dropped);
		CHECK_EQ(rig_registers(&m.device).media_errors, 0);
		CHECK_AUDIT(&m.device);
		device_close(&m.device, false);
	}
}

/* The twin: pages stored behind the model's back, and poison that it does not know of, are noticed. */
static void strange_pages_are_seen(void)
{
	struct model m;

	model_init(&m, MIB);
	run_threads(2, work_on_model, &m);
	CHECK_EQ(model_errors(&m), 0);
	m.poison[1] = false;
	m.lines[1] = 0;
	CHECK(rig_store(&m.device, 1, m.next_version, 3));
	CHECK_EQ(model_errors(&m), 1);
	CHECK_EQ(rig_inject(&m.device, 2, 33), 0);
	m.lines[2] = 0;
	CHECK_EQ(model_errors(&m), 3);
	device_close(&m.device, false);
}

static void work_and_rebuild(void *arg, unsigned index)
{
	struct model *m = arg;

	if (index > 0) {
		work_on_model(m, index);
		atomic_store(&m->stop, true);
		return;
	}
	for (unsigned i = 0; !atomic_load(&m->stop); i++) {
		CHECK_EQ(device_rebuild(&m->device), 0);
		usleep(500);
	}
}

/* Rebuilds while threads store, load, drop and poison lose nothing of it, and miscount nothing. */
static void rebuild_disturbs_nobody(void)
{
	struct model m;

	model_init(&m, 16 * PAGE_SIZE);
	run_threads(4, work_and_rebuild, &m);
	CHECK_EQ(model_errors(&m), 0);
	CHECK_EQ(rig_registers(&m.device).media_errors, 0);
	CHECK_EQ(rig_registers(&m.device).lost_pages, 0);
	CHECK_EQ(rig_registers(&m.device).dropped_writes, m.dropped);
	CHECK_AUDIT(&m.device);
	device_close(&m.device, false);
}

static const struct test tests[] = {
	TEST(page_comes_back),
	TEST(zeros_take_no_room),
	TEST(dirty_mark_is_kept),
	TEST(media_is_exact),
	TEST(dropped_page_is_repaired),
	TEST(full_device_is_rewritten),
	TEST(rewriting_loses_nothing_to_others),
	TEST(lost_rewrites_are_seen),
	TEST(audit_notices_damage),
	TEST(damaged_form_is_poison),
	TEST(other_pages_form_is_poison),
	TEST(damage_is_never_read_as_data),
	TEST(damaged_map_stays_inside),
	TEST(poisoned_line_is_reported),
	TEST(cleared_line_is_zero),
	TEST(dropped_page_is_cleared),
	TEST(list_is_sorted),
	TEST(full_list_overflows),
	TEST(list_is_right_under_threads),
	TEST(threads_read_what_was_stored_last),
	TEST(strange_pages_are_seen),
	TEST(rebuild_disturbs_nobody),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
