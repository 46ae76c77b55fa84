/* SPDX-License-Identifier: MIT
 *
 * device.h - the hardware: the shared object composed of its leaves, and page operations on it.
 *
 * It knows nothing of mappings, frames and signals of the host: a host that keeps newer copies of pages says so with
 * device_mark_dirty(), and calls these functions as a driver would.
 *
 * A thread works on pages between device_enter() and device_leave(), with all signals blocked, and locks each page it
 * touches. Lock order: page locks (blocking only while none is held; more by trylock) - poison lock - alert lock. The
 * clients' lock is taken only outside, or parked.
 */
#ifndef CRAM_DEVICE_H
#define CRAM_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "alert.h"
#include "clients.h"
#include "codec.h"
#include "cram.h"
#include "dpas.h"
#include "media.h"
#include "pagemap.h"
#include "poison.h"

struct superblock;

/* What this process keeps of an open device. */
struct device {
	int fd;
	uint8_t *base;
	struct superblock *super;
	struct clients *clients;
	struct alert *alert;
	struct poison_list *poison;
	struct pagemap map;
	struct media media;
	struct dpas dpas;
	struct codec codec;
	unsigned client;      /* our slot */
	struct client *self;
	uint8_t *scratch;     /* PLACES_MAX places of scratch_stride bytes */
	size_t scratch_stride;
};

#define DEVICE_BATCH 64u
#define DEVICE_WORK 8192u

/* One thread's stay in the device: its place and private memory. */
struct op {
	struct device *device;
	unsigned place;
	bool ready;
	uint64_t cursor;           /* where its last search for sectors ended */
	struct codec_space space;
	uint8_t *form;             /* CODEC_BUFFER bytes: stored forms */
	uint8_t *page;             /* 4096 bytes: one page */
	uint8_t *batch;            /* DEVICE_BATCH pages, for the host */
	void *work;                /* DEVICE_WORK bytes, for the host: it may run on a small signal stack */
};

int device_create(const char *path, const struct cram_params *params, struct device *device);
int device_open(const char *path, struct device *device);
/* Leaves the device. In a child of fork (forked), only unmaps it. */
void device_close(struct device *device, bool forked);
const struct cram_params *device_params(const struct device *device);

/* Never fails; may wait below the gate. The op is the caller's until device_leave(). */
struct op *device_enter(struct device *device);
void device_leave(struct op *op);

/* Sleeps, parked: whoever this thread waits for may himself wait until all stand at a page boundary. With no page locked. */
void device_nap(struct op *op, uint64_t ns);

void device_lock_page(struct op *op, uint64_t page);
bool device_trylock_page(struct op *op, uint64_t page);
void device_unlock_page(struct op *op, uint64_t page);

/* All of these act on a page that op has locked. */

/* Loads the page's 4096 bytes; bit i of the result: line i is poisoned, and its bytes must not be used. */
uint64_t device_load(struct op *op, uint64_t page, uint8_t *to);
/* Is a line of it poisoned, as far as the page map says? */
bool device_poisoned(const struct op *op, uint64_t page);
/* Stores the page; DIRTY stays as it is. False: no room, and the page is poison now. from must not change meanwhile. */
bool device_store(struct op *op, uint64_t page, const uint8_t *from);
/* The frame with its newest copy is lost with the device's contents: poison. Of a device that is gone it is anyway. */
void device_lose(struct op *op, uint64_t page);
/* Gives its capacity back; the page is EMPTY and clean. */
void device_drop(struct op *op, uint64_t page);
/* A frame is newer than the media, or no more. */
void device_mark_dirty(struct op *op, uint64_t page, bool dirty);
/* Line of a page that no frame holds: CRAM_EBUSY when the poison list is full. */
int device_inject(struct op *op, uint64_t page, unsigned line);
void device_clear(struct op *op, uint64_t page, unsigned line);

/* Anonymous memory. A client's table names the device page of each page of its memory; forks share device pages, as swap
 * entries are shared. A table's entry changes only under the lock of the page that it names, or names then. */

#define DEVICE_NO_PAGE UINT64_MAX
/* Takes a page that nobody has, empty: locked, and referenced once. DEVICE_NO_PAGE: there is none. To be put into the table
 * before the op parks: a rebuild counts the references anew, from the tables. */
uint64_t device_take_page(struct op *op);
/* Lets a reference to the locked page go, with its contents if it was the last one. The entry that named it is gone. */
void device_put_page(struct op *op, uint64_t page);
/* Does another client's table name the page too? */
static inline bool device_shared(const struct op *op, uint64_t page)
{
	return atomic_load(&op->device->dpas.references[page]) > 1;
}
/* Does this client's table of anonymous pages by number (nodes.h) name it? */
static inline bool device_holds(const struct op *op, uint64_t page)
{
	struct dpa_table table = dpas_table(&op->device->dpas, op->device->client);

	return atomic_load(&table.entries[page]) == (uint32_t)page + 1;
}
/* Gives this client a table. CRAM_EBUSY: it has one. */
int device_open_table(struct device *device, struct dpa_table *table);
void device_close_table(struct device *device);
struct device_fork {
	unsigned slot;
	uint32_t parent, thread; /* who forks */
};

/* Could this process fork now? CRAM_EBUSY: no slot is free, of which dead clients have none. CRAM_EIO: /proc is not to be
 * read. */
int device_can_fork(struct device *device);
/* Makes a copy of this client for a child of fork that is about to be: a further slot in this thread's name, whose table
 * names the same pages. CRAM_EBUSY: none is free. Nobody works on the tables meanwhile. */
int device_fork(struct device *device, struct device_fork *fork);
/* In the parent, once it knows: the child's pid. Until then, unless the child has been quicker, the slot's life is that of
 * the thread that forked. */
void device_forked(struct device *device, const struct device_fork *fork, uint32_t child);
/* In the child: from now on device is the client of that slot. CRAM_EFORKED: its parent has died, and others have freed it
 * meanwhile; the memory is lost. */
int device_become(struct device *device, const struct device_fork *fork, struct dpa_table *table);

/* Does another client own the page, or anonymous memory? Exact while op holds the page's lock. */
bool device_foreign(struct op *op, uint64_t page);
void device_count_refused(struct device *device);

/* These need no op, and must not be called within one. Signals blocked. */

int device_claim(struct device *device, uint64_t first, uint64_t count, int *claim);
void device_unclaim(struct device *device, int claim);
int device_rebuild(struct device *device);
int device_reap(struct device *device, uint32_t *dead);
int device_set_thresholds(struct device *device, uint64_t low_remaining, uint64_t high_remaining,
			  uint32_t low_ratio, uint32_t high_ratio);
/* Does a fault strike now that is of no page: the driver's (CRAM_FAULT_ALLOC to CRAM_FAULT_TRIM_FULL), or of the registers? */
bool device_fault(struct device *device, enum cram_fault fault);
/* Has the ring tell that this process has met the page's poison. */
void device_consumed(struct device *device, uint64_t page);
/* CRAM_EINVAL, naming the attribute: nothing has changed. */
int device_set_fault(struct device *device, enum cram_fault fault, const struct cram_fault_attr *attr);
/* Compares the levels with the thresholds and raises what is due. */
void device_evaluate_alerts(struct device *device);
/* Is it gone? Once it is, it stays so: nothing is stored any more, every line of every page is poisoned, and registers do not
 * answer; bookkeeping (who has which page) goes on, so that hosts can let go. */
bool device_removed(const struct device *device);
/* CRAM_ENODEV when it is. */
int device_check_removed(const struct device *device);
/* Has a fault of the device as a whole strike now: CRAM_EINVAL for another one. A reset may fail as a rebuild may. Other clients'
 * frames follow: see device_await_followers(). */
int device_strike(struct device *device, enum cram_fault fault);
/* Waits until the frames of all clients have followed what the device lost. CRAM_ETIMEDOUT: somebody's have not yet. */
int device_await_followers(struct device *device);
/* Asks the client that owns the line at dpa to carry out a request, and waits for its answer. CRAM_ENOENT: nobody else
 * owns it (any more). CRAM_ETIMEDOUT: withdrawn, unless the owner had begun with it. */
int device_request(struct device *device, enum request_kind kind, uint64_t dpa);

struct request {
	uint32_t number;
	enum request_kind kind;
	uint64_t dpa;
};

/* The owner's side: takes the request that waits, if one does; the owner answers it. */
bool device_take_request(struct device *device, struct request *request);
void device_answer(struct device *device, uint32_t number, int result);
/* The first page at or after this one that the page map may hold something of; the number of pages when none. */
uint64_t device_next_used(const struct device *device, uint64_t page);

/* The index, in this client's table, of the first entry from this one on that may name a page. */
uint64_t device_next_entry(const struct device *device, const _Atomic uint32_t *entry);

/* In an op, so that no rebuild is half done. Observed: as they are, whatever faults have them tell. */
int device_read_registers(const struct op *op, struct cram_registers *registers);
void device_observe(const struct op *op, struct cram_registers *registers);
size_t device_poison_list(struct device *device, struct cram_poison_record *records, size_t n);
void device_page_info(struct op *op, uint64_t page, struct cram_page_info *info);

#endif
