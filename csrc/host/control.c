/* SPDX-License-Identifier: MIT
 *
 * control.c - registers, commands and interrupts, for the functions of cram.h.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "device/layout.h"
#include "error.h"
#include "visit.h"

/* ---- registers and commands ------------------------------------------------------------------------------ */

static int read_registers(const cram_device *device, struct cram_registers *registers, bool as_told)
{
	struct visit visit;
	int code;

	memset(registers, 0, sizeof(*registers));
	code = visit_begin_op((cram_device *)device, &visit);
	if (code != 0)
		return code;
	if (as_told)
		code = device_read_registers(visit.op, registers);
	else
		device_observe(visit.op, registers);
	visit_end(&visit);
	return code;
}

int cram_read_registers(const cram_device *device, struct cram_registers *registers)
{
	return read_registers(device, registers, true);
}

int cram_observe(const cram_device *device, struct cram_registers *registers)
{
	return read_registers(device, registers, false);
}

size_t cram_client_list(const cram_device *device, struct cram_client *clients, size_t n)
{
	struct visit visit;
	size_t found;

	if (visit_begin(device, &visit) != 0)
		return 0;
	found = clients_list(device->device.clients, clients, n);
	for (size_t i = 0; i < found && i < n; i++)
		clients[i].mapped *= PAGE_SIZE;
	visit_end(&visit);
	return found;
}

int cram_set_pressure(cram_device *device, uint32_t pressure)
{
	struct visit visit;
	int code;

	if (pressure > 1000)
		return cram_fail(CRAM_EINVAL, "pressure %u: not from 0 to 1000", pressure);
	code = visit_begin(device, &visit);
	if (code != 0)
		return code;
	code = device_check_removed(&device->device);
	if (code == 0)
		atomic_store(&device->device.alert->pressure, pressure);
	visit_end(&visit);
	return code;
}

int cram_set_no_alloc(cram_device *device, int on)
{
	struct visit visit;
	int code = visit_begin(device, &visit);

	if (code != 0)
		return code;
	code = device_check_removed(&device->device);
	if (code == 0)
		atomic_store(&device->device.alert->no_alloc, on != 0);
	visit_end(&visit);
	return code;
}

int cram_set_thresholds(cram_device *device, uint64_t low_remaining, uint64_t high_remaining, uint32_t low_ratio,
			uint32_t high_ratio)
{
	struct visit visit;
	int code = visit_begin(device, &visit);

	if (code != 0)
		return code;
	code = device_set_thresholds(&device->device, low_remaining, high_remaining, low_ratio, high_ratio);
	visit_end(&visit);
	return code;
}

int cram_rebuild(cram_device *device)
{
	struct visit visit;
	int code = visit_begin(device, &visit);

	if (code != 0)
		return code;
	code = device_rebuild(&device->device);
	visit_end(&visit);
	return code;
}

int cram_reap(cram_device *device, uint32_t *dead)
{
	struct visit visit;
	int code = visit_begin(device, &visit);

	if (code != 0)
		return code;
	code = device_reap(&device->device, dead);
	visit_end(&visit);
	return code;
}

/* ---- faults on purpose ----------------------------------------------------------------------------------- */

static int begin_fault(struct cram_device *device, uint32_t fault, struct visit *visit)
{
	if (fault >= CRAM_FAULTS)
		return cram_fail(CRAM_EINVAL, "fault %u: there are %u", fault, (unsigned)CRAM_FAULTS);
	return visit_begin_op(device, visit);
}

int cram_fault_get(cram_device *device, uint32_t fault, struct cram_fault_attr *attr)
{
	struct visit visit;
	int code = begin_fault(device, fault, &visit);

	if (code != 0)
		return code;
	inject_get(&device->device.super->inject, fault, attr);
	visit_end(&visit);
	return 0;
}

int cram_fault_set(cram_device *device, uint32_t fault, const struct cram_fault_attr *attr)
{
	struct visit visit;
	int code = begin_fault(device, fault, &visit);

	if (code != 0)
		return code;
	code = device_set_fault(&device->device, fault, attr);
	visit_end(&visit);
	return code;
}

int cram_make_it_fail(cram_device *device, uint32_t pid, int on)
{
	struct visit visit;
	bool found;
	int code = visit_begin(device, &visit);

	if (code != 0)
		return code;
	found = clients_mark(device->device.clients, pid, on != 0);
	visit_end(&visit);
	return found ? 0 : cram_fail(CRAM_EINVAL, "process %u: does not have the device open", pid);
}

int cram_fault_strike(cram_device *device, uint32_t fault)
{
	struct visit visit;
	int code;

	if (fault >= CRAM_FAULTS)
		return cram_fail(CRAM_EINVAL, "fault %u: there are %u", fault, (unsigned)CRAM_FAULTS);
	code = visit_begin(device, &visit);
	if (code != 0)
		return code;
	code = device_strike(&device->device, (enum cram_fault)fault);
	if (code == 0)
		code = device_await_followers(&device->device);
	visit_end(&visit);
	return code;
}

/* ---- interrupts ------------------------------------------------------------------------------------------ */

/* *due: when the next one arrives, which is late; not for others. */
static int next_event(struct cram_device *device, uint64_t *sequence, struct cram_event *event, uint64_t *due)
{
	struct alert *alert = device->device.alert;
	uint64_t head = atomic_load(&alert->head);
	uint64_t oldest = head > ALERT_RING ? head - ALERT_RING : 0;

	if (*sequence >= head)
		return CRAM_ETIMEDOUT;
	if (*sequence >= oldest && alert_get(alert, *sequence + 1, event)) {
		if (event->time_ns > now_ns()) {
			*due = event->time_ns;
			return CRAM_ETIMEDOUT;
		}
		*sequence += 1;
		return 0;
	}
	/* Overwritten, or being overwritten at this moment: that one is lost too. */
	*sequence = *sequence >= oldest ? *sequence + 1 : oldest;
	return cram_fail(CRAM_EOVERFLOW, "the event ring has lapped its reader; the next event is %" PRIu64,
			 *sequence + 1);
}

/* Waits as cram_event_wait() does. closing is set before the waiters are counted out, and the object outlives them. */
static int wait_event(struct cram_device *device, uint64_t *sequence, int timeout_ms, struct cram_event *event)
{
	uint64_t deadline = now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * 1000000;

	for (;;) {
		uint32_t rung = atomic_load(&device->device.self->bell);
		uint64_t now, due = UINT64_MAX;
		struct cram_event found;
		int code;

		if (atomic_load(&device->closing))
			return cram_fail(CRAM_ECLOSED, "the device is closed");
		code = next_event(device, sequence, &found, &due);
		if (code == 0)
			*event = found;
		if (code != CRAM_ETIMEDOUT)
			return code;
		now = now_ns();
		if (timeout_ms >= 0 && now >= deadline)
			return cram_fail(code, "no event after number %" PRIu64 " in %d ms", *sequence, timeout_ms);
		if (timeout_ms >= 0 && deadline < due)
			due = deadline;
		futex_wait(&device->device.self->bell, rung, due == UINT64_MAX ? -1 : due > now ? (int64_t)(due - now) : 0);
	}
}

int cram_event_wait(cram_device *device, uint64_t *sequence, int timeout_ms, struct cram_event *event)
{
	struct visit visit;
	int code = visit_begin(device, &visit);

	if (code != 0)
		return code;
	atomic_fetch_add(&device->waiters, 1);
	visit_end(&visit);
	code = wait_event(device, sequence, timeout_ms, event);
	atomic_fetch_sub(&device->waiters, 1);
	return code;
}

int cram_event_fd(cram_device *device)
{
	return device->service.event_fd;
}

/* ---- the codec alone ------------------------------------------------------------------------------------- */

int cram_encode(const struct cram_params *params, const void *page, void *form, uint32_t *length)
{
	int code = layout_check_params(params);
	struct codec_space space;
	struct encoded encoded;
	struct codec codec;
	uint8_t buffer[CODEC_BUFFER];
	void *memory;

	if (code != 0)
		return code;
	codec_init(&codec, params);
	if (posix_memalign(&memory, 64, codec.compress_space + codec.decompress_space + 64) != 0)
		return cram_fail(CRAM_ENOMEM, "no memory for the codec");
	codec_open_space(&codec, memory, &space);
	codec_encode(&codec, &space, page, buffer, &encoded);
	if (encoded.state == CRAM_PAGE_SAME)
		memcpy(form, &encoded.word, sizeof(encoded.word));
	else
		memcpy(form, encoded.form, encoded.length);
	*length = encoded.length;
	free(memory);
	return (int)encoded.state;
}
