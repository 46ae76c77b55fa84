/* SPDX-License-Identifier: MIT
 *
 * region.c - cram_emu._region.Region: memory at a fixed address with the buffer protocol, and an exact count of who
 * looks at it.
 *
 * It does not own the memory, nor know what it is: Python 3.11 has no way to offer a buffer from Python code, and a
 * mapping must know that nobody looks at it before it goes. All under the interpreter lock.
 */
#include "region.h"

typedef struct {
	PyObject_HEAD
	char *address; /* NULL: released */
	Py_ssize_t length;
	Py_ssize_t exports;
} Region;

static int region_init(Region *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address", "length", NULL };
	unsigned long long address;
	Py_ssize_t length;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Kn", names, &address, &length))
		return -1;
	if (self->exports > 0) {
		PyErr_SetString(PyExc_BufferError, "the region is in use");
		return -1;
	}
	self->address = (char *)(uintptr_t)address;
	self->length = length;
	return 0;
}

static int region_getbuffer(Region *self, Py_buffer *view, int flags)
{
	if (self->address == NULL) {
		PyErr_SetString(PyExc_ValueError, "the mapping is closed");
		view->obj = NULL;
		return -1;
	}
	if (PyBuffer_FillInfo(view, (PyObject *)self, self->address, self->length, 0, flags) != 0)
		return -1;
	self->exports++;
	return 0;
}

static void region_releasebuffer(Region *self, Py_buffer *view)
{
	(void)view;
	self->exports--;
}

static Py_ssize_t region_length(Region *self)
{
	return self->address == NULL ? 0 : self->length;
}

static PyObject *region_release(Region *self, PyObject *unused)
{
	(void)unused;
	if (self->exports > 0)
		return PyErr_Format(PyExc_BufferError, "%zd buffers of this mapping are alive: release them first",
				    self->exports);
	self->address = NULL;
	Py_RETURN_NONE;
}

static PyObject *region_get_closed(Region *self, void *unused)
{
	(void)unused;
	return PyBool_FromLong(self->address == NULL);
}

static PyMethodDef region_methods[] = {
	{ "release", (PyCFunction)region_release, METH_NOARGS,
	  "release()\n--\n\nLet the memory go: no buffer can be had any more. BufferError, and no change, while one is alive." },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef region_properties[] = {
	{ "closed", (getter)region_get_closed, NULL, "True once released.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PySequenceMethods region_as_sequence = { .sq_length = (lenfunc)region_length };
static PyBufferProcs region_as_buffer = { (getbufferproc)region_getbuffer, (releasebufferproc)region_releasebuffer };

static PyTypeObject region_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "cram_emu._region.Region",
	.tp_doc = "Region(address, length)\n--\n\nMemory with the buffer protocol, writable, owned by somebody else.",
	.tp_basicsize = sizeof(Region),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.tp_new = PyType_GenericNew,
	.tp_init = (initproc)region_init,
	.tp_methods = region_methods,
	.tp_getset = region_properties,
	.tp_as_sequence = &region_as_sequence,
	.tp_as_buffer = &region_as_buffer,
};

static PyModuleDef module = { PyModuleDef_HEAD_INIT, .m_name = "cram_emu._region", .m_size = -1 };

PyMODINIT_FUNC PyInit__region(void)
{
	PyObject *m;

	if (PyType_Ready(&region_type) < 0 || PyType_Ready(&handle_type) < 0)
		return NULL;
	m = PyModule_Create(&module);
	if (m == NULL)
		return NULL;
	if (PyModule_AddObjectRef(m, "Region", (PyObject *)&region_type) < 0 ||
	    PyModule_AddObjectRef(m, "Handle", (PyObject *)&handle_type) < 0) {
		Py_DECREF(m);
		return NULL;
	}
	return m;
}
