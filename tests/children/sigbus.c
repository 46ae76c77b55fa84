/* SPDX-License-Identifier: MIT
 *
 * sigbus.c - a program with a SIGBUS handler of its own, or without, that touches a poisoned page.
 *
 *   sigbus DELIVERY HANDLER WHEN ACCESS OFFSET
 *
 * HANDLER is a row of the table below, and prints what it is told. WHEN it is installed: before the mapping, or after
 * it and before a flush, a map or a writeback; twice: after it, and once more, each before a flush. ACCESS, in a
 * thread of its own:
 *
 *   read, write  at OFFSET of a page whose first line is poisoned
 *   often        a thousand reads of it
 *   together     10,000 reads by OFFSET threads at once, each of a page that is newly poisoned
 *   file, sent   a SIGBUS that has nothing to do with the device
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

#define POISONED 5u /* the page that has the poison */
#define DIRTY 100u
#define INTACT 200u /* one that has not, and is not resident when a handler looks at it */
#define VALUE 0x5a
#define ROUNDS 1000u
#define SWEEPS 100u
#define SWEEP 100u /* pages that are poisoned anew in each */

static cram_device *device;
static cram_map *map;
static volatile uint8_t *memory;
static volatile uint8_t *origin; /* what offsets are told from */
static _Thread_local sigjmp_buf escape;
static pid_t toucher;
static struct sigaction before_us; /* what the program's handler replaced */

static pid_t thread(void)
{
	return (pid_t)syscall(SYS_gettid);
}

/* ---- handlers ------------------------------------------------------------------------------------------- */

/* Who is told again and again goes round in circles. */
static void tell(const char *who, const siginfo_t *info)
{
	static int told;

	if (++told > 10)
		_exit(4);
	printf("{\"who\": \"%s\", \"signal\": %d, \"code\": %d, \"offset\": %td, \"lsb\": %d, ", who, info->si_signo,
	       info->si_code, (uint8_t *)info->si_addr - (uint8_t *)origin, info->si_addr_lsb);
	printf("\"own_thread\": %s}\n", thread() == toucher ? "true" : "false");
	fflush(stdout);
}

static void jump(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	tell("program", info);
	siglongjmp(escape, 1);
}

static void jump_silently(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	(void)context;
	siglongjmp(escape, 1);
}

static void jump_plain(int number)
{
	printf("{\"who\": \"plain\", \"signal\": %d, \"own_thread\": %s}\n", number,
	       thread() == toucher ? "true" : "false");
	fflush(stdout);
	siglongjmp(escape, 1);
}

/* Goes on to the handler that it replaced, as well-behaved ones do. */
static void chain(int number, siginfo_t *info, void *context)
{
	tell("chain", info);
	if (before_us.sa_flags & SA_SIGINFO)
		before_us.sa_sigaction(number, info, context);
	else
		_exit(4);
}

/* Puts back what it replaced and has the access tried again, as faulthandler does. */
static void restore(int number, siginfo_t *info, void *context)
{
	(void)context;
	tell("restore", info);
	sigaction(number, &before_us, NULL);
}

/* The same, raising the signal by itself. */
static void restore_and_raise(int number, siginfo_t *info, void *context)
{
	restore(number, info, context);
	raise(number);
}

static void repair(int number, siginfo_t *info, void *context)
{
	uint8_t page[PAGE];

	(void)number;
	(void)context;
	tell("repair", info);
	memset(page, VALUE, sizeof(page));
	cram_write_page(device, POISONED * PAGE, page);
}

/* Looks at another page of the mapping from inside the handler. */
static void look(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	tell("look", info);
	printf("{\"intact\": %d}\n", memory[INTACT * PAGE + 7]);
	fflush(stdout);
	siglongjmp(escape, 1);
}

static const struct row {
	const char *name;
	struct sigaction action;
} rows[] = {
	{ "default", { .sa_handler = SIG_DFL } },
	{ "ignore", { .sa_handler = SIG_IGN } },
	{ "siginfo", { .sa_sigaction = jump, .sa_flags = SA_SIGINFO } },
	{ "silent", { .sa_sigaction = jump_silently, .sa_flags = SA_SIGINFO } },
	{ "plain", { .sa_handler = jump_plain } },
	{ "reset", { .sa_sigaction = jump, .sa_flags = SA_SIGINFO | SA_RESETHAND } },
	{ "nodefer", { .sa_sigaction = jump, .sa_flags = SA_SIGINFO | SA_NODEFER } },
	{ "chain", { .sa_sigaction = chain, .sa_flags = SA_SIGINFO } },
	{ "restore", { .sa_sigaction = restore, .sa_flags = SA_SIGINFO } },
	{ "restore_and_raise", { .sa_sigaction = restore_and_raise, .sa_flags = SA_SIGINFO | SA_NODEFER } },
	{ "repair", { .sa_sigaction = repair, .sa_flags = SA_SIGINFO } },
	{ "look", { .sa_sigaction = look, .sa_flags = SA_SIGINFO } },
};

static const struct sigaction *action_named(const char *name)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (strcmp(rows[i].name, name) == 0)
			return &rows[i].action;
	fprintf(stderr, "no handler %s\n", name);
	exit(3);
}

/* ---- the program ---------------------------------------------------------------------------------------- */

/* A device with contents, all of it in the media, and one poisoned line. */
static void prepare(void)
{
	uint8_t page[PAGE];

	device = create(NULL, 1 << 20, 1 << 20);
	memset(page, VALUE, sizeof(page));
	cram_write_page(device, POISONED * PAGE, page);
	cram_write_page(device, INTACT * PAGE, page);
	must("cram_inject_poison", cram_inject_poison(device, POISONED * PAGE));
}

/* SIGBUS for others' reasons: beyond the end of a file, and sent. */
static void others_reasons(const char *access)
{
	int fd = memfd_create("short", 0);
	volatile uint8_t *nothing = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);

	origin = nothing;
	if (strcmp(access, "file") == 0)
		printf("{\"value\": %d}\n", nothing[1234]);
	else
		raise(SIGBUS);
}

static void *touch(void *argument)
{
	char **argv = argument;
	volatile uint8_t *at = memory + POISONED * PAGE + atoi(argv[5]);

	toucher = thread();
	if (strcmp(argv[4], "file") == 0 || strcmp(argv[4], "sent") == 0) {
		others_reasons(argv[4]);
	} else if (strcmp(argv[4], "write") == 0) {
		*at = 1;
		printf("{\"value\": %d}\n", *at);
	} else {
		printf("{\"value\": %d}\n", *at);
	}
	fflush(stdout);
	return NULL;
}

static void *touch_and_escape(void *argument)
{
	if (sigsetjmp(escape, 1) == 0)
		touch(argument);
	return NULL;
}

static void touch_often(void)
{
	volatile int caught = 0;

	for (volatile unsigned i = 0; i < ROUNDS; i++) {
		if (sigsetjmp(escape, 1) == 0)
			(void)memory[POISONED * PAGE + i];
		else
			caught++;
	}
	printf("{\"caught\": %d}\n", caught);
}

static pthread_barrier_t sweep;
static _Atomic unsigned arrived[SWEEPS * SWEEP], caught_together;
static unsigned together;

/* Awake, so that all come close to one instant; and then so far apart that now this, now that falls between. */
static void meet(unsigned round, uint64_t apart)
{
	atomic_fetch_add(&arrived[round], 1);
	for (unsigned i = 0; atomic_load(&arrived[round]) < together; i++)
		if (i % 4096 == 4095)
			sched_yield();
	for (volatile uint64_t i = 0; i < apart; i++)
		;
}

static void *touch_together(void *argument)
{
	const uint64_t seed = (uintptr_t)argument << 32;

	for (volatile unsigned i = 0; i < SWEEPS * SWEEP; i++) {
		if (i % SWEEP == 0)
			pthread_barrier_wait(&sweep);
		meet(i, mix(seed + i) % 400);
		if (sigsetjmp(escape, 1) == 0)
			(void)memory[i % SWEEP * PAGE];
		else
			atomic_fetch_add(&caught_together, 1);
		if (i % SWEEP == SWEEP - 1)
			pthread_barrier_wait(&sweep);
	}
	return NULL;
}

static void touch_at_once(unsigned count)
{
	pthread_t threads[16];

	if (count > 16)
		exit(3);
	together = count;
	pthread_barrier_init(&sweep, NULL, count + 1);
	for (uintptr_t i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, touch_together, (void *)i) != 0)
			exit(3);
	for (unsigned i = 0; i < SWEEPS; i++) {
		cram_discard(device, 0, SWEEP * PAGE);
		for (unsigned page = 0; page < SWEEP; page++)
			must("cram_inject_poison", cram_inject_poison(device, page * PAGE));
		pthread_barrier_wait(&sweep);
		pthread_barrier_wait(&sweep);
	}
	for (unsigned i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("{\"caught\": %u}\n", caught_together);
}

/* Installs the program's handler over ours, and does what has ours put back in front. */
static void install_after(const struct sigaction *action, const char *when)
{
	struct cram_map_stats stats;
	uint8_t page[PAGE];

	sigaction(SIGBUS, action, &before_us);
	if (strcmp(when, "map") == 0) {
		cram_device *other = create(NULL, 1 << 20, 1 << 20);

		cram_unmap(map_all(other, CRAM_MONITOR, 64 << 10, 0));
		return;
	}
	if (strcmp(when, "writeback") != 0) {
		must("cram_flush", cram_flush(map, 0, 0));
		return;
	}
	/* The page is resident: no fault, which under inline delivery would meet the program's handler. */
	memset(page, VALUE, sizeof(page));
	do {
		cram_write_page(device, DIRTY * PAGE, page);
		cram_map_read_stats(map, &stats);
	} while (stats.handler_restored == 0);
}

static void run(void *(*function)(void *), char **argv)
{
	pthread_t t;

	if (pthread_create(&t, NULL, function, argv) != 0)
		exit(3);
	pthread_join(t, NULL);
}

int main(int argc, char **argv)
{
	const struct sigaction *action = argc == 6 ? action_named(argv[2]) : NULL;
	const char *when = argv[3];
	struct cram_map_stats stats;

	if (action == NULL)
		return 3;
	/* Who goes round in circles, even with all signals blocked, is ended. */
	setrlimit(RLIMIT_CPU, &(struct rlimit){ 20, 20 });
	if (strcmp(when, "before") == 0) {
		/* What a handler that chains comes upon. */
		sigaction(SIGBUS, &(struct sigaction){ .sa_sigaction = jump, .sa_flags = SA_SIGINFO }, NULL);
		sigaction(SIGBUS, action, &before_us);
	}
	prepare();
	map = map_all(device, delivery_named(argv[1]), 64 << 10, strcmp(when, "writeback") == 0);
	memory = origin = cram_map_address(map);
	memory[DIRTY * PAGE] = VALUE;
	if (strcmp(when, "before") != 0)
		install_after(action, when);
	if (strcmp(when, "twice") == 0)
		install_after(action, when);
	if (strcmp(argv[4], "often") == 0)
		touch_often();
	else if (strcmp(argv[4], "together") == 0)
		touch_at_once((unsigned)atoi(argv[5]));
	else
		run(touch_and_escape, argv);
	if (strcmp(argv[2], "reset") == 0)
		run(touch_and_escape, argv);
	cram_map_read_stats(map, &stats);
	printf("{\"intact\": %d, \"poison_faults\": %lu, \"restored\": %lu}\n", memory[INTACT * PAGE],
	       stats.poison_faults, stats.handler_restored);
	fflush(stdout);
	/* A handler that left by a jump has left nothing behind. */
	cram_unmap(map);
	must("cram_close", cram_close(device));
	printf("{\"closed\": true}\n");
	return 0;
}
