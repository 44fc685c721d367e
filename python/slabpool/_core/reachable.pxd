# Pools of memory that the host and CUDA devices both reach, found by an address.

from slabpool._core.array cimport Core


cdef int add_reachable(Core core) except -1
cdef Core reachable_core(const void* address)
cdef bint is_reachable(object array) except -1
