# Arrays over memory that a CUDA device reaches.

cimport numpy as cnp
from libc.stdint cimport uint64_t

from slabpool._core.array cimport Core
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_copies cimport Stream


cdef class DeviceArray:
    cdef object owner               # keeps the memory: a view hold, or whoever else has one
    cdef Core core                  # whose pool it is; None: no pool's of this process
    cdef Block* block               # null with no core
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
    cdef DeviceArray as_kind(self, type kind)
    cdef bint is_contiguous(self)


cdef DeviceArray device_array(type kind, object owner, Core core, Block* block, uint64_t address, tuple shape,
                              tuple strides, cnp.dtype dtype, int device, int place, bint readonly)
cdef DeviceArray copy_of(DeviceArray array)
cdef int check_same(DeviceArray array, object other, str what) except -1
cdef int check_near(DeviceArray array, int device, int place) except -1
cdef int check_writable(DeviceArray array) except -1
