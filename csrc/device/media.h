/* SPDX-License-Identifier: MIT
 *
 * media.h - the real bytes: a pool of fixed sectors, and the chains that pages make of them.
 *
 * It does not know pages, codecs or poison; a chain belongs to whoever holds the page's lock. A chain is a list of
 * sectors linked outside them, so that nothing is lost to external fragmentation; a run of consecutive sectors needs
 * no links. Lock-free: room is first reserved in one counter, exactly, and the reservation makes sure that as many
 * free bits exist; only then are bits taken. The counter, the bitmap and the groups are derived: a rebuild makes them
 * anew from the chains.
 */
#ifndef CRAM_MEDIA_H
#define CRAM_MEDIA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEDIA_GROUP_WORDS 64u
#define MEDIA_GROUP_SECTORS (MEDIA_GROUP_WORDS * 64u)
/* A page of 4096 bytes in the smallest sectors. */
#define MEDIA_CHAIN_MAX 64u

/* Words of the bitmap in which this process has freed something lately, to be taken again first: what comes and goes stays
 * within the memory that the media has taken of its host already, and is in the caches. Each is only a hint. */
#define MEDIA_HINTS 16384u
struct media_hints {
	_Alignas(64) _Atomic uint32_t top;
	_Atomic uint32_t word[MEDIA_HINTS]; /* + 1; 0: none */
};

struct media {
	struct media_hints hints;
	uint8_t *bytes;
	uint32_t *links;            /* next sector; the last holds its owner's tag */
	_Atomic uint64_t *bitmap;   /* 1: used */
	_Atomic uint16_t *groups;   /* used bits in 64 words: never more than there are, so that a full group is full */
	_Atomic uint64_t *used;     /* reserved sectors */
	uint64_t sectors;
	uint32_t sector_size;
};

/* The sectors of one page, in order. */
struct chain {
	uint32_t count;
	bool run;
	uint32_t sector[MEDIA_CHAIN_MAX];
};

static inline uint32_t media_sectors_for(const struct media *media, uint32_t bytes)
{
	return (bytes + media->sector_size - 1) / media->sector_size;
}

/* Reserves room for n sectors, or returns false and changes nothing. */
bool media_reserve(struct media *media, uint32_t n);
void media_unreserve(struct media *media, uint32_t n);
/* Says that a chain, which is about to be released, leaves room that may be taken next. */
void media_hint(struct media *media, const struct chain *chain);
/* Appends n reserved sectors to the chain: where hints say, and then from *cursor on, where the caller's last search ended. */
void media_take(struct media *media, uint64_t *cursor, uint32_t n, struct chain *chain);
/* Frees the bits of chain->sector[from..count), not the reservation, and shortens the chain. */
void media_release(struct media *media, struct chain *chain, uint32_t from);

/* Reads the chain of count sectors that starts at first. False: a link leaves the media, a sector is not in use, or
 * the end does not carry the owner's tag; the chain must not be followed. */
bool media_chain_load(const struct media *media, uint32_t first, uint32_t count, bool run, uint32_t tag,
		      struct chain *chain);
/* During a rebuild: marks the sectors of such a chain as used and reserved. False, and nothing marked, when the chain
 * is broken or meets another. */
bool media_chain_claim(struct media *media, uint32_t first, uint32_t count, bool run, uint32_t tag);
/* Sets chain->run, and writes the links and the tag where it is not a run. */
void media_chain_link(struct media *media, struct chain *chain, uint32_t tag);

/* Where the chain's bytes stand in one piece, or NULL when it is no run. */
static inline uint8_t *media_run(const struct media *media, const struct chain *chain)
{
	return chain->run ? media->bytes + (uint64_t)chain->sector[0] * media->sector_size : NULL;
}
void media_write(struct media *media, const struct chain *chain, const void *bytes, uint32_t length);
void media_read(const struct media *media, const struct chain *chain, void *bytes, uint32_t length);

#endif
