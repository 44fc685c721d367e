# A reference to a tensor of a shared pool, for other processes.

cimport numpy as cnp

from slabpool._core.array cimport Core
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_shared cimport Reference

# Dimensions that need no memory of their own.
cdef enum:
    FEW = 5


cdef class TensorRef:
    cdef Reference target               # the bytes from the lowest to the highest that the array touches
    cdef cnp.dtype descr
    cdef Py_ssize_t first               # of the array's first element, from the lowest byte
    cdef int nd
    cdef cnp.npy_intp* dims             # in `few`, or memory of its own if there are more
    cdef cnp.npy_intp* steps            # strides, bytes
    cdef cnp.npy_intp few[2 * FEW]


cdef TensorRef new_ref(Core core, Handle request, object array, object who)
