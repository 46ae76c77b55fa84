/* SPDX-License-Identifier: MIT */
#include "media.h"

#include <string.h>

static uint64_t words(const struct media *media)
{
	return (media->sectors + 63) / 64;
}

/* Bits of a word that are sectors: the last word may have some that are not. */
static uint64_t valid_bits(const struct media *media, uint64_t word)
{
	uint64_t left = media->sectors - word * 64;

	return left >= 64 ? ~0ull : (1ull << left) - 1;
}

bool media_reserve(struct media *media, uint32_t n)
{
	uint64_t used = atomic_load(media->used);

	/* Not add and undo: the moment between would refuse others who fit. */
	do {
		if (used + n > media->sectors)
			return false;
	} while (!atomic_compare_exchange_weak(media->used, &used, used + n));
	return true;
}

void media_unreserve(struct media *media, uint32_t n)
{
	atomic_fetch_sub(media->used, n);
}

/* The lowest n set bits. */
static uint64_t lowest_bits(uint64_t bits, uint32_t n)
{
	uint64_t rest = bits;

	while (n-- > 0 && rest != 0)
		rest &= rest - 1;
	return bits & ~rest;
}

/* Takes at most n free bits of one word; returns them. */
static uint64_t take_from_word(struct media *media, uint64_t word, uint32_t n)
{
	uint64_t valid = valid_bits(media, word);
	uint64_t used = atomic_load_explicit(&media->bitmap[word], memory_order_relaxed);
	uint64_t taken;

	do {
		taken = lowest_bits(~used & valid, n);
		if (taken == 0)
			return 0;
	} while (!atomic_compare_exchange_weak(&media->bitmap[word], &used, used | taken));
	atomic_fetch_add(&media->groups[word / MEDIA_GROUP_WORDS],
			 (uint16_t)__builtin_popcountll(taken));
	return taken;
}

static bool group_full(struct media *media, uint64_t group)
{
	return atomic_load_explicit(&media->groups[group], memory_order_relaxed) == MEDIA_GROUP_SECTORS;
}

#define HINT_TRIES 4u

static void push_hint(struct media_hints *hints, uint64_t word)
{
	uint32_t top = atomic_fetch_add_explicit(&hints->top, 1, memory_order_relaxed);

	atomic_store_explicit(&hints->word[top % MEDIA_HINTS], (uint32_t)word + 1, memory_order_relaxed);
}

/* The word of the newest hint + 1, or 0. Threads that push and pop at once may lose a hint, and leave a gap in the stack. */
static uint32_t pop_hint(struct media_hints *hints)
{
	for (unsigned tries = 0; tries < HINT_TRIES; tries++) {
		uint32_t top = atomic_fetch_sub_explicit(&hints->top, 1, memory_order_relaxed) - 1;
		_Atomic uint32_t *slot = &hints->word[top % MEDIA_HINTS];

		if (atomic_load_explicit(slot, memory_order_relaxed) != 0)
			return atomic_exchange_explicit(slot, 0, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(&hints->top, HINT_TRIES, memory_order_relaxed);
	return 0;
}

void media_hint(struct media *media, const struct chain *chain)
{
	for (uint32_t i = 0; i < chain->count; i++)
		if (i == 0 || chain->sector[i] / 64 != chain->sector[i - 1] / 64)
			push_hint(&media->hints, chain->sector[i] / 64);
}

/* Appends at most n of the word's free sectors; how many. */
static uint32_t append_from(struct media *media, uint64_t word, uint32_t n, struct chain *chain)
{
	uint64_t taken = take_from_word(media, word, n);
	uint32_t count = (uint32_t)__builtin_popcountll(taken);

	for (; taken != 0; taken &= taken - 1)
		chain->sector[chain->count++] = (uint32_t)(word * 64 + (uint64_t)__builtin_ctzll(taken));
	return count;
}

void media_take(struct media *media, uint64_t *cursor, uint32_t n, struct chain *chain)
{
	uint64_t end = words(media);
	uint64_t word = *cursor < end ? *cursor : 0;
	uint32_t hint;

	while (n > 0 && (hint = pop_hint(&media->hints)) != 0)
		n -= append_from(media, hint - 1, n, chain);

	/* Ends: the reservation says that n bits are free or about to be, and only reserved bits are taken. */
	while (n > 0) {
		if (word % MEDIA_GROUP_WORDS == 0 && group_full(media, word / MEDIA_GROUP_WORDS)) {
			word += MEDIA_GROUP_WORDS;
			if (word >= end)
				word = 0;
			continue;
		}
		n -= append_from(media, word, n, chain);
		if (n > 0 && ++word == end)
			word = 0;
	}
	*cursor = word;
}

void media_release(struct media *media, struct chain *chain, uint32_t from)
{
	for (uint32_t i = from; i < chain->count;) {
		uint64_t word = chain->sector[i] / 64;
		uint64_t bits = 0;

		for (; i < chain->count && chain->sector[i] / 64 == word; i++)
			bits |= 1ull << chain->sector[i] % 64;
		/* The group first: it may say less than there is, never more (group_full() skips by it). */
		atomic_fetch_sub(&media->groups[word / MEDIA_GROUP_WORDS], (uint16_t)__builtin_popcountll(bits));
		atomic_fetch_and(&media->bitmap[word], ~bits);
	}
	if (from < chain->count)
		chain->count = from;
}

static bool in_use(const struct media *media, uint32_t sector)
{
	return sector < media->sectors &&
	       (atomic_load_explicit(&media->bitmap[sector / 64], memory_order_relaxed) >> sector % 64 & 1);
}

bool media_chain_load(const struct media *media, uint32_t first, uint32_t count, bool run, uint32_t tag,
		      struct chain *chain)
{
	uint32_t sector = first;

	chain->count = count;
	chain->run = run;
	if (run) {
		if (first >= media->sectors || count > media->sectors - first)
			return false;
		for (uint32_t i = 0; i < count; i++)
			chain->sector[i] = first + i;
		return true;
	}
	for (uint32_t i = 0; i < count; i++) {
		if (!in_use(media, sector))
			return false;
		chain->sector[i] = sector;
		sector = media->links[sector];
	}
	return sector == tag;
}

static bool claim_sector(struct media *media, uint32_t sector)
{
	uint64_t bit = 1ull << sector % 64;

	if (sector >= media->sectors || (atomic_fetch_or(&media->bitmap[sector / 64], bit) & bit))
		return false;
	atomic_fetch_add(&media->groups[sector / MEDIA_GROUP_SECTORS], 1);
	return true;
}

bool media_chain_claim(struct media *media, uint32_t first, uint32_t count, bool run, uint32_t tag)
{
	struct chain claimed = { .count = 0 };
	uint32_t sector = first;

	while (claimed.count < count && claim_sector(media, sector)) {
		claimed.sector[claimed.count++] = sector;
		sector = run ? sector + 1 : media->links[sector];
	}
	if (claimed.count < count || (!run && sector != tag)) {
		media_release(media, &claimed, 0);
		return false;
	}
	atomic_fetch_add(media->used, count);
	return true;
}

void media_chain_link(struct media *media, struct chain *chain, uint32_t tag)
{
	chain->run = true;
	for (uint32_t i = 1; i < chain->count; i++)
		chain->run &= chain->sector[i] == chain->sector[i - 1] + 1;
	if (chain->run || chain->count == 0)
		return;
	for (uint32_t i = 0; i + 1 < chain->count; i++)
		media->links[chain->sector[i]] = chain->sector[i + 1];
	media->links[chain->sector[chain->count - 1]] = tag;
}

void media_write(struct media *media, const struct chain *chain, const void *bytes, uint32_t length)
{
	const uint8_t *from = bytes;

	if (chain->run) {
		memcpy(media_run(media, chain), bytes, length);
		return;
	}
	for (uint32_t i = 0; length > 0; i++) {
		uint32_t n = length < media->sector_size ? length : media->sector_size;

		memcpy(media->bytes + (uint64_t)chain->sector[i] * media->sector_size, from, n);
		from += n;
		length -= n;
	}
}

void media_read(const struct media *media, const struct chain *chain, void *bytes, uint32_t length)
{
	uint8_t *to = bytes;

	for (uint32_t i = 0; length > 0; i++) {
		uint32_t n = length < media->sector_size ? length : media->sector_size;

		memcpy(to, media->bytes + (uint64_t)chain->sector[i] * media->sector_size, n);
		to += n;
		length -= n;
	}
}
