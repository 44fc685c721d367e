# slabpool/wait/pressure.hpp: a caller's watch of how much of a pool is in use.

from libc.stdint cimport uint64_t
from libcpp cimport bool


cdef extern from "slabpool/wait/pressure.hpp" namespace "slabpool" nogil:
    cdef cppclass PressureChange:
        PressureChange()
        bool high
        uint64_t used

    cdef cppclass PressureWatch:
        PressureWatch()
        uint64_t up
        uint64_t down
        int fd
        bool closed()
