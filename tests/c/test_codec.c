/* SPDX-License-Identifier: MIT
 *
 * Pages and their stored forms: every codec, every level, every block size; forms that are damaged.
 *
 * Every buffer and workspace ends at a guard page: a step beyond it, in liblz4 or libzstd too, ends the test.
 */
#include <stdlib.h>

#include "check.h"
#include "content.h"
#include "device/codec.h"
#include "device/pagemap.h"

static const uint32_t blocks[] = { 1024, 2048, 4096 };
static const unsigned noises[] = { 1, 10, 35, 60, 85, 100 };

struct rig {
	struct codec codec;
	struct codec_space space;
	uint8_t *page, *buffer, *back;
};

static struct rig make_rig(uint32_t codec, int32_t level, uint32_t block, uint32_t largest_stored)
{
	struct cram_params params = { .codec = codec, .level = level, .block = block,
				      .largest_stored = largest_stored };
	struct rig rig;

	codec_init(&rig.codec, &params);
	codec_open_space(&rig.codec, guarded(rig.codec.compress_space + rig.codec.decompress_space), &rig.space);
	rig.page = guarded(PAGE_SIZE);
	rig.buffer = guarded(CODEC_BUFFER);
	rig.back = guarded(PAGE_SIZE);
	return rig;
}

/* Levels to try: all of zstd's 19, and lz4's first, its last, and some on the way; ends with 0. */
static const int32_t *levels_of(uint32_t codec)
{
	static const int32_t none[] = { 0 };
	static const int32_t lz4[] = { 1, 2, 3, 5, 9, 17, 65, 1000, 65537, 0 };
	static const int32_t zstd[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 0 };

	return codec == CRAM_CODEC_LZ4 ? lz4 : codec == CRAM_CODEC_ZSTD ? zstd : none;
}

/* Encodes rig->page and checks what the result says of itself. */
static void encode(struct rig *rig, struct encoded *encoded)
{
	codec_encode(&rig->codec, &rig->space, rig->page, rig->buffer, encoded);
	switch (encoded->state) {
	case CRAM_PAGE_ZERO:
	case CRAM_PAGE_SAME:
		CHECK_EQ(encoded->length, 0);
		break;
	case CRAM_PAGE_STORED:
		CHECK(encoded->form == rig->buffer);
		CHECK_COMPARE(encoded->length, >, 0);
		CHECK_LE(encoded->length, rig->codec.largest_stored);
		break;
	default:
		CHECK_EQ(encoded->state, CRAM_PAGE_RAW);
		CHECK(encoded->form == rig->page);
		CHECK_EQ(encoded->length, PAGE_SIZE);
	}
}

static void check_round_trip(struct rig *rig, const struct encoded *encoded)
{
	uint8_t *form;

	if (encoded->state != CRAM_PAGE_STORED)
		return;
	/* Exactly as long as it is, so that a decoder that reads on is caught. */
	form = malloc(encoded->length);
	memcpy(form, encoded->form, encoded->length);
	memset(rig->back, 0xee, PAGE_SIZE);
	CHECK_EQ(codec_decode(&rig->codec, &rig->space, form, encoded->length, rig->back), 0);
	CHECK_BYTES(rig->back, rig->page, PAGE_SIZE);
	free(form);
}

/* ---- round trips ---------------------------------------------------------------------------------------- */

/* What was encoded is decoded to the same page, by every codec at every level and block size, at any entropy. */
static void page_comes_back(void)
{
	for (uint32_t codec = CRAM_CODEC_LZ4; codec <= CRAM_CODEC_ZSTD; codec++) {
		for (const int32_t *level = levels_of(codec); *level != 0; level++) {
			for (unsigned b = 0; b < COUNT(blocks); b++) {
				struct rig rig = make_rig(codec, *level, blocks[b], 4096 - 64);

				for (unsigned i = 0; i < COUNT(noises) * ROUNDS(8); i++) {
					unsigned noise = noises[i % COUNT(noises)];
					struct encoded encoded;

					fill_content(rig.page, PAGE_SIZE, i, noise);
					encode(&rig, &encoded);
					/* The workspace suffices at every level: else this would be RAW. (lz4 in
					 * a great hurry finds nothing in any page.) */
					if (noise <= 35 && (codec == CRAM_CODEC_ZSTD || *level <= 9))
						CHECK_EQ(encoded.state, CRAM_PAGE_STORED);
					if (noise == NOISE_MAX)
						CHECK_EQ(encoded.state, CRAM_PAGE_RAW);
					check_round_trip(&rig, &encoded);
				}
			}
		}
	}
}

/* Pages of many random shapes, halves and tails of other entropy among them, come back too. */
static void odd_pages_come_back(void)
{
	for (uint32_t codec = CRAM_CODEC_LZ4; codec <= CRAM_CODEC_ZSTD; codec++) {
		for (unsigned b = 0; b < COUNT(blocks); b++) {
			struct rig rig = make_rig(codec, codec == CRAM_CODEC_LZ4 ? 1 : 3, blocks[b], 4095);
			uint64_t state = b;

			for (unsigned i = 0; i < ROUNDS(2000u); i++) {
				struct encoded encoded;

				memset(rig.page, (int)random_below(&state, 256), PAGE_SIZE);
				for (unsigned piece = 0; piece < 3; piece++) {
					uint64_t from = random_below(&state, PAGE_SIZE);
					uint64_t n = random_below(&state, PAGE_SIZE - from);

					fill_content(rig.page + from, n, random_next(&state),
						     (unsigned)random_below(&state, NOISE_MAX + 1));
				}
				encode(&rig, &encoded);
				check_round_trip(&rig, &encoded);
			}
		}
	}
}

/* The twin: a form with one byte more or less, and another codec's, is not taken for the page. */
static void other_form_is_not_the_page(void)
{
	for (unsigned b = 0; b < COUNT(blocks); b++) {
		struct rig lz4 = make_rig(CRAM_CODEC_LZ4, 1, blocks[b], 4032);
		struct rig zstd = make_rig(CRAM_CODEC_ZSTD, 3, blocks[b], 4032);
		struct encoded encoded;

		fill_content(lz4.page, PAGE_SIZE, 1, 35);
		encode(&lz4, &encoded);
		CHECK_EQ(codec_decode(&lz4.codec, &lz4.space, encoded.form, encoded.length, lz4.back), 0);
		CHECK_EQ(codec_decode(&lz4.codec, &lz4.space, encoded.form, encoded.length - 1, lz4.back), -1);
		CHECK_EQ(codec_decode(&lz4.codec, &lz4.space, encoded.form, encoded.length + 1, lz4.back), -1);
		CHECK_EQ(codec_decode(&zstd.codec, &zstd.space, encoded.form, encoded.length, zstd.back), -1);
	}
}

/* Without a codec every page that is not of one word is raw. */
static void no_codec_stores_raw(void)
{
	struct rig rig = make_rig(CRAM_CODEC_NONE, 0, 4096, 4032);
	struct encoded encoded;

	fill_content(rig.page, PAGE_SIZE, 1, 1);
	encode(&rig, &encoded);
	CHECK_EQ(encoded.state, CRAM_PAGE_RAW);
	memset(rig.page, 0, PAGE_SIZE);
	encode(&rig, &encoded);
	CHECK_EQ(encoded.state, CRAM_PAGE_ZERO);
	CHECK_EQ(codec_decode(&rig.codec, &rig.space, rig.page, 100, rig.back), -1);
}

/* A page is stored exactly when its form fits the largest stored size, to the byte. */
static void largest_stored_is_exact(void)
{
	for (uint32_t codec = CRAM_CODEC_LZ4; codec <= CRAM_CODEC_ZSTD; codec++) {
		for (unsigned b = 0; b < COUNT(blocks); b++) {
			struct rig rig = make_rig(codec, 1, blocks[b], 4096);
			struct encoded encoded;
			uint32_t length;

			fill_content(rig.page, PAGE_SIZE, 5, 35);
			encode(&rig, &encoded);
			CHECK_EQ(encoded.state, CRAM_PAGE_STORED);
			length = encoded.length;
			rig.codec.largest_stored = length;
			encode(&rig, &encoded);
			CHECK_EQ(encoded.state, CRAM_PAGE_STORED);
			CHECK_EQ(encoded.length, length);
			rig.codec.largest_stored = length - 1;
			encode(&rig, &encoded);
			CHECK(encoded.state == CRAM_PAGE_RAW || encoded.length < length);
			rig.codec.largest_stored = 0;
			encode(&rig, &encoded);
			CHECK_EQ(encoded.state, CRAM_PAGE_RAW);
		}
	}
}

/* A stored form never has the 4096 bytes that mark a raw page. */
static void form_is_shorter_than_a_page(void)
{
	struct rig rig = make_rig(CRAM_CODEC_LZ4, 1, 1024, 4096);
	struct encoded encoded;

	CHECK_EQ(rig.codec.largest_stored, PAGE_SIZE - 1);
	for (unsigned noise = 0; noise <= NOISE_MAX; noise++) {
		fill_content(rig.page, PAGE_SIZE, noise, noise);
		encode(&rig, &encoded);
		check_round_trip(&rig, &encoded);
	}
}

/* One repeated word is found whatever it is; one other byte, wherever it stands, makes an ordinary page. */
static void same_filled_page_is_found(void)
{
	static const uint64_t words[] = { 0, 1, UINT64_MAX, 0x0101010101010101, 0x0123456789abcdef, 1ull << 63 };
	struct rig rig = make_rig(CRAM_CODEC_LZ4, 1, 4096, 4032);

	for (unsigned i = 0; i < COUNT(words); i++) {
		struct encoded encoded;

		for (unsigned at = 0; at < PAGE_SIZE; at += 8)
			memcpy(rig.page + at, &words[i], 8);
		encode(&rig, &encoded);
		CHECK_EQ(encoded.state, words[i] == 0 ? CRAM_PAGE_ZERO : CRAM_PAGE_SAME);
		CHECK_EQ(encoded.word, words[i]);
		for (unsigned at = 0; at < PAGE_SIZE; at += i == 0 ? 1 : 61) {
			rig.page[at] ^= 0x40;
			encode(&rig, &encoded);
			CHECK_EQ(encoded.state, CRAM_PAGE_STORED);
			rig.page[at] ^= 0x40;
		}
	}
}

/* ---- damage --------------------------------------------------------------------------------------------- */

enum damage { FLIPPED, OVERWRITTEN, SHORTENED, LENGTHENED, SHIFTED, RANDOM, LENGTHS, DAMAGES };

/* Damages a form of *length bytes, in a buffer of a page. */
static void damage(uint8_t *form, uint32_t *length, enum damage how, uint64_t *state)
{
	uint32_t at = (uint32_t)random_below(state, *length);

	switch (how) {
	case FLIPPED:
		form[at] ^= (uint8_t)(1u << random_below(state, 8));
		break;
	case OVERWRITTEN:
		for (uint32_t n = 1 + (uint32_t)random_below(state, 16); n > 0 && at < *length; n--)
			form[at++] = (uint8_t)random_next(state);
		break;
	case SHORTENED:
		*length = at;
		break;
	case LENGTHENED:
		for (; *length < PAGE_SIZE - 1 && random_below(state, 64) != 0; ++*length)
			form[*length] = (uint8_t)random_next(state);
		break;
	case SHIFTED:
		memmove(form, form + at, *length - at);
		break;
	case RANDOM:
		*length = 1 + (uint32_t)random_below(state, PAGE_SIZE - 1);
		fill_content(form, *length, random_next(state), NOISE_MAX);
		break;
	case LENGTHS: /* what stands where block lengths do */
		form[random_below(state, *length < 8 ? *length : 8)] = (uint8_t)random_next(state);
		break;
	case DAMAGES:
		break;
	}
}

/* Whatever a form has become, decoding it ends, within its bounds, in a page or in a refusal. */
static void damaged_form_stays_in_bounds(void)
{
	uint64_t refused = 0, taken = 0, state = 1;

	for (uint32_t codec = CRAM_CODEC_NONE; codec <= CRAM_CODEC_ZSTD; codec++) {
		for (unsigned b = 0; b < COUNT(blocks); b++) {
			struct rig rig = make_rig(codec, codec == CRAM_CODEC_NONE ? 0 : 1, blocks[b], 4095);
			uint8_t *end = (uint8_t *)guarded(PAGE_SIZE) + PAGE_SIZE;

			for (unsigned i = 0; i < ROUNDS(6000u); i++) {
				uint8_t form[PAGE_SIZE] = { 0 };
				struct encoded encoded;
				uint32_t length;

				if (i % 16 == 0) {
					fill_content(rig.page, PAGE_SIZE, i, noises[i / 16 % 4]);
					encode(&rig, &encoded);
				}
				length = encoded.state == CRAM_PAGE_STORED ? encoded.length : 100;
				if (encoded.state == CRAM_PAGE_STORED)
					memcpy(form, encoded.form, length);
				damage(form, &length, i % DAMAGES, &state);
				memcpy(end - length, form, length);
				if (codec_decode(&rig.codec, &rig.space, end - length, length, rig.back) == 0)
					taken++;
				else
					refused++;
			}
		}
	}
	/* Both happened: a flipped literal is a page, though another one. */
	CHECK(refused > 0);
	CHECK(taken > 0);
}

/* The check word tells apart a form with any one bit flipped, one byte less, or another page's number. */
static void check_word_tells_damage(void)
{
	static const uint32_t lengths[] = { 1, 7, 8, 64, 240, 241, 1000, 4096 };
	uint8_t form[PAGE_SIZE];

	for (unsigned i = 0; i < COUNT(lengths); i++) {
		uint32_t length = lengths[i], check;

		fill_content(form, length, i, NOISE_MAX);
		check = codec_check(form, length, 5);
		CHECK_EQ(codec_check(form, length, 5), check);
		for (uint32_t at = 0; at < length; at++) {
			for (unsigned bit = 0; bit < 8; bit++) {
				form[at] ^= (uint8_t)(1u << bit);
				CHECK_COMPARE(codec_check(form, length, 5), !=, check);
				form[at] ^= (uint8_t)(1u << bit);
			}
		}
		CHECK_COMPARE(codec_check(form, length - 1, 5), !=, check);
		for (uint64_t page = 0; page < 1000; page++)
			CHECK_EQ(codec_check(form, length, page) == check, page == 5);
		CHECK_COMPARE(codec_check(form, length, 5 + (1ull << 27)), !=, check);
	}
}

static const struct test tests[] = {
	TEST(page_comes_back),
	TEST(odd_pages_come_back),
	TEST(other_form_is_not_the_page),
	TEST(no_codec_stores_raw),
	TEST(largest_stored_is_exact),
	TEST(form_is_shorter_than_a_page),
	TEST(same_filled_page_is_found),
	TEST(damaged_form_stays_in_bounds),
	TEST(check_word_tells_damage),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
