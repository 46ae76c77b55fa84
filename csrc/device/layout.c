/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "layout.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "alert.h"
#include "clients.h"
#include "codec.h"
#include "dpas.h"
#include "error.h"
#include "media.h"
#include "pagemap.h"
#include "poison.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define TIB (1ull << 40)

/* lz4.h: acceleration above this is clamped. */
#define LZ4_ACCELERATION_LIMIT 65537
#define ZSTD_LEVEL_LIMIT 19

void cram_params_default(struct cram_params *params)
{
	struct cram_params given = *params;

	memset(params, 0, sizeof(*params));
	params->advertised = given.advertised ? given.advertised : 8 * GIB;
	params->real = given.real ? given.real : GIB;
	params->sector = given.sector ? given.sector : 64;
	params->block = PAGE_SIZE;
	params->codec = CRAM_CODEC_LZ4;
	params->level = 1;
	/* Whatever saves a sector is worth storing. */
	params->largest_stored = params->sector < PAGE_SIZE ? PAGE_SIZE - params->sector : 0;
	params->poison_limit = POISON_RECORDS_MAX;
	params->low_remaining = params->real / 10;
	params->high_remaining = params->real / 5;
	params->signal = SIGRTMIN + 12;
}

static int check_capacity(const struct cram_params *p)
{
	if (p->advertised < MIB || p->advertised > TIB || p->advertised % PAGE_SIZE != 0)
		return cram_fail(CRAM_EINVAL, "advertised capacity %" PRIu64 ": not a multiple of 4096 from 1 MiB to 1 TiB",
				 p->advertised);
	if (p->sector < 64 || p->sector > PAGE_SIZE || (p->sector & (p->sector - 1)) != 0)
		return cram_fail(CRAM_EINVAL, "sector of %u bytes: not a power of two from 64 to 4096", p->sector);
	if (p->real < PAGE_SIZE || p->real > p->advertised || p->real % p->sector != 0)
		return cram_fail(CRAM_EINVAL,
				 "real capacity %" PRIu64 ": not a multiple of the %u-byte sector from 4096 to the advertised %" PRIu64,
				 p->real, p->sector, p->advertised);
	if (p->real / p->sector > UINT32_MAX - 1ull)
		return cram_fail(CRAM_EINVAL, "real capacity %" PRIu64 ": more than 2^32 - 2 sectors of %u bytes; take larger sectors",
				 p->real, p->sector);
	return 0;
}

static int check_codec(const struct cram_params *p)
{
	int least = 1, most = LZ4_ACCELERATION_LIMIT;

	if (p->block != 1024 && p->block != 2048 && p->block != 4096)
		return cram_fail(CRAM_EINVAL, "compression block of %u bytes: not 1024, 2048 or 4096", p->block);
	if (p->codec == CRAM_CODEC_NONE)
		least = most = 0;
	else if (p->codec == CRAM_CODEC_ZSTD)
		most = ZSTD_LEVEL_LIMIT;
	else if (p->codec != CRAM_CODEC_LZ4)
		return cram_fail(CRAM_EINVAL, "codec %u: not none (0), lz4 (1) or zstd (2)", p->codec);
	if (p->level < least || p->level > most)
		return cram_fail(CRAM_EINVAL, "level %d: not from %d to %d for this codec", p->level, least, most);
	if (p->largest_stored > PAGE_SIZE)
		return cram_fail(CRAM_EINVAL, "largest stored size %u: over 4096", p->largest_stored);
	return 0;
}

int layout_check_params(const struct cram_params *p)
{
	int code = check_capacity(p);

	if (code == 0)
		code = check_codec(p);
	if (code != 0)
		return code;
	if (p->poison_limit < 1 || p->poison_limit > POISON_RECORDS_MAX)
		return cram_fail(CRAM_EINVAL, "poison limit %u: not from 1 to %u", p->poison_limit, POISON_RECORDS_MAX);
	if (p->low_remaining > p->high_remaining || p->high_remaining > p->real)
		return cram_fail(CRAM_EINVAL,
				 "thresholds on remaining capacity, low %" PRIu64 " and high %" PRIu64 ": not low <= high <= real",
				 p->low_remaining, p->high_remaining);
	if (p->low_ratio > p->high_ratio)
		return cram_fail(CRAM_EINVAL, "thresholds on ratio, low %u and high %u per mille: low is above high",
				 p->low_ratio, p->high_ratio);
	if (p->signal < 0 || p->signal > SIGRTMAX || p->signal == SIGBUS || p->signal == SIGSEGV ||
	    p->signal == SIGKILL || p->signal == SIGSTOP || (p->signal >= 32 && p->signal < SIGRTMIN))
		return cram_fail(CRAM_EINVAL, "interrupt signal %d: not one that a program can use for it", p->signal);
	return 0;
}

/* The next part: at a page boundary, so that parts do not share pages. */
static uint64_t place_part(uint64_t *end, uint64_t size)
{
	uint64_t at = *end;

	*end = (at + size + PAGE_SIZE - 1) & ~(uint64_t)(PAGE_SIZE - 1);
	return at;
}

void layout_plan(const struct cram_params *params, struct geometry *geometry)
{
	uint64_t end = 0;
	uint64_t words;

	memset(geometry, 0, sizeof(*geometry));
	memcpy(&geometry->params, params, sizeof(*params));
	geometry->pages = params->advertised / PAGE_SIZE;
	geometry->sectors = params->real / params->sector;
	words = (geometry->sectors + 63) / 64;
	place_part(&end, sizeof(struct superblock));
	geometry->clients = place_part(&end, sizeof(struct clients));
	geometry->alert = place_part(&end, sizeof(struct alert));
	geometry->poison = place_part(&end, sizeof(struct poison_list));
	geometry->bitmap = place_part(&end, words * 8);
	geometry->groups = place_part(&end, (words + MEDIA_GROUP_WORDS - 1) / MEDIA_GROUP_WORDS * 2);
	geometry->map = place_part(&end, geometry->pages * 8);
	geometry->checks = place_part(&end, geometry->pages * 4);
	geometry->references = place_part(&end, geometry->pages);
	geometry->tables = place_part(&end, CLIENTS_MAX * dpas_table_size(geometry->pages));
	geometry->links = place_part(&end, geometry->sectors * 4);
	geometry->media = place_part(&end, params->real);
	geometry->size = end;
}

static uint32_t geometry_check(const struct geometry *geometry)
{
	return codec_check((const uint8_t *)geometry, sizeof(*geometry), 0);
}

void layout_format(struct superblock *super, const struct geometry *geometry)
{
	super->version = LAYOUT_VERSION;
	super->geometry = *geometry;
	super->geometry_check = geometry_check(geometry);
	/* A creator that is killed before this line leaves a file that nobody opens. */
	atomic_thread_fence(memory_order_release);
	memcpy(super->magic, LAYOUT_MAGIC, sizeof(super->magic));
}

int layout_recognise(int fd, uint64_t file_size, const char *name, struct geometry *geometry)
{
	struct superblock head;
	struct geometry expected;
	ssize_t n = pread(fd, &head, sizeof(head), 0);

	if (n < 0)
		return cram_fail(cram_code_of_errno(errno), "%s: %s", name, strerrordesc_np(errno));
	if (n < (ssize_t)sizeof(head.magic) || memcmp(head.magic, LAYOUT_MAGIC, sizeof(head.magic)) != 0)
		return cram_fail(CRAM_EFORMAT, "%s: not a cram_emu device (no magic)", name);
	if (n >= (ssize_t)offsetof(struct superblock, geometry_check) && head.version != LAYOUT_VERSION)
		return cram_fail(CRAM_EVERSION, "%s: layout version %u, this program knows version %u", name,
				 head.version, LAYOUT_VERSION);
	if (n < (ssize_t)sizeof(head))
		return cram_fail(CRAM_EFORMAT, "%s: truncated in its first %zd bytes", name, n);
	if (head.geometry_check != geometry_check(&head.geometry) || layout_check_params(&head.geometry.params) != 0)
		return cram_fail(CRAM_EFORMAT, "%s: its geometry is damaged", name);
	layout_plan(&head.geometry.params, &expected);
	if (memcmp(&expected, &head.geometry, sizeof(expected)) != 0)
		return cram_fail(CRAM_EFORMAT, "%s: its geometry is damaged", name);
	if (file_size != expected.size)
		return cram_fail(CRAM_EFORMAT, "%s: %" PRIu64 " bytes long, its geometry says %" PRIu64, name, file_size,
				 expected.size);
	*geometry = expected;
	return 0;
}
