# slabpool/adapters/raw_heap.hpp: a pool as malloc and free.

from libc.stdint cimport uint8_t

from slabpool._core.cpp_pool cimport Pool


cdef extern from "slabpool/adapters/raw_heap.hpp" namespace "slabpool" nogil:
    const uint8_t kRawTag

    cdef cppclass RawHeap:
        RawHeap(Pool& pool)
        void* allocate(size_t nbytes)
        void* allocate_zeroed(size_t count, size_t size)
        void* resize(void* address, size_t nbytes)
        void release(void* address)
        void turn_off()
        bint on()
