/* SPDX-License-Identifier: MIT */
#include "nodes.h"

#include <string.h>

#include "visit.h"

/* ---- on the node's device -------------------------------------------------------------------------------- */

/* Where the home device is the node, its op is the one to use: a second one could wait for the first. */
static struct op *enter(struct node *node, struct op *home)
{
	return home->device == node->device ? home : device_enter(node->device);
}

static void leave(struct op *op, const struct op *home)
{
	if (op != home)
		device_leave(op);
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static bool push(struct page_stack *stack, uint32_t room, uint64_t dpa)
{
	bool pushed;

	futex_lock_private(&stack->lock);
	pushed = atomic_load(&stack->count) < room;
	if (pushed)
		stack->pages[atomic_fetch_add(&stack->count, 1)] = (uint32_t)dpa;
	futex_unlock(&stack->lock);
	return pushed;
}

static uint64_t pop(struct page_stack *stack)
{
	uint64_t dpa = DEVICE_NO_PAGE;

	if (atomic_load_explicit(&stack->count, memory_order_relaxed) == 0)
		return dpa;
	futex_lock_private(&stack->lock);
	if (atomic_load(&stack->count) > 0)
		dpa = stack->pages[atomic_fetch_sub(&stack->count, 1) - 1];
	futex_unlock(&stack->lock);
	return dpa;
}

/* A new device page, locked, and named by our table before anybody can recount. */
static uint64_t take(struct node *node, struct op *op)
{
	uint64_t dpa = device_take_page(op);

	if (dpa != DEVICE_NO_PAGE)
		atomic_store(&node->table.entries[dpa], (uint32_t)dpa + 1);
	return dpa;
}

static void put(struct node *node, struct op *op, uint64_t dpa)
{
	device_lock_page(op, dpa);
	atomic_store(&node->table.entries[dpa], 0);
	device_put_page(op, dpa);
	device_unlock_page(op, dpa);
}

static void trim(struct node *node, struct op *op, uint64_t dpa)
{
	put(node, op, dpa);
	count(&node->trims_done, 1);
}

/* ---- allocation ------------------------------------------------------------------------------------------ */

static enum cram_refusal check(const struct node *node)
{
	const struct alert *registers = node->device->alert;
	uint32_t pressure = atomic_load_explicit(&node->view->pressure, memory_order_relaxed);
	uint64_t stored = atomic_load_explicit(&node->stored, memory_order_relaxed);
	bool live = node->params.live_registers;

	/* A link that goes down is no register: the host hears of it at once. */
	if (device_removed(node->device))
		return CRAM_REFUSED_GONE;
	if (live && atomic_load_explicit(&registers->pressure, memory_order_relaxed) > pressure)
		pressure = atomic_load_explicit(&registers->pressure, memory_order_relaxed);
	if (atomic_load_explicit(&node->view->no_alloc, memory_order_relaxed) ||
	    (live && atomic_load_explicit(&registers->no_alloc, memory_order_relaxed)))
		return CRAM_REFUSED_NO_ALLOC;
	if (!atomic_load_explicit(&node->view->allowed, memory_order_relaxed))
		return CRAM_REFUSED_VERDICT;
	/* Pressure leaves so much less of the node to us; at its maximum, nothing. */
	if (pressure > 0 && stored * 1000 >= node->device->map.pages * (1000 - pressure))
		return CRAM_REFUSED_PRESSURE;
	return CRAM_TAKEN;
}

enum cram_refusal node_may_take(struct node *node)
{
	enum cram_refusal why = check(node);

	/* What the driver answers wrongly: of a device that is gone there is no driver. */
	if (why == CRAM_TAKEN && device_fault(node->device, CRAM_FAULT_ALLOC))
		why = CRAM_REFUSED_CALLBACK;
	else if (why != CRAM_TAKEN && why != CRAM_REFUSED_GONE && device_fault(node->device, CRAM_FAULT_UNSAFE))
		why = CRAM_TAKEN;
	if (why != CRAM_TAKEN)
		count(&node->refused[why], 1);
	return why;
}

uint64_t node_store(struct node *node, struct op *home, const uint8_t *page, bool unasked)
{
	uint64_t dpa = pop(&node->stock);
	struct op *op;

	if (dpa == DEVICE_NO_PAGE && node->params.approves && !unasked) {
		count(&node->refused[CRAM_REFUSED_CALLBACK], 1);
		return DEVICE_NO_PAGE;
	}
	op = enter(node, home);
	if (dpa != DEVICE_NO_PAGE)
		device_lock_page(op, dpa);
	else
		dpa = take(node, op);
	if (dpa != DEVICE_NO_PAGE) {
		/* A posted write: whether the device had room for it, a host does not hear. */
		device_store(op, dpa, page);
		device_unlock_page(op, dpa);
		count(&node->stored, 1);
	} else {
		count(&node->refused[CRAM_REFUSED_FULL], 1);
	}
	leave(op, home);
	return dpa;
}

uint32_t node_offer(struct node *node, struct op *home, uint64_t *dpas, uint32_t n)
{
	uint32_t room = NODE_STOCK - atomic_load(&node->stock.count), found = 0;
	struct op *op = enter(node, home);

	while (found < n && found < room && (dpas[found] = take(node, op)) != DEVICE_NO_PAGE)
		device_unlock_page(op, dpas[found++]);
	leave(op, home);
	return found;
}

void node_answer(struct node *node, struct op *home, const uint64_t *dpas, const int32_t *answers, uint32_t n)
{
	struct op *op = enter(node, home);

	for (uint32_t i = 0; i < n; i++) {
		if (answers[i] == 0 && push(&node->stock, NODE_STOCK, dpas[i])) {
			count(&node->approved, 1);
			continue;
		}
		if (answers[i] != 0) {
			count(&node->unapproved, 1);
			count(&node->refused[CRAM_REFUSED_CALLBACK], 1);
		}
		put(node, op, dpas[i]);
	}
	leave(op, home);
}

/* ---- a page that is there -------------------------------------------------------------------------------- */

uint64_t node_load(struct node *node, struct op *home, uint64_t dpa, uint8_t *to)
{
	struct op *op = enter(node, home);
	uint64_t lines;

	device_lock_page(op, dpa);
	lines = device_load(op, dpa, to);
	device_unlock_page(op, dpa);
	leave(op, home);
	return lines;
}

int node_poison(struct node *node, struct op *home, uint64_t dpa, unsigned line)
{
	struct op *op = enter(node, home);
	int code;

	device_lock_page(op, dpa);
	code = device_inject(op, dpa, line);
	device_unlock_page(op, dpa);
	leave(op, home);
	return code;
}

bool node_poisoned(struct node *node, uint64_t dpa)
{
	const struct op asking = { .device = node->device };

	return device_poisoned(&asking, dpa);
}

uint32_t node_size(struct node *node, struct op *home, uint64_t dpa)
{
	struct op *op = enter(node, home);
	struct cram_page_info info;

	device_lock_page(op, dpa);
	device_page_info(op, dpa, &info);
	device_unlock_page(op, dpa);
	leave(op, home);
	return info.sectors * node->device->media.sector_size;
}

void node_release(struct node *node, struct op *home, uint64_t dpa)
{
	struct op *op = enter(node, home);
	/* Asked only where the page can wait: what nobody remembers would never be trimmed. */
	bool busy = atomic_load(&node->trims.count) < NODE_TRIMS && device_fault(node->device, CRAM_FAULT_TRIM_BUSY);
	bool full = !busy && node->params.trim_buffer > 0 && device_fault(node->device, CRAM_FAULT_TRIM_FULL);
	uint32_t room = busy ? NODE_TRIMS : node->params.trim_buffer;

	if (room > 0 && !full && push(&node->trims, room, dpa)) {
		count(busy ? &node->trims_busy : &node->trims_deferred, 1);
	} else {
		/* No room to defer it: it is freed here and now. */
		if (room > 0)
			count(&node->trims_full, 1);
		trim(node, op, dpa);
	}
	leave(op, home);
}

uint64_t node_flush_trims(struct node *node, struct op *home)
{
	uint32_t waiting = atomic_load_explicit(&node->trims.count, memory_order_relaxed);
	uint64_t flushed = 0, dpa;
	struct op *op;

	if (waiting == 0)
		return 0;
	op = enter(node, home);
	while (waiting-- > 0 && (dpa = pop(&node->trims)) != DEVICE_NO_PAGE) {
		if (device_fault(node->device, CRAM_FAULT_TRIM_BUSY) && push(&node->trims, NODE_TRIMS, dpa)) {
			count(&node->trims_busy, 1);
			break;
		}
		trim(node, op, dpa);
		flushed++;
	}
	leave(op, home);
	return flushed;
}

/* ---- coming and going ------------------------------------------------------------------------------------ */

int node_open(struct node *node, struct cram_device *handle, const struct cram_node_params *params, struct node_view *view)
{
	struct dpa_table table;
	int code = device_check_removed(&handle->device);

	if (code == 0)
		code = device_open_table(&handle->device, &table);
	if (code != 0)
		return code;
	memset(node, 0, sizeof(*node));
	node->table = table;
	atomic_fetch_add(&handle->used_as_node, 1);
	node->handle = handle;
	node->device = &handle->device;
	node->params = *params;
	node->view = view;
	atomic_store(&node->state, NODE_ONLINE);
	return 0;
}

void node_forked(struct node *node, struct dpa_table table)
{
	node->table = table;
	atomic_store(&node->stock.lock.word, 0);
	atomic_store(&node->trims.lock.word, 0);
}

void node_close(struct node *node, struct op *home)
{
	uint64_t dpa;
	struct op *op = enter(node, home);

	while ((dpa = pop(&node->stock)) != DEVICE_NO_PAGE)
		put(node, op, dpa);
	/* Whatever the driver says: he goes too. */
	while ((dpa = pop(&node->trims)) != DEVICE_NO_PAGE)
		trim(node, op, dpa);
	leave(op, home);
}
