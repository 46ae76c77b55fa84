/* SPDX-License-Identifier: MIT
 *
 * clients.h - who has the device open, which ranges they have mapped, and where each of their threads stands.
 *
 * It does not know what a mapping is, nor how a request is carried out; the host does. Everything here lies in the
 * device object. A client is a slot in the table: its process, that process's start time (so that a reused pid is
 * not taken for it), a bell to sleep on, a mailbox, its claims, and its threads' places.
 *
 * A place is where one thread stands while it changes the device: running, or parked at a page boundary. Who must see
 * the device still (rebuild) raises the gate and waits until nobody runs; entering is one compare-and-swap in a cache
 * line of one's own.
 */
#ifndef CRAM_CLIENTS_H
#define CRAM_CLIENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cram.h"
#include "futex.h"

#define CLIENTS_MAX 64u
#define CLAIMS_MAX 16u
#define PLACES_MAX 64u
/* What a process calls itself in a lock word before it has a slot: its thread alone names it. */
#define CLIENT_JOINING 511u

/* A thread's place: 0 free, its tid while it runs, with PLACE_PARKED while it is parked. */
#define PLACE_PARKED 0x80000000u
struct place {
	_Alignas(64) _Atomic uint32_t word;
};

/* A mapped range, in pages; count 0: free. */
struct claim {
	_Atomic uint64_t first;
	_Atomic uint64_t count;
};

enum request_kind { REQUEST_NONE = 0, REQUEST_INJECT = 1, REQUEST_CLEAR = 2 };

/* A request in one word, so that nobody reads the half of one and the half of the next: the kind, from bit 0; the line
 * (dpa / 64); and its number, from REQUEST_NUMBER_SHIFT. Who takes or withdraws it replaces the kind by none. */
#define REQUEST_KIND_MASK 3ull
#define REQUEST_LINE_SHIFT 2
#define REQUEST_LINE_MASK ((1ull << 34) - 1)
#define REQUEST_NUMBER_SHIFT 36
#define REQUEST_NUMBER_MASK ((1u << 28) - 1)

/* One request at a time; the asker holds the lock from asking until it has read the answer, or withdrawn. */
struct mailbox {
	struct futex_lock lock;
	_Atomic uint64_t request;  /* the newest */
	_Atomic uint32_t answered; /* number of the newest answer; a futex */
	_Atomic int32_t result;
};

static inline uint32_t request_number(uint64_t request)
{
	return (uint32_t)(request >> REQUEST_NUMBER_SHIFT);
}

struct client {
	_Alignas(64) _Atomic uint32_t pid; /* 0: free slot */
	_Atomic uint64_t start_time;       /* clock ticks after boot, /proc/PID/stat */
	_Atomic uint32_t keeper;           /* a thread that lives as long as the client; 0: not yet, or no more */
	_Atomic uint32_t bell;             /* a futex: rung for events, requests, dirty frames, the end */
	_Atomic uint32_t claim_count;      /* claims in use lie below this */
	_Atomic uint32_t anonymous;        /* 1: it has a table of device pages */
	_Atomic uint32_t make_it_fail;     /* 1: faults with a task filter strike it */
	_Atomic uint64_t anonymous_pages;  /* that its table names */
	_Atomic uint32_t followed;         /* losses (below) that its frames have followed. A futex */
	_Alignas(64) _Atomic uint64_t dirty_frames;
	_Atomic uint64_t resident_frames;
	_Atomic uint64_t faults;           /* answered since it came */
	_Atomic uint64_t written_back;     /* pages, since it came */
	_Atomic uint64_t poison_faults;    /* accesses that met poison, since it came */
	struct mailbox mailbox;
	struct claim claims[CLAIMS_MAX];
	struct place places[PLACES_MAX];
};

struct clients {
	_Alignas(64) _Atomic uint64_t attached; /* bit i: slot i is taken */
	_Atomic uint32_t gate;                  /* 1: raised. A futex */
	_Atomic uint32_t losses;                /* times that the device has lost its contents, and so frames are to go */
	struct futex_lock lock;                 /* the table, the claims, the gate, and recovery */
	struct client table[CLIENTS_MAX];
};

/* Has the process ended, as a zombie has; or, where it had such a thread (keeper, 0: not known), executed another program?
 * Async-signal-safe. */
bool process_dead(uint32_t pid, uint32_t keeper);
/* Is the client gone: its process, or, after execve(2), just what it was? A free slot is dead. Async-signal-safe. */
bool client_dead(const struct client *client);
/* Is whom a lock word names gone? arg is the struct clients: a futex_dead_fn. */
bool clients_holder_dead(void *arg, uint32_t word);
/* Is one of its threads inside; is one parked there? */
bool client_inside(const struct client *client);
bool client_parked(const struct client *client);
/* Opens a lock whose holder is among the clients of a mask, which are dead: their slots are about to be free, and the
 * word would name a newcomer. */
void clients_break_lock(struct futex_lock *lock, uint64_t dead);
/* Can this process be told by its number and start time, as who joins must? Not where descriptors are used up, or /proc is
 * missing. */
bool clients_can_join(void);
/* Takes a free slot for this process; its index, -1 when there is none, or -2 when /proc/self/stat cannot be read.
 * Under the lock. */
int clients_join(struct clients *clients);
/* Makes a slot that this thread has joined for a child of fork the child's. Under the lock; by the parent, who knows the
 * pid, or the child: twice is fine. False: it is not there any more. parent: whose it was, with the thread as keeper. */
bool clients_hand_over(struct clients *clients, unsigned index, uint32_t parent, uint32_t thread, uint32_t child);
/* Frees a slot. Under the lock. */
void clients_leave(struct clients *clients, unsigned index);
/* Those attached, at most n of them, with `mapped` in pages; returns how many there are. Their counters move on. */
size_t clients_list(const struct clients *clients, struct cram_client *list, size_t n);
/* Marks all of a process's clients for faults with a task filter, or no more. False: it has none. */
bool clients_mark(struct clients *clients, uint32_t pid, bool on);
/* Bit i: slot i is taken, but its process is gone. */
uint64_t clients_dead(const struct clients *clients);
/* Wakes the client's sleepers. */
void client_ring(struct client *client);
void clients_ring_all(struct clients *clients);

/* Have all frames of a living client followed the device's losses? */
static inline bool client_followed(const struct clients *clients, const struct client *client)
{
	return atomic_load(&client->followed) == atomic_load(&clients->losses);
}

/* Claims [first, first + count) pages for a client: its claim's index, or -1 when a part is taken by anybody, or -2
 * when it has CLAIMS_MAX already. Under the lock. */
int clients_claim(struct clients *clients, unsigned index, uint64_t first, uint64_t count);
void clients_unclaim(struct clients *clients, unsigned index, int claim);
/* The client that has the page mapped, or -1. Needs no lock, but is a firm answer only under the page's lock bit: a
 * claim is made before its first page is locked. */
int clients_owner(const struct clients *clients, uint64_t page);
/* The same, asking only for others than index: the data plane's question. */
static inline bool clients_foreign(const struct clients *clients, unsigned index, uint64_t page)
{
	if (atomic_load_explicit(&clients->attached, memory_order_acquire) == 1ull << index)
		return false;
	int owner = clients_owner(clients, page);

	return owner >= 0 && owner != (int)index;
}

/* Takes a place near hint, waiting below a raised gate; its index, or -1 when the gate's owner is dead: then nobody
 * will lower it, and the caller must rebuild. */
int place_enter(struct clients *clients, unsigned index, unsigned hint);
void place_leave(struct clients *clients, unsigned index, unsigned place);
/* Parks: the thread may wait for long, what it holds is whole. Unparking waits below a raised gate; false: still
 * parked, the gate's owner is dead. */
void place_park(struct clients *clients, unsigned index, unsigned place);
bool place_unpark(struct clients *clients, unsigned index, unsigned place);
/* Waits until no thread of a living client runs; false after timeout_ns. With the gate raised. */
bool places_still(struct clients *clients, uint64_t timeout_ns);
void gate_raise(struct clients *clients);
void gate_lower(struct clients *clients);

#endif
