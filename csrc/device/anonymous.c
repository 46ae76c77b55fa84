/* SPDX-License-Identifier: MIT
 *
 * anonymous.c - the device pages of anonymous memory: taken, shared by forks, given back; and a client's table of them.
 */
#define _GNU_SOURCE
#include <unistd.h>

#include "error.h"
#include "inner.h"
#include "recovery.h"

static uint64_t take_page(struct op *op)
{
	struct device *device = op->device;

	for (uint64_t tries = 0; tries < device->map.pages; tries++) {
		uint64_t page = dpas_take(&device->dpas);

		if (page == UINT64_MAX)
			return DEVICE_NO_PAGE;
		if (device_trylock_page(op, page)) {
			/* The race: somebody maps a range with this page just now. He claims it before he looks for
			 * references, we take a reference before we look for claims: one of us sees the other. */
			if (clients_owner(device->clients, page) < 0 &&
			    (pagemap_entry(&device->map, page) & ~(ENTRY_LOCK | ENTRY_HOLDER)) == 0) {
				atomic_fetch_add_explicit(&device->self->anonymous_pages, 1, memory_order_relaxed);
				return page;
			}
			device_unlock_page(op, page);
		}
		dpas_put(&device->dpas, page);
	}
	return DEVICE_NO_PAGE;
}

uint64_t device_take_page(struct op *op)
{
	uint64_t page;

	do
		page = take_page(op);
	while (page == DEVICE_NO_PAGE && device_freed_by_the_dead(op));
	return page;
}

void device_put_page(struct op *op, uint64_t page)
{
	struct device *device = op->device;

	/* Contents first, so that whoever takes the page then finds it empty. Only we could add a reference to our last. */
	if (!device_shared(op, page))
		device_drop(op, page);
	dpas_put(&device->dpas, page);
	atomic_fetch_sub_explicit(&device->self->anonymous_pages, 1, memory_order_relaxed);
}

/* ---- tables ---------------------------------------------------------------------------------------------- */

int device_open_table(struct device *device, struct dpa_table *table)
{
	uint32_t none = 0;

	if (!atomic_compare_exchange_strong(&device->self->anonymous, &none, 1))
		return cram_fail(CRAM_EBUSY, "this device object has an anonymous mapping, or is a manager's node, already");
	*table = dpas_table(&device->dpas, device->client);
	return 0;
}

void device_close_table(struct device *device)
{
	if (recovery_lock(device) == 0) {
		recovery_clear_table(device, device->client);
		atomic_store(&device->self->anonymous, 0);
		recovery_unlock(device);
	}
}

uint64_t device_next_entry(const struct device *device, const _Atomic uint32_t *entry)
{
	struct dpa_table table = dpas_table(&device->dpas, device->client);
	uint64_t at = (uint64_t)((const uint8_t *)entry - device->base);
	uint64_t data = device_next_data(device, at);

	if (data == UINT64_MAX)
		return table.pages;
	return (uint64_t)(entry - table.entries) + (data - at) / sizeof(*entry);
}

/* ---- fork ------------------------------------------------------------------------------------------------ */

/* The pages that both name have a reference more, before the copy is there for a recount. */
static void copy_table(struct device *device, unsigned to)
{
	struct dpa_table from = dpas_table(&device->dpas, device->client);
	struct dpa_table copy = dpas_table(&device->dpas, to);
	uint64_t start = (uint64_t)((uint8_t *)from.entries - device->base);
	uint64_t end = start + from.pages * sizeof(uint32_t);

	for (uint64_t at = start; (at = device_next_data(device, at)) < end; at += PAGE_SIZE) {
		uint64_t first = (at - start) / sizeof(uint32_t);

		for (uint64_t i = first; i < first + PAGE_SIZE / sizeof(uint32_t); i++) {
			uint32_t entry = atomic_load_explicit(&from.entries[i], memory_order_relaxed);

			if (entry == 0)
				continue;
			dpas_get(&device->dpas, entry - 1);
			atomic_store_explicit(&copy.entries[i], entry, memory_order_relaxed);
		}
	}
}

/* Sees to it that a slot is free. Children that have ended keep theirs until somebody wants one. Under the lock. */
static int free_slot(struct device *device)
{
	int code = 0;

	if (atomic_load(&device->clients->attached) == UINT64_MAX && clients_dead(device->clients) != 0)
		code = recovery_run(device, NULL);
	if (code == 0 && atomic_load(&device->clients->attached) == UINT64_MAX)
		code = CRAM_EBUSY;
	return code;
}

int device_can_fork(struct device *device)
{
	int code = recovery_lock(device);

	if (code != 0)
		return code;
	code = free_slot(device);
	if (code == 0 && !clients_can_join())
		code = CRAM_EIO;
	recovery_unlock(device);
	return code;
}

int device_fork(struct device *device, struct device_fork *fork)
{
	int code = recovery_lock(device), client;

	if (code != 0)
		return code;
	client = free_slot(device) == 0 ? clients_join(device->clients) : -1;
	if (client >= 0) {
		struct client *child = &device->clients->table[client];

		*fork = (struct device_fork){ (unsigned)client, (uint32_t)getpid(), thread_id() };
		atomic_store(&child->keeper, fork->thread);
		atomic_store(&child->anonymous, 1);
		atomic_store(&child->make_it_fail, atomic_load(&device->self->make_it_fail));
		/* It inherits our frames as they are, those among them that have yet to go. */
		atomic_store(&child->followed, atomic_load(&device->self->followed));
		copy_table(device, (unsigned)client);
		atomic_store(&child->anonymous_pages, atomic_load(&device->self->anonymous_pages));
	}
	recovery_unlock(device);
	return client >= 0 ? 0 : CRAM_EBUSY;
}

void device_forked(struct device *device, const struct device_fork *fork, uint32_t child)
{
	if (recovery_lock(device) != 0)
		return;
	clients_hand_over(device->clients, fork->slot, fork->parent, fork->thread, child);
	recovery_unlock(device);
}

int device_become(struct device *device, const struct device_fork *fork, struct dpa_table *table)
{
	bool ours;
	int code;

	/* Who still names our parent's client must not be seen to do so in our name. */
	device->client = CLIENT_JOINING;
	code = recovery_lock(device);
	if (code != 0)
		return code;
	ours = clients_hand_over(device->clients, fork->slot, fork->parent, fork->thread, (uint32_t)getpid());
	if (ours) {
		device->client = fork->slot;
		device->self = &device->clients->table[fork->slot];
		*table = dpas_table(&device->dpas, fork->slot);
	}
	recovery_unlock(device);
	return ours ? 0 : cram_fail(CRAM_EFORKED, "the parent died before this process could take its memory over");
}
