/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cram.h"
#include "descriptor.h"
#include "memory.h"

/* Debian 12's <linux/userfaultfd.h> is of Linux 6.1. */
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#define _UFFDIO_POISON 0x08
struct uffdio_poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#define _UFFDIO_MOVE 0x05
struct uffdio_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif

static int uffd_ioctl(int fd, unsigned long request, void *argument)
{
	int saved = errno;
	int code = ioctl(fd, request, argument) == 0 ? 0 : -errno;

	errno = saved;
	return code;
}

/* Drops pages of locked memory too (mlockall(2)); Linux 5.18. */
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* The system call, or the device node for those whom an administrator gave it (Linux 6.1). */
static int open_descriptor(int flags)
{
	int fd = descriptor_take((int)syscall(SYS_userfaultfd, flags));
	int error = errno;
	int node;

	if (fd >= 0 || (error != EPERM && error != ENOSYS))
		return fd >= 0 ? fd : -error;
	node = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (node < 0)
		return -error;
	fd = descriptor_take(ioctl(node, USERFAULTFD_IOC_NEW, flags));
	error = errno;
	close(node);
	return fd >= 0 ? fd : -error;
}

static int handshake(int fd, uint64_t features, uint64_t *offered)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int code = uffd_ioctl(fd, UFFDIO_API, &api);

	if (code == 0 && offered != NULL)
		*offered = api.features;
	return code;
}

/* A descriptor with these features, which can be asked for but once. */
static int open_with(uint64_t features, bool user_mode, int *fd)
{
	int code;

	*fd = open_descriptor(O_CLOEXEC | O_NONBLOCK);
	if (*fd < 0 && user_mode)
		*fd = open_descriptor(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (*fd < 0)
		return *fd;
	code = handshake(*fd, features, NULL);
	if (code == 0)
		return 0;
	descriptor_close(*fd);
	return -ENOSYS;
}

int uffd_open(bool sigbus, int *fd, bool *move)
{
	uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EXACT_ADDRESS |
			    (sigbus ? UFFD_FEATURE_SIGBUS : UFFD_FEATURE_POISON);
	int code = open_with(features | UFFD_FEATURE_MOVE, sigbus, fd);

	*move = code == 0;
	return code == -ENOSYS ? open_with(features, sigbus, fd) : code;
}

int uffd_register(int fd, void *start, size_t length, bool protect)
{
	struct uffdio_register r = { .range = { (uintptr_t)start, length },
				     .mode = UFFDIO_REGISTER_MODE_MISSING |
					     (protect ? UFFDIO_REGISTER_MODE_WP : 0) };

	return uffd_ioctl(fd, UFFDIO_REGISTER, &r);
}

int uffd_copy(int fd, void *to, const void *from, size_t length, bool protect, size_t *done)
{
	*done = 0;
	for (;;) {
		struct uffdio_copy c = { .dst = (uintptr_t)to + *done,
					 .src = (uintptr_t)from + *done,
					 .len = length - *done,
					 .mode = protect ? UFFDIO_COPY_MODE_WP : 0 };
		int code = uffd_ioctl(fd, UFFDIO_COPY, &c);

		if (code == 0 || c.copy > 0)
			*done += (size_t)c.copy;
		if (code == 0 && *done >= length)
			return 0;
		/* A partial copy, or the address space is changing (fork, munmap elsewhere): go on. */
		if (code != 0 && code != -EAGAIN)
			return code;
	}
}

int uffd_move(int fd, void *to, void *from, size_t length, size_t *done)
{
	*done = 0;
	for (;;) {
		struct uffdio_move m = { .dst = (uintptr_t)to + *done,
					 .src = (uintptr_t)from + *done,
					 .len = length - *done };
		int code = uffd_ioctl(fd, UFFDIO_MOVE, &m);

		if (code == 0 || m.move > 0)
			*done += (size_t)m.move;
		if (code == 0 && *done >= length)
			return 0;
		/* As for a copy; or the kernel holds a page locked for a moment. */
		if (code != 0 && code != -EAGAIN)
			return code;
	}
}

int uffd_protect(int fd, void *start, size_t length, bool protect)
{
	int code;

	do {
		struct uffdio_writeprotect p = { .range = { (uintptr_t)start, length },
						 .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };

		code = uffd_ioctl(fd, UFFDIO_WRITEPROTECT, &p);
	} while (code == -EAGAIN);
	return code;
}

void uffd_wake(int fd, void *start, size_t length)
{
	struct uffdio_range r = { (uintptr_t)start, length };

	uffd_ioctl(fd, UFFDIO_WAKE, &r);
}

int uffd_poison(int fd, void *start, size_t length)
{
	int code;

	do {
		struct uffdio_poison p = { .range = { (uintptr_t)start, length } };

		code = uffd_ioctl(fd, UFFDIO_POISON, &p);
	} while (code == -EAGAIN);
	/* Marked already: the kernel wakes only whom it marks for, and one may have gone to sleep on the mark. */
	if (code == -EEXIST)
		uffd_wake(fd, start, length);
	return code == -EEXIST ? 0 : code;
}

int uffd_drop(const struct iovec *ranges, int n)
{
	/* PIDFD_SELF_THREAD_GROUP, Linux 6.14; earlier kernels answer EBADF, and get one call a range. */
	const int self = -10001;
	ssize_t total = 0, done = -1;
	int saved = errno;
	int code = 0;

	for (int i = 0; i < n; i++)
		total += (ssize_t)ranges[i].iov_len;
	if (n > 1)
		done = syscall(SYS_process_madvise, self, ranges, n, MADV_DONTNEED_LOCKED, 0);
	/* Again for those that are gone already does no harm: nobody can have filled them meanwhile. */
	for (int i = 0; i < n && done != total && code == 0; i++)
		code = memory_advise(ranges[i].iov_base, ranges[i].iov_len, MADV_DONTNEED_LOCKED);
	errno = saved;
	return code;
}

void cram_uffd_probe(struct cram_uffd_info *info)
{
	int fd = open_descriptor(O_CLOEXEC | O_NONBLOCK);

	memset(info, 0, sizeof(*info));
	info->kernel_faults = fd >= 0;
	if (fd < 0)
		fd = open_descriptor(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	info->available = fd < 0 ? fd : 0;
	if (fd < 0)
		return;
	info->available = handshake(fd, 0, &info->features);
	descriptor_close(fd);
	info->sigbus = (info->features & UFFD_FEATURE_SIGBUS) != 0;
	info->write_protect = (info->features & UFFD_FEATURE_PAGEFAULT_FLAG_WP) != 0;
	info->poison = (info->features & UFFD_FEATURE_POISON) != 0;
	info->move = (info->features & UFFD_FEATURE_MOVE) != 0;
	info->exact_address = (info->features & UFFD_FEATURE_EXACT_ADDRESS) != 0;
}
