/* SPDX-License-Identifier: MIT
 *
 * process.c - exec, spawn, system, popen.
 *
 * What the kernel, or a child that shares the memory but not the handlers, reads of a new program's arguments is copied to
 * ordinary memory first.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "shim.h"

/* ---- copies of arguments --------------------------------------------------------------------------------- */

/* More than execve(2) takes (a quarter of the stack's limit, seldom over 2 MiB; a string at most 128 KiB). */
#define COPY_SIZE (16ull << 20)
#define STRING_SIZE (128u << 10)

/* Where copies go; address space until it is used. */
struct copies {
	char *memory;
	size_t used;
	bool failed;
};

static struct copies copies_begin(void)
{
	struct copies copies = { .memory = memory_map(COPY_SIZE, -1) };

	copies.failed = copies.memory == NULL;
	return copies;
}

static void copies_end(struct copies *copies)
{
	int saved = errno;

	if (copies->memory != NULL)
		memory_unmap(copies->memory, COPY_SIZE);
	errno = saved;
}

static void *copy_bytes(struct copies *copies, const void *from, size_t size)
{
	void *to = copies->memory + copies->used;

	if (from == NULL || copies->failed)
		return NULL;
	if (copies->used + size + 16 > COPY_SIZE || guarded_copy(to, from, size) != 0) {
		copies->failed = true;
		return NULL;
	}
	copies->used += (size + 15) & ~15ul;
	return to;
}

static char *copy_string(struct copies *copies, const char *from)
{
	char *to = copies->memory + copies->used;
	size_t size;

	if (from == NULL || copies->failed)
		return NULL;
	/* Outside the region it may stay where it is. */
	if (!in_region(from))
		return (char *)from;
	size = copies->used + STRING_SIZE <= COPY_SIZE ? guarded_string(to, from, STRING_SIZE) : 0;
	copies->failed = size == 0;
	copies->used += (size + 15) & ~15ul;
	return to;
}

static char **copy_strings(struct copies *copies, char *const *from)
{
	size_t n = 0;
	char *string, **to;

	if (from == NULL || copies->failed)
		return NULL;
	do {
		if (guarded_copy(&string, from + n, sizeof(string)) != 0) {
			copies->failed = true;
			return NULL;
		}
		n++;
	} while (string != NULL);
	to = copy_bytes(copies, from, n * sizeof(*to));
	for (size_t i = 0; to != NULL && i + 1 < n; i++)
		to[i] = copy_string(copies, to[i]);
	return to;
}

static bool strings_in_region(char *const *strings)
{
	if (strings == NULL)
		return false;
	if (in_region(strings))
		return true;
	while (*strings != NULL && !in_region(*strings))
		strings++;
	return *strings != NULL;
}

/* ---- exec ------------------------------------------------------------------------------------------------ */

long process_exec(long number, const long a[6])
{
	struct copies copies = copies_begin();
	bool at = number == SYS_execveat;
	char *path = copy_string(&copies, (const char *)a[at]);
	char **argv = copy_strings(&copies, (char *const *)a[at + 1]);
	char **envp = copy_strings(&copies, (char *const *)a[at + 2]);
	long result = copies.memory == NULL ? -ENOMEM : -EFAULT;

	if (!copies.failed)
		result = at ? gate_call(number, a[0], (long)path, (long)argv, (long)envp, a[4], 0)
			    : gate_call(number, (long)path, (long)argv, (long)envp, 0, 0, 0);
	copies_end(&copies);
	return result;
}

static bool exec_in_region(const char *path, char *const *argv, char *const *envp)
{
	return in_region(path) || strings_in_region(argv) || strings_in_region(envp);
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	long args[6] = { (long)path, (long)argv, (long)envp };

	if (!exec_in_region(path, argv, envp))
		return NEXT(execve)(path, argv, envp);
	return (int)shim_result(process_exec(SYS_execve, args));
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	struct copies copies;
	char **argv_copy, **envp_copy;
	char *name;

	if (!exec_in_region(file, argv, envp))
		return NEXT(execvpe)(file, argv, envp);
	copies = copies_begin();
	name = copy_string(&copies, file);
	argv_copy = copy_strings(&copies, argv);
	envp_copy = copy_strings(&copies, envp);
	if (copies.failed)
		errno = copies.memory == NULL ? ENOMEM : EFAULT;
	else
		NEXT(execvpe)(name, argv_copy, envp_copy);
	copies_end(&copies);
	return -1;
}

EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	struct copies copies;
	char **argv_copy, **envp_copy;

	if (!exec_in_region(NULL, argv, envp))
		return NEXT(fexecve)(fd, argv, envp);
	copies = copies_begin();
	argv_copy = copy_strings(&copies, argv);
	envp_copy = copy_strings(&copies, envp);
	if (copies.failed)
		errno = copies.memory == NULL ? ENOMEM : EFAULT;
	else
		NEXT(fexecve)(fd, argv_copy, envp_copy);
	copies_end(&copies);
	return -1;
}

/* The arguments of execl() and its kin, up to the NULL, as an array on this stack. */
#define LIST_MAX 1024
#define COLLECT(first, list)                                        \
	char *argv[LIST_MAX];                                       \
	int n = 0;                                                  \
	for (const char *word = first; n < LIST_MAX - 1; n++) {     \
		argv[n] = (char *)word;                             \
		if (word == NULL)                                   \
			break;                                      \
		word = va_arg(list, const char *);                  \
	}                                                           \
	argv[n] = NULL

EXPORT int execl(const char *path, const char *first, ...)
{
	va_list list;

	va_start(list, first);
	COLLECT(first, list);
	va_end(list);
	return execve(path, argv, environ);
}

EXPORT int execlp(const char *file, const char *first, ...)
{
	va_list list;

	va_start(list, first);
	COLLECT(first, list);
	va_end(list);
	return execvpe(file, argv, environ);
}

EXPORT int execle(const char *path, const char *first, ...)
{
	char *const *envp;
	va_list list;

	va_start(list, first);
	COLLECT(first, list);
	envp = va_arg(list, char *const *);
	va_end(list);
	return execve(path, argv, envp);
}

/* ---- spawn ----------------------------------------------------------------------------------------------- */

/* Its actions are opaque, but for their number and where they are (<spawn.h>): each is 32 bytes, and what looks like an
 * address of the region is a path (glibc: posix/spawn_int.h). */
#define ACTION_WORDS 4u

static posix_spawn_file_actions_t *copy_actions(struct copies *copies, const posix_spawn_file_actions_t *from)
{
	posix_spawn_file_actions_t *to = copy_bytes(copies, from, sizeof(*from));
	uint64_t *words;

	if (to == NULL || to->__used <= 0)
		return to;
	words = copy_bytes(copies, to->__actions, (size_t)to->__used * ACTION_WORDS * sizeof(*words));
	for (size_t i = 0; words != NULL && i < (size_t)to->__used * ACTION_WORDS; i++)
		if (in_region((void *)words[i]))
			words[i] = (uint64_t)copy_string(copies, (const char *)words[i]);
	to->__actions = (struct __spawn_action *)words;
	return to;
}

typedef int spawn_fn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		     const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]);

static int spawn(spawn_fn *real, pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	struct copies copies = copies_begin();
	char *path_copy = copy_string(&copies, path);
	posix_spawn_file_actions_t *actions_copy = copy_actions(&copies, actions);
	posix_spawnattr_t *attributes_copy = copy_bytes(&copies, attributes, sizeof(*attributes));
	char **argv_copy = copy_strings(&copies, argv);
	char **envp_copy = copy_strings(&copies, envp);
	int result = copies.memory == NULL ? ENOMEM : EFAULT;
	pid_t child;

	if (!copies.failed)
		result = real(&child, path_copy, actions_copy, attributes_copy, argv_copy, envp_copy);
	if (result == 0 && pid != NULL)
		*pid = child;
	copies_end(&copies);
	return result;
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		       const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	return spawn(NEXT(posix_spawn), pid, path, actions, attributes, argv, envp);
}

EXPORT int posix_spawnp(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
			const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	return spawn(NEXT(posix_spawnp), pid, path, actions, attributes, argv, envp);
}

/* ---- system, popen --------------------------------------------------------------------------------------- */

/* They spawn with the environment as it is, which may be in the region. While they do so it is a copy, which stays: others
 * may look at it meanwhile. A new one is made when the environment has changed. */
static pthread_mutex_t environment_lock = PTHREAD_MUTEX_INITIALIZER;
static struct copies environment_copies;
static char **environment_copy;

static bool same_strings(char *const *a, char *const *b)
{
	for (; *a != NULL && *b != NULL; a++, b++)
		if (strcmp(*a, *b) != 0)
			return false;
	return *a == *b;
}

/* Begins; what to give environment_end(). */
static char **environment_begin(void)
{
	char **original = environ;

	pthread_mutex_lock(&environment_lock);
	if (!strings_in_region(original))
		return original;
	if (environment_copy == NULL || !same_strings(environment_copy, original)) {
		environment_copies = copies_begin();
		environment_copy = copy_strings(&environment_copies, original);
	}
	if (environment_copy != NULL && !environment_copies.failed)
		environ = environment_copy;
	return original;
}

static void environment_end(char **original)
{
	environ = original;
	pthread_mutex_unlock(&environment_lock);
}

EXPORT FILE *popen(const char *command, const char *mode)
{
	struct copies copies = copies_begin();
	char *copy = copy_string(&copies, command);
	char **environment = environment_begin();
	FILE *file;

	file = NEXT(popen)(copies.failed ? command : copy, mode);
	environment_end(environment);
	copies_end(&copies);
	return file;
}

EXPORT int system(const char *command)
{
	const char *argv[] = { "sh", "-c", command, NULL };
	struct sigaction ignore = { .sa_handler = SIG_IGN }, interrupt, quit;
	sigset_t child_signal, before, defaults;
	posix_spawnattr_t attributes;
	int status = -1, error;
	pid_t child;

	if (command == NULL)
		return 1;
	sigemptyset(&child_signal);
	sigaddset(&child_signal, SIGCHLD);
	sigaction(SIGINT, &ignore, &interrupt);
	sigaction(SIGQUIT, &ignore, &quit);
	sigprocmask(SIG_BLOCK, &child_signal, &before);
	sigemptyset(&defaults);
	if (interrupt.sa_handler != SIG_IGN)
		sigaddset(&defaults, SIGINT);
	if (quit.sa_handler != SIG_IGN)
		sigaddset(&defaults, SIGQUIT);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &before);
	posix_spawnattr_setsigdefault(&attributes, &defaults);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	error = posix_spawn(&child, "/bin/sh", NULL, &attributes, (char *const *)argv, environ);
	posix_spawnattr_destroy(&attributes);
	if (error == 0) {
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
	} else {
		/* As if the shell had ended so (POSIX). */
		status = 127 << 8;
	}
	sigaction(SIGINT, &interrupt, NULL);
	sigaction(SIGQUIT, &quit, NULL);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return status;
}
