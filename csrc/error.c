/* SPDX-License-Identifier: MIT */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

static const struct cram_error_info errors[] = {
#define CRAM_ERROR_ROW(name, number, text) { CRAM_##name, #name, text },
	CRAM_ERRORS(CRAM_ERROR_ROW)
#undef CRAM_ERROR_ROW
};

static _Thread_local char detail[512];

const struct cram_error_info *cram_error_at(size_t i)
{
	return i < sizeof(errors) / sizeof(errors[0]) ? &errors[i] : NULL;
}

const char *cram_error_detail(void)
{
	return detail;
}

int cram_fail(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(detail, sizeof(detail), format, args);
	va_end(args);
	return code;
}

int cram_code_of_errno(int number)
{
	/* The system means a file of a kind that it cannot map, not a device that was pulled out. */
	if (number == ENODEV)
		return CRAM_EIO;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].code == -number)
			return -number;
	return CRAM_EIO;
}
