# slabpool/slab/block.hpp: what the pool knows of one piece of memory it hands out.

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "<cstddef>" namespace "std" nogil:
    ctypedef unsigned char byte


cdef extern from "slabpool/slab/block.hpp" namespace "slabpool" nogil:
    cdef cppclass Block:
        byte* data
        uint64_t bytes
        uint32_t serial()
        uint32_t live_views()
