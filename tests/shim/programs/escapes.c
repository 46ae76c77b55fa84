/* SPDX-License-Identifier: MIT
 *
 * Ways past what stands in front of the C library's usual functions: forks by other names, descriptors that are closed or
 * replaced wholesale, threads that are cancelled, calls that write less than they may, a main thread that leaves first.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>

#include "program.h"

#define NUMBERS (1u << 20)

/* More than the window, each word its own. */
static uint32_t *numbers;

static void write_numbers(uint32_t plus)
{
	for (uint32_t i = 0; i < NUMBERS * 6; i++)
		numbers[i] = i * 2654435761u + plus;
}

static bool numbers_are(uint32_t plus)
{
	for (uint32_t i = 0; i < NUMBERS * 6; i++)
		if (numbers[i] != i * 2654435761u + plus)
			return false;
	return true;
}

static int ending_of(pid_t child)
{
	int status;

	CHECK(child > 0 && waitpid(child, &status, 0) == child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* What a child does: it finds the numbers, changes them, finds them changed. */
static int in_child(void *unused)
{
	(void)unused;
	if (!numbers_are(1))
		return 1;
	write_numbers(2);
	return numbers_are(2) ? 7 : 2;
}

static void forking(void)
{
	char *stack = cold_memory(1 << 20);
	pid_t child;

	write_numbers(1);
	child = _Fork();
	if (child == 0)
		_exit(in_child(NULL));
	CHECK(ending_of(child) == 7);
	child = (pid_t)syscall(SYS_fork);
	if (child == 0)
		_exit(in_child(NULL));
	CHECK(ending_of(child) == 7);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (child == 0)
		_exit(in_child(NULL));
	CHECK(ending_of(child) == 7);
	CHECK(ending_of(clone(in_child, stack + (1 << 20), SIGCHLD, NULL)) == 7);
	CHECK(numbers_are(1));
	CHECK(syscall(SYS_getpid) == getpid() && syscall(-5) == -1 && errno == ENOSYS);
}

/* One after another: who has ended is not in the way of the next. */
static void many_children(void)
{
	for (int i = 0; i < 150; i++) {
		pid_t child = fork();

		if (child == 0)
			_exit(numbers[i] == (uint32_t)i * 2654435761u + 1 ? 7 : 1);
		CHECK(ending_of(child) == 7);
	}
}

/* In a child, for the descriptors are gone afterwards. */
static void descriptors(void)
{
	char name[] = "/tmp/cram_escapes_XXXXXX", text[8] = "";
	int file = mkstemp(name);

	CHECK(file >= 0 && unlink(name) == 0);
	for (int way = 0; way < 4; way++) {
		pid_t child = fork();

		if (child == 0) {
			for (int fd = 3; fd < 1100 && way == 0; fd++)
				close(fd);
			for (int fd = 3; fd < 1000 && way == 1; fd++)
				dup2(file, fd);
			if (way == 2)
				closefrom(3);
			if (way == 3)
				close_range(3, ~0u, 0);
			CHECK(way == 1 || fcntl(file, F_GETFD) == -1);
			_exit(in_child(NULL));
		}
		CHECK(ending_of(child) == 7);
	}
	CHECK(pwrite(file, "intact", 6, 0) == 6 && pread(file, text, 6, 0) == 6 && strcmp(text, "intact") == 0);
	close(file);
	CHECK(close(file) == -1 && errno == EBADF);
}

/* A child whose descriptors are used up is refused, or works. */
static void no_descriptors(void)
{
	pid_t child;

	while (dup(0) >= 0)
		;
	child = fork();
	if (child == 0)
		_exit(in_child(NULL));
	CHECK(child > 0 ? ending_of(child) == 7 : errno == EAGAIN);
	closefrom(3);
}

static void *read_on(void *memory)
{
	volatile char *at = memory;
	char sum = 0;

	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, NULL);
	for (;;) {
		for (size_t i = 0; i < NUMBERS; i += PAGE)
			sum = (char)(sum + at[i]);
		pthread_testcancel();
	}
	return NULL;
}

static void cancelling(void)
{
	for (int i = 0; i < 40; i++) {
		pthread_t thread;
		void *result;

		CHECK(pthread_create(&thread, NULL, read_on, numbers) == 0);
		for (int n = 0; n < 2000; n++)
			CHECK(numbers[(size_t)n * 3000] == (uint32_t)n * 3000 * 2654435761u + 1);
		CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	}
	CHECK(numbers_are(1));
}

static void *add(void *memory)
{
	return (char *)memory + 1;
}

static void small_and_odd_stacks(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	void *result, *stack = cold_memory(1 << 18);

	pthread_attr_init(&attributes);
	CHECK(pthread_attr_setstack(&attributes, stack, 1 << 18) == 0);
	CHECK(pthread_create(&thread, &attributes, add, numbers) == 0 && pthread_join(thread, &result) == 0);
	CHECK(result == (char *)numbers + 1);
	pthread_attr_destroy(&attributes);
}

static void no_signal(int number)
{
	(void)number;
}

/* What a call does not write stays; what it writes though it fails is there. */
static void less_than_they_may(void)
{
	struct {
		struct sockaddr_in address;
		char rest[200];
	} *from = cold_memory(sizeof(*from));
	struct timespec *times = cold_memory(2 * sizeof(*times));
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t *length = cold_memory(sizeof(*length)), size = sizeof(to);
	int *status = cold_memory(sizeof(*status)), fd = socket(AF_INET, SOCK_DGRAM, 0), high;
	fd_set *sets = cold_memory(4096 / 8);
	char *path = cold_memory(8192);
	/* Again and again: the first may come while the memory is made cold. */
	struct itimerspec soon = { .it_value.tv_nsec = 30000000, .it_interval.tv_nsec = 30000000 };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	int attributed = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	timer_t timer;
	pid_t child;

	CHECK(bind(fd, (struct sockaddr *)&to, sizeof(to)) == 0 && getsockname(fd, (struct sockaddr *)&to, &size) == 0);
	CHECK(sendto(fd, "datagram", 9, 0, (struct sockaddr *)&to, sizeof(to)) == 9);
	*length = sizeof(from->address);
	CHECK(recvfrom(fd, cold(from->rest), 100, 0, (struct sockaddr *)&from->address, length) == 9);
	CHECK(strcmp(from->rest, "datagram") == 0 && *length == sizeof(to) && from->address.sin_port == to.sin_port);

	child = fork();
	if (child == 0) {
		pause();
		_exit(0);
	}
	*status = 42;
	CHECK(waitpid(child, cold(status), WNOHANG) == 0 && *status == 42);
	kill(child, SIGKILL);
	CHECK(waitpid(child, cold(status), 0) == child && WIFSIGNALED(*status));

	signal(SIGALRM, no_signal);
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &soon, NULL) == 0);
	times[0] = (struct timespec){ .tv_sec = 30 };
	times[1] = (struct timespec){ 0 };
	/* What is left has the timer's slack in it: where the signal is there already, more than was asked for. */
	CHECK(nanosleep(cold(&times[0]), &times[1]) == -1 && errno == EINTR && times[1].tv_sec >= 1 && times[1].tv_sec <= 30);
	timer_delete(timer);

	high = fcntl(0, F_DUPFD, 1500);
	if (high >= 0) {
		((uint64_t *)sets)[high / 64] = 1ull << high % 64;
		errno = 0;
		CHECK(select(high + 1, NULL, cold(sets), NULL, &(struct timeval){ 0 }) >= 0);
		close(high);
	}
	/* Longer than a page. */
	if (fsetxattr(attributed, "user.cram", memset(path, 'a', 8192), 3000, 0) == 0) {
		memset(path, 0, 8192);
		CHECK(fgetxattr(attributed, "user.cram", cold(path), 8192) == 3000 && path[2999] == 'a' && path[3000] == 0);
	} else {
		/* A file system without them. */
		CHECK(errno == ENOTSUP || errno == ENOSPC || errno == E2BIG || errno == EPERM);
	}
	close(attributed);
	memset(path, 'x', 8191);
	CHECK(open(cold(path), O_RDONLY) == -1 && errno == ENAMETOOLONG);
	close(fd);
}

/* Records that are appended by one call each stand whole. */
static void appending(void)
{
	char name[] = "/tmp/cram_append_XXXXXX", *record = cold_memory(1 << 20), *back = cold_memory(1 << 20);
	int file = mkstemp(name), fd;
	pid_t child;

	CHECK(file >= 0);
	fd = open(name, O_WRONLY | O_APPEND);
	unlink(name);
	child = fork();
	memset(record, child == 0 ? 'c' : 'p', 1 << 20);
	for (int i = 0; i < 16; i++)
		CHECK(write(fd, cold(record), 1 << 20) == 1 << 20);
	if (child == 0)
		_exit(7);
	CHECK(ending_of(child) == 7);
	for (int i = 0; i < 32; i++) {
		CHECK(pread(file, back, 1 << 20, (off_t)i << 20) == 1 << 20);
		for (size_t at = 0; at < 1 << 20; at += 4096)
			CHECK(back[at] == back[0]);
	}
	CHECK(preadv64v2(file, &(struct iovec){ cold(back), 1 << 20 }, 1, 0, 0) == 1 << 20);
	close(file);
	close(fd);
}

/* A word that processes share is found by its page. */
static void shared_futex(void)
{
	uint32_t *word = cold_memory(sizeof(*word));

	*word = 5;
	CHECK(syscall(SYS_futex, cold(word), FUTEX_WAKE, 1, NULL, NULL, 0) == 0);
	CHECK(syscall(SYS_futex, cold(word), FUTEX_WAIT, 6, NULL, NULL, 0) == -1 && errno == EAGAIN);
}

static void *last(void *unused)
{
	(void)unused;
	write_numbers(3);
	CHECK(numbers_are(3));
	printf("escapes: all right\n");
	return NULL;
}

int main(void)
{
	pthread_t thread;

	numbers = cold_memory(NUMBERS * 6 * sizeof(*numbers));
	forking();
	many_children();
	descriptors();
	cancelling();
	small_and_odd_stacks();
	less_than_they_may();
	appending();
	shared_futex();
	no_descriptors();
	/* The process ends, with 0, when its last thread has. */
	CHECK(pthread_create(&thread, NULL, last, NULL) == 0);
	pthread_exit(NULL);
}
