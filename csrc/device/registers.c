/* SPDX-License-Identifier: MIT
 *
 * registers.c - what the device counts, and what it says of it: registers and thresholds.
 */
#include <string.h>

#include "inner.h"

static void sum_stripes(const struct device *device, struct stripe *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (unsigned i = 0; i < STRIPES; i++) {
		const struct stripe *stripe = &device->super->stripes[i];

		for (unsigned s = 0; s < 6; s++)
			sum->pages[s] += atomic_load_explicit(&stripe->pages[s], memory_order_relaxed);
		sum->payload += atomic_load_explicit(&stripe->payload, memory_order_relaxed);
		sum->poisoned += atomic_load_explicit(&stripe->poisoned, memory_order_relaxed);
	}
}

struct stripe *device_stripe(struct op *op)
{
	return &op->device->super->stripes[op->place % STRIPES];
}

void device_add(_Atomic int64_t *counter, int64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Sums are taken while others count: a sum may be below zero for a moment. */
static uint64_t whole(int64_t n)
{
	return n > 0 ? (uint64_t)n : 0;
}

static uint64_t ratio_of(const struct stripe *sum, uint64_t used_bytes)
{
	int64_t pages = sum->pages[CRAM_PAGE_ZERO] + sum->pages[CRAM_PAGE_SAME] + sum->pages[CRAM_PAGE_STORED] +
			sum->pages[CRAM_PAGE_RAW];

	return used_bytes == 0 ? 0 : (uint64_t)((__uint128_t)whole(pages) * PAGE_SIZE * 1000 / used_bytes);
}

static void read_levels(void *arg, struct alert_reading *reading)
{
	const struct device *device = arg;
	struct stripe sum;

	reading->used = atomic_load(device->media.used);
	reading->remaining = (device->media.sectors - reading->used) * device->media.sector_size;
	sum_stripes(device, &sum);
	reading->ratio = ratio_of(&sum, (reading->used - atomic_load(&device->super->lost)) * device->media.sector_size);
}

void device_evaluate_alerts(struct device *device)
{
	bool raised;

	if (device_removed(device))
		return;
	device_lock(device, &device->super->alert_lock);
	raised = alert_evaluate(device->alert, read_levels, fault_of_interrupt, device);
	futex_unlock(&device->super->alert_lock);
	if (raised)
		clients_ring_all(device->clients);
}

void device_used_changed(struct op *op)
{
	struct device *device = op->device;
	uint64_t used = atomic_load(device->media.used);
	uint64_t peak = atomic_load_explicit(&device->super->peak, memory_order_relaxed);

	while (used > peak && !atomic_compare_exchange_weak(&device->super->peak, &peak, used))
		;
	if (alert_due(device->alert, used) || alert_ratio_on(device->alert))
		device_evaluate_alerts(device);
}

int device_set_thresholds(struct device *device, uint64_t low_remaining, uint64_t high_remaining,
			  uint32_t low_ratio, uint32_t high_ratio)
{
	struct cram_params params = *device_params(device);
	struct op *op;
	int code;

	params.low_remaining = low_remaining;
	params.high_remaining = high_remaining;
	params.low_ratio = low_ratio;
	params.high_ratio = high_ratio;
	code = device_check_removed(device);
	if (code != 0)
		return code;
	code = layout_check_params(&params);
	if (code != 0)
		return code;
	/* In an op: a rebuild, which holds ops back, counts from nothing. */
	op = device_enter(device);
	device_lock(device, &device->super->alert_lock);
	alert_set(device->alert, device->media.sectors, device->media.sector_size, low_remaining, high_remaining,
		  low_ratio, high_ratio);
	futex_unlock(&device->super->alert_lock);
	device_evaluate_alerts(device);
	device_leave(op);
	return 0;
}

void device_observe(const struct op *op, struct cram_registers *r)
{
	const struct device *device = op->device;
	const struct superblock *super = device->super;
	const struct alert *alert = device->alert;
	uint32_t sector = device->media.sector_size;
	struct stripe sum;

	sum_stripes(device, &sum);
	memset(r, 0, sizeof(*r));
	r->advertised = super->geometry.params.advertised;
	r->real = (device->media.sectors - atomic_load(&super->lost)) * sector;
	r->used = (atomic_load(&super->used) - atomic_load(&super->lost)) * sector;
	r->remaining = r->real - r->used;
	r->peak = atomic_load(&super->peak) * sector;
	r->pages_stored = whole(sum.pages[CRAM_PAGE_STORED]);
	r->pages_raw = whole(sum.pages[CRAM_PAGE_RAW]);
	r->pages_zero = whole(sum.pages[CRAM_PAGE_ZERO]);
	r->pages_same = whole(sum.pages[CRAM_PAGE_SAME]);
	r->pages_poison = whole(sum.pages[CRAM_PAGE_POISON]);
	r->payload = whole(sum.payload);
	r->ratio = ratio_of(&sum, r->used);
	r->dropped_writes = atomic_load(&super->dropped_writes);
	r->refused_writes = atomic_load(&super->refused_writes);
	r->media_errors = atomic_load(&super->media_errors);
	r->lost_pages = atomic_load(&super->lost_pages);
	r->poisoned = whole(sum.poisoned);
	r->poison_records = __atomic_load_n(&device->poison->count, __ATOMIC_RELAXED);
	r->poison_overflow = atomic_load(&super->poison_overflow);
	r->lthresh = atomic_load(&alert->raised[0]);
	r->hthresh = atomic_load(&alert->raised[1]);
	r->events = atomic_load(&alert->head);
	r->low_remaining = atomic_load(&alert->low_remaining);
	r->high_remaining = atomic_load(&alert->high_remaining);
	r->low_ratio = atomic_load(&alert->low_ratio);
	r->high_ratio = atomic_load(&alert->high_ratio);
	r->pressure = atomic_load(&alert->pressure);
	r->no_alloc = atomic_load(&alert->no_alloc);
	for (uint64_t left = atomic_load(&device->clients->attached); left != 0; left &= left - 1) {
		r->clients++;
		r->dirty_frames += atomic_load(&device->clients->table[__builtin_ctzll(left)].dirty_frames);
	}
}

int device_read_registers(const struct op *op, struct cram_registers *r)
{
	int code = device_check_removed(op->device);

	if (code != 0)
		return code;
	device_observe(op, r);
	return faults_armed(op->device) ? fault_registers(op->device, r) : 0;
}
