# A reference to a tensor of a shared pool, for other processes.

cimport numpy as cnp

from slabpool._core.array cimport MAX_DIMS, Core
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_shared cimport Reference


cdef class TensorRef:
    cdef Reference target               # the bytes from the lowest to the highest that the array touches
    cdef cnp.dtype descr
    cdef Py_ssize_t first               # of the array's first element, from the lowest byte
    cdef int nd
    cdef cnp.npy_intp dims[MAX_DIMS]
    cdef cnp.npy_intp steps[MAX_DIMS]   # strides, bytes


cdef TensorRef new_ref(Core core, Handle request, object array, object who)
