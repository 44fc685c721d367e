# slabpool/cuda/stream_marks.hpp: a stream as a caller names it.

from slabpool._core.cpp_copies cimport Stream


cdef extern from "slabpool/cuda/stream_marks.hpp" namespace "slabpool::cuda" nogil:
    cdef cppclass StreamName:
        StreamName()
        Stream stream
        int device
