/* SPDX-License-Identifier: MIT
 *
 * faults.c - what the faults of inject.h do to the device. With all of them off, a load, a store and a trim look at one word
 * that nobody writes.
 */
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "inner.h"
#include "recovery.h"

static uint64_t remaining_now(const struct device *device)
{
	return (device->media.sectors - atomic_load(device->media.used)) * device->media.sector_size;
}

static bool strikes(struct device *device, enum cram_fault fault)
{
	/* Who is about to join evaluates thresholds before it is a client. */
	return inject_strikes(&device->super->inject, fault, PAGE_SIZE,
			      device->self != NULL && atomic_load(&device->self->make_it_fail));
}

static uint64_t value_of(const struct device *device, enum cram_fault fault)
{
	return inject_value(&device->super->inject, fault);
}

/* Under the alert lock. */
static void tell(struct device *device, enum cram_fault fault, uint64_t page)
{
	if (inject_quiet(&device->super->inject, fault))
		return;
	alert_push(device->alert, CRAM_INJECTED, fault, remaining_now(device),
		   page == FAULT_NO_PAGE ? UINT64_MAX : page << PAGE_SHIFT, 0);
}

void fault_announce(struct device *device, enum cram_fault fault, uint64_t page)
{
	if (inject_quiet(&device->super->inject, fault))
		return;
	device_lock(device, &device->super->alert_lock);
	tell(device, fault, page);
	futex_unlock(&device->super->alert_lock);
	clients_ring_all(device->clients);
}

void device_consumed(struct device *device, uint64_t page)
{
	const uint32_t pid = (uint32_t)getpid();
	struct cram_event last;

	device_lock(device, &device->super->alert_lock);
	/* Who meets it in a loop would push everything else out of the ring. */
	if (!alert_get(device->alert, atomic_load(&device->alert->head), &last) || last.vector != CRAM_CONSUMED ||
	    last.ratio != page << PAGE_SHIFT || last.pid != pid)
		alert_push(device->alert, CRAM_CONSUMED, 0, remaining_now(device), page << PAGE_SHIFT, 0);
	futex_unlock(&device->super->alert_lock);
	clients_ring_all(device->clients);
}

bool fault_strikes_armed(struct device *device, enum cram_fault fault, uint64_t page)
{
	if (!strikes(device, fault))
		return false;
	fault_announce(device, fault, page);
	return true;
}

uint64_t fault_of_interrupt(void *arg)
{
	struct device *device = arg;

	if (strikes(device, CRAM_FAULT_LOST_IRQ)) {
		tell(device, CRAM_FAULT_LOST_IRQ, FAULT_NO_PAGE);
		return ALERT_LOST;
	}
	if (strikes(device, CRAM_FAULT_LATE_IRQ)) {
		tell(device, CRAM_FAULT_LATE_IRQ, FAULT_NO_PAGE);
		return value_of(device, CRAM_FAULT_LATE_IRQ) * 1000000;
	}
	return 0;
}

void fault_delay_armed(struct op *op, enum cram_fault fault, uint64_t page)
{
	if (!fault_strikes_armed(op->device, fault, page))
		return;
	/* Parked, or a slow page would hold up whoever wants all to stand still: who joins after a death, who resets. Nothing of
	 * the page has been read or changed; pages that came before it in a fault have been read already, and if there is a
	 * reset meanwhile they survive it, as they were. */
	device_park(op);
	sleep_ns(value_of(op->device, fault) * 1000);
	device_unpark(op);
}

/* Takes free sectors out of use for good, as many as there are. */
static void lose_capacity(struct op *op)
{
	struct device *device = op->device;
	uint64_t sectors = value_of(device, CRAM_FAULT_CAPACITY) / device->media.sector_size;
	uint64_t used = atomic_load(device->media.used), taken;

	do {
		taken = device->media.sectors - used < sectors ? device->media.sectors - used : sectors;
	} while (!atomic_compare_exchange_weak(device->media.used, &used, used + taken));
	atomic_fetch_add(&device->super->lost, taken);
	device_used_changed(op);
}

/* ---- the device as a whole ------------------------------------------------------------------------------- */

/* Told before it does anything: who reads of what followed has read of the cause. */
static int strike(struct device *device, enum cram_fault fault, uint64_t page)
{
	int code;

	switch (fault) {
	case CRAM_FAULT_REMOVAL:
		fault_announce(device, fault, page);
		/* In this order: who finds the loss finds the device gone. */
		atomic_store(&device->super->removed, 1);
		atomic_fetch_add(&device->clients->losses, 1);
		break;
	case CRAM_FAULT_RESET:
	case CRAM_FAULT_POWER_CYCLE:
		code = recovery_lock(device);
		if (code != 0)
			return code;
		code = recovery_reset(device, fault, page);
		recovery_unlock(device);
		if (code != 0)
			return code;
		break;
	default:
		return cram_fail(CRAM_EINVAL, "%s: strikes by its attributes only", cram_fault_text(fault)->name);
	}
	clients_ring_all(device->clients);
	return 0;
}

int device_strike(struct device *device, enum cram_fault fault)
{
	int code = device_check_removed(device);

	if (code == 0)
		code = strike(device, fault, FAULT_NO_PAGE);
	if (code == 0)
		inject_struck(&device->super->inject, fault);
	return code;
}

void fault_before_store(struct op *op, uint64_t page)
{
	struct device *device = op->device;

	for (enum cram_fault fault = CRAM_FAULT_REMOVAL; fault <= CRAM_FAULT_POWER_CYCLE; fault++) {
		if (device_removed(device) || !inject_armed(&device->super->inject, fault) || !strikes(device, fault))
			continue;
		/* Parked: a reset waits until all stand at a page boundary, and so do we, our page not yet begun. One that
		 * cannot be had (somebody else does not stand) does not happen. */
		device_park(op);
		strike(device, fault, page);
		device_unpark(op);
	}
}

/* ---- a page that is stored ------------------------------------------------------------------------------- */

bool fault_pad(struct op *op, const uint8_t *page, struct encoded *encoded)
{
	const struct inject_fault *attr = &op->device->super->inject.fault[CRAM_FAULT_RATIO];
	uint32_t length = encoded->length, padded = (uint32_t)value_of(op->device, CRAM_FAULT_RATIO);

	/* Drawn as less than a byte it is the least of bounds; not at all is a value of 0 alone. */
	if (atomic_load(&attr->value) == 0 || padded > op->device->codec.largest_stored) {
		*encoded = (struct encoded){ .state = CRAM_PAGE_RAW, .length = PAGE_SIZE, .form = page };
		return false;
	}
	/* Its last two bytes say how long the form is (form_length() in page.c). */
	if (padded < length + 2)
		return false;
	memset(op->form + length, 0, padded - length - 2);
	op->form[padded - 2] = (uint8_t)length;
	op->form[padded - 1] = (uint8_t)(length >> 8);
	encoded->length = padded;
	return true;
}

static void raise_without_cause(struct device *device, uint64_t times)
{
	device_lock(device, &device->super->alert_lock);
	while (times-- > 0)
		alert_push(device->alert, CRAM_LTHRESH, CRAM_CAUSE_REMAINING, remaining_now(device), 0, 0);
	futex_unlock(&device->super->alert_lock);
	clients_ring_all(device->clients);
}

/* How far into a page the first of its bytes lies that the poison fault is for; not below PAGE_SIZE: none. */
static uint64_t first_to_poison(const struct inject *inject, uint64_t page)
{
	uint64_t stride = atomic_load(&inject->fault[CRAM_FAULT_POISON].value);

	return stride == 0 ? 0 : (stride - (page << PAGE_SHIFT) % stride) % stride;
}

/* Any line, or those that hold multiples of the value. What the poison list has no room for takes the whole page: the device has
 * more poison than it lists (poison_overflow). */
static void strike_lines(struct op *op, uint64_t page)
{
	const struct inject *inject = &op->device->super->inject;
	uint64_t stride = atomic_load(&inject->fault[CRAM_FAULT_POISON].value);
	uint64_t at = first_to_poison(inject, page);
	bool listed = true;

	if (stride == 0)
		listed = device_inject(op, page, (unsigned)(inject_chance(inject, CRAM_FAULT_POISON) % (PAGE_SIZE / LINE_SIZE))) == 0;
	for (; stride > 0 && listed && at < PAGE_SIZE; at += stride)
		listed = device_inject(op, page, (unsigned)(at / LINE_SIZE)) == 0;
	if (!listed)
		device_make_poison(op, page, CRAM_POISON_INJECTED);
}

void fault_stored(struct op *op, uint64_t page, const struct chain *chain, uint32_t length)
{
	struct device *device = op->device;
	const struct inject *inject = &device->super->inject;

	if (length > 0 && fault_strikes(device, CRAM_FAULT_CORRUPT, page)) {
		uint64_t bit = inject_chance(inject, CRAM_FAULT_CORRUPT) % (length * 8ull);
		uint64_t byte = bit / 8, size = device->media.sector_size;

		device->media.bytes[chain->sector[byte / size] * size + byte % size] ^= (uint8_t)(1u << bit % 8);
	}
	if (first_to_poison(inject, page) < PAGE_SIZE && fault_strikes(device, CRAM_FAULT_POISON, page))
		strike_lines(op, page);
	if (fault_strikes(device, CRAM_FAULT_CAPACITY, page))
		lose_capacity(op);
	if (fault_strikes(device, CRAM_FAULT_SPURIOUS_IRQ, page))
		raise_without_cause(device, 1);
	if (fault_strikes(device, CRAM_FAULT_STORM_IRQ, page))
		raise_without_cause(device, value_of(device, CRAM_FAULT_STORM_IRQ));
	/* What has let go of the line is not asked: the line is stuck, and only capacity can tell. */
	if ((atomic_load(&device->alert->latches) & ALERT_LATCH_REMAINING) && fault_strikes(device, CRAM_FAULT_STUCK_IRQ, page))
		raise_without_cause(device, 1);
}

bool device_fault(struct device *device, enum cram_fault fault)
{
	return fault_strikes(device, fault, FAULT_NO_PAGE);
}

/* What was told before, while it is young enough; else what is, from now on. */
static void tell_stale(struct device *device, struct cram_registers *registers)
{
	struct superblock *super = device->super;
	uint64_t now = now_ns(), limit = value_of(device, CRAM_FAULT_STALE) * 1000000;

	device_lock(device, &super->alert_lock);
	if (super->told_at != 0 && now - super->told_at < limit) {
		*registers = super->told;
	} else {
		super->told = *registers;
		super->told_at = now;
	}
	futex_unlock(&super->alert_lock);
}

static uint64_t scaled(uint64_t value, uint64_t per_mille)
{
	return (uint64_t)((__uint128_t)value * per_mille / 1000);
}

int fault_registers(struct device *device, struct cram_registers *registers)
{
	if (device_fault(device, CRAM_FAULT_NO_ANSWER))
		return cram_fail(CRAM_ETIMEDOUT, "the device's registers do not answer");
	if (device_fault(device, CRAM_FAULT_STALE))
		tell_stale(device, registers);
	if (device_fault(device, CRAM_FAULT_SATURATED)) {
		uint64_t most = value_of(device, CRAM_FAULT_SATURATED);

		registers->remaining = registers->remaining < most ? registers->remaining : most;
	}
	if (device_fault(device, CRAM_FAULT_LIE_REMAINING))
		registers->remaining = scaled(registers->remaining, value_of(device, CRAM_FAULT_LIE_REMAINING));
	if (device_fault(device, CRAM_FAULT_LIE_RATIO))
		registers->ratio = scaled(registers->ratio, value_of(device, CRAM_FAULT_LIE_RATIO));
	return 0;
}

int device_set_fault(struct device *device, enum cram_fault fault, const struct cram_fault_attr *attr)
{
	int code;

	device_lock(device, &device->super->alert_lock);
	code = inject_set(&device->super->inject, fault, attr);
	/* What stale registers tell begins with what is now. */
	if (code == 0 && fault == CRAM_FAULT_STALE)
		atomic_store(&device->super->told_at, 0);
	futex_unlock(&device->super->alert_lock);
	return code;
}
