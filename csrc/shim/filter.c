/* SPDX-License-Identifier: MIT
 *
 * filter.c - system calls that are given addresses of the region are trapped; all others pass.
 *
 * Under inline delivery the kernel's own access to a page that is not resident fails with EFAULT. The filter looks at the
 * arguments that are addresses, by the call's number: a register that a call does not use may hold anything.
 */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "memory.h"
#include "shim.h"
#include "table.h"

/* ---- the gate -------------------------------------------------------------------------------------------- */

/* To be copied to the gate. */
__asm__(".pushsection .rodata\n"
	"gate_code:\n"
	SYSCALL_CODE
	"gate_code_after:\n"
	"	ret\n"
	"gate_code_end:\n"
	".popsection\n");
extern const char gate_code[], gate_code_after[], gate_code_end[];

long gate_call(long number, long a, long b, long c, long d, long e, long f)
{
	memory_call_fn *gate = (memory_call_fn *)GATE_BASE;

	return gate(number, a, b, c, d, e, f);
}

int gate_open(void)
{
	void *gate = memory_reserve((void *)GATE_BASE, SHIM_PAGE);
	int code;

	if (gate == NULL)
		return -errno;
	code = memory_protect(gate, SHIM_PAGE, PROT_READ | PROT_WRITE);
	if (code != 0)
		return code;
	memcpy(gate, gate_code, (size_t)(gate_code_end - gate_code));
	code = memory_protect(gate, SHIM_PAGE, PROT_READ | PROT_EXEC);
	if (code == 0)
		memory_call = gate_call;
	return code;
}

/* ---- the filter ------------------------------------------------------------------------------------------ */

#define PROGRAM_MAX 4096u
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOAD_HIGH(i) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (i) + 4)
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)

struct program {
	struct sock_filter code[PROGRAM_MAX];
	unsigned length;
};

static void emit(struct program *program, struct sock_filter instruction)
{
	if (program->length < PROGRAM_MAX)
		program->code[program->length] = instruction;
	program->length++;
}

/* For a call whose number has been found: which arguments are looked at, and what is answered. */
static void emit_check(struct program *program, unsigned addresses, int error)
{
	if (error != 0)
		emit(program, (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | (uint32_t)error));
	for (unsigned i = 0; i < 6; i++) {
		if (!(addresses >> i & 1))
			continue;
		emit(program, (struct sock_filter)LOAD_HIGH(i));
		emit(program, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, REGION_HIGH_MASK));
		emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)REGION_HIGH, 0, 1));
		emit(program, (struct sock_filter)RETURN(SECCOMP_RET_TRAP));
	}
	emit(program, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
}

/* Or only those calls that would change the region behind our back. */
static bool all;

static unsigned addresses_of(long number)
{
	const struct call *call = table_find(number);

	if (!all && (call == NULL || (call->kind != CALL_SPACE && call->kind != CALL_REFUSE)))
		return 0;
	return call != NULL ? call->addresses : TABLE_UNKNOWN_ADDRESSES;
}

static bool same_check(long a, long b)
{
	return addresses_of(a) == addresses_of(b) && table_error(a) == table_error(b);
}

/* A decision tree over [first, end): neighbours that are checked alike are one leaf. */
static void emit_tree(struct program *program, long first, long end)
{
	long middle = (first + end) / 2;
	unsigned at;
	bool alike = true;

	for (long i = first + 1; i < end && alike; i++)
		alike = same_check(first, i);
	if (alike) {
		emit_check(program, addresses_of(first), table_error(first));
		return;
	}
	/* Below the middle: over the jump, which goes to the upper half. */
	emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)middle, 0, 1));
	at = program->length;
	emit(program, (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 0));
	emit_tree(program, first, middle);
	if (at < PROGRAM_MAX)
		program->code[at].k = program->length - at - 1;
	emit_tree(program, middle, end);
}

int filter_install(bool all_calls)
{
	uint64_t gate = GATE_BASE + (uint64_t)(gate_code_after - gate_code);
	static struct program program;
	struct sock_fprog fprog = { .filter = program.code };

	program.length = 0;
	emit(&program, (struct sock_filter)LOAD(arch));
	emit(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0));
	emit(&program, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
	emit(&program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)));
	emit(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)gate, 0, 3));
	emit(&program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4));
	emit(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(gate >> 32), 0, 1));
	emit(&program, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
	emit(&program, (struct sock_filter)LOAD(nr));
	emit(&program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, TABLE_NUMBERS, 0, 1));
	emit(&program, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
	all = all_calls;
	emit_tree(&program, 0, TABLE_NUMBERS);
	if (program.length > PROGRAM_MAX)
		return -E2BIG;
	fprog.len = (unsigned short)program.length;
	/* An ordinary user may install a filter only after giving this up: setuid programs have no effect then. */
	if (gate_call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, (long)&fprog, 0, 0, 0) == 0)
		return 0;
	gate_call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0);
	return (int)gate_call(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, (long)&fprog, 0, 0, 0);
}
