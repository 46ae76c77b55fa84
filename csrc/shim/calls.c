/* SPDX-License-Identifier: MIT
 *
 * calls.c - answers the system calls that the filter traps: what they point to in the region is copied through ordinary
 * memory, or kept resident meanwhile.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "host/sigbus.h"
#include "memory.h"
#include "ranges.h"
#include "shim.h"
#include "signals.h"
#include "table.h"
#include "witness.h"

/* Data of a regular file moves in pieces of so much. */
#define PIECE (256u << 10)
#define STRING_MAX_BYTES 4096u
/* Of a socket's address (struct sockaddr_storage), and of descriptors (fs/file.c, sysctl_nr_open). */
#define ADDRESS_MAX 128
#define DESCRIPTORS_MAX (1 << 20)
#define RETRIES 1000
/* From siginfo.h of the kernel; glibc 2.36 does not have it. */
#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1
#endif

/* ---- copies ---------------------------------------------------------------------------------------------- */

/* Copies length bytes; what the instruction has left, if a fault there is not resolved, is what it returns. */
__asm__(".text\n"
	".type guarded_move, @function\n"
	"guarded_move:\n"
	"	mov %rdx, %rcx\n"
	"guarded_instruction:\n"
	"	rep movsb\n"
	"guarded_end:\n"
	"	mov %rcx, %rax\n"
	"	ret\n"
	".size guarded_move, . - guarded_move\n");
extern size_t guarded_move(void *to, const void *from, size_t length) __attribute__((visibility("hidden")));
extern const char guarded_instruction[], guarded_end[];

/* What is told of poison may lie on the device itself: the program's name, where the program has copied it, or a library's. So
 * SIGBUS is open meanwhile; poison that is met in telling is passed on, but not told. */
static void tell_poison(const void *address)
{
	static _Thread_local FAST_TLS bool telling;
	uint64_t open = 1ull << (SIGBUS - 1), before;

	if (telling)
		return;
	telling = true;
	memory_call(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&open, (long)&before, sizeof(open), 0, 0);
	witness_met(address);
	memory_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&before, 0, sizeof(before), 0, 0);
	telling = false;
}

/* For the SIGBUS handler: goes on after the copy, which is then incomplete. Poison is told, whoever met it. */
static bool rescue(const siginfo_t *info, ucontext_t *context)
{
	if (info->si_code == BUS_MCEERR_AR)
		tell_poison(info->si_addr);
	if (context->uc_mcontext.gregs[REG_RIP] != (greg_t)guarded_instruction)
		return false;
	context->uc_mcontext.gregs[REG_RIP] = (greg_t)guarded_end;
	return true;
}

/* How much of a range may be accessed; what lies outside the region is the caller's. */
static size_t accessible(const void *address, size_t length, bool write)
{
	if (!in_region(address))
		return length;
	return ranges_accessible((uint64_t)(uintptr_t)address - REGION_BASE, length, write);
}

size_t guarded_copy(void *to, const void *from, size_t length)
{
	size_t n = accessible(from, length, false);
	size_t m = accessible(to, length, true);

	n = m < n ? m : n;
	return length - n + guarded_move(to, from, n);
}

size_t guarded_string(char *to, const char *from, size_t size)
{
	size_t copied = 0;

	while (copied < size) {
		size_t n = SHIM_PAGE - (uintptr_t)(from + copied) % SHIM_PAGE;
		size_t left;
		const char *end;

		n = n < size - copied ? n : size - copied;
		left = guarded_copy(to + copied, from + copied, n);
		end = memchr(to + copied, 0, n - left);
		if (end != NULL)
			return (size_t)(end - to) + 1;
		if (left != 0)
			return 0;
		copied += n;
	}
	return 0;
}

bool guarded_touch(void *address, bool write)
{
	uint32_t word;

	if (guarded_copy(&word, address, sizeof(word)) != 0)
		return false;
	/* The race: another thread changes the word in between. Adding nothing does not lose that, and no fault can be
	 * fatal: the page is there, or comes. */
	if (write && accessible(address, sizeof(word), true) == sizeof(word))
		__atomic_fetch_or((uint32_t *)address, 0, __ATOMIC_SEQ_CST);
	return true;
}

/* ---- calls whose parts are copied ------------------------------------------------------------------------ */

static size_t part_size(const struct part *part, const long args[6])
{
	int length;

	if (part->how & PART_STRING)
		return STRING_MAX_BYTES;
	if (part->how & PART_FDS)
		return args[0] > 0 && args[0] <= DESCRIPTORS_MAX ? (size_t)(args[0] + 63) / 64 * 8 : 0;
	if (part->how & PART_LENGTH) {
		if (args[part->count] == 0 || guarded_copy(&length, (void *)args[part->count], sizeof(length)) != 0 || length < 0)
			return 0;
		return length < ADDRESS_MAX ? (size_t)length : ADDRESS_MAX;
	}
	if (part->how & PART_COUNTED)
		return (size_t)args[part->count] * part->item;
	return part->item * PART_UNIT;
}

/* The part's copy: filled, also where the kernel only writes, for it may not, or not all of it. But not a buffer of which the
 * result says how much it wrote. -errno. */
static long fill_part(const struct part *part, void *copy, const void *original, size_t size)
{
	if (part->how & PART_STRING) {
		if (guarded_string(copy, original, size) > 0)
			return 0;
		return guarded_copy(copy, original, size) == 0 ? -ENAMETOOLONG : -EFAULT;
	}
	if (!(part->how & PART_RESULT)) {
		size_t left = guarded_copy(copy, original, size);

		/* A structure that is as large as it may be, at the end of what there is. */
		if (left > 0 && (part->how & PART_COUNTED))
			return -EFAULT;
	}
	return 0;
}

static long empty_part(const struct part *part, void *original, const void *copy, size_t size, long result)
{
	/* A call that was interrupted has written how long there was to sleep. */
	if (!(part->how & PART_OUT) || (result < 0 && (result != -EINTR || (part->how & PART_RESULT))))
		return 0;
	if (part->how & PART_RESULT) {
		size_t got = (size_t)result * part->item;

		size = got < size ? got : size;
	}
	/* As above: no more than there is was meant. */
	return guarded_copy(original, copy, size) > 0 && (part->how & PART_COUNTED) ? -EFAULT : 0;
}

static long answer_copy(const struct call *call, long number, const long args[6])
{
	long passed[6], result = 0;
	size_t offset[4], size[4], total = 0;
	struct scratch scratch;
	uint8_t *memory;

	memcpy(passed, args, sizeof(passed));
	for (unsigned i = 0; i < call->count; i++) {
		offset[i] = total;
		size[i] = 0;
		if (in_region((void *)args[call->parts[i].argument])) {
			size[i] = part_size(&call->parts[i], args);
			total += (size[i] + 63) & ~63ull;
		}
	}
	if (!scratch_take(total, &scratch))
		return -ENOMEM;
	memory = scratch.memory;
	for (unsigned i = 0; i < call->count && result == 0; i++) {
		unsigned a = call->parts[i].argument;

		if (!in_region((void *)args[a]))
			continue;
		passed[a] = (long)(memory + offset[i]);
		result = fill_part(&call->parts[i], memory + offset[i], (void *)args[a], size[i]);
	}
	if (result == 0)
		result = gate_call(number, passed[0], passed[1], passed[2], passed[3], passed[4], passed[5]);
	for (unsigned i = 0; i < call->count; i++) {
		unsigned a = call->parts[i].argument;
		long code = 0;

		if (passed[a] != args[a])
			code = empty_part(&call->parts[i], (void *)args[a], memory + offset[i], size[i], result);
		result = code < 0 ? code : result;
	}
	scratch_return(&scratch);
	return result;
}

/* read(2) and its kin on a regular file: piece by piece, as the kernel's own copy would go. */
static long answer_pieces(const struct call *call, long number, const long args[6])
{
	bool positioned = number == SYS_pread64 || number == SYS_pwrite64;
	long piece[6], done = 0;

	memcpy(piece, args, sizeof(piece));
	while (done < args[2]) {
		long result;

		piece[1] = args[1] + done;
		piece[2] = args[2] - done < (long)PIECE ? args[2] - done : (long)PIECE;
		if (positioned)
			piece[3] = args[3] + done;
		result = answer_copy(call, number, piece);
		if (result < 0)
			return done > 0 ? done : result;
		done += result;
		if (result < piece[2])
			break;
	}
	return done;
}

static bool regular_file(int fd)
{
	struct stat st;

	return gate_call(SYS_fstat, fd, (long)&st, 0, 0, 0, 0) == 0 && S_ISREG(st.st_mode);
}

/* What is appended by one call stands together. */
static bool appends(long number, int fd)
{
	long flags;

	if (number != SYS_write && number != SYS_pwrite64)
		return false;
	flags = gate_call(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	return flags >= 0 && (flags & O_APPEND);
}

static bool moves_data(long number)
{
	return number == SYS_read || number == SYS_write || number == SYS_pread64 || number == SYS_pwrite64;
}

/* ---- calls whose memory stays resident ------------------------------------------------------------------- */

static bool pin(const void *address, uint64_t *offset, uint64_t *length, long *result)
{
	uint64_t start = (uint64_t)(uintptr_t)address - REGION_BASE;
	int code;

	*offset = start & ~(SHIM_PAGE - 1);
	*length = accessible(REGION_BASE + (void *)*offset, 2 * SHIM_PAGE, false);
	if (*length == 0)
		return false;
	code = cram_pin(shim.map, *offset, *length);
	if (code != 0 && *length > SHIM_PAGE) {
		/* What it points to need not go on there. */
		*length = SHIM_PAGE;
		code = cram_pin(shim.map, *offset, *length);
	}
	if (code == 0)
		return true;
	*result = -EFAULT;
	return false;
}

static long answer_pinned(unsigned addresses, long number, const long args[6])
{
	uint64_t offset[6], length[6];
	unsigned pinned = 0;
	long result = 0;

	for (unsigned i = 0; i < 6; i++)
		if ((addresses >> i & 1) && in_region((void *)args[i]) &&
		    pin((void *)args[i], &offset[i], &length[i], &result))
			pinned |= 1u << i;
	if (result == 0)
		result = gate_call(number, args[0], args[1], args[2], args[3], args[4], args[5]);
	for (unsigned i = 0; i < 6; i++)
		if (pinned >> i & 1)
			cram_unpin(shim.map, offset[i], length[i]);
	return result;
}

/* The kernel looks at the word at once, and says EFAULT before it has done anything: then it is brought back. */
static long answer_futex(const long args[6])
{
	int operation = (int)args[1] & FUTEX_CMD_MASK;
	bool timed = operation == FUTEX_WAIT || operation == FUTEX_WAIT_BITSET || operation == FUTEX_LOCK_PI ||
		     operation == FUTEX_LOCK_PI2 || operation == FUTEX_WAIT_REQUEUE_PI;
	/* One that processes share is looked up by its page, which must be writable (kernel/futex/core.c, get_futex_key()). */
	bool shared = !((int)args[1] & FUTEX_PRIVATE_FLAG);
	bool second = operation != FUTEX_WAIT && operation != FUTEX_WAIT_BITSET && operation != FUTEX_WAKE &&
		      operation != FUTEX_WAKE_BITSET;
	bool writes = shared || second;
	long timeout = args[3], result = -EFAULT;
	struct timespec copy;

	if (timed && in_region((void *)timeout)) {
		if (guarded_copy(&copy, (void *)timeout, sizeof(copy)) != 0)
			return -EFAULT;
		timeout = (long)&copy;
	}
	for (int i = 0; i < RETRIES && result == -EFAULT; i++) {
		if (in_region((void *)args[0]) && !guarded_touch((void *)args[0], writes))
			return -EFAULT;
		if (second && in_region((void *)args[4]) && !guarded_touch((void *)args[4], true))
			return -EFAULT;
		result = gate_call(SYS_futex, args[0], args[1], args[2], timeout, args[4], args[5]);
	}
	return result;
}

/* ---- the answer ------------------------------------------------------------------------------------------ */

static long answer_space(long number, const long a[6])
{
	switch (number) {
	case SYS_mmap:
		return space_mmap((void *)a[0], (size_t)a[1], (int)a[2], (int)a[3], (int)a[4], a[5]);
	case SYS_munmap:
		return space_munmap((void *)a[0], (size_t)a[1]);
	case SYS_mprotect:
		return space_mprotect((void *)a[0], (size_t)a[1], (int)a[2]);
	case SYS_madvise:
		return space_madvise((void *)a[0], (size_t)a[1], (int)a[2]);
	case SYS_mremap:
		return space_mremap((void *)a[0], (size_t)a[1], (size_t)a[2], (int)a[3], (void *)a[4]);
	default:
		/* mlock and its kin: this memory is never swapped. */
		return 0;
	}
}

long calls_answer(long number, long a[6])
{
	const struct call *call = table_find(number);

	switch (call != NULL ? call->kind : CALL_PIN) {
	case CALL_COPY:
		/* The kernel would go on reading the copy after the call. */
		if (number == SYS_sendto)
			a[3] &= ~(long)MSG_ZEROCOPY;
		if (moves_data(number) && a[2] > (long)PIECE && regular_file((int)a[0]) && !appends(number, (int)a[0]))
			return answer_pieces(call, number, a);
		return answer_copy(call, number, a);
	case CALL_SPACE:
		return answer_space(number, a);
	case CALL_FUTEX:
		return answer_futex(a);
	case CALL_VECTOR:
		/* On this machine the offset is whole in one register, the next one is not used; then the flags. */
		return vector_io(number, (int)a[0], (const struct iovec *)a[1], (int)a[2], a[3], (int)a[5]);
	case CALL_MESSAGE:
		if (number == SYS_sendmmsg || number == SYS_recvmmsg)
			return vector_messages(number, (int)a[0], (void *)a[1], (unsigned)a[2], (int)a[3], (void *)a[4]);
		return vector_message(number, (int)a[0], (struct msghdr *)a[1], (int)a[2]);
	case CALL_EXEC:
		return process_exec(number, a);
	case CALL_REFUSE:
		return -EINVAL;
	default:
		return answer_pinned(call != NULL ? call->addresses : TABLE_UNKNOWN_ADDRESSES, number, a);
	}
}

/* A call that the filter would trap, and that has no effect if it does not. */
static volatile bool probing, probed;

bool calls_trapped(bool all_calls)
{
	probing = true;
	syscall(all_calls ? SYS_access : SYS_munlock, REGION_BASE, 0);
	probing = false;
	return probed;
}

static void on_sigsys(int number, siginfo_t *info, void *argument)
{
	ucontext_t *context = argument;
	greg_t *r = context->uc_mcontext.gregs;
	long args[6] = { r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9] };
	int saved = errno;

	if (probing) {
		probed = true;
		r[REG_RAX] = -EFAULT;
		return;
	}
	/* From the filter, and not one of the program's own. */
	if (info->si_code == SYS_SECCOMP && table_error(info->si_syscall) == 0)
		r[REG_RAX] = calls_answer(info->si_syscall, args);
	else
		signals_pass_on(number, info, context);
	errno = saved;
}

void calls_install(void)
{
	/* The call may block: the program's signals must come in meanwhile, and a handler's own calls too. */
	struct sigaction action = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };

	sigbus_rescue(rescue);
	__sigaction(SIGSYS, &action, NULL);
}
