/* SPDX-License-Identifier: MIT */
#include "poison.h"

#include "pagemap.h"

bool poison_add(struct poison_list *list, uint64_t dpa, uint32_t length, enum cram_poison_source source)
{
	if (list->count >= list->limit)
		return false;
	list->records[list->count] = (struct cram_poison_record){ dpa, length, source };
	/* The record before the count: see the header. */
	__atomic_store_n(&list->count, list->count + 1, __ATOMIC_RELEASE);
	return true;
}

static void remove_at(struct poison_list *list, uint32_t i)
{
	list->records[i] = list->records[list->count - 1];
	__atomic_store_n(&list->count, list->count - 1, __ATOMIC_RELEASE);
}

uint32_t poison_remove(struct poison_list *list, uint64_t dpa, uint64_t length)
{
	uint32_t removed = 0;

	for (uint32_t i = 0; i < list->count;) {
		if (list->records[i].dpa - dpa < length) {
			remove_at(list, i);
			removed++;
		} else {
			i++;
		}
	}
	return removed;
}

uint64_t poison_lines(const struct poison_list *list, uint64_t dpa)
{
	uint64_t mask = 0;

	for (uint32_t i = 0; i < list->count; i++) {
		const struct cram_poison_record *record = &list->records[i];

		if (record->length == LINE_SIZE && record->dpa - dpa < PAGE_SIZE)
			mask |= 1ull << (record->dpa - dpa) / LINE_SIZE;
	}
	return mask;
}

void poison_dedupe(struct poison_list *list)
{
	for (uint32_t i = 0; i < list->count; i++)
		for (uint32_t j = list->count - 1; j > i; j--)
			if (list->records[j].dpa == list->records[i].dpa)
				remove_at(list, j);
}
