# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""Makes plain numpy arrays over pooled blocks, and releases a block when its array dies.

Invariants: an array's base is an owner, which stands for one view hold in the core; the hold is taken before the array
exists, and dropped once, when the owner dies. An owner keeps the `Core`, and with it the memory, alive.
"""

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stdint cimport uint64_t

from slabpool._core.c_arrays cimport (
    as_dim, holds_objects, mul_overflows, new_over, new_strided, plain_shape, set_base,
)
from slabpool._core.core cimport BULK, MAX_DIMS, NO_REQUEST, Wait, caller_line, failed, find_room, wait_of
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_pool cimport AllocateSpec, Allocation, kMaxAlign
from slabpool._core.cpp_status cimport Status
from slabpool._core.cpp_wait cimport Waiter
from slabpool._core.cpp_view_hold cimport ViewHold

import operator

import numpy as np

from slabpool.arguments.texts import short, show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError

cnp.import_array()

include "shape.pxi"


# ---- owners

cdef int _fill_buffer(Py_buffer* buffer, object owner, const Block* block, int flags) except -1:
    """Exports a block. numpy asks the base of an array for a writable buffer before `flags.writeable` may be set again."""
    return PyBuffer_FillInfo(buffer, owner, block.data, <Py_ssize_t>block.bytes, 0, flags)


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class _Owner:
    """Keeps a block for one array and all its slices."""

    # Dropped by its C++ destructor, which Cython runs before it drops `core`. A __dealloc__ would cost saving and
    # restoring the pending exception each time.
    cdef ViewHold hold
    cdef Core core

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        _fill_buffer(buffer, self, self.hold.block(), flags)


@cython.final
@cython.no_gc
cdef class _BulkOwner:
    """As `_Owner`, for a block that takes a while to clean when it is returned: releases the GIL for that."""

    cdef Core core
    cdef Block* block

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        _fill_buffer(buffer, self, self.block, flags)

    def __dealloc__(self):
        with nogil:
            self.core.pool.drop_view(self.block[0])


@cython.final
@cython.no_gc
cdef class _FrozenOwner:
    """As `_Owner`, for arrays that are read-only and stay so."""

    cdef Core core
    cdef Block* block

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.block.data, <Py_ssize_t>self.block.bytes, 1, flags)

    def __dealloc__(self):
        with nogil:
            self.core.pool.drop_view(self.block[0])


cdef object own_frozen(Core core, Block* block):
    cdef _FrozenOwner owner = _FrozenOwner.__new__(_FrozenOwner)
    owner.core = core
    owner.block = block
    return owner


cdef object own(Core core, Block* block, bint bulk):
    return _own(core, block, bulk)


cdef inline object _own(Core core, Block* block, bint bulk):
    cdef object owner
    if core.cleans and bulk:
        owner = _BulkOwner.__new__(_BulkOwner)
        (<_BulkOwner>owner).core = core
        (<_BulkOwner>owner).block = block
    else:
        owner = _Owner.__new__(_Owner)
        (<_Owner>owner).core = core
        (<_Owner>owner).hold.take(core.pool[0], block[0])
    return owner


# ---- arrays over memory that exists

cdef inline object _based(PyObject* made, object owner):
    """A new array, whose reference is taken over, with its base."""
    array = <object>made
    Py_DECREF(array)
    Py_INCREF(owner)  # taken over by the array
    set_base(made, <PyObject*>owner)
    return array


cdef object wrap_strided(object owner, void* data, cnp.dtype dtype, Shape* shape, cnp.npy_intp* strides, bint writable):
    Py_INCREF(dtype)  # taken over by the call, also when it fails
    return _based(new_strided(<PyObject*>dtype, shape.nd, shape.dims, strides, data, writable), owner)


cdef object wrap(Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape):
    if core.maker is not None:
        return core.maker.wrap(core, block, data, dtype, shape)
    cdef object owner = _own(core, block, block.bytes >= BULK)
    Py_INCREF(dtype)  # taken over by the call, also when it fails
    return _based(new_over(<PyObject*>dtype, shape.nd, shape.dims, data), owner)


cdef object wrap_frozen(Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape):
    cdef object owner = own_frozen(core, block)
    Py_INCREF(dtype)  # taken over by the call, also when it fails
    array = _based(new_over(<PyObject*>dtype, shape.nd, shape.dims, data), owner)
    cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
    return array


# ---- allocating

cdef struct _Job:
    AllocateSpec* spec
    Block* block


cdef Status _attempt(Core core, void* job, Waiter* waiter) noexcept:
    cdef AllocateSpec* spec = (<_Job*>job).spec
    cdef Allocation result
    with nogil:
        result = core.pool.allocate_as(spec[0], waiter[0])
    (<_Job*>job).block = result.block
    return result.status


cdef Block* allocate(Core core, Handle request, uint64_t nbytes, uint64_t align, bint view, bint zero,
                     object timeout, object who) except NULL:
    cdef AllocateSpec spec
    cdef Allocation result
    spec.nbytes = nbytes
    spec.align = align
    spec.request = request
    spec.view = view
    spec.zero = zero
    if core.records_lines:
        spec.where = caller_line()
    if timeout is not None:
        return _find_block(core, &spec, Status.waiters_ahead, timeout, who)
    if zero and nbytes >= BULK:
        with nogil:
            result = core.pool.allocate(spec)
    else:
        result = core.pool.allocate(spec)
    if result.block is not NULL:
        return result.block
    return _find_block(core, &spec, result.status, None, who)


cdef Block* _find_block(Core core, AllocateSpec* spec, Status status, object timeout, object who) except NULL:
    cdef _Job job
    cdef Wait wait = wait_of(core, timeout, who)
    job.spec = spec
    job.block = NULL
    status = find_room(core, status, _attempt, &job, wait, spec.request, spec.nbytes, False)
    if job.block is NULL:
        failed(core, who, status, spec.nbytes, wait)
    return job.block


cdef object new_array(Core core, Handle request, object shape, object dtype, object align, bint zero,
                      object timeout, object who):
    cdef Shape parsed
    cdef cnp.dtype descr = as_dtype(dtype)
    cdef uint64_t nbytes = parse_shape(shape, descr.itemsize, &parsed)
    cdef Block* block = allocate(
        core, request, nbytes, 64 if align is None else _parse_align(align), True, zero, timeout, who)
    return wrap(core, block, block.data, descr, &parsed)


cdef object new_plain(Core core, Handle request, object shape, object dtype, object who):
    cdef Shape parsed
    cdef cnp.dtype descr = as_dtype(dtype)
    cdef uint64_t nbytes = parse_shape(shape, descr.itemsize, &parsed)
    cdef Block* block = allocate(core, request, nbytes, 64, True, False, None, who)
    return wrap(core, block, block.data, descr, &parsed)


cdef object new_quick(Core core, object shape, object dtype):
    cdef Shape parsed
    cdef cnp.dtype descr = as_dtype(dtype)
    cdef uint64_t nbytes = parse_shape(shape, descr.itemsize, &parsed)
    cdef Block* block = core.pool.allocate_quickly(nbytes)
    if block is NULL:
        block = allocate(core, NO_REQUEST, nbytes, 64, True, False, None, None)
    return wrap(core, block, block.data, descr, &parsed)


cdef object new_full(Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who):
    if core.maker is not None:
        return core.maker.full(core, request, shape, value, dtype, align, timeout, who)
    if dtype is None:
        dtype = np.asarray(value).dtype
    array = new_array(core, request, shape, dtype, align, False, timeout, who)
    np.copyto(array, value, casting="unsafe")
    return array


cdef object new_copy(Core core, Handle request, object source, object align, object timeout, object who):
    if core.maker is not None:
        return core.maker.copy(core, request, source, align, timeout, who)
    source = np.asarray(source)
    array = new_array(core, request, source.shape, source.dtype, align, False, timeout, who)
    np.copyto(array, source)
    return array
