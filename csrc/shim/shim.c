/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "descriptor.h"
#include "error.h"
#include "host/space.h"
#include "host/visit.h"
#include "memory.h"
#include "ranges.h"
#include "signals.h"
#include "target.h"
#include "witness.h"

/* From cram_emu/lab/launch.py: fields separated by commas, the device's path last. */
#define SETTINGS "CRAM_EMU_SHIM="
/* A program that cannot have its memory does not start. */
#define EXIT_NO_DEVICE 3

struct settings {
	uint64_t window, min_mmap;
	unsigned writeback_ms;
	bool monitored, follow, make_it_fail;
	char book[64];    /* of whoever runs us: what is to be told (witness.h); "-": nothing */
	char target[256]; /* where poison is wanted (target.h); "-": nowhere */
	char board[64];   /* of a manager; "-": the device's own memory */
	const char *path;
};

struct shim shim = { .end = REGION_END - REGION_BASE, .min_mmap = 64u << 10 };

void *shim_next(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

/* As soon as the first memory is asked for, which is before any constructor runs. */
void shim_reserve(void)
{
	if (shim.reserved || shim.refused)
		return;
	shim.refused = true;
	/* The gate first: a filter may be there already. */
	if (gate_open() != 0)
		return;
	if (memory_reserve((void *)REGION_BASE, REGION_END - REGION_BASE) == NULL)
		return;
	memory_advise((void *)REGION_BASE, REGION_END - REGION_BASE, MADV_NOHUGEPAGE);
	shim.reserved = true;
	shim.refused = false;
}

static void die(const char *what)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "cram-emu: %s: %s\n", what, cram_error_detail());
	ssize_t ignored = write(STDERR_FILENO, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text));

	(void)ignored;
	_exit(EXIT_NO_DEVICE);
}

/* Copies the field that begins after a comma; where it ends, or NULL. */
static const char *parse_field(const char *comma, char *copy, size_t size)
{
	size_t length;

	if (comma == NULL || *comma != ',')
		return NULL;
	length = strcspn(comma + 1, ",");
	if (length >= size)
		return NULL;
	memcpy(copy, comma + 1, length);
	copy[length] = 0;
	return comma + 1 + length;
}

static bool parse(const char *text, struct settings *settings)
{
	const char *at;
	char *end;

	settings->window = strtoull(text, &end, 10);
	settings->min_mmap = *end == ',' ? strtoull(end + 1, &end, 10) : 0;
	settings->writeback_ms = *end == ',' ? (unsigned)strtoul(end + 1, &end, 10) : 0;
	settings->monitored = *end == ',' && strtoul(end + 1, &end, 10) != 0;
	settings->follow = *end == ',' && strtoul(end + 1, &end, 10) != 0;
	settings->make_it_fail = *end == ',' && strtoul(end + 1, &end, 10) != 0;
	at = parse_field(end, settings->book, sizeof(settings->book));
	at = parse_field(at, settings->target, sizeof(settings->target));
	at = parse_field(at, settings->board, sizeof(settings->board));
	if (at == NULL || *at != ',')
		return false;
	settings->path = at + 1;
	return true;
}

static char **find(char **envp, const char *name)
{
	while (*envp != NULL && strncmp(*envp, name, strlen(name)) != 0)
		envp++;
	return envp;
}

static void drop(char **envp, const char *name)
{
	for (char **at = find(envp, name); *at != NULL; at++)
		at[0] = at[1];
}

/* The board of whoever runs us, whose settings are for all of its programs. */
static struct board *attach_board(const struct settings *settings)
{
	int fd = open(settings->board, O_RDWR | O_CLOEXEC);
	struct board *board;

	board = fd < 0 ? NULL : board_attach(fd);
	if (fd >= 0)
		close(fd);
	return board;
}

/* This process's manager: the device is its home and its node. There is no swap file. */
static struct zswap *manage(cram_device *device, const struct settings *settings)
{
	const struct cram_zswap_params params = { .chain = 8, .codec = CRAM_CODEC_LZ4, .level = 1, .swap_fd = -1 };
	const struct cram_node_params node = { .live_registers = 1 };
	struct board *board = attach_board(settings);
	struct zswap *zswap = memory_map(sizeof(*zswap), -1);

	if (board == NULL || zswap == NULL) {
		cram_fail(CRAM_ENOMEM, "the board that it shares with others cannot be had");
		die("its manager cannot be started");
	}
	if (zswap_init(zswap, device, &params, board) != 0 || node_open(&zswap->nodes[0], device, &node, &board->views[0]) != 0)
		die("its manager cannot be started");
	return zswap;
}

static void attach(const struct settings *settings)
{
	struct cram_map_params params = { .window = settings->window, .writeback_ms = settings->writeback_ms,
					  .delivery = settings->monitored ? CRAM_MONITOR : CRAM_INLINE, .anonymous = 1 };
	struct cram_params device_params;
	struct zswap *zswap = NULL;
	cram_device *device;

	if (cram_open(settings->path, &device) != 0)
		die("the device cannot be attached");
	if (settings->make_it_fail)
		cram_make_it_fail(device, (uint32_t)getpid(), 1);
	cram_get_params(device, &device_params);
	params.length = device_params.advertised * DPAS_SPAN;
	if (strcmp(settings->board, "-") != 0) {
		zswap = manage(device, settings);
		/* Not all of the region: each child of fork looks through it. */
		if (zswap_setting(zswap, CRAM_ZSWAP_RAM) > device_params.advertised)
			params.length = page_up(zswap_setting(zswap, CRAM_ZSWAP_RAM)) * DPAS_SPAN;
		params.anonymous = 0;
	}
	if (params.length > REGION_END - REGION_BASE)
		params.length = REGION_END - REGION_BASE;
	shim.end = params.length;
	if (map_create(device, &params, (void *)REGION_BASE, zswap, 0, &shim.map) != 0)
		die("its memory cannot be mapped");
	if (space_start() != 0)
		die("the memory that was there cannot be taken over");
}

/* Of those that whoever runs us wants told. */
static void begin_telling(const struct settings *settings)
{
	/* A program of another user may not see the book, and runs all the same. */
	if (strcmp(settings->book, "-") != 0)
		witness_open(settings->book);
	if (!target_start(settings->target)) {
		cram_fail(CRAM_EINVAL, "%s", settings->target);
		die("there is no way to put poison there");
	}
	if (target_wanted())
		heap_tell();
}

/* ---- fork: nobody is in the middle of a change of the ranges ---------------------------------------------- */

static sigset_t before_fork;

void shim_fork_prepare(void)
{
	ranges_lock(&before_fork);
}

void shim_fork_parent(void)
{
	sigset_t before = before_fork;

	ranges_unlock(&before);
}

void shim_fork_child(void)
{
	ranges_reset_lock();
	threads_forked();
	witness_forked();
	host_restore_signals(&before_fork);
	target_forked();
}

/* Who executed this program may have left them blocked; a fault would kill. */
static void unblock_ours(void)
{
	uint64_t ours = 1ull << (SIGBUS - 1) | 1ull << (SIGSYS - 1);

	memory_call(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&ours, 0, sizeof(ours), 0, 0);
}

/* Our descriptors go where programs seldom have theirs; not so high that a table for them would cost memory. */
static void place_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
		descriptors_from(limit.rlim_cur >= 1024 ? 960 : limit.rlim_cur > 64 ? (int)limit.rlim_cur - 32 : 3);
}

/* First of all constructors (-z initfirst): before the allocator's, and before libc has set up environ. */
__attribute__((constructor)) static void start(int argc, char **argv, char **envp)
{
	char **variable = find(envp, SETTINGS);
	struct settings settings;

	(void)argc;
	(void)argv;
	if (*variable == NULL) {
		shim.min_mmap = UINT64_MAX;
		return;
	}
	if (!parse(*variable + strlen(SETTINGS), &settings))
		die(SETTINGS " is not what `cram-emu run` sets");
	shim.min_mmap = settings.min_mmap;
	unblock_ours();
	if (!shim.reserved)
		shim_reserve();
	if (!shim.reserved)
		die("the addresses from 0x200000000000 on cannot be had");
	place_descriptors();
	attach(&settings);
	shim.inline_delivery = !settings.monitored;
	thread_prepare();
	calls_install();
	if (!calls_trapped(shim.inline_delivery) && filter_install(shim.inline_delivery) != 0)
		die("no seccomp filter can be installed");
	signals_started = true;
	space_inherit(shim.map, space_walk);
	begin_telling(&settings);
	pthread_atfork(shim_fork_prepare, shim_fork_parent, shim_fork_child);
	if (!settings.follow) {
		drop(envp, "LD_PRELOAD=");
		drop(envp, SETTINGS);
	}
}
