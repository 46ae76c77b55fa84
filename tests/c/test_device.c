/* SPDX-License-Identifier: MIT
 *
 * The device as an object: in memory and in files, opened by several clients, with ranges that belong to one of them.
 *
 * Oracle: what another handle on the same object sees.
 */
#define _GNU_SOURCE
#include <fcntl.h>

#include "children.h"
#include "rig.h"
#include "threads.h"

/* The first page that may hold something is never behind one that does, in a map of several pages of its own. */
static void used_pages_are_found(void)
{
	struct cram_params params = rig_params(MIB);
	struct device device;
	uint64_t pages = 64 * MIB / PAGE_SIZE, at;

	params.advertised = 64 * MIB;
	rig_create(&device, &params);
	CHECK(rig_store(&device, 5000, 1, 0));
	CHECK(rig_store(&device, pages - 1, 1, 0));
	at = device_next_used(&device, 0);
	CHECK_LE(at, 5000);
	CHECK_LE(device_next_used(&device, 5001), pages - 1);
	for (uint64_t page = 0; page < pages; page += 100)
		CHECK_COMPARE(device_next_used(&device, page), >=, page);
	device_close(&device, false);
}

/* ---- clients -------------------------------------------------------------------------------------------- */

/* A range belongs to one client: another's claim on a part of it is refused, and its pages are foreign there. */
static void claim_is_exclusive(void)
{
	struct device one, two;
	struct op *op;
	int claim, other;

	rig_create_small(&one, MIB / 4);
	rig_open_again(&one, &two);
	CHECK_EQ(one.client, 0);
	CHECK_EQ(two.client, 1);
	CHECK_EQ(rig_registers(&two).clients, 2);
	CHECK_EQ(device_claim(&one, 10, 10, &claim), 0);
	other = 77;
	CHECK_EQ(device_claim(&two, 19, 5, &other), CRAM_EBUSY);
	CHECK(strstr(cram_error_detail(), "0x13000") != NULL);
	CHECK_EQ(device_claim(&two, 20, 5, &other), 0);
	op = device_enter(&two);
	CHECK(device_foreign(op, 10));
	CHECK(device_foreign(op, 19));
	CHECK(!device_foreign(op, 20));
	CHECK(!device_foreign(op, 9));
	device_leave(op);
	op = device_enter(&one);
	CHECK(!device_foreign(op, 10));
	CHECK(device_foreign(op, 20));
	device_leave(op);
	device_unclaim(&one, claim);
	op = device_enter(&two);
	CHECK(!device_foreign(op, 10));
	device_leave(op);
	device_count_refused(&two);
	CHECK_EQ(rig_registers(&one).refused_writes, 1);
	device_close(&two, false);
	CHECK_EQ(rig_registers(&one).clients, 1);
	device_close(&one, false);
}

/* What one client stores another one loads. */
static void clients_share_pages(void)
{
	struct device one, two;

	rig_create_small(&one, MIB / 4);
	rig_open_again(&one, &two);
	CHECK(rig_store(&one, 1, 1, 3));
	CHECK(rig_holds(&two, 1, 1));
	CHECK(rig_store(&two, 1, 2, 4));
	CHECK(rig_holds(&one, 1, 2));
	device_close(&one, false);
	CHECK(rig_holds(&two, 1, 2));
	CHECK_AUDIT(&two);
	device_close(&two, false);
}

struct asking {
	struct device asker, owner;
	_Atomic bool stop;
	_Atomic uint64_t served;
	int answer; /* INT_MIN: none */
};

static void *serve_requests(void *arg)
{
	struct asking *a = arg;
	struct request request;

	while (!atomic_load(&a->stop)) {
		if (!device_take_request(&a->owner, &request)) {
			usleep(100);
			continue;
		}
		CHECK_EQ(request.kind, REQUEST_CLEAR);
		CHECK_EQ(request.dpa % 128, 64);
		a->served++;
		device_answer(&a->owner, request.number, -(int)(request.dpa / 128));
	}
	return NULL;
}

static void ask(void *arg, unsigned index)
{
	struct asking *a = arg;

	for (unsigned i = 0; i < 50; i++) {
		unsigned line = i * 4 + index;

		CHECK_EQ(device_request(&a->asker, REQUEST_CLEAR, line * 128 + 64), -(int)line);
	}
}

/* Requests of several threads reach the page's owner one after another, and each gets its own answer. */
static void requests_are_answered(void)
{
	struct asking a = { .stop = false };
	pthread_t server;
	int claim;

	rig_create_small(&a.owner, MIB / 4);
	rig_open_again(&a.owner, &a.asker);
	CHECK_EQ(device_claim(&a.owner, 0, 100, &claim), 0);
	CHECK_EQ(pthread_create(&server, NULL, serve_requests, &a), 0);
	run_threads(4, ask, &a);
	atomic_store(&a.stop, true);
	CHECK_EQ(pthread_join(server, NULL), 0);
	CHECK_EQ(a.served, 200);
	/* Nobody, or oneself, is not asked. */
	CHECK_EQ(device_request(&a.asker, REQUEST_CLEAR, 100 * PAGE_SIZE), CRAM_ENOENT);
	CHECK_EQ(device_request(&a.owner, REQUEST_CLEAR, 0), CRAM_ENOENT);
	device_close(&a.asker, false);
	device_close(&a.owner, false);
}

/* A living owner that does not answer costs the asker two seconds and an error that names it; when it looks at last, the
 * request has gone. */
static void silent_owner_times_out(void)
{
	struct device owner, asker;
	struct request request;
	uint64_t start = now_ns();
	char pid[16];
	int claim;

	rig_create_small(&owner, MIB / 4);
	rig_open_again(&owner, &asker);
	CHECK_EQ(device_claim(&owner, 0, 1, &claim), 0);
	CHECK_EQ(device_request(&asker, REQUEST_INJECT, 0), CRAM_ETIMEDOUT);
	CHECK_COMPARE(now_ns() - start, >=, 2000000000);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	CHECK(strstr(cram_error_detail(), pid) != NULL);
	CHECK(!device_take_request(&owner, &request));
	device_close(&asker, false);
	device_close(&owner, false);
}

struct mute {
	struct device *device;
	_Atomic uint32_t ready;
};

static void claim_and_stand(void *arg)
{
	struct mute *mute = arg;
	struct device mine;
	int claim;

	rig_open_again(mute->device, &mine);
	CHECK_EQ(device_claim(&mine, 0, 1, &claim), 0);
	stand_still(&mute->ready);
}

static void *ask_for_injection(void *arg)
{
	struct asking *a = arg;

	a->answer = device_request(&a->asker, REQUEST_INJECT, 0);
	return NULL;
}

/* A request whose owner dies is not answered by whoever takes its place in the table: nobody carried it out. */
static void dead_owner_does_not_answer(void)
{
	for (unsigned i = 0; i < 10; i++) {
		struct asking a = { .answer = INT32_MIN };
		struct mute *mute = shared_memory(sizeof(*mute));
		struct device next;
		pthread_t asker;
		pid_t pid;

		rig_create_small(&a.asker, MIB / 4);
		mute->device = &a.asker;
		pid = child_start(claim_and_stand, mute);
		wait_for(&mute->ready);
		CHECK_EQ(pthread_create(&asker, NULL, ask_for_injection, &a), 0);
		while (atomic_load(&a.asker.clients->table[1].mailbox.request) == 0)
			usleep(100);
		child_kill(pid);
		CHECK_EQ(device_reap(&a.asker, NULL), 0);
		rig_open_again(&a.asker, &next);
		CHECK_EQ(next.client, 1);
		CHECK_EQ(pthread_join(asker, NULL), 0);
		CHECK(a.answer == CRAM_ENOENT || a.answer == CRAM_ETIMEDOUT);
		device_close(&next, false);
		device_close(&a.asker, false);
	}
}

/* ---- files ---------------------------------------------------------------------------------------------- */

/* A device in a file outlives its clients; a second creation is refused and harms nothing. */
static void file_keeps_pages(void)
{
	struct cram_params params = rig_params(MIB / 4);
	struct device device;

	unlink("file_keeps_pages");
	CHECK_EQ(device_create("file_keeps_pages", &params, &device), 0);
	for (uint64_t page = 0; page < 40; page++)
		CHECK(rig_store(&device, page, 1, (unsigned)page));
	CHECK_EQ(rig_inject(&device, 50, 4), 0);
	device_close(&device, false);
	CHECK_EQ(device_create("file_keeps_pages", &params, &device), CRAM_EEXIST);
	CHECK_EQ(device_open("file_keeps_pages", &device), 0);
	CHECK_BYTES(device_params(&device), &params, sizeof(params));
	CHECK_EQ(device.client, 0);
	for (uint64_t page = 0; page < 40; page++)
		CHECK(rig_holds(&device, page, 1));
	CHECK_EQ(rig_info(&device, 50).poisoned, 1 << 4);
	CHECK_AUDIT(&device);
	device_close(&device, false);
	CHECK_EQ(unlink("file_keeps_pages"), 0);
}

/* What cannot be opened or created is one error, and leaves no file behind. */
static void bad_files_are_refused(void)
{
	struct cram_params params = rig_params(MIB / 4);
	struct device device;
	int fd;

	CHECK_EQ(device_open("no_such_file", &device), CRAM_ENOENT);
	CHECK_EQ(device_open(".", &device), CRAM_EIO);
	CHECK_EQ(device_open("/dev/null", &device), CRAM_EFORMAT);
	CHECK_EQ(device_create("no_such_directory/file", &params, &device), CRAM_ENOENT);
	params.advertised = 1;
	CHECK_EQ(device_create("bad_parameters", &params, &device), CRAM_EINVAL);
	CHECK_EQ(access("bad_parameters", F_OK), -1);
	fd = open("truncated", O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0);
	CHECK_EQ(write(fd, LAYOUT_MAGIC, 8), 8);
	close(fd);
	CHECK_EQ(device_open("truncated", &device), CRAM_EFORMAT);
	CHECK(strstr(cram_error_detail(), "truncated") != NULL);
	CHECK_EQ(unlink("truncated"), 0);
}

/* The file system must have room for a full device: the error comes at creation, not as a signal later. */
static void small_file_system_is_refused(void)
{
	/* No memory file system has room for all that this device could take. */
	struct cram_params params = { .advertised = 1ull << 40, .real = 1ull << 40, .sector = 4096 };
	struct device device;
	char path[64];

	cram_params_default(&params);
	snprintf(path, sizeof(path), "/dev/shm/cram_emu_test_%d", (int)getpid());
	CHECK_EQ(device_create(path, &params, &device), CRAM_ENOSPC);
	CHECK(strstr(cram_error_detail(), path) != NULL);
	CHECK_EQ(access(path, F_OK), -1);
}

/* All 64 slots can be taken; the 65th client is told so. */
static void slots_are_limited(void)
{
	struct device devices[CLIENTS_MAX], extra;
	char path[64];

	rig_create_small(&devices[0], MIB / 4);
	for (unsigned i = 1; i < CLIENTS_MAX; i++)
		rig_open_again(&devices[0], &devices[i]);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", devices[0].fd);
	CHECK_EQ(device_open(path, &extra), CRAM_EBUSY);
	device_close(&devices[17], false);
	rig_open_again(&devices[0], &devices[17]);
	CHECK_EQ(devices[17].client, 17);
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		device_close(&devices[i], false);
}
static const struct test tests[] = {
	TEST(used_pages_are_found),
	TEST(claim_is_exclusive),
	TEST(clients_share_pages),
	TEST(requests_are_answered),
	TEST(silent_owner_times_out),
	TEST(dead_owner_does_not_answer),
	TEST(file_keeps_pages),
	TEST(bad_files_are_refused),
	TEST(small_file_system_is_refused),
	TEST(slots_are_limited),
};

int main(int argc, char **argv)
{
	return check_main(tests, COUNT(tests), argc, argv);
}
