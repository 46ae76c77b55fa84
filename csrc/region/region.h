/* SPDX-License-Identifier: MIT
 *
 * region.h - the types of cram_emu._region, which Python code cannot make.
 */
#ifndef CRAM_REGION_H
#define CRAM_REGION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyTypeObject handle_type;

#endif
