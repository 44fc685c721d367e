# A tensor that grows in place, as other Cython modules use it.

cimport numpy as cnp
from libc.stdint cimport uint64_t

from slabpool._core.array cimport Core, Shape
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_request cimport Handle


# One tensor, whoever looks at it; it keeps no memory.
cdef class _Growth:
    cdef Block* block
    cdef Handle handle             # whose it is: a request, or what a session keeps
    cdef object request            # the Request; None once a session keeps it
    cdef object keeper             # then: (status, bytes) -> True after making room, or raises
    cdef cnp.dtype dtype
    cdef int axis
    cdef Py_ssize_t length
    cdef Py_ssize_t limit
    cdef Shape full                # with `limit` along the axis
    cdef cnp.npy_intp strides[64]
    cdef uint64_t step             # bytes along the axis
    cdef uint64_t nbytes           # usable, and counted


cdef class GrowableTensor:
    cdef Core core
    cdef _Growth growth
    cdef object owner              # the one view hold that all arrays share

    cdef object _view(self, Py_ssize_t length)
    cdef str _whose(self)
    cdef int _grow(self, uint64_t nbytes, object timeout) except -1


cdef GrowableTensor growable_of(Core core, _Growth growth)
cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request)
