/* SPDX-License-Identifier: MIT
 *
 * error.h - the one list of codes. It makes enum cram_code, the table behind cram_error_at(), and, through that
 * table, the Python exceptions. It does not print and does not exit.
 */
#ifndef CRAM_ERROR_H
#define CRAM_ERROR_H

#include <errno.h>

#include "cram.h"

/* name, number, text. Where errno has a name for it, the number is errno's. */
#define CRAM_ERRORS(X)                                                              \
	X(EPERM, EPERM, "not permitted")                                            \
	X(EIO, EIO, "input or output error")                                        \
	X(ENOMEM, ENOMEM, "out of memory")                                          \
	X(EACCES, EACCES, "permission denied")                                      \
	X(EBUSY, EBUSY, "in use")                                                   \
	X(EEXIST, EEXIST, "exists already")                                         \
	X(ENOENT, ENOENT, "no such device file")                                    \
	X(EINVAL, EINVAL, "invalid argument")                                       \
	X(ENOSPC, ENOSPC, "no room on the file system")                             \
	X(ENOSYS, ENOSYS, "not offered by this kernel")                             \
	X(ENODEV, ENODEV, "the device has been removed")                            \
	X(ETIMEDOUT, ETIMEDOUT, "no answer in time")                                \
	X(EOVERFLOW, EOVERFLOW, "events were overwritten before they were read")    \
	X(EFORMAT, 1001, "not a cram_emu device")                                   \
	X(EVERSION, 1002, "device made by another version")                         \
	X(EPOISON, 1003, "poisoned page")                                           \
	X(ECLOSED, 1004, "device closed")                                           \
	X(EFORKED, 1005, "inherited by fork: open the device again in the child")

enum cram_code {
	CRAM_OK = 0,
#define CRAM_ERROR_ENUM(name, number, text) CRAM_##name = -(number),
	CRAM_ERRORS(CRAM_ERROR_ENUM)
#undef CRAM_ERROR_ENUM
};

/* Keeps one sentence for cram_error_detail() and returns code. Not for signal handlers. */
int cram_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The code for an errno: itself when the list has it, else CRAM_EIO. */
int cram_code_of_errno(int number);

#endif
