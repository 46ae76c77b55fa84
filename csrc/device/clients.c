/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "clients.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"

/* How often who waits below the gate asks whether its owner still lives. */
#define GATE_NS 50000000

static char *put_decimal(char *to, uint32_t n)
{
	char digits[12];
	int i = 0;

	do
		digits[i++] = (char)('0' + n % 10);
	while ((n /= 10) > 0);
	while (i > 0)
		*to++ = digits[--i];
	return to;
}

/* What /proc/PID/stat says of a process (proc(5): fields 3, 20 and 22). */
struct process {
	char state;
	uint64_t threads;
	uint64_t start_time;
};

enum process_found { PROCESS_FOUND, PROCESS_GONE, PROCESS_UNKNOWN };

/* Only async-signal-safe calls. What cannot be read (no descriptor free, say) is unknown, not gone. */
static enum process_found process_stat(uint32_t pid, struct process *process)
{
	char path[32] = "/proc/";
	char text[1024];
	const char *at;
	ssize_t n;
	int fd;

	if (kill((pid_t)pid, 0) != 0 && errno == ESRCH)
		return PROCESS_GONE;
	memcpy(put_decimal(path + 6, pid), "/stat", 6);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? PROCESS_GONE : PROCESS_UNKNOWN;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return n < 0 && errno == ESRCH ? PROCESS_GONE : PROCESS_UNKNOWN;
	text[n] = 0;
	at = strrchr(text, ')');
	if (at == NULL || at[1] != ' ')
		return PROCESS_UNKNOWN;
	at += 2;
	process->state = *at;
	for (int field = 4; field <= 22; field++) {
		at = strchr(at, ' ');
		if (at == NULL)
			return PROCESS_UNKNOWN;
		at++;
		if (field == 20)
			process->threads = strtoull(at, NULL, 10);
	}
	process->start_time = strtoull(at, NULL, 10);
	return PROCESS_FOUND;
}

/* Is there a thread tid of process pid? */
static bool thread_lives(uint32_t pid, uint32_t tid)
{
	int saved = errno;
	bool lives = syscall(SYS_tgkill, pid, tid, 0) == 0 || errno != ESRCH;

	errno = saved;
	return lives;
}

/* start_time: 0 when any will do. */
static bool dead(uint32_t pid, uint32_t keeper, uint64_t start_time)
{
	struct process process;
	enum process_found found;
	int saved = errno;

	/* execve(2) ends every other thread, and keeps pid and start time. */
	if (keeper != 0 && !thread_lives(pid, keeper))
		return true;
	found = process_stat(pid, &process);
	errno = saved;
	if (found != PROCESS_FOUND)
		return found == PROCESS_GONE;
	if (start_time != 0 && process.start_time != start_time)
		return true;
	/* A zombie runs no more; but a leader that has ended before its other threads looks like one too. */
	return process.state == 'X' || (process.state == 'Z' && process.threads <= 1);
}

bool process_dead(uint32_t pid, uint32_t keeper)
{
	return dead(pid, keeper, 0);
}

bool client_dead(const struct client *client)
{
	uint32_t pid = atomic_load(&client->pid);

	return pid == 0 || dead(pid, atomic_load(&client->keeper), atomic_load(&client->start_time));
}

bool clients_holder_dead(void *arg, uint32_t word)
{
	const struct clients *clients = arg;
	struct process process;
	enum process_found found;
	int saved = errno;

	if (futex_holder(word) < CLIENTS_MAX) {
		const struct client *client = &clients->table[futex_holder(word)];

		/* The slot may have got a new owner since: he has no such thread. */
		return client_dead(client) || !thread_lives(atomic_load(&client->pid), futex_thread(word));
	}
	found = process_stat(futex_thread(word), &process);
	errno = saved;
	return found == PROCESS_GONE || (found == PROCESS_FOUND && (process.state == 'Z' || process.state == 'X'));
}

void clients_break_lock(struct futex_lock *lock, uint64_t dead)
{
	uint32_t word = atomic_load(&lock->word);

	if (word != 0 && futex_holder(word) < CLIENTS_MAX && (dead >> futex_holder(word) & 1) &&
	    atomic_compare_exchange_strong(&lock->word, &word, 0))
		futex_wake_all(&lock->word);
}

bool clients_can_join(void)
{
	struct process process;

	return process_stat((uint32_t)getpid(), &process) == PROCESS_FOUND;
}

int clients_join(struct clients *clients)
{
	struct process process;

	if (process_stat((uint32_t)getpid(), &process) != PROCESS_FOUND)
		return -2;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		struct client *client = &clients->table[i];

		if (atomic_load(&clients->attached) >> i & 1)
			continue;
		atomic_store(&client->claim_count, 0);
		atomic_store(&client->anonymous, 0);
		atomic_store(&client->make_it_fail, 0);
		atomic_store(&client->anonymous_pages, 0);
		atomic_store(&client->followed, atomic_load(&clients->losses));
		atomic_store(&client->dirty_frames, 0);
		atomic_store(&client->resident_frames, 0);
		atomic_store(&client->faults, 0);
		atomic_store(&client->written_back, 0);
		atomic_store(&client->poison_faults, 0);
		/* Who still waits for the slot's last owner is told to look again. Its lock is the asker's to release. */
		atomic_store(&client->mailbox.result, CRAM_ENOENT);
		atomic_fetch_and(&client->mailbox.request, ~REQUEST_KIND_MASK);
		atomic_store(&client->mailbox.answered, request_number(atomic_load(&client->mailbox.request)));
		for (unsigned j = 0; j < CLAIMS_MAX; j++)
			atomic_store(&client->claims[j].count, 0);
		for (unsigned j = 0; j < PLACES_MAX; j++)
			if (atomic_load(&client->places[j].word) != 0)
				atomic_store(&client->places[j].word, 0);
		atomic_store(&client->keeper, 0);
		atomic_store(&client->start_time, process.start_time);
		atomic_store(&client->pid, (uint32_t)getpid());
		atomic_fetch_or(&clients->attached, 1ull << i);
		return (int)i;
	}
	return -1;
}

bool clients_hand_over(struct clients *clients, unsigned index, uint32_t parent, uint32_t thread, uint32_t child)
{
	struct client *client = &clients->table[index];
	struct process process = { .start_time = 0 };
	uint32_t pid = atomic_load(&client->pid);

	/* The keeper tells this fork's slot from a later one of the same process. */
	if (pid != parent || atomic_load(&client->keeper) != thread)
		return pid == child;
	/* One that is gone already gets a start time that nobody has. */
	process_stat(child, &process);
	atomic_store(&client->start_time, process.start_time);
	atomic_store(&client->keeper, 0);
	atomic_store(&client->pid, child);
	return true;
}

void clients_leave(struct clients *clients, unsigned index)
{
	struct client *client = &clients->table[index];

	atomic_store(&client->claim_count, 0);
	atomic_store(&client->anonymous, 0);
	for (unsigned i = 0; i < CLAIMS_MAX; i++)
		atomic_store(&client->claims[i].count, 0);
	atomic_store(&client->dirty_frames, 0);
	atomic_fetch_and(&clients->attached, ~(1ull << index));
	atomic_store(&client->pid, 0);
}

static uint64_t mapped_pages(const struct client *client)
{
	uint64_t pages = atomic_load(&client->anonymous_pages);

	for (uint32_t i = 0; i < CLAIMS_MAX; i++)
		pages += atomic_load(&client->claims[i].count);
	return pages;
}

size_t clients_list(const struct clients *clients, struct cram_client *list, size_t n)
{
	size_t found = 0;

	for (uint64_t left = atomic_load(&clients->attached); left != 0; left &= left - 1) {
		const struct client *client = &clients->table[__builtin_ctzll(left)];

		if (found++ >= n)
			continue;
		list[found - 1] = (struct cram_client){
			.pid = atomic_load(&client->pid),
			.make_it_fail = atomic_load(&client->make_it_fail),
			.mapped = mapped_pages(client),
			.resident_frames = atomic_load(&client->resident_frames),
			.dirty_frames = atomic_load(&client->dirty_frames),
			.faults = atomic_load(&client->faults),
			.written_back = atomic_load(&client->written_back),
			.poison_faults = atomic_load(&client->poison_faults),
		};
	}
	return found;
}

bool clients_mark(struct clients *clients, uint32_t pid, bool on)
{
	bool found = false;

	for (uint64_t left = atomic_load(&clients->attached); left != 0; left &= left - 1) {
		struct client *client = &clients->table[__builtin_ctzll(left)];

		if (atomic_load(&client->pid) != pid)
			continue;
		atomic_store(&client->make_it_fail, on);
		found = true;
	}
	return found;
}

uint64_t clients_dead(const struct clients *clients)
{
	uint64_t attached = atomic_load(&clients->attached);
	uint64_t dead = 0;

	for (; attached != 0; attached &= attached - 1) {
		unsigned i = (unsigned)__builtin_ctzll(attached);

		if (client_dead(&clients->table[i]))
			dead |= 1ull << i;
	}
	return dead;
}

void client_ring(struct client *client)
{
	atomic_fetch_add(&client->bell, 1);
	futex_wake_all(&client->bell);
}

void clients_ring_all(struct clients *clients)
{
	for (uint64_t left = atomic_load(&clients->attached); left != 0; left &= left - 1)
		client_ring(&clients->table[__builtin_ctzll(left)]);
}

static bool overlaps(const struct claim *claim, uint64_t first, uint64_t count)
{
	uint64_t taken = atomic_load(&claim->count);
	uint64_t from = atomic_load(&claim->first);

	return taken != 0 && first < from + taken && from < first + count;
}

static int owner_of(const struct clients *clients, uint64_t first, uint64_t count)
{
	for (uint64_t left = atomic_load(&clients->attached); left != 0; left &= left - 1) {
		unsigned i = (unsigned)__builtin_ctzll(left);
		const struct client *client = &clients->table[i];
		uint32_t n = atomic_load(&client->claim_count);

		for (uint32_t j = 0; j < n && j < CLAIMS_MAX; j++)
			if (overlaps(&client->claims[j], first, count))
				return (int)i;
	}
	return -1;
}

int clients_owner(const struct clients *clients, uint64_t page)
{
	return owner_of(clients, page, 1);
}

int clients_claim(struct clients *clients, unsigned index, uint64_t first, uint64_t count)
{
	struct client *client = &clients->table[index];

	if (owner_of(clients, first, count) >= 0)
		return -1;
	for (int i = 0; i < (int)CLAIMS_MAX; i++) {
		if (atomic_load(&client->claims[i].count) != 0)
			continue;
		atomic_store(&client->claims[i].first, first);
		atomic_store(&client->claims[i].count, count);
		if (atomic_load(&client->claim_count) < (uint32_t)i + 1)
			atomic_store(&client->claim_count, (uint32_t)i + 1);
		return i;
	}
	return -2;
}

void clients_unclaim(struct clients *clients, unsigned index, int claim)
{
	atomic_store(&clients->table[index].claims[claim].count, 0);
}

/* Sleeps while the gate is up. False: who raised it holds the table's lock no more, being dead. */
static bool wait_below_gate(struct clients *clients)
{
	while (atomic_load(&clients->gate) != 0) {
		uint32_t word;

		if (futex_wait(&clients->gate, 1, GATE_NS))
			continue;
		word = atomic_load(&clients->lock.word);
		if (word == 0 || clients_holder_dead(clients, word))
			return false;
	}
	return true;
}

int place_enter(struct clients *clients, unsigned index, unsigned hint)
{
	struct place *places = clients->table[index].places;
	uint32_t tid = thread_id();

	for (unsigned i = hint % PLACES_MAX, tries = 1;; i = (i + 1) % PLACES_MAX, tries++) {
		uint32_t free = 0;

		if (atomic_compare_exchange_strong(&places[i].word, &free, tid)) {
			/* Seen by who raises the gate, or the gate seen here: both are sequentially consistent. */
			if (atomic_load(&clients->gate) == 0)
				return (int)i;
			atomic_store(&places[i].word, 0);
			if (!wait_below_gate(clients))
				return -1;
		}
		if (tries % PLACES_MAX == 0)
			sleep_ns(20000);
	}
}

void place_leave(struct clients *clients, unsigned index, unsigned place)
{
	atomic_store_explicit(&clients->table[index].places[place].word, 0, memory_order_release);
}

void place_park(struct clients *clients, unsigned index, unsigned place)
{
	atomic_store(&clients->table[index].places[place].word, PLACE_PARKED | thread_id());
}

bool place_unpark(struct clients *clients, unsigned index, unsigned place)
{
	_Atomic uint32_t *word = &clients->table[index].places[place].word;

	for (;;) {
		atomic_store(word, thread_id());
		if (atomic_load(&clients->gate) == 0)
			return true;
		atomic_store(word, PLACE_PARKED | thread_id());
		if (!wait_below_gate(clients))
			return false;
	}
}

static bool client_runs(const struct client *client)
{
	for (unsigned i = 0; i < PLACES_MAX; i++) {
		uint32_t word = atomic_load(&client->places[i].word);

		if (word != 0 && !(word & PLACE_PARKED))
			return true;
	}
	return false;
}

bool client_parked(const struct client *client)
{
	for (unsigned i = 0; i < PLACES_MAX; i++)
		if (atomic_load(&client->places[i].word) & PLACE_PARKED)
			return true;
	return false;
}

bool client_inside(const struct client *client)
{
	return client_runs(client) || client_parked(client);
}

bool places_still(struct clients *clients, uint64_t timeout_ns)
{
	uint64_t deadline = now_ns() + timeout_ns;

	for (uint64_t left = atomic_load(&clients->attached); left != 0; left &= left - 1) {
		const struct client *client = &clients->table[__builtin_ctzll(left)];

		while (client_runs(client) && !client_dead(client)) {
			if (now_ns() > deadline)
				return false;
			sleep_ns(50000);
		}
	}
	return true;
}

void gate_raise(struct clients *clients)
{
	atomic_store(&clients->gate, 1);
}

void gate_lower(struct clients *clients)
{
	atomic_store(&clients->gate, 0);
	futex_wake_all(&clients->gate);
}
