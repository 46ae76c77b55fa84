/* SPDX-License-Identifier: MIT
 *
 * System calls whose arguments lie in memory that is not resident. Each is made as the C library makes it; what it did is
 * looked at from another side (another descriptor, another process's view).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "program.h"

static char path[64];

static void put(void *memory, size_t size, char with)
{
	memset(memory, with, size);
}

static bool all(const char *memory, size_t size, char with)
{
	for (size_t i = 0; i < size; i++)
		if (memory[i] != with)
			return false;
	return true;
}

static int temporary(void)
{
	int fd;

	strcpy(path, "/tmp/cram_calls_XXXXXX");
	fd = mkstemp(path);
	CHECK(fd >= 0);
	return fd;
}

static void files(void)
{
	size_t size = 3 * PAGE + 100, large = 2ul << 20;
	char *out = cold_memory(large), *in = cold_memory(large), *name = cold_memory(PAGE);
	struct stat *st = cold_memory(sizeof(*st));
	int fd = temporary(), other;

	put(out, large, 'a');
	CHECK(write(fd, cold(out), size) == (ssize_t)size);
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	CHECK(read(fd, cold(in), large) == (ssize_t)size);
	CHECK(all(in, size, 'a') && all(in + size, PAGE, 0));
	CHECK(pwrite(fd, cold(out), large, 10) == (ssize_t)large);
	CHECK(pread(fd, cold(in), large, 5) == (ssize_t)large);
	CHECK(all(in, large, 'a'));
	strcpy(name, path);
	CHECK(stat(cold(name), cold(st)) == 0 && st->st_size == (off_t)(large + 10));
	other = open(cold(name), O_RDWR | O_CLOEXEC);
	CHECK(other >= 0);
	CHECK(read(other, in, 4) == 4 && all(in, 4, 'a'));
	close(other);
	/* Not all of it is there: what is, is written. */
	CHECK(mprotect(out + PAGE, PAGE, PROT_NONE) == 0);
	CHECK(pwrite(fd, out + PAGE, 100, 0) == -1 && errno == EFAULT);
	CHECK(mprotect(in, PAGE, PROT_READ) == 0);
	CHECK(pread(fd, in, 100, 0) == -1 && errno == EFAULT);
	CHECK(unlink(cold(name)) == 0);
	close(fd);
}

static void direct_files(void)
{
	char *out = cold_memory(4 * PAGE), *in = cold_memory(4 * PAGE);
	int fd = temporary();

	close(fd);
	fd = open(path, O_RDWR | O_DIRECT);
	unlink(path);
	if (fd < 0)
		return; /* a file system without it */
	put(out, 4 * PAGE, 'd');
	CHECK(pwrite(fd, cold(out), 4 * PAGE, 0) == (ssize_t)(4 * PAGE));
	CHECK(pread(fd, cold(in), 4 * PAGE, 0) == (ssize_t)(4 * PAGE));
	CHECK(all(in, 4 * PAGE, 'd'));
	close(fd);
}

static void vectors(void)
{
	char *a = cold_memory(2 * PAGE), *b = cold_memory(2 * PAGE);
	struct iovec *list = cold_memory(PAGE), on_stack[2];
	int fd = temporary();

	unlink(path);
	put(a, 2 * PAGE, 'a');
	put(b, 2 * PAGE, 'b');
	list[0] = on_stack[0] = (struct iovec){ a, PAGE + 7 };
	list[1] = on_stack[1] = (struct iovec){ b, 2 * PAGE };
	cold(a);
	CHECK(writev(fd, on_stack, 2) == (ssize_t)(3 * PAGE + 7));
	cold(list);
	CHECK(pwritev(fd, list, 2, 3 * PAGE + 7) == (ssize_t)(3 * PAGE + 7));
	put(a, 2 * PAGE, 0);
	put(b, 2 * PAGE, 0);
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	cold(a);
	CHECK(readv(fd, on_stack, 2) == (ssize_t)(3 * PAGE + 7));
	CHECK(all(a, PAGE + 7, 'a') && all(b, 2 * PAGE, 'b'));
	put(b, 2 * PAGE, 0);
	cold(list);
	CHECK(preadv(fd, list, 2, 3 * PAGE + 7) == (ssize_t)(3 * PAGE + 7));
	CHECK(all(a, PAGE + 7, 'a') && all(b, 2 * PAGE, 'b'));
	/* Past the C library: the list is seen, being cold itself. */
	put(b, 2 * PAGE, 0);
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	cold(list);
	CHECK(syscall(SYS_readv, fd, list, 2) == (ssize_t)(3 * PAGE + 7));
	CHECK(all(b, 2 * PAGE, 'b'));
	close(fd);
}

struct late {
	int fd;
	const char *data;
	size_t size;
};

/* Sends when the receiver has long gone to sleep, and its page has gone. */
static void *send_late(void *arg)
{
	struct late *late = arg;

	for (int i = 0; i < 3; i++)
		sweep();
	CHECK(send(late->fd, late->data, late->size, 0) == (ssize_t)late->size);
	return NULL;
}

static void datagrams(void)
{
	static const char data[] = "a datagram that must not be lost";
	char *in = cold_memory(PAGE), *control = cold_memory(PAGE);
	struct msghdr *message = cold_memory(sizeof(*message));
	struct iovec vector = { in, PAGE };
	struct late late;
	pthread_t thread;
	int pair[2];

	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	late = (struct late){ pair[1], data, sizeof(data) };
	for (int i = 0; i < 3; i++) {
		cold(in);
		CHECK(pthread_create(&thread, NULL, send_late, &late) == 0);
		CHECK(recv(pair[0], in, PAGE, 0) == sizeof(data));
		CHECK(strcmp(in, data) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
		memset(in, 0, PAGE);
	}
	/* Longer than there is room for: cut, and told. */
	CHECK(send(pair[1], data, sizeof(data), 0) == sizeof(data));
	CHECK(recv(pair[0], cold(in), 4, MSG_TRUNC) == sizeof(data));
	CHECK(memcmp(in, data, 4) == 0 && in[4] == 0);
	/* With a descriptor beside it. */
	memset(message, 0, sizeof(*message));
	message->msg_iov = &vector;
	message->msg_iovlen = 1;
	message->msg_control = control;
	message->msg_controllen = CMSG_SPACE(sizeof(int));
	vector.iov_len = 5;
	memcpy(in, "five", 5);
	CMSG_FIRSTHDR(message)->cmsg_level = SOL_SOCKET;
	CMSG_FIRSTHDR(message)->cmsg_type = SCM_RIGHTS;
	CMSG_FIRSTHDR(message)->cmsg_len = CMSG_LEN(sizeof(int));
	*(int *)CMSG_DATA(CMSG_FIRSTHDR(message)) = pair[0];
	cold(message);
	CHECK(sendmsg(pair[1], message, 0) == 5);
	memset(in, 0, 5);
	memset(control, 0, PAGE);
	message->msg_controllen = CMSG_SPACE(sizeof(int));
	cold(message);
	CHECK(recvmsg(pair[0], message, 0) == 5 && strcmp(in, "five") == 0);
	CHECK(CMSG_FIRSTHDR(message) != NULL && CMSG_FIRSTHDR(message)->cmsg_type == SCM_RIGHTS);
	CHECK(fcntl(*(int *)CMSG_DATA(CMSG_FIRSTHDR(message)), F_GETFD) >= 0);
	close(*(int *)CMSG_DATA(CMSG_FIRSTHDR(message)));
	close(pair[0]);
	close(pair[1]);
}

static void addresses(void)
{
	struct sockaddr_in *name = cold_memory(sizeof(*name));
	socklen_t *length = cold_memory(sizeof(*length));
	int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), peer;

	memset(name, 0, sizeof(*name));
	name->sin_family = AF_INET;
	name->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(bind(server, cold(name), sizeof(*name)) == 0);
	*length = sizeof(*name);
	CHECK(getsockname(server, cold(name), cold(length)) == 0 && *length == sizeof(*name) && name->sin_port != 0);
	CHECK(listen(server, 1) == 0);
	CHECK(connect(client, cold(name), sizeof(*name)) == 0);
	*length = sizeof(*name);
	peer = accept(server, cold(name), cold(length));
	CHECK(peer >= 0 && *length == sizeof(*name) && name->sin_addr.s_addr == htonl(INADDR_LOOPBACK));
	close(peer);
	close(client);
	close(server);
}

/* A pipe writes up to PIPE_BUF at once, or not at all. */
static void pipes(void)
{
	char *out = cold_memory(PAGE), *in = cold_memory(PAGE);
	int ends[2];

	CHECK(pipe2(ends, O_NONBLOCK) == 0);
	put(out, PAGE, 'p');
	for (int i = 0; i < 16; i++)
		CHECK(write(ends[1], cold(out), PAGE) == (ssize_t)PAGE);
	CHECK(write(ends[1], out, 1) == -1 && errno == EAGAIN);
	for (int i = 0; i < 16; i++) {
		put(in, PAGE, 0);
		CHECK(read(ends[0], cold(in), PAGE) == (ssize_t)PAGE && all(in, PAGE, 'p'));
	}
	close(ends[0]);
	close(ends[1]);
}

static void waits(void)
{
	struct epoll_event *events = cold_memory(8 * sizeof(*events)), *event = cold_memory(sizeof(*event));
	struct pollfd *fds = cold_memory(sizeof(*fds));
	fd_set *set = cold_memory(sizeof(*set));
	struct timespec *pause = cold_memory(sizeof(*pause));
	struct timeval *limit = cold_memory(sizeof(*limit));
	int *status = cold_memory(sizeof(*status)), ends[2], epoll = epoll_create1(0);
	pid_t child;

	CHECK(pipe(ends) == 0);
	*event = (struct epoll_event){ .events = EPOLLIN, .data.u64 = 77 };
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], cold(event)) == 0);
	CHECK(epoll_wait(epoll, cold(events), 8, 0) == 0);
	CHECK(write(ends[1], "x", 1) == 1);
	CHECK(epoll_wait(epoll, cold(events), 8, -1) == 1 && events[0].data.u64 == 77);
	*fds = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	CHECK(poll(cold(fds), 1, -1) == 1 && fds->revents == POLLIN);
	FD_ZERO(set);
	FD_SET(ends[0], set);
	*limit = (struct timeval){ 5, 0 };
	cold(limit);
	CHECK(select(ends[0] + 1, cold(set), NULL, NULL, limit) == 1 && FD_ISSET(ends[0], set));
	*pause = (struct timespec){ 0, 1000000 };
	CHECK(nanosleep(cold(pause), NULL) == 0);
	child = fork();
	CHECK(child >= 0);
	if (child == 0)
		_exit(41);
	CHECK(waitpid(child, cold(status), 0) == child && WEXITSTATUS(*status) == 41);
	close(epoll);
	close(ends[0]);
	close(ends[1]);
}

static pthread_mutex_t *mutex;
static pthread_cond_t *condition;
static uint64_t *turns;

static void *take_turns(void *arg)
{
	uint64_t mine = (uintptr_t)arg;

	for (int i = 0; i < 20; i++) {
		pthread_mutex_lock(mutex);
		while (*turns % 2 != mine)
			pthread_cond_wait(condition, mutex);
		++*turns;
		if (i % 5 == 0)
			sweep();
		pthread_cond_broadcast(condition);
		pthread_mutex_unlock(mutex);
	}
	return NULL;
}

/* Two threads that wait for each other, on words that go while they wait. */
static void futexes(void)
{
	pthread_t threads[2];

	mutex = cold_memory(sizeof(*mutex));
	condition = cold_memory(sizeof(*condition));
	turns = cold_memory(sizeof(*turns));
	pthread_mutex_init(mutex, NULL);
	pthread_cond_init(condition, NULL);
	for (uintptr_t i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, take_turns, (void *)i) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(*turns == 40);
	CHECK(syscall(SYS_futex, cold(turns), FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0) == -1 && errno == EAGAIN);
}

static void others(void)
{
	unsigned char *random = cold_memory(PAGE);
	char *name = cold_memory(PAGE);
	int *pending = cold_memory(sizeof(*pending)), *value = cold_memory(sizeof(*value)), ends[2];
	socklen_t length = sizeof(*value);
	struct timespec *now = cold_memory(sizeof(*now));
	sigset_t *mask = cold_memory(sizeof(*mask));
	unsigned sum = 0;

	CHECK(getrandom(cold(random), 256, 0) == 256);
	for (int i = 0; i < 256; i++)
		sum |= random[i];
	CHECK(sum != 0);
	CHECK(pipe(ends) == 0 && write(ends[1], "four", 4) == 4);
	CHECK(ioctl(ends[0], FIONREAD, cold(pending)) == 0 && *pending == 4);
	close(ends[0]);
	close(ends[1]);
	CHECK(getcwd(cold(name), PAGE) == name && name[0] == '/');
	CHECK(syscall(SYS_clock_gettime, CLOCK_REALTIME, cold(now)) == 0 && now->tv_sec > 1000000000);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	CHECK(getsockopt(ends[0], SOL_SOCKET, SO_TYPE, cold(value), &length) == 0 && *value == SOCK_STREAM);
	close(ends[0]);
	close(ends[1]);
	sigemptyset(mask);
	sigaddset(mask, SIGUSR1);
	CHECK(sigprocmask(SIG_BLOCK, cold(mask), NULL) == 0);
	sigemptyset(mask);
	CHECK(sigprocmask(SIG_BLOCK, NULL, cold(mask)) == 0 && sigismember(mask, SIGUSR1));
	CHECK(sigprocmask(SIG_UNBLOCK, cold(mask), NULL) == 0);
}

static _Atomic int signals;

static void on_alarm(int number)
{
	(void)number;
	signals++;
	sweep();
}

/* A child that signals this process until it is told that it was enough, or so many times, and then writes. */
static pid_t signal_parent(int enough, int times, int output)
{
	pid_t child = fork();
	char byte;

	CHECK(child >= 0);
	if (child != 0)
		return child;
	CHECK(fcntl(enough, F_SETFL, O_NONBLOCK) == 0);
	for (int i = 0; times == 0 || i < times; i++) {
		if (times == 0 && read(enough, &byte, 1) == 1)
			break;
		kill(getppid(), SIGALRM);
		/* The handler sweeps once: whoever is signalled faster than it returns gets nowhere. */
		for (int j = 0; j < 3; j++)
			sweep();
	}
	CHECK(write(output, "z", 1) == 1);
	_exit(0);
}

/* A signal ends a call that waits, or it is begun again, as the program has asked. */
static void interruptions(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	char *in = cold_memory(PAGE);
	int ends[2], enough[2];

	CHECK(pipe(ends) == 0 && pipe(enough) == 0);
	sigfillset(&action.sa_mask);
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	cold(in);
	signal_parent(enough[0], 0, ends[1]);
	CHECK(read(ends[0], in, 1) == -1 && errno == EINTR && signals > 0);
	action.sa_flags = SA_RESTART;
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(write(enough[1], "e", 1) == 1);
	CHECK(read(ends[0], in, 1) == 1 && *in == 'z' && wait(NULL) > 0);
	signals = 0;
	cold(in);
	signal_parent(enough[0], 8, ends[1]);
	CHECK(read(ends[0], in, 1) == 1 && *in == 'z' && signals > 0);
	CHECK(wait(NULL) > 0);
	close(ends[0]);
	close(ends[1]);
	close(enough[0]);
	close(enough[1]);
}

/* What the kernel would do later, behind the page tables' back, is not to be had; placed memory alone must be kept from it. */
static void refusals(void)
{
	struct iovec vector = { cold_memory(PAGE), PAGE };
	int ends[2];

	if (!placed())
		return;
	CHECK(syscall(SYS_io_uring_setup, 4, NULL) == -1 && errno == ENOSYS);
	CHECK(syscall(SYS_io_setup, 4, NULL) == -1 && errno == ENOSYS);
	CHECK(pipe(ends) == 0);
	CHECK(vmsplice(ends[1], &vector, 1, 0) == -1 && errno == EINVAL);
	close(ends[0]);
	close(ends[1]);
}

int main(void)
{
	files();
	direct_files();
	vectors();
	datagrams();
	addresses();
	pipes();
	waits();
	futexes();
	others();
	interruptions();
	refusals();
	puts("calls: all right");
	return 0;
}
