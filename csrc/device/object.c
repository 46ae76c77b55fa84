/* SPDX-License-Identifier: MIT
 *
 * object.c - the device object as it is mapped: its parameters, its locks, and what of its page map is there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <unistd.h>

#include "inner.h"

const struct cram_params *device_params(const struct device *device)
{
	return &device->super->geometry.params;
}

void device_lock(struct device *device, struct futex_lock *lock)
{
	if (futex_lock(lock, futex_name(device->client, thread_id()), clients_holder_dead, device->clients))
		atomic_store(&device->super->suspect, 1);
}

uint64_t device_next_data(const struct device *device, uint64_t offset)
{
	off_t data = lseek(device->fd, (off_t)offset, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? UINT64_MAX : offset;
	return (uint64_t)data;
}

uint64_t device_next_used(const struct device *device, uint64_t page)
{
	const struct geometry *geometry = &device->super->geometry;
	uint64_t data = device_next_data(device, geometry->map + page * sizeof(uint64_t));
	uint64_t next = (data - geometry->map) / sizeof(uint64_t);

	return data == UINT64_MAX || next > geometry->pages ? geometry->pages : next;
}
