/* SPDX-License-Identifier: MIT
 *
 * page.c - what happens to a page that an op has locked: stored, loaded, dropped, poisoned, cleared.
 */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "inner.h"

static uint32_t tag_of(uint64_t page)
{
	return (uint32_t)page;
}

/* The sectors of a page. False: its chain is broken; it must not be followed, nor freed. */
static bool load_chain(const struct device *device, uint64_t page, uint64_t entry, struct chain *chain)
{
	uint32_t count = media_sectors_for(&device->media, entry_length(entry));

	chain->count = 0;
	return count == 0 || media_chain_load(&device->media, entry_first(entry), count, entry & ENTRY_RUN,
					      tag_of(page), chain);
}

/* As load_chain(), for a page that is about to lose its sectors; those of a broken chain stay taken until a rebuild
 * finds that nobody has them. */
static void old_chain(struct op *op, uint64_t page, uint64_t entry, struct chain *chain)
{
	if (!load_chain(op->device, page, entry, chain)) {
		chain->count = 0;
		atomic_store(&op->device->super->suspect, 1);
	}
}

/* Takes a page that is about to be whole again out of the poison list and its counters. */
static void unlist(struct op *op, uint64_t page, uint64_t entry)
{
	struct device *device = op->device;

	if (entry_state(entry) != CRAM_PAGE_POISON && !(entry & ENTRY_RECORDED))
		return;
	device_add(&device_stripe(op)->poisoned, -1);
	if (entry & ENTRY_RECORDED) {
		device_lock(device, &device->super->poison_lock);
		poison_remove(device->poison, page << PAGE_SHIFT, PAGE_SIZE);
		futex_unlock(&device->super->poison_lock);
	} else {
		atomic_fetch_sub(&device->super->poison_overflow, 1);
	}
}

/* Publishes a page's new place, and counts the difference: a page that is written again the same must not leave the
 * counters for a moment, or the ratio would cross its thresholds for nothing. */
static void publish(struct op *op, uint64_t page, uint64_t old, uint64_t entry, uint32_t check)
{
	struct stripe *stripe = device_stripe(op);
	enum cram_page_state from = entry_state(old), to = entry_state(entry);

	/* Whoever said that a frame is newer takes it back himself: a death in between must not leave old bytes. */
	pagemap_publish(&op->device->map, page, entry | (old & ENTRY_DIRTY), check);
	if (from != to && to != CRAM_PAGE_EMPTY)
		device_add(&stripe->pages[to], 1);
	if (from != to && from != CRAM_PAGE_EMPTY)
		device_add(&stripe->pages[from], -1);
	if (entry_length(entry) != entry_length(old))
		device_add(&stripe->payload, (int64_t)entry_length(entry) - (int64_t)entry_length(old));
}

static void free_chain(struct op *op, struct chain *chain)
{
	uint32_t count = chain->count;

	if (count == 0)
		return;
	media_release(&op->device->media, chain, 0);
	media_unreserve(&op->device->media, count);
}

void device_make_poison(struct op *op, uint64_t page, enum cram_poison_source source)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	struct chain chain;
	bool recorded;

	old_chain(op, page, entry, &chain);
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	unlist(op, page, entry);
	free_chain(op, &chain);
	device_lock(device, &device->super->poison_lock);
	recorded = poison_add(device->poison, page << PAGE_SHIFT, PAGE_SIZE, source);
	futex_unlock(&device->super->poison_lock);
	if (!recorded)
		atomic_fetch_add(&device->super->poison_overflow, 1);
	publish(op, page, entry, entry_make(CRAM_PAGE_POISON, UINT32_MAX, 0) | (recorded ? ENTRY_RECORDED : 0),
		UINT32_MAX);
	device_add(&device_stripe(op)->poisoned, 1);
	device_used_changed(op);
}

bool device_freed_by_the_dead(struct op *op)
{
	struct device *device = op->device;
	bool suspect = atomic_load(&device->super->suspect);

	if (atomic_load(&device->clients->attached) == 1ull << device->client && !suspect)
		return false;
	return device_reap_parked(op) > 0 || suspect;
}

void device_lose(struct op *op, uint64_t page)
{
	if (device_removed(op->device))
		return;
	atomic_fetch_add(&op->device->super->lost_pages, 1);
	device_make_poison(op, page, CRAM_POISON_LOST);
}

static bool store(struct op *op, uint64_t page, const uint8_t *from, bool keep_lines)
{
	struct device *device = op->device;
	struct media *media = &device->media;
	uint64_t entry, next;
	uint32_t check = 0, need, had;
	struct encoded encoded;
	struct chain chain;
	bool room, padded = false;

	fault_delay(op, CRAM_FAULT_WRITE_DELAY, page);
	if (faults_armed(device))
		fault_before_store(op, page);
	/* Its record could not be read, and there would be one for each page. */
	if (device_removed(device)) {
		atomic_fetch_add(&device->super->dropped_writes, 1);
		return false;
	}
	codec_encode(&device->codec, &op->space, from, op->form, &encoded);
	if (encoded.state == CRAM_PAGE_STORED && fault_strikes(device, CRAM_FAULT_RATIO, page))
		padded = fault_pad(op, from, &encoded);
	need = media_sectors_for(media, encoded.length);
	/* Only growth is reserved: rewriting a full device without growth succeeds, whoever else asks for room. */
	do {
		entry = pagemap_entry(&device->map, page);
		old_chain(op, page, entry, &chain);
		had = chain.count;
		room = need <= had || media_reserve(media, need - had);
	} while (!room && device_freed_by_the_dead(op));
	if (room && need > 0 && fault_strikes(device, CRAM_FAULT_STORE, page)) {
		if (need > had)
			media_unreserve(media, need - had);
		room = false;
	}
	if (!room) {
		atomic_fetch_add(&device->super->dropped_writes, 1);
		device_make_poison(op, page, CRAM_POISON_DROPPED);
		return false;
	}
	keep_lines = keep_lines && (entry & ENTRY_RECORDED) && entry_state(entry) != CRAM_PAGE_POISON;
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	if (!keep_lines)
		unlist(op, page, entry);
	if (need < had) {
		media_release(media, &chain, need);
		media_unreserve(media, had - need);
	} else if (need > had) {
		media_take(media, &op->cursor, need - had, &chain);
	}
	next = entry_make(encoded.state, 0, encoded.length) | (keep_lines ? ENTRY_RECORDED : 0);
	if (need > 0) {
		media_chain_link(media, &chain, tag_of(page));
		media_write(media, &chain, encoded.form, encoded.length);
		check = codec_check(encoded.form, encoded.length, page);
		next |= chain.sector[0] | (chain.run ? ENTRY_RUN : 0) | (padded ? ENTRY_PADDED : 0);
	} else if (encoded.state == CRAM_PAGE_SAME) {
		next |= (uint32_t)encoded.word;
		check = (uint32_t)(encoded.word >> 32);
	}
	publish(op, page, entry, next, check);
	if (need != had)
		device_used_changed(op);
	else if (alert_ratio_on(device->alert))
		device_evaluate_alerts(device);
	if (faults_armed(device))
		fault_stored(op, page, &chain, encoded.length);
	return true;
}

bool device_store(struct op *op, uint64_t page, const uint8_t *from)
{
	return store(op, page, from, false);
}

static void fill(uint8_t *to, uint64_t word)
{
	for (unsigned i = 0; i < PAGE_SIZE / sizeof(word); i++)
		memcpy(to + i * sizeof(word), &word, sizeof(word));
}

/* How much of a stored form of length bytes is the codec's. */
static uint32_t form_length(uint64_t entry, const uint8_t *form, uint32_t length)
{
	uint32_t told;

	if (!(entry & ENTRY_PADDED) || length < 2)
		return length;
	told = form[length - 2] | (uint32_t)form[length - 1] << 8;
	return told < length ? told : length;
}

/* The stored form, checked, decoded into to. False: damaged. */
static bool load_form(struct op *op, uint64_t page, uint64_t entry, uint8_t *to)
{
	struct device *device = op->device;
	uint32_t length = entry_length(entry);
	const uint8_t *form;
	struct chain chain;

	if (!load_chain(device, page, entry, &chain))
		return false;
	form = media_run(&device->media, &chain);
	if (form == NULL) {
		media_read(&device->media, &chain, op->form, length);
		form = op->form;
	}
	if (codec_check(form, length, page) != pagemap_check(&device->map, page))
		return false;
	if (entry_state(entry) == CRAM_PAGE_STORED)
		return codec_decode(&device->codec, &op->space, form, form_length(entry, form, length), to) == 0;
	memcpy(to, form, PAGE_SIZE);
	return true;
}

/* The page's data, whatever lines are poisoned. False: it has none; damaged media has become poison. */
static bool load_data(struct op *op, uint64_t page, uint8_t *to)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);

	switch (entry_state(entry)) {
	case CRAM_PAGE_EMPTY:
	case CRAM_PAGE_ZERO:
		memset(to, 0, PAGE_SIZE);
		return true;
	case CRAM_PAGE_SAME:
		fill(to, pagemap_word(&device->map, page, entry));
		return true;
	case CRAM_PAGE_STORED:
	case CRAM_PAGE_RAW:
		if (load_form(op, page, entry, to))
			return true;
		atomic_fetch_add(&device->super->media_errors, 1);
		device_make_poison(op, page, CRAM_POISON_MEDIA);
		return false;
	case CRAM_PAGE_POISON:
		break;
	}
	return false;
}

static uint64_t poisoned_lines(struct device *device, uint64_t page)
{
	uint64_t entry = pagemap_entry(&device->map, page);
	uint64_t lines;

	if (entry_state(entry) == CRAM_PAGE_POISON)
		return pagemap_word(&device->map, page, entry);
	if (!(entry & ENTRY_RECORDED))
		return 0;
	device_lock(device, &device->super->poison_lock);
	lines = poison_lines(device->poison, page << PAGE_SHIFT);
	futex_unlock(&device->super->poison_lock);
	return lines;
}

uint64_t device_load(struct op *op, uint64_t page, uint8_t *to)
{
	fault_delay(op, CRAM_FAULT_READ_DELAY, page);
	if (device_removed(op->device))
		return ~0ull;
	/* A page without data still has its cleared lines: they read as zeros. */
	if (!load_data(op, page, to))
		memset(to, 0, PAGE_SIZE);
	return device_poisoned(op, page) ? poisoned_lines(op->device, page) : 0;
}

bool device_poisoned(const struct op *op, uint64_t page)
{
	uint64_t entry = pagemap_entry(&op->device->map, page);

	return entry_state(entry) == CRAM_PAGE_POISON || (entry & ENTRY_RECORDED) || device_removed(op->device);
}

void device_drop(struct op *op, uint64_t page)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	struct chain chain;

	if ((entry & ~(ENTRY_LOCK | ENTRY_HOLDER)) == 0)
		return;
	old_chain(op, page, entry, &chain);
	pagemap_change(&device->map, page, 0, ENTRY_BUSY);
	unlist(op, page, entry);
	if (chain.count == 0 || !fault_strikes(device, CRAM_FAULT_TRIM, page)) {
		media_hint(&device->media, &chain);
		free_chain(op, &chain);
	}
	publish(op, page, entry, 0, 0);
	device_used_changed(op);
}

void device_mark_dirty(struct op *op, uint64_t page, bool dirty)
{
	pagemap_change(&op->device->map, page, dirty ? 0 : ENTRY_DIRTY, dirty ? ENTRY_DIRTY : 0);
}

int device_inject(struct op *op, uint64_t page, unsigned line)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	bool recorded;

	if (poisoned_lines(device, page) >> line & 1)
		return 0;
	if (entry_state(entry) == CRAM_PAGE_POISON) {
		uint64_t mask = pagemap_word(&device->map, page, entry) | 1ull << line;

		pagemap_publish(&device->map, page,
				entry_make(CRAM_PAGE_POISON, (uint32_t)mask, 0) | (entry & ENTRY_RECORDED),
				(uint32_t)(mask >> 32));
		return 0;
	}
	device_lock(device, &device->super->poison_lock);
	recorded = poison_add(device->poison, (page << PAGE_SHIFT) + line * LINE_SIZE, LINE_SIZE,
			      CRAM_POISON_INJECTED);
	futex_unlock(&device->super->poison_lock);
	if (!recorded)
		return CRAM_EBUSY;
	pagemap_change(&device->map, page, 0, ENTRY_RECORDED);
	if (!(entry & ENTRY_RECORDED))
		device_add(&device_stripe(op)->poisoned, 1);
	return 0;
}

/* Clears one line of a page that has no data. */
static void clear_without_data(struct op *op, uint64_t page, unsigned line)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);
	uint64_t mask = pagemap_word(&device->map, page, entry) & ~(1ull << line);

	if (mask != 0) {
		pagemap_publish(&device->map, page,
				entry_make(CRAM_PAGE_POISON, (uint32_t)mask, 0) | (entry & ENTRY_RECORDED),
				(uint32_t)(mask >> 32));
		return;
	}
	/* Every line has been zeroed. */
	unlist(op, page, entry);
	publish(op, page, entry, entry_make(CRAM_PAGE_ZERO, 0, 0), 0);
}

void device_clear(struct op *op, uint64_t page, unsigned line)
{
	struct device *device = op->device;
	uint64_t dpa = (page << PAGE_SHIFT) + line * LINE_SIZE;

	if (!load_data(op, page, op->page)) {
		clear_without_data(op, page, line);
		return;
	}
	memset(op->page + line * LINE_SIZE, 0, LINE_SIZE);
	if (!store(op, page, op->page, true))
		return;
	if (!(pagemap_entry(&device->map, page) & ENTRY_RECORDED))
		return;
	device_lock(device, &device->super->poison_lock);
	poison_remove(device->poison, dpa, LINE_SIZE);
	futex_unlock(&device->super->poison_lock);
	if (poisoned_lines(device, page) == 0) {
		pagemap_change(&device->map, page, ENTRY_RECORDED, 0);
		device_add(&device_stripe(op)->poisoned, -1);
	}
}

void device_page_info(struct op *op, uint64_t page, struct cram_page_info *info)
{
	struct device *device = op->device;
	uint64_t entry = pagemap_entry(&device->map, page);

	memset(info, 0, sizeof(*info));
	if (device_removed(device)) {
		info->state = CRAM_PAGE_POISON;
		info->poisoned = ~0ull;
		return;
	}
	info->state = entry_state(entry);
	info->length = entry_length(entry);
	info->sectors = media_sectors_for(&device->media, info->length);
	info->dirty = (entry & ENTRY_DIRTY) != 0;
	info->poisoned = poisoned_lines(device, page);
	if (info->sectors > 0)
		info->media = (uint64_t)(device->media.bytes - device->base) +
			      (uint64_t)entry_first(entry) * device->media.sector_size;
}

/* ---- the poison list ------------------------------------------------------------------------------------- */

/* Appends the runs of set bits as records. */
static size_t list_runs(uint64_t dpa, uint64_t mask, uint32_t source, struct cram_poison_record *records, size_t at,
			size_t n)
{
	for (unsigned i = 0; i < 64; i++) {
		unsigned from = i;

		if (!(mask >> i & 1))
			continue;
		while (i < 63 && (mask >> (i + 1) & 1))
			i++;
		if (at < n)
			records[at] = (struct cram_poison_record){ dpa + from * LINE_SIZE,
								   (i - from + 1) * LINE_SIZE, source };
		at++;
	}
	return at;
}

static int by_dpa(const void *a, const void *b)
{
	const struct cram_poison_record *x = a, *y = b;

	return (x->dpa > y->dpa) - (x->dpa < y->dpa);
}

/* The poisoned lines of a page without data, without its lock: some may have been cleared, which the page map knows; one that
 * is just becoming poison, or whole, has its record a moment longer or earlier. */
static uint64_t lines_without_data(const struct device *device, uint64_t page)
{
	uint64_t entry, word;

	do {
		entry = pagemap_entry(&device->map, page);
		word = pagemap_word(&device->map, page, entry);
	} while (pagemap_entry(&device->map, page) != entry);
	return entry_state(entry) == CRAM_PAGE_POISON ? word : UINT64_MAX;
}

size_t device_poison_list(struct device *device, struct cram_poison_record *records, size_t n)
{
	size_t found = 0;

	device_lock(device, &device->super->poison_lock);
	for (uint32_t i = 0; i < device->poison->count; i++) {
		const struct cram_poison_record *record = &device->poison->records[i];
		uint64_t page = record->dpa >> PAGE_SHIFT;
		uint64_t mask;

		if (record->length == PAGE_SIZE)
			mask = lines_without_data(device, page);
		else
			mask = lines_without_data(device, page) >> record->dpa % PAGE_SIZE / LINE_SIZE & 1;
		found = list_runs(record->dpa, mask, record->source, records, found, n);
	}
	futex_unlock(&device->super->poison_lock);
	qsort(records, found < n ? found : n, sizeof(*records), by_dpa);
	return found;
}
