# Tensors of a request that are more than one array: a layout allocated together, and tensors that grow.

cimport numpy as cnp
from libc.stdint cimport uint32_t, uint64_t

from slabpool._core.core cimport Core, Shape
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_request cimport Handle


# ---- layouts

cdef class _Field:
    cdef Shape shape
    cdef cnp.dtype dtype
    cdef uint64_t offset            # from the start of the block


cdef class Layout:
    cdef readonly tuple names
    cdef readonly uint64_t nbytes
    cdef dict fields                # name -> _Field
    cdef object __weakref__


cdef class Tensors:
    cdef Core core
    cdef Handle request
    cdef Block* block
    cdef uint32_t serial
    cdef readonly Layout layout
    cdef bint frozen                # its views are read-only
    cdef object _view(self, _Field field)


cdef Tensors new_tensors(Core core, Handle request, Layout layout, bint zero, object timeout, object who)
# Of a block that has such a layout, and is held by that request.
cdef Tensors tensors_of(Core core, Handle request, Layout layout, Block* block, uint32_t serial, bint writable)


# ---- tensors that grow (growable.pxi)

# What all GrowableTensor of one block share; it keeps no memory.
cdef class _Growth:
    cdef Block* block
    cdef Handle handle              # the request that holds it, or the kept tensor of a session
    cdef object request             # the Request; None once a session keeps it
    cdef object keeper              # then: called with (status, bytes) if it cannot grow; may raise
    cdef cnp.dtype dtype
    cdef int axis
    cdef Py_ssize_t length
    cdef Py_ssize_t limit
    cdef Shape full                 # with `limit` along the axis
    cdef cnp.npy_intp strides[64]
    cdef uint64_t step              # bytes along the axis
    cdef uint64_t nbytes            # committed, and charged


cdef class GrowableTensor:
    cdef Core core
    cdef _Growth growth
    cdef object owner               # the one view hold that all its arrays share
    cdef bint frozen                # its views are read-only, and its length does not change

    cdef object _view(self, Py_ssize_t length)
    cdef int _must_be_writable(self) except -1
    cdef str _whose(self)
    cdef int _grow(self, uint64_t nbytes, object timeout) except -1


# One more for a block that the caller has a view hold on, which the tensor takes over.
cdef GrowableTensor growable_of(Core core, _Growth growth, bint writable)
cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request)
