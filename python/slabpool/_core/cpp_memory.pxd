# slabpool/memory/memory_resource.hpp: the kinds of memory, and the unit in which it comes.

from libc.stdint cimport uint64_t


cdef extern from "slabpool/memory/memory_resource.hpp" namespace "slabpool" nogil:
    cdef enum class MemoryKind(unsigned char):
        host
        shared
        device
        pinned
        managed

    const uint64_t kPageSize
