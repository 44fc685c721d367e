# slabpool/memory/memory_resource.hpp: the kinds of memory.


cdef extern from "slabpool/memory/memory_resource.hpp" namespace "slabpool" nogil:
    cdef enum class MemoryKind(unsigned char):
        host
        shared
        device
        pinned
        managed
