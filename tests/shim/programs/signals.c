/* SPDX-License-Identifier: MIT
 *
 * Signals: the program's handlers and masks as it set them, and poison as it would meet it.
 *
 *   signals           on any Linux, and with the shim
 *   signals poison    on a device that is too small for what this writes: ends with "poison: all right"
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#include "program.h"

static volatile sig_atomic_t taken;
static siginfo_t info;
static sigjmp_buf trap;

static void count(int number)
{
	(void)number;
	taken++;
}

static void keep(int number, siginfo_t *what, void *context)
{
	(void)number;
	(void)context;
	info = *what;
	taken++;
}

static void jump(int number, siginfo_t *what, void *context)
{
	(void)context;
	info = *what;
	siglongjmp(trap, number);
}

/* For each of the two that the shim takes itself, and one that it does not. */
static void actions(void)
{
	static const int numbers[] = { SIGBUS, SIGSYS, SIGUSR1 };

	for (unsigned i = 0; i < 3; i++) {
		struct sigaction action = { .sa_handler = count, .sa_flags = SA_RESTART }, old;
		int n = numbers[i], status;

		CHECK(sigaction(n, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
		CHECK(sigaction(n, &action, &old) == 0 && old.sa_handler == SIG_DFL);
		CHECK(sigaction(n, NULL, &old) == 0 && old.sa_handler == count && (old.sa_flags & SA_RESTART));
		taken = 0;
		CHECK(raise(n) == 0 && taken == 1);
		CHECK(signal(n, SIG_IGN) == count && raise(n) == 0 && taken == 1);
		action = (struct sigaction){ .sa_sigaction = keep, .sa_flags = SA_SIGINFO | SA_RESETHAND };
		CHECK(sigaction(n, &action, NULL) == 0);
		CHECK(sigqueue(getpid(), n, (union sigval){ .sival_int = 5 }) == 0 && taken == 2);
		CHECK(info.si_signo == n && info.si_value.sival_int == 5);
		CHECK(sigaction(n, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
		if (fork() == 0) {
			raise(n);
			_exit(0);
		}
		CHECK(wait(&status) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == n);
	}
}

static char *memory;

static void *work_blocked(void *arg)
{
	sigset_t all;

	(void)arg;
	sigfillset(&all);
	CHECK(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
	for (int lap = 0; lap < 3; lap++)
		for (size_t i = 0; i < SWEEP; i += PAGE)
			memory[i]++;
	return NULL;
}

static void touch_in_handler(int number)
{
	(void)number;
	for (size_t i = 0; i < SWEEP; i += 16 * PAGE)
		taken += memory[i] != 0;
}

/* Threads and handlers that let no signal in, with memory that comes and goes. */
static void masks(void)
{
	struct sigaction action = { .sa_handler = touch_in_handler };
	sigset_t all, none;
	pthread_t thread;

	memory = cold_memory(SWEEP);
	CHECK(pthread_create(&thread, NULL, work_blocked, NULL) == 0 && pthread_join(thread, NULL) == 0);
	sigfillset(&action.sa_mask);
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
	taken = 0;
	CHECK(raise(SIGUSR2) == 0 && taken == (int)(SWEEP / PAGE / 16));
	sigfillset(&all);
	sigemptyset(&none);
	CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
	taken = 0;
	CHECK(raise(SIGUSR2) == 0 && taken == 0);
	sweep();
	CHECK(memory[0] == 3);
	sigdelset(&all, SIGUSR2);
	/* The handler runs with what sigsuspend() blocks blocked. */
	CHECK(sigsuspend(&all) == -1 && errno == EINTR && taken > 0);
	CHECK(sigprocmask(SIG_SETMASK, &none, NULL) == 0);
}

static void descriptors(void)
{
	struct signalfd_siginfo *got = cold_memory(sizeof(*got));
	sigset_t mask;
	int fd;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	CHECK(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	fd = signalfd(-1, &mask, 0);
	CHECK(fd >= 0 && raise(SIGUSR1) == 0);
	CHECK(read(fd, cold(got), sizeof(*got)) == sizeof(*got) && got->ssi_signo == SIGUSR1);
	CHECK(sigprocmask(SIG_UNBLOCK, &mask, NULL) == 0);
	close(fd);
}

/* SIGSEGV is the program's: runtimes rely on it. */
static void segments(void)
{
	struct sigaction action = { .sa_sigaction = jump, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = malloc(64 << 10), .ss_size = 64 << 10 }, old;

	CHECK(sigaltstack(&stack, NULL) == 0 && sigaltstack(NULL, &old) == 0 && old.ss_sp == stack.ss_sp);
	CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
	for (int i = 0; i < 3; i++) {
		sweep();
		if (sigsetjmp(trap, 1) == 0) {
			*(volatile int *)(uintptr_t)(8 + 8 * i) = 1;
			CHECK(false);
		}
		CHECK(info.si_code == SEGV_MAPERR && info.si_addr == (void *)(uintptr_t)(8 + 8 * i));
	}
}

/* ---- poison ---------------------------------------------------------------------------------------------- */

/* Reads all of it; counts the machine checks, each of which is what the kernel's would be. */
static unsigned read_poison(char *from, size_t size)
{
	volatile unsigned found = 0;
	volatile size_t i;

	for (i = 0; i < size; i += PAGE) {
		if (sigsetjmp(trap, 1) == 0) {
			(void)*(volatile char *)(from + i);
			continue;
		}
		CHECK(info.si_signo == SIGBUS && info.si_code == BUS_MCEERR_AR && info.si_addr == from + i && info.si_addr_lsb == 12);
		found++;
	}
	return found;
}

static void meet_poison(void)
{
	size_t size = 64ul << 20;
	char *area = cold_memory(size), *at = NULL;
	struct sigaction action = { .sa_sigaction = jump, .sa_flags = SA_SIGINFO };
	uint64_t state = 1;
	unsigned found;
	int ends[2];

	/* As redis does, so that its title has room. It is not resident when poison is met, and it is told. */
	program_invocation_short_name = cold(strcpy(cold_memory(64 << 10), "named"));
	for (size_t i = 0; i < size; i += 8) {
		state = state * 6364136223846793005ull + 1442695040888963407ull;
		*(uint64_t *)(area + i) = state * 2654435761u ^ state >> 31;
	}
	CHECK(sigaction(SIGBUS, &action, NULL) == 0);
	found = read_poison(area, size);
	CHECK(found > 0 && found < size / PAGE);
	/* A system call meets it as EFAULT. */
	for (size_t i = PAGE; i < size && at == NULL; i += PAGE)
		if (read_poison(area + i, PAGE) == 1 && read_poison(area + i - PAGE, PAGE) == 0)
			at = area + i;
	CHECK(at != NULL && pipe(ends) == 0);
	CHECK(write(ends[1], at, 1) == -1 && errno == EFAULT);
	/* What is given back is whole again. */
	CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0 && read_poison(at, PAGE) == 0);
	printf("poison: %u pages, all right\n", found);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "poison") == 0) {
		meet_poison();
		return 0;
	}
	actions();
	masks();
	descriptors();
	segments();
	puts("signals: all right");
	return 0;
}
