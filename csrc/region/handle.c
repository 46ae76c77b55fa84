/* SPDX-License-Identifier: MIT
 *
 * handle.c - cram_emu._region.Handle: something of the core that is freed when the last object that has it is gone.
 *
 * The cycle collector does not know it, and that is its point: it dies after every finalizer of a garbage cycle has run,
 * while what ffi.gc() makes is finalized in any order with them, and they would use a handle that is freed.
 */
#include "region.h"

typedef struct {
	PyObject_HEAD
	void *address;
	void (*free)(void *address);
	PyObject *parent; /* lives longer; NULL: none */
} Handle;

static PyObject *handle_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address", "free", "parent", NULL };
	unsigned long long address, function;
	PyObject *parent = NULL;
	Handle *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KK|O!", names, &address, &function, type, &parent))
		return NULL;
	self = (Handle *)type->tp_alloc(type, 0);
	if (self == NULL)
		return NULL;
	self->address = (void *)(uintptr_t)address;
	self->free = (void (*)(void *))(uintptr_t)function;
	self->parent = Py_XNewRef(parent);
	return (PyObject *)self;
}

static void handle_dealloc(Handle *self)
{
	/* It may wait for threads, and those for the interpreter. */
	Py_BEGIN_ALLOW_THREADS
	self->free(self->address);
	Py_END_ALLOW_THREADS
	Py_XDECREF(self->parent);
	Py_TYPE(self)->tp_free(self);
}

PyTypeObject handle_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "cram_emu._region.Handle",
	.tp_doc = "Handle(address, free, parent=None)\n--\n\nCalls the C function at free with the address when it goes, and then lets the "
		  "parent, another Handle, go.",
	.tp_basicsize = sizeof(Handle),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = handle_new,
	.tp_dealloc = (destructor)handle_dealloc,
};
