/* SPDX-License-Identifier: MIT
 *
 * nodes.h - compressed devices as memory nodes: which of them takes a page, and what its driver is told when the page is
 * free again.
 *
 * It does not know whose page it is, nor where else it could go. The data plane tells nothing: a page that a device had no
 * room for is taken all the same, and its next reader meets poison. All functions but those that add and remove are
 * async-signal-safe. Callers are in an op of the home device (zswap.h), which may be the node itself.
 */
#ifndef CRAM_NODES_H
#define CRAM_NODES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "board.h"
#include "cram.h"
#include "device/device.h"

#define NODES_MAX ((unsigned)CRAM_NODES_MAX)
#define NODE_NONE 0xffu
/* Device pages that the driver has approved of in advance, at most. */
#define NODE_STOCK 1024u
/* Pages that wait to be trimmed, at most. */
#define NODE_TRIMS 4096u

enum node_state { NODE_FREE, NODE_ONLINE, NODE_LEAVING };

struct page_stack {
	struct futex_lock lock;
	_Atomic uint32_t count;
	uint32_t pages[NODE_TRIMS];
};

struct node {
	_Atomic uint32_t state;       /* enum node_state */
	struct cram_device *handle;
	struct device *device;
	struct dpa_table table;       /* ours on that device: entry i names page i or none */
	struct cram_node_params params;
	struct node_view *view;       /* on the manager's board */
	struct page_stack stock;      /* approved of */
	struct page_stack trims;      /* freed, to be trimmed */
	_Atomic uint64_t stored;      /* pages */
	_Atomic uint64_t promoted, poisoned;
	_Atomic uint64_t refused[CRAM_REFUSALS];
	_Atomic uint64_t approved, unapproved;
	_Atomic uint64_t trims_done, trims_deferred, trims_full, trims_busy;
};

/* Whether the node takes a page now: CRAM_TAKEN, or why not. It is counted. */
enum cram_refusal node_may_take(struct node *node);
/* Copies a page to a device page of its own: its number, or DEVICE_NO_PAGE, which is counted: the node is full, or its driver, who
 * approves of pages, has not approved of one. unasked: this does not wait for him. */
uint64_t node_store(struct node *node, struct op *home, const uint8_t *page, bool unasked);
/* copy_mc_to_kernel(): the poisoned lines, whose bytes must not be used. */
uint64_t node_load(struct node *node, struct op *home, uint64_t dpa, uint8_t *to);
/* Poisons a line of it (device_inject()). Not 0: the poison list is full. */
int node_poison(struct node *node, struct op *home, uint64_t dpa, unsigned line);
bool node_poisoned(struct node *node, uint64_t dpa);
/* Bytes of media that the device page takes, as the device answers. */
uint32_t node_size(struct node *node, struct op *home, uint64_t dpa);
/* The page is free: the driver trims it now or later. The caller takes it off `stored`. */
void node_release(struct node *node, struct op *home, uint64_t dpa);
/* Trims what waits to be, until the driver puts one off: how many. */
uint64_t node_flush_trims(struct node *node, struct op *home);

/* Device pages to ask the driver for, which hold nothing yet: at most n, how many. */
uint32_t node_offer(struct node *node, struct op *home, uint64_t *dpas, uint32_t n);
/* Is that device page one of ours there? */
static inline bool node_has(const struct node *node, uint64_t dpa)
{
	return dpa < node->device->map.pages && atomic_load(&node->table.entries[dpa]) == (uint32_t)dpa + 1;
}
/* His answers: 0, or why not, a negative errno. What is refused, and what the stock has no room for, goes back. */
void node_answer(struct node *node, struct op *home, const uint64_t *dpas, const int32_t *answers, uint32_t n);

/* Takes a device in, which stays open until node_close(). CRAM_EBUSY: it has anonymous memory of this client already. */
int node_open(struct node *node, struct cram_device *handle, const struct cram_node_params *params, struct node_view *view);
/* In a child of fork that has taken the home device over, which is the node: its table there. Nobody else works on it. */
void node_forked(struct node *node, struct dpa_table table);
/* Gives back what nobody's page is in, when no page is stored there any more. The table is the caller's to close. */
void node_close(struct node *node, struct op *home);

#endif
