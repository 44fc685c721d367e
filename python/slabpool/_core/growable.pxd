# A tensor that grows in place, as other Cython modules use it.

cimport numpy as cnp
from libc.stdint cimport uint64_t

from slabpool._core.array cimport Core, Shape
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_request cimport Handle


cdef class GrowableTensor:
    cdef Core core
    cdef Block* block
    cdef object owner              # the one view hold that all arrays share
    cdef Handle handle
    cdef readonly object request
    cdef readonly cnp.dtype dtype
    cdef readonly int axis
    cdef readonly Py_ssize_t length
    cdef readonly Py_ssize_t limit
    cdef Shape full                # with `limit` along the axis
    cdef cnp.npy_intp strides[64]
    cdef uint64_t step             # bytes along the axis
    cdef readonly uint64_t nbytes  # usable, and counted

    cdef object _view(self, Py_ssize_t length)
    cdef int _grow(self, uint64_t nbytes, object timeout) except -1


cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request)
