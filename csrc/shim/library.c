/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "library.h"

#include <string.h>

struct search {
	const char *name;
	uintptr_t address;
	struct library *found;
};

static bool has_name(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/');

	return strcmp(slash != NULL ? slash + 1 : path, name) == 0;
}

static int look_at(struct dl_phdr_info *info, size_t size, void *argument)
{
	struct search *search = argument;
	const Elf64_Dyn *dynamic = NULL;
	uintptr_t end = 0;

	(void)size;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const Elf64_Phdr *segment = &info->dlpi_phdr[i];

		if (segment->p_type == PT_DYNAMIC)
			dynamic = (const Elf64_Dyn *)(info->dlpi_addr + segment->p_vaddr);
		if (segment->p_type == PT_LOAD && segment->p_vaddr + segment->p_memsz > end)
			end = segment->p_vaddr + segment->p_memsz;
	}
	if (search->name != NULL ? !has_name(info->dlpi_name, search->name) : search->address - info->dlpi_addr >= end)
		return 0;
	*search->found = (struct library){ info->dlpi_addr, end, dynamic };
	return 1;
}

void library_find(const char *name, const void *address, struct library *library)
{
	struct search search = { name, (uintptr_t)address, library };

	dl_iterate_phdr(look_at, &search);
}

/* A table of the dynamic section; glibc has made their addresses absolute. */
static const void *table(const struct library *library, Elf64_Sxword tag)
{
	for (const Elf64_Dyn *at = library->dynamic; at != NULL && at->d_tag != DT_NULL; at++)
		if (at->d_tag == tag)
			return (const void *)at->d_un.d_ptr;
	return NULL;
}

/* As the GNU hash table has it (binutils, bfd/elflink.c). */
static uint32_t hash_of(const char *name)
{
	uint32_t hash = 5381;

	for (; *name != 0; name++)
		hash = hash * 33 + (uint8_t)*name;
	return hash;
}

void *library_symbol(const struct library *library, const char *name)
{
	const uint32_t *header = table(library, DT_GNU_HASH);
	const Elf64_Sym *symbols = table(library, DT_SYMTAB);
	const char *strings = table(library, DT_STRTAB);
	uint32_t hash = hash_of(name), i;
	const uint32_t *buckets, *chain;

	if (header == NULL || symbols == NULL || strings == NULL)
		return NULL;
	/* The header: buckets, first symbol hashed, 8-byte words of a filter, its shift. */
	buckets = header + 4 + 2 * header[2];
	chain = buckets + header[0];
	i = buckets[hash % header[0]];
	if (i < header[1])
		return NULL;
	for (;; i++) {
		uint32_t found = chain[i - header[1]];

		if ((found | 1) == (hash | 1) && strcmp(strings + symbols[i].st_name, name) == 0)
			return (void *)(library->start + symbols[i].st_value);
		if (found & 1)
			return NULL;
	}
}
