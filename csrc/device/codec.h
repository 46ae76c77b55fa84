/* SPDX-License-Identifier: MIT
 *
 * codec.h - page <-> stored form. No policy, no memory of its own: liblz4 and libzstd do the work, in workspaces
 * that the caller provides, so that nothing here allocates (it runs in SIGBUS handlers).
 *
 * The stored form of a page with 4 KiB blocks is the codec's output. With smaller blocks it is the blocks' lengths
 * (16 bits each, little endian), then the blocks; a block that did not shrink stands as it is, with its full length.
 */
#ifndef CRAM_CODEC_H
#define CRAM_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "cram.h"

/* Room for any stored form, and for what libzstd wants beyond it (ZSTD_COMPRESSBOUND). */
#define CODEC_BUFFER (4096u + 256u)

struct codec {
	uint32_t codec;          /* enum cram_codec */
	int32_t level;
	uint32_t block;
	uint32_t largest_stored;
	size_t compress_space;   /* bytes of workspace */
	size_t decompress_space;
};

/* One user's workspaces, 64-byte aligned, set up by codec_open_space(). */
struct codec_space {
	void *compress;
	void *decompress;
};

/* Fills *codec from the parameters, which the caller has checked. */
void codec_init(struct codec *codec, const struct cram_params *params);
/* Sets up workspaces in memory of compress_space + decompress_space bytes. */
void codec_open_space(const struct codec *codec, void *memory, struct codec_space *space);

/* What a page becomes. */
struct encoded {
	enum cram_page_state state; /* ZERO, SAME, STORED or RAW */
	uint32_t length;            /* STORED, RAW: bytes of stored form, else 0 */
	uint64_t word;              /* SAME: the repeated word */
	const uint8_t *form;        /* STORED: in buffer; RAW: the page itself */
};

/* Encodes the page; buffer holds CODEC_BUFFER bytes. Cannot fail: what does not shrink is RAW. The page must not change
 * meanwhile. */
void codec_encode(const struct codec *codec, struct codec_space *space, const uint8_t *page, uint8_t *buffer,
		  struct encoded *encoded);
/* Decodes a STORED form of length bytes into page. Returns 0, or -1 when it is not one, and page is then undefined.
 * Never reads or writes out of bounds, whatever the bytes are. */
int codec_decode(const struct codec *codec, struct codec_space *space, const uint8_t *form, uint32_t length,
		 uint8_t *page);

/* Compresses a whole page, whatever it holds and however large blocks are: the length, below 4096, or 0 when it does not
 * shrink. To be decoded by a codec with blocks of 4096 bytes. */
uint32_t codec_compress_page(const struct codec *codec, struct codec_space *space, const uint8_t *page, uint8_t *buffer);

/* The check word of a stored form: of its bytes and of the page it belongs to, so that neither damaged nor another
 * page's bytes pass. */
uint32_t codec_check(const uint8_t *form, uint32_t length, uint64_t page);

#endif
