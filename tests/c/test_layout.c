/* SPDX-License-Identifier: MIT
 *
 * The shape of the device object, and what is not taken for one.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "check.h"
#include "content.h"
#include "device/alert.h"
#include "device/clients.h"
#include "device/layout.h"
#include "device/media.h"
#include "device/poison.h"
#include "error.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define TIB (1ull << 40)

static struct cram_params params_of(uint64_t advertised, uint64_t real, uint32_t sector)
{
	struct cram_params params = { .advertised = advertised, .real = real, .sector = sector };

	cram_params_default(&params);
	return params;
}

/* ---- parameters ----------------------------------------------------------------------------------------- */

/* The defaults are those of the header, follow what is set already, and are accepted. */
static void defaults_are_accepted(void)
{
	struct cram_params params = params_of(0, 0, 0);

	CHECK_EQ(params.advertised, 8 * GIB);
	CHECK_EQ(params.real, GIB);
	CHECK_EQ(params.sector, 64);
	CHECK_EQ(params.block, 4096);
	CHECK_EQ(params.codec, CRAM_CODEC_LZ4);
	CHECK_EQ(params.level, 1);
	CHECK_EQ(params.largest_stored, 4032);
	CHECK_EQ(params.poison_limit, 1024);
	CHECK_EQ(params.low_remaining, GIB / 10);
	CHECK_EQ(params.high_remaining, GIB / 5);
	CHECK_EQ(params.low_ratio, 0);
	CHECK_EQ(params.signal, SIGRTMIN + 12);
	CHECK_EQ(layout_check_params(&params), 0);
	for (uint32_t sector = 64; sector <= 4096; sector *= 2) {
		params = params_of(MIB, 4096, sector);
		CHECK_EQ(params.advertised, MIB);
		CHECK_EQ(params.real, 4096);
		CHECK_EQ(params.sector, sector);
		CHECK_EQ(layout_check_params(&params), 0);
	}
}

/* One field of the parameters. */
#define FIELD(name) { #name, offsetof(struct cram_params, name), sizeof(((struct cram_params *)0)->name) }
static const struct {
	const char *name;
	size_t offset, size;
} fields[] = {
	FIELD(advertised),     FIELD(real),          FIELD(sector),	FIELD(block),     FIELD(codec),
	FIELD(level),	       FIELD(largest_stored), FIELD(poison_limit), FIELD(low_remaining),
	FIELD(high_remaining), FIELD(low_ratio),     FIELD(high_ratio), FIELD(signal),
};

static void set(struct cram_params *params, const char *name, int64_t value)
{
	for (unsigned i = 0; i < COUNT(fields); i++)
		if (strcmp(fields[i].name, name) == 0)
			memcpy((char *)params + fields[i].offset, &value, fields[i].size);
}

/* Each value is accepted or refused, one beside another at every limit; a refusal names the value. */
static void parameters_are_checked(void)
{
	static const struct {
		const char *field;
		int64_t value;
		int accepted;
		const char *named; /* in the message; NULL: the value itself */
		uint32_t codec;
	} cases[] = {
		{ "advertised", MIB - 4096, 0, NULL, 1 },
		{ "advertised", MIB, 1, NULL, 1 },
		{ "advertised", MIB + 1, 0, NULL, 1 },
		{ "advertised", TIB, 1, NULL, 1 },
		{ "advertised", TIB + 4096, 0, NULL, 1 },
		{ "advertised", 0, 0, "capacity 0", 1 },
		{ "sector", 32, 0, NULL, 1 },
		{ "sector", 64, 1, NULL, 1 },
		{ "sector", 96, 0, NULL, 1 },
		{ "sector", 4096, 1, NULL, 1 },
		{ "sector", 8192, 0, NULL, 1 },
		{ "sector", 0, 0, "sector of 0", 1 },
		{ "real", 4096 - 64, 0, NULL, 1 },
		{ "real", MIB, 1, NULL, 1 },
		{ "real", MIB - 64, 1, NULL, 1 },
		{ "real", MIB - 1, 0, NULL, 1 },
		{ "real", MIB + 64, 0, NULL, 1 },
		{ "block", 512, 0, NULL, 1 },
		{ "block", 1024, 1, NULL, 1 },
		{ "block", 2048, 1, NULL, 1 },
		{ "block", 3072, 0, NULL, 1 },
		{ "block", 8192, 0, NULL, 1 },
		{ "codec", 3, 0, NULL, 1 },
		{ "codec", UINT32_MAX, 0, "4294967295", 1 },
		{ "level", 0, 0, "level 0", CRAM_CODEC_LZ4 },
		{ "level", -1, 0, NULL, CRAM_CODEC_LZ4 },
		{ "level", 65537, 1, NULL, CRAM_CODEC_LZ4 },
		{ "level", 65538, 0, NULL, CRAM_CODEC_LZ4 },
		{ "level", 0, 0, "level 0", CRAM_CODEC_ZSTD },
		{ "level", 19, 1, NULL, CRAM_CODEC_ZSTD },
		{ "level", 20, 0, NULL, CRAM_CODEC_ZSTD },
		{ "level", 0, 1, NULL, CRAM_CODEC_NONE },
		{ "level", 1, 0, "level 1", CRAM_CODEC_NONE },
		{ "largest_stored", 0, 1, NULL, 1 },
		{ "largest_stored", 4096, 1, NULL, 1 },
		{ "largest_stored", 4097, 0, NULL, 1 },
		{ "poison_limit", 0, 0, "limit 0", 1 },
		{ "poison_limit", 1, 1, NULL, 1 },
		{ "poison_limit", 1024, 1, NULL, 1 },
		{ "poison_limit", 1025, 0, NULL, 1 },
		{ "low_remaining", MIB / 4, 1, NULL, 1 },
		{ "low_remaining", MIB / 4 + 1, 0, NULL, 1 },
		{ "high_remaining", MIB / 2, 1, NULL, 1 },
		{ "high_remaining", MIB / 2 + 1, 0, NULL, 1 },
		{ "low_ratio", 1500, 1, NULL, 1 },
		{ "low_ratio", 1501, 0, NULL, 1 },
		{ "signal", 0, 1, NULL, 1 },
		{ "signal", -1, 0, NULL, 1 },
		{ "signal", SIGUSR1, 1, NULL, 1 },
		{ "signal", SIGKILL, 0, NULL, 1 },
		{ "signal", SIGSTOP, 0, NULL, 1 },
		{ "signal", SIGBUS, 0, NULL, 1 },
		{ "signal", SIGSEGV, 0, NULL, 1 },
		{ "signal", 32, 0, NULL, 1 },
		{ "signal", 64, 1, NULL, 1 },
		{ "signal", 65, 0, NULL, 1 },
	};

	for (unsigned i = 0; i < COUNT(cases); i++) {
		struct cram_params params = params_of(MIB, MIB / 2, 64);
		char value[32];

		params.low_remaining = MIB / 8;
		params.high_remaining = MIB / 4;
		params.high_ratio = 1500;
		params.codec = cases[i].codec;
		set(&params, cases[i].field, cases[i].value);
		if (layout_check_params(&params) == 0) {
			CHECK(cases[i].accepted);
			continue;
		}
		if (cases[i].accepted)
			fprintf(stderr, "%s %" PRId64 " ", cases[i].field, cases[i].value);
		CHECK(!cases[i].accepted);
		CHECK_EQ(layout_check_params(&params), CRAM_EINVAL);
		snprintf(value, sizeof(value), "%" PRId64, cases[i].value);
		CHECK(strstr(cram_error_detail(), cases[i].named != NULL ? cases[i].named : value) != NULL);
	}
}

/* The number of sectors is kept in 32 bits, with room for a mark: one sector more than fits is refused. */
static void sectors_are_counted_in_32_bits(void)
{
	struct cram_params params = params_of(TIB, (UINT32_MAX - 1ull) * 64, 64);

	CHECK_EQ(layout_check_params(&params), 0);
	params.real += 64;
	CHECK_EQ(layout_check_params(&params), CRAM_EINVAL);
	params = params_of(TIB, TIB, 4096);
	CHECK_EQ(layout_check_params(&params), 0);
}

/* ---- the plan ------------------------------------------------------------------------------------------- */

/* Parts lie behind one another on pages of their own, each large enough for what it holds. */
static void parts_do_not_overlap(void)
{
	static const struct {
		uint64_t advertised, real;
		uint32_t sector;
	} sizes[] = { { MIB, 4096, 64 }, { MIB, 4096, 4096 }, { MIB, MIB - 64, 64 }, { 8 * GIB, GIB, 64 },
		      { TIB, TIB, 4096 }, { TIB, 4096, 64 }, { 3 * MIB + 4096, MIB + 128, 128 } };

	for (unsigned i = 0; i < COUNT(sizes); i++) {
		struct cram_params params = params_of(sizes[i].advertised, sizes[i].real, sizes[i].sector);
		uint64_t sectors = sizes[i].real / sizes[i].sector, pages = sizes[i].advertised / 4096;
		uint64_t words = (sectors + 63) / 64;
		struct geometry g;
		struct {
			uint64_t at, size;
		} parts[] = {
			{ 0, sizeof(struct superblock) },
			{ 0, sizeof(struct clients) },
			{ 0, sizeof(struct alert) },
			{ 0, sizeof(struct poison_list) },
			{ 0, words * 8 },
			{ 0, (words + MEDIA_GROUP_WORDS - 1) / MEDIA_GROUP_WORDS * 2 },
			{ 0, pages * 8 },
			{ 0, pages * 4 },
			{ 0, sectors * 4 },
			{ 0, sizes[i].real },
		};

		layout_plan(&params, &g);
		CHECK_EQ(g.pages, pages);
		CHECK_EQ(g.sectors, sectors);
		parts[1].at = g.clients;
		parts[2].at = g.alert;
		parts[3].at = g.poison;
		parts[4].at = g.bitmap;
		parts[5].at = g.groups;
		parts[6].at = g.map;
		parts[7].at = g.checks;
		parts[8].at = g.links;
		parts[9].at = g.media;
		for (unsigned j = 0; j < COUNT(parts); j++) {
			CHECK_EQ(parts[j].at % 4096, 0);
			CHECK_LE(parts[j].at + parts[j].size, j + 1 < COUNT(parts) ? parts[j + 1].at : g.size);
		}
	}
}

/* Two plans of the same parameters are the same bytes, wherever they are made. */
static void plan_is_reproducible(void)
{
	struct cram_params params = params_of(64 * MIB, MIB, 128);
	struct geometry a, b;

	memset(&a, 0x55, sizeof(a));
	memset(&b, 0xaa, sizeof(b));
	layout_plan(&params, &a);
	layout_plan(&params, &b);
	CHECK_BYTES(&a, &b, sizeof(a));
}

/* ---- recognition ---------------------------------------------------------------------------------------- */

/* A file with the head of a new object, of the right length. */
static int make_file(struct superblock *head, struct geometry *geometry)
{
	struct cram_params params = params_of(64 * MIB, MIB, 64);
	int fd = memfd_create("test", MFD_CLOEXEC);

	CHECK(fd >= 0);
	memset(head, 0, sizeof(*head));
	layout_plan(&params, geometry);
	layout_format(head, geometry);
	CHECK_EQ(pwrite(fd, head, sizeof(*head), 0), sizeof(*head));
	CHECK_EQ(ftruncate(fd, (off_t)geometry->size), 0);
	return fd;
}

static int recognise(int fd, struct geometry *geometry)
{
	return layout_recognise(fd, (uint64_t)lseek(fd, 0, SEEK_END), "a name", geometry);
}

/* What was formatted is recognised, with the same geometry. */
static void own_object_is_recognised(void)
{
	struct superblock head;
	struct geometry geometry, found;
	int fd = make_file(&head, &geometry);

	CHECK_EQ(recognise(fd, &found), 0);
	CHECK_BYTES(&found, &geometry, sizeof(geometry));
	close(fd);
}

static void check_refused(int fd, int code)
{
	struct geometry found, before;

	memset(&found, 0x77, sizeof(found));
	before = found;
	CHECK_EQ(recognise(fd, &found), code);
	CHECK_BYTES(&found, &before, sizeof(found));
	CHECK(strstr(cram_error_detail(), "a name") != NULL);
}

/* A file of any shorter length is refused, an empty one too, and one that is a byte too long. */
static void truncated_object_is_refused(void)
{
	struct superblock head;
	struct geometry geometry;
	int fd = make_file(&head, &geometry);

	CHECK_EQ(ftruncate(fd, (off_t)geometry.size + 1), 0);
	check_refused(fd, CRAM_EFORMAT);
	CHECK_EQ(ftruncate(fd, (off_t)geometry.size - 1), 0);
	check_refused(fd, CRAM_EFORMAT);
	for (off_t length = sizeof(head) + 2; length >= 0; length--) {
		CHECK_EQ(ftruncate(fd, length), 0);
		check_refused(fd, CRAM_EFORMAT);
	}
	close(fd);
}

/* A file of noise, and one of zeros as a killed creator leaves it, is foreign. */
static void foreign_object_is_refused(void)
{
	struct superblock head;
	struct geometry geometry;
	int fd = make_file(&head, &geometry);

	memset(head.magic, 0, sizeof(head.magic));
	CHECK_EQ(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
	check_refused(fd, CRAM_EFORMAT);
	for (uint64_t seed = 0; seed < 20; seed++) {
		fill_content((uint8_t *)&head, sizeof(head), seed, NOISE_MAX);
		CHECK_EQ(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
		check_refused(fd, CRAM_EFORMAT);
	}
	close(fd);
}

/* Another version is refused as such, whatever the rest has become, and its number is named. */
static void other_version_is_refused(void)
{
	static const uint32_t versions[] = { 0, LAYOUT_VERSION + 1, 77, UINT32_MAX };

	for (unsigned i = 0; i < COUNT(versions); i++) {
		struct superblock head;
		struct geometry geometry;
		int fd = make_file(&head, &geometry);
		char number[16];

		head.version = versions[i];
		memset(&head.geometry, 0x33, sizeof(head.geometry));
		CHECK_EQ(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
		check_refused(fd, CRAM_EVERSION);
		snprintf(number, sizeof(number), "%u", versions[i]);
		CHECK(strstr(cram_error_detail(), number) != NULL);
		close(fd);
	}
}

/* No byte of the geometry, nor of its check word, can change unnoticed. */
static void damaged_geometry_is_refused(void)
{
	struct superblock head;
	struct geometry geometry;
	int fd = make_file(&head, &geometry);
	size_t end = offsetof(struct superblock, geometry) + sizeof(head.geometry);

	for (size_t at = 0; at < end; at++) {
		uint8_t byte = ((uint8_t *)&head)[at] ^ 0x10;

		/* What lies between the check word and the geometry is nothing. */
		if (at >= offsetof(struct superblock, geometry_check) + 4 && at < offsetof(struct superblock, geometry))
			continue;
		CHECK_EQ(pwrite(fd, &byte, 1, (off_t)at), 1);
		check_refused(fd, at >= 8 && at < 12 ? CRAM_EVERSION : CRAM_EFORMAT);
		CHECK_EQ(pwrite(fd, (uint8_t *)&head + at, 1, (off_t)at), 1);
		CHECK_EQ(recognise(fd, &geometry), 0);
	}
	close(fd);
}

/* A geometry that was made up to fit its check word, but not its parameters, is refused too. */
static void false_geometry_is_refused(void)
{
	static const size_t at[] = { offsetof(struct geometry, media), offsetof(struct geometry, sectors),
				     offsetof(struct geometry, size), offsetof(struct geometry, params.real),
				     offsetof(struct geometry, params.sector) };

	for (unsigned i = 0; i < COUNT(at); i++) {
		struct superblock head;
		struct geometry geometry;
		int fd = make_file(&head, &geometry);

		*((uint8_t *)&geometry + at[i] + 1) ^= 0x10;
		layout_format(&head, &geometry);
		CHECK_EQ(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
		check_refused(fd, CRAM_EFORMAT);
		close(fd);
	}
}

/* What cannot be read is reported as that. */
static void unreadable_file_is_reported(void)
{
	struct geometry geometry;

	CHECK_EQ(layout_recognise(-1, 4096, "a name", &geometry), CRAM_EIO);
	CHECK(strstr(cram_error_detail(), "a name") != NULL);
}

static const struct test tests[] = {
	TEST(defaults_are_accepted),
	TEST(parameters_are_checked),
	TEST(sectors_are_counted_in_32_bits),
	TEST(parts_do_not_overlap),
	TEST(plan_is_reproducible),
	TEST(own_object_is_recognised),
	TEST(truncated_object_is_refused),
	TEST(foreign_object_is_refused),
	TEST(other_version_is_refused),
	TEST(damaged_geometry_is_refused),
	TEST(false_geometry_is_refused),
	TEST(unreadable_file_is_reported),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
