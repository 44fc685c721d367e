# Arrays over memory that a CUDA device reaches.

cimport numpy as cnp
from libc.stdint cimport uint64_t

from slabpool._core.core cimport Core, Maker
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_cuda cimport Stream


cdef class DeviceArray:
    cdef object owner               # keeps the memory: a view hold, or an object that has one
    cdef Core core                  # None if the memory is in no pool of this process
    cdef Block* block               # null without a core
    cdef uint64_t address           # of the first element, for the device
    cdef Stream queued_on           # the stream that the array is used on
    cdef readonly cnp.dtype dtype
    cdef readonly tuple shape
    cdef readonly tuple strides
    cdef readonly int device
    cdef int place                  # DLPack's type of device
    cdef bint readonly_
    cdef object __weakref__

    cdef DeviceArray over(self, uint64_t address, tuple shape, tuple strides, cnp.dtype dtype)
    cdef DeviceArray again(self, bint pointer)
    cdef bint is_contiguous(self)


cdef class DevicePointer(DeviceArray):
    pass


# An array over memory that `owner` keeps; `core` and `block` name the pool and block it is in, if any.
cdef DeviceArray device_array(object owner, Core core, Block* block, uint64_t address, tuple shape, tuple strides,
                              cnp.dtype dtype, int device, int place, bint readonly, bint pointer=*)
cdef Maker device_maker()


# A tensor taken out of a DLPack capsule (dlpack.pxi).
cdef class Taken:
    cdef void* managed              # what the capsule held; deleted once
    cdef bint versioned
    cdef readonly uint64_t address  # of the first element
    cdef readonly object shape
    cdef readonly object strides    # in bytes
    cdef readonly cnp.dtype dtype
