# Tensors that are given to, and taken from, other libraries by DLPack.

cimport numpy as cnp
from libc.stdint cimport uint64_t


cdef class Taken:
    cdef void* managed              # what the capsule held; let go once
    cdef bint versioned
    cdef readonly uint64_t address  # of the first element
    cdef readonly object shape
    cdef readonly object strides    # in bytes
    cdef readonly cnp.dtype dtype


cdef object give(object owner, uint64_t address, tuple shape, tuple strides, cnp.dtype dtype, int device_type,
                 int device_id, tuple version, uint64_t flags)
cdef Taken take(object capsule)
