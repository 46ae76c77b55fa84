/* SPDX-License-Identifier: MIT
 *
 * vectors.c - system calls whose buffers stand in a list: gathered into, and scattered from, ordinary memory.
 *
 * The list itself may be on the stack, where no filter sees what it points to: so the C library's functions are stood in
 * front of too. A list without an address of the region is left alone.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "memory.h"
#include "shim.h"

/* As the kernel's UIO_MAXIOV. */
#define VECTORS_MAX 1024
/* Descriptors and credentials; the kernel's own limit is lower (net.core.optmem_max). */
#define CONTROL_MAX (128u << 10)
#define NAME_MAX_BYTES 128u

static bool vectors_in_region(const struct iovec *iov, size_t count)
{
	if (in_region(iov))
		return true;
	for (size_t i = 0; i < count && count <= VECTORS_MAX; i++)
		if (in_region(iov[i].iov_base) && iov[i].iov_len > 0)
			return true;
	return false;
}

/* Room for the copy of a list: in `few`, of FEW, or, for a longer one, which a small stack has no room for, mapped. NULL: no
 * memory. */
#define FEW 32
static struct iovec *list_take(struct iovec *few, size_t count)
{
	return count <= FEW || count > VECTORS_MAX ? few : memory_map(VECTORS_MAX * sizeof(*few), -1);
}

static void list_return(struct iovec *list, const struct iovec *few)
{
	if (list != NULL && list != few)
		memory_unmap(list, VECTORS_MAX * sizeof(*list));
}

/* The list, copied, and the bytes of all; -errno. */
static long load_vectors(struct iovec *copy, const struct iovec *iov, long count)
{
	size_t total = 0;

	if (count < 0 || count > VECTORS_MAX)
		return -EINVAL;
	if (guarded_copy(copy, iov, (size_t)count * sizeof(*iov)) != 0)
		return -EFAULT;
	for (long i = 0; i < count; i++) {
		if (copy[i].iov_len > 0x7ffff000ul)
			copy[i].iov_len = 0x7ffff000ul;
		total += copy[i].iov_len;
	}
	return total > 0x7ffff000ul ? 0x7ffff000l : (long)total;
}

/* Copies up to length bytes between the list and a buffer; the bytes copied. */
static size_t move(const struct iovec *iov, long count, uint8_t *buffer, size_t length, bool gather)
{
	size_t done = 0;

	for (long i = 0; i < count && done < length; i++) {
		size_t n = iov[i].iov_len < length - done ? iov[i].iov_len : length - done;
		size_t left = gather ? guarded_copy(buffer + done, iov[i].iov_base, n)
				     : guarded_copy(iov[i].iov_base, buffer + done, n);

		done += n - left;
		if (left != 0)
			break;
	}
	return done;
}

static long io(long number, int fd, const struct iovec *iov, int count, long offset, int flags, struct iovec *copy)
{
	static const struct {
		long vector, flat;
		bool writes, positioned;
	} kinds[] = {
		{ SYS_readv, SYS_read, false, false },	   { SYS_writev, SYS_write, true, false },
		{ SYS_preadv, SYS_pread64, false, true },  { SYS_pwritev, SYS_pwrite64, true, true },
		{ SYS_preadv2, SYS_preadv2, false, true }, { SYS_pwritev2, SYS_pwritev2, true, true },
	};
	struct iovec flat;
	struct scratch scratch;
	unsigned kind = 0;
	long total = load_vectors(copy, iov, count), result;

	if (total < 0)
		return total;
	while (kinds[kind].vector != number)
		kind++;
	if (!scratch_take((size_t)total, &scratch))
		return -ENOMEM;
	if (kinds[kind].writes && total > 0) {
		/* What can be read is written, as the kernel does. */
		total = (long)move(copy, count, scratch.memory, (size_t)total, true);
		if (total == 0) {
			scratch_return(&scratch);
			return -EFAULT;
		}
	}
	flat = (struct iovec){ scratch.memory, (size_t)total };
	if (kinds[kind].flat == number)
		result = gate_call(number, fd, (long)&flat, 1, offset, 0, flags);
	else
		result = gate_call(kinds[kind].flat, fd, (long)scratch.memory, total, offset, 0, 0);
	if (!kinds[kind].writes && result > 0) {
		size_t moved = move(copy, count, scratch.memory, (size_t)result, false);

		result = moved == 0 ? -EFAULT : (long)moved;
	}
	scratch_return(&scratch);
	return result;
}

long vector_io(long number, int fd, const struct iovec *iov, int count, long offset, int flags)
{
	struct iovec few[FEW], *list = list_take(few, count);
	long result = list != NULL ? io(number, fd, iov, count, offset, flags, list) : -ENOMEM;

	list_return(list, few);
	return result;
}

/* ---- messages -------------------------------------------------------------------------------------------- */

/* A message's parts in ordinary memory. */
struct flat_message {
	struct msghdr header;
	struct iovec vector;
	struct scratch scratch;
	uint8_t *name, *control;
};

static bool message_in_region(const struct msghdr *m)
{
	return in_region(m) || in_region(m->msg_name) || in_region(m->msg_control) ||
	       vectors_in_region(m->msg_iov, m->msg_iovlen);
}

static long flatten(struct flat_message *flat, const struct msghdr *m, struct iovec *iov)
{
	long total = load_vectors(iov, m->msg_iov, (long)m->msg_iovlen);
	size_t control = m->msg_controllen < CONTROL_MAX ? m->msg_controllen : CONTROL_MAX;

	if (total < 0)
		return total;
	if (!scratch_take((size_t)total + NAME_MAX_BYTES + control + 16, &flat->scratch))
		return -ENOMEM;
	flat->vector = (struct iovec){ flat->scratch.memory, (size_t)total };
	flat->control = (uint8_t *)flat->scratch.memory + (((size_t)total + 15) & ~15ul);
	flat->name = flat->control + control;
	flat->header = *m;
	flat->header.msg_iov = &flat->vector;
	flat->header.msg_iovlen = 1;
	if (m->msg_name != NULL) {
		flat->header.msg_name = flat->name;
		if (flat->header.msg_namelen > NAME_MAX_BYTES)
			flat->header.msg_namelen = NAME_MAX_BYTES;
	}
	if (m->msg_control != NULL && control > 0) {
		flat->header.msg_control = flat->control;
		flat->header.msg_controllen = control;
	}
	return 0;
}

static long send_message(int fd, const struct msghdr *m, int flags, struct iovec *iov)
{
	struct flat_message flat;
	long result = flatten(&flat, m, iov);

	if (result < 0)
		return result;
	/* Whole or not at all. */
	if (move(iov, (long)m->msg_iovlen, flat.scratch.memory, flat.vector.iov_len, true) != flat.vector.iov_len ||
	    (m->msg_name != NULL && guarded_copy(flat.name, m->msg_name, flat.header.msg_namelen) != 0) ||
	    (m->msg_control != NULL && guarded_copy(flat.control, m->msg_control, flat.header.msg_controllen) != 0))
		result = -EFAULT;
	else
		/* Without MSG_ZEROCOPY: the kernel would go on reading the copy. */
		result = gate_call(SYS_sendmsg, fd, (long)&flat.header, flags & ~MSG_ZEROCOPY, 0, 0, 0);
	scratch_return(&flat.scratch);
	return result;
}

static long receive_message(int fd, struct msghdr *m, int flags, struct iovec *iov)
{
	struct flat_message flat;
	size_t name_room = m->msg_namelen, got;
	long result = flatten(&flat, m, iov);

	if (result < 0)
		return result;
	result = gate_call(SYS_recvmsg, fd, (long)&flat.header, flags, 0, 0, 0);
	if (result >= 0) {
		/* With MSG_TRUNC the result is what there was, not what fitted. */
		got = (size_t)result < flat.vector.iov_len ? (size_t)result : flat.vector.iov_len;
		if (move(iov, (long)m->msg_iovlen, flat.scratch.memory, got, false) != got)
			result = -EFAULT;
		if (m->msg_name != NULL) {
			size_t n = flat.header.msg_namelen < name_room ? flat.header.msg_namelen : name_room;

			if (guarded_copy(m->msg_name, flat.name, n) != 0)
				result = -EFAULT;
			m->msg_namelen = flat.header.msg_namelen;
		}
		if (m->msg_control != NULL && guarded_copy(m->msg_control, flat.control, flat.header.msg_controllen) != 0)
			result = -EFAULT;
		m->msg_controllen = flat.header.msg_controllen;
		m->msg_flags = flat.header.msg_flags;
	}
	scratch_return(&flat.scratch);
	return result;
}

long vector_message(long number, int fd, struct msghdr *message, int flags)
{
	struct iovec few[FEW], *list;
	struct msghdr copy;
	long result;

	if (guarded_copy(&copy, message, sizeof(copy)) != 0)
		return -EFAULT;
	list = list_take(few, copy.msg_iovlen);
	if (list == NULL)
		return -ENOMEM;
	result = number == SYS_sendmsg ? send_message(fd, &copy, flags, list) : receive_message(fd, &copy, flags, list);
	list_return(list, few);
	if (number != SYS_sendmsg && result >= 0 && guarded_copy(message, &copy, sizeof(copy)) != 0)
		return -EFAULT;
	return result;
}

/* One by one, as the kernel does (net/socket.c, do_recvmmsg(), __sys_sendmmsg()). The timeout is looked at between two
 * messages only, there too. */
long vector_messages(long number, int fd, void *messages, unsigned count, int flags, void *timeout)
{
	struct mmsghdr *list = messages;
	struct timespec limit = { 0 }, now, start;
	unsigned done = 0;

	if (timeout != NULL && guarded_copy(&limit, timeout, sizeof(limit)) != 0)
		return -EFAULT;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (; done < count; done++) {
		int once = done > 0 && (flags & MSG_WAITFORONE) ? MSG_DONTWAIT : 0;
		long result = vector_message(number == SYS_sendmmsg ? SYS_sendmsg : SYS_recvmsg, fd, &list[done].msg_hdr,
					     (flags & ~MSG_WAITFORONE) | once);
		unsigned length = (unsigned)result;

		if (result < 0)
			return done > 0 ? (long)done : result;
		if (guarded_copy(&list[done].msg_len, &length, sizeof(length)) != 0)
			return -EFAULT;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (timeout != NULL && (now.tv_sec - start.tv_sec) * 1000000000l + now.tv_nsec - start.tv_nsec >=
					       limit.tv_sec * 1000000000l + limit.tv_nsec)
			return (long)done + 1;
	}
	return (long)done;
}

/* ---- the C library's functions --------------------------------------------------------------------------- */

#define VECTOR(name, number, offset, flags, parameters, arguments)                                        \
	EXPORT ssize_t name parameters                                                                    \
	{                                                                                                 \
		if (!shim.inline_delivery || count < 0 || !vectors_in_region(iov, (size_t)count))         \
			return NEXT(name) arguments;                                                      \
		return shim_result(vector_io(number, fd, iov, count, offset, flags));                     \
	}
VECTOR(readv, SYS_readv, 0, 0, (int fd, const struct iovec *iov, int count), (fd, iov, count))
VECTOR(writev, SYS_writev, 0, 0, (int fd, const struct iovec *iov, int count), (fd, iov, count))
VECTOR(preadv, SYS_preadv, offset, 0, (int fd, const struct iovec *iov, int count, off_t offset), (fd, iov, count, offset))
VECTOR(pwritev, SYS_pwritev, offset, 0, (int fd, const struct iovec *iov, int count, off_t offset), (fd, iov, count, offset))
VECTOR(preadv64, SYS_preadv, offset, 0, (int fd, const struct iovec *iov, int count, off64_t offset), (fd, iov, count, offset))
VECTOR(pwritev64, SYS_pwritev, offset, 0, (int fd, const struct iovec *iov, int count, off64_t offset), (fd, iov, count, offset))
VECTOR(preadv2, SYS_preadv2, offset, flags, (int fd, const struct iovec *iov, int count, off_t offset, int flags),
       (fd, iov, count, offset, flags))
VECTOR(pwritev2, SYS_pwritev2, offset, flags, (int fd, const struct iovec *iov, int count, off_t offset, int flags),
       (fd, iov, count, offset, flags))
VECTOR(preadv64v2, SYS_preadv2, offset, flags, (int fd, const struct iovec *iov, int count, off64_t offset, int flags),
       (fd, iov, count, offset, flags))
VECTOR(pwritev64v2, SYS_pwritev2, offset, flags, (int fd, const struct iovec *iov, int count, off64_t offset, int flags),
       (fd, iov, count, offset, flags))

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	if (!shim.inline_delivery || !message_in_region(message))
		return NEXT(sendmsg)(fd, message, flags);
	return shim_result(vector_message(SYS_sendmsg, fd, (struct msghdr *)message, flags));
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	if (!shim.inline_delivery || !message_in_region(message))
		return NEXT(recvmsg)(fd, message, flags);
	return shim_result(vector_message(SYS_recvmsg, fd, message, flags));
}

static bool messages_in_region(const struct mmsghdr *messages, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (message_in_region(&messages[i].msg_hdr))
			return true;
	return false;
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
	if (!shim.inline_delivery || !messages_in_region(messages, count))
		return NEXT(sendmmsg)(fd, messages, count, flags);
	return (int)shim_result(vector_messages(SYS_sendmmsg, fd, messages, count, flags, NULL));
}

EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
	if (!shim.inline_delivery || !messages_in_region(messages, count))
		return NEXT(recvmmsg)(fd, messages, count, flags, timeout);
	return (int)shim_result(vector_messages(SYS_recvmmsg, fd, messages, count, flags, timeout));
}

EXPORT ssize_t vmsplice(int fd, const struct iovec *iov, size_t count, unsigned flags)
{
	if (!vectors_in_region(iov, count))
		return NEXT(vmsplice)(fd, iov, count, flags);
	/* The pipe would hold frames that go on changing. */
	errno = EINVAL;
	return -1;
}
