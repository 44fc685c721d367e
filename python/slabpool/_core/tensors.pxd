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

# Which bytes of one block are committed, and which are still needed. Offsets count from the first byte that the tensor
# ever had, positions from its first element along the axis. It keeps no memory.
cdef class _Extent:
    cdef Core core
    cdef Block* block
    cdef Handle handle              # the request that holds it, or the kept tensor of a session
    cdef uint64_t step              # bytes along the axis
    cdef Py_ssize_t first           # where the tensor begins and ends now
    cdef Py_ssize_t stop
    cdef Py_ssize_t wanted          # where the memory that was asked for ends
    cdef uint64_t begin             # the committed bytes
    cdef uint64_t usable
    cdef bint tail                  # bytes behind `wanted` are to be given back
    cdef uint64_t shrinks           # number of times that bytes were given back
    cdef uint32_t holds             # view holds of the block that are this tensor's
    cdef void* rows                 # the living _Rows, linked
    cdef void* current              # the one for the next array, NULL if none lives
    cdef void _give(self) noexcept


# What all GrowableTensor of one block share; it keeps no memory.
cdef class _Growth:
    cdef _Extent extent
    cdef char* base                 # the first byte that it ever had
    cdef object request             # the Request; None once a session keeps it
    cdef object keeper              # then: called with (status, bytes) if it cannot grow; may raise
    cdef cnp.dtype dtype
    cdef int axis
    cdef Py_ssize_t limit
    cdef Shape full                 # with `limit` along the axis
    cdef cnp.npy_intp strides[64]


cdef class GrowableTensor:
    cdef Core core
    cdef _Growth growth
    cdef object hold                # the one view hold that all its arrays share
    cdef bint frozen                # its views are read-only, and its length does not change

    cdef object _view(self)
    cdef int _must_be_writable(self) except -1
    cdef bint _moved(self) noexcept
    cdef int _must_have_its_memory(self, str what) except -1
    cdef str _whose(self)
    cdef int _grow(self, uint64_t end, object timeout) except -1


# One more for a block that the caller has a view hold on, which the tensor takes over.
cdef GrowableTensor growable_of(Core core, _Growth growth, bint writable)
cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request)
