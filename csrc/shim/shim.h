/* SPDX-License-Identifier: MIT
 *
 * shim.h - what `cram-emu run` preloads: a program's heap and large anonymous mappings are placed on the device, and the
 * program is not to notice.
 *
 * It is no allocator: mimalloc, preloaded behind it, asks mmap() for its memory and gets the region's. Its rooms:
 *
 *   shim      the start: settings from the environment, the region, the device
 *   ranges    which addresses of the region are in use, for what
 *   heap      malloc() and its kin: the program's, and the C library's own
 *   library   where libraries lie, and what is in them
 *   space     mmap() and its kin
 *   filter    the seccomp filter, and the gate that it lets pass
 *   calls     system calls that were given the region's addresses
 *   shortcuts the most frequent ones, without a trap
 *   vectors   those that have them behind a pointer
 *   signals   handlers and masks of the program's, which must not be in the way of ours
 *   process   exec, spawn
 *   forks     fork and its other names
 *   threads   what a thread gets, and when the last one has ended
 *   numbers   close and its kin, which must not meet our descriptors
 *   witness   what an address of the region belongs to, and the book of who met poison where
 *   target    poison under something of the program's, on purpose
 *
 * The region lies at a fixed, unusual address, so that a filter, which outlives exec, hits nothing in the next program.
 * What stands in front of a function of the C library here has that function's contract.
 */
#ifndef CRAM_SHIM_H
#define CRAM_SHIM_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cram.h"
#include "host/space.h"

/* 1 TiB of addresses, told by their upper 32 bits. Thread sanitizer has its shadow there. */
#define REGION_BASE 0x200000000000ull
#define REGION_END 0x210000000000ull
#define REGION_HIGH (REGION_BASE >> 32)
#define REGION_HIGH_MASK 0xffffff00u
/* The page below: the one place from which any system call passes the filter. */
#define GATE_BASE (REGION_BASE - 4096)

#define SHIM_PAGE 4096ull
#define EXPORT __attribute__((visibility("default")))
#define FAST_TLS __attribute__((tls_model("initial-exec")))

struct shim {
	cram_map *map;      /* NULL: not yet; then what is placed is taken over later */
	uint64_t end;       /* of the addresses that may be used, up to REGION_END */
	uint64_t min_mmap;  /* bytes from which on a mapping is placed */
	bool reserved;      /* the region's addresses are ours */
	bool refused;       /* or could not be had */
	bool inline_delivery;
};

extern struct shim shim;

static inline bool in_region(const void *address)
{
	return (uint64_t)(uintptr_t)address - REGION_BASE < REGION_END - REGION_BASE;
}
static inline bool touches_region(const void *address, size_t length)
{
	uint64_t start = (uint64_t)(uintptr_t)address;

	return start < REGION_END && start + length > REGION_BASE;
}
static inline uint64_t page_up(uint64_t n)
{
	return (n + SHIM_PAGE - 1) & ~(SHIM_PAGE - 1);
}

/* Turns what the kernel returns into what the C library does. */
static inline long shim_result(long result)
{
	if (result >= 0 || result < -4095)
		return result;
	errno = (int)-result;
	return -1;
}

/* The C library's own function of a name that stands in front of it here. */
void *shim_next(const char *name);
#define NEXT(function)                                                     \
	({                                                                 \
		static __typeof__(&function) next_##function;              \
		if (next_##function == NULL)                               \
			next_##function = shim_next(#function);            \
		next_##function;                                           \
	})

/* A system call from the gate: the kernel's answer. */
long gate_call(long number, long a, long b, long c, long d, long e, long f);
/* Makes the gate; -errno. */
int gate_open(void);
/* Installs the filter: for all calls, or, where a monitor serves the kernel's own accesses, for those that change mappings. It
 * stays, also after exec. -errno. */
int filter_install(bool all_calls);
/* Answers trapped calls, by SIGSYS; before the filter is installed. */
void calls_install(void);
/* Is there such a filter already, from a program that has become this one? */
bool calls_trapped(bool all_calls);
/* What a trapped call answers. */
long calls_answer(long number, long args[6]);

/* space.c, for trapped calls: as the system calls, with -errno. */
long space_mmap(void *address, size_t length, int protection, int flags, int fd, long offset);
long space_munmap(void *address, size_t length);
long space_mprotect(void *address, size_t length, int protection);
long space_madvise(void *address, size_t length, int advice);
long space_mremap(void *old, size_t old_size, size_t new_size, int flags, void *address);
/* Has the region's mapping, once it is there, take over what has been placed before. A code of enum cram_code. */
int space_start(void);
/* For forks: see space_inherit(). */
void space_walk(cram_map *map, space_part_fn *fn);
/* heap.c: is it mimalloc that calls? */
bool heap_is_allocator(const void *caller);
/* From now on the witness and the target are told what is allocated and freed. */
void heap_tell(void);
/* Reserves the region's addresses, at the first use. */
void shim_reserve(void);

/* Around a fork: nobody is in the middle of a change of the ranges. */
void shim_fork_prepare(void);
void shim_fork_parent(void);
void shim_fork_child(void);
/* process.c, for a trapped exec: -errno. */
long process_exec(long number, const long args[6]);

/* vectors.c, for trapped calls: -errno. */
struct iovec;
struct msghdr;
long vector_io(long number, int fd, const struct iovec *iov, int count, long offset, int flags);
long vector_message(long number, int fd, struct msghdr *message, int flags);
long vector_messages(long number, int fd, void *messages, unsigned count, int flags, void *timeout);

/* Copies between the region and ordinary memory. Returns the bytes not copied: those from the first that is poison, or not
 * accessible, on. Never raises a signal. */
size_t guarded_copy(void *to, const void *from, size_t length);
/* The same for a string with its end, at most size bytes: its length with the end, or 0. */
size_t guarded_string(char *to, const char *from, size_t size);
/* Makes the word at address resident, and dirty if it is to be written. False: poison, or not accessible. */
bool guarded_touch(void *address, bool write);

/* A thread's memory outside the region: its signal stack, and room to copy through. */
struct scratch {
	void *memory;
	size_t size;
	bool mapped;
};
/* Room for size bytes, page-aligned; false: no memory. Returned when the call is over. */
bool scratch_take(size_t size, struct scratch *scratch);
void scratch_return(struct scratch *scratch);
/* Gives this thread its signal stack. */
void thread_prepare(void);
/* In a child of any kind of fork: this thread is the program's only one. */
void threads_forked(void);

/* syscall(3), without what becomes of errno: the C library's registers to the kernel's, and the call. */
#define SYSCALL_CODE           \
	"	mov %rdi, %rax\n" \
	"	mov %rsi, %rdi\n" \
	"	mov %rdx, %rsi\n" \
	"	mov %rcx, %rdx\n" \
	"	mov %r8, %r10\n"  \
	"	mov %r9, %r8\n"   \
	"	mov 8(%rsp), %r9\n" \
	"	syscall\n"

#endif
