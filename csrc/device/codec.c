/* SPDX-License-Identifier: MIT */
#include "codec.h"

#include <string.h>

#include <lz4.h>
/* Static contexts: the only ones that never allocate. */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "pagemap.h"

/* The last block begins at most where all before it stand uncompressed. */
_Static_assert(8 + 3 * 1024 + ZSTD_COMPRESSBOUND(1024) <= CODEC_BUFFER, "blocks fit");
_Static_assert(ZSTD_COMPRESSBOUND(4096) <= CODEC_BUFFER, "a page fits");
#define ALIGN64(n) (((n) + 63) & ~(size_t)63)

static size_t zstd_compress_space(int level)
{
	size_t most = 0;

	/* ZSTD_compressCCtx() derives its parameters from the level and the source's size. */
	for (unsigned size = 1024; size <= PAGE_SIZE; size *= 2) {
		size_t n = ZSTD_estimateCCtxSize_usingCParams(ZSTD_getCParams(level, size, 0));

		if (n > most)
			most = n;
	}
	return most;
}

void codec_init(struct codec *codec, const struct cram_params *params)
{
	codec->codec = params->codec;
	codec->level = params->level;
	codec->block = params->block;
	/* 4096 bytes are the mark of a raw page. */
	codec->largest_stored = params->largest_stored < PAGE_SIZE ? params->largest_stored : PAGE_SIZE - 1;
	codec->compress_space = 0;
	codec->decompress_space = 0;
	if (params->codec == CRAM_CODEC_LZ4)
		codec->compress_space = ALIGN64((size_t)LZ4_sizeofState());
	if (params->codec == CRAM_CODEC_ZSTD) {
		codec->compress_space = ALIGN64(zstd_compress_space(params->level));
		codec->decompress_space = ALIGN64(ZSTD_estimateDCtxSize());
	}
}

void codec_open_space(const struct codec *codec, void *memory, struct codec_space *space)
{
	uint8_t *decompress = (uint8_t *)memory + codec->compress_space;

	space->compress = memory;
	space->decompress = decompress;
	if (codec->codec == CRAM_CODEC_ZSTD) {
		space->compress = ZSTD_initStaticCCtx(memory, codec->compress_space);
		space->decompress = ZSTD_initStaticDCtx(decompress, codec->decompress_space);
	}
}

/* Compresses size bytes into `to`; returns the length, or 0 when it is more than `most`. */
static uint32_t compress(const struct codec *codec, struct codec_space *space, const uint8_t *from, uint32_t size,
			 uint8_t *to, uint32_t most)
{
	if (codec->codec == CRAM_CODEC_LZ4) {
		int n = LZ4_compress_fast_extState(space->compress, (const char *)from, (char *)to, (int)size,
						   (int)most, codec->level);

		return n > 0 ? (uint32_t)n : 0;
	}
	if (codec->codec == CRAM_CODEC_ZSTD) {
		/* With less room than its bound it gives up before it has reached it. */
		size_t n = ZSTD_compressCCtx(space->compress, to, ZSTD_COMPRESSBOUND(size), from, size, codec->level);

		return ZSTD_isError(n) || n > most ? 0 : (uint32_t)n;
	}
	return 0;
}

static int decompress(const struct codec *codec, struct codec_space *space, const uint8_t *from, uint32_t length,
		      uint8_t *to, uint32_t size)
{
	if (codec->codec == CRAM_CODEC_LZ4)
		return LZ4_decompress_safe((const char *)from, (char *)to, (int)length, (int)size) == (int)size ? 0
														: -1;
	if (codec->codec == CRAM_CODEC_ZSTD)
		return ZSTD_decompressDCtx(space->decompress, to, size, from, length) == size ? 0 : -1;
	return -1;
}

/* As compress(), block by block: one that does not shrink is copied. */
static uint32_t compress_blocks(const struct codec *codec, struct codec_space *space, const uint8_t *page,
				uint8_t *to, uint32_t room)
{
	uint32_t blocks = PAGE_SIZE / codec->block;
	uint32_t at = blocks * 2;

	for (uint32_t i = 0; i < blocks; i++) {
		const uint8_t *block = page + i * codec->block;
		uint32_t left = at < room ? room - at : 0;
		uint32_t most = left < codec->block - 1 ? left : codec->block - 1;
		uint32_t n = most > 0 ? compress(codec, space, block, codec->block, to + at, most) : 0;

		if (n == 0) {
			n = codec->block;
			if (n > left)
				return 0;
			memcpy(to + at, block, n);
		}
		to[i * 2] = (uint8_t)n;
		to[i * 2 + 1] = (uint8_t)(n >> 8);
		at += n;
	}
	return at;
}

static int decompress_blocks(const struct codec *codec, struct codec_space *space, const uint8_t *form,
			     uint32_t length, uint8_t *page)
{
	uint32_t blocks = PAGE_SIZE / codec->block;
	uint32_t at = blocks * 2;

	if (length < at)
		return -1;
	for (uint32_t i = 0; i < blocks; i++) {
		uint32_t n = form[i * 2] | (uint32_t)form[i * 2 + 1] << 8;

		if (n > codec->block || n > length - at)
			return -1;
		if (n == codec->block)
			memcpy(page + i * codec->block, form + at, n);
		else if (decompress(codec, space, form + at, n, page + i * codec->block, codec->block) != 0)
			return -1;
		at += n;
	}
	return at == length ? 0 : -1;
}

/* One repeated 8-byte word? */
static int same_filled(const uint8_t *page, uint64_t *word)
{
	uint64_t first, last;

	memcpy(&first, page, sizeof(first));
	memcpy(&last, page + PAGE_SIZE - sizeof(last), sizeof(last));
	*word = first;
	return first == last && memcmp(page, page + sizeof(first), PAGE_SIZE - sizeof(first)) == 0;
}

void codec_encode(const struct codec *codec, struct codec_space *space, const uint8_t *page, uint8_t *buffer,
		  struct encoded *encoded)
{
	uint32_t length = 0;

	*encoded = (struct encoded){ .state = CRAM_PAGE_RAW, .length = PAGE_SIZE, .form = page };
	if (same_filled(page, &encoded->word)) {
		encoded->state = encoded->word == 0 ? CRAM_PAGE_ZERO : CRAM_PAGE_SAME;
		encoded->length = 0;
		return;
	}
	if (codec->codec == CRAM_CODEC_NONE || codec->largest_stored == 0)
		return;
	if (codec->block == PAGE_SIZE)
		length = compress(codec, space, page, PAGE_SIZE, buffer, codec->largest_stored);
	else
		length = compress_blocks(codec, space, page, buffer, codec->largest_stored);
	if (length == 0 || length > codec->largest_stored)
		return;
	encoded->state = CRAM_PAGE_STORED;
	encoded->length = length;
	encoded->form = buffer;
}

uint32_t codec_compress_page(const struct codec *codec, struct codec_space *space, const uint8_t *page, uint8_t *buffer)
{
	return compress(codec, space, page, PAGE_SIZE, buffer, PAGE_SIZE - 1);
}

int codec_decode(const struct codec *codec, struct codec_space *space, const uint8_t *form, uint32_t length,
		 uint8_t *page)
{
	if (codec->block == PAGE_SIZE)
		return decompress(codec, space, form, length, page, PAGE_SIZE);
	return decompress_blocks(codec, space, form, length, page);
}

uint32_t codec_check(const uint8_t *form, uint32_t length, uint64_t page)
{
	uint64_t sum = XXH3_64bits(form, length) ^ page * 0x9e3779b97f4a7c15ull;

	return (uint32_t)(sum ^ sum >> 32);
}
