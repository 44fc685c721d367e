# Copies that involve device memory, and what copies that are still under way keep.

from libc.stdint cimport uint64_t

from slabpool._core.cpp_copies cimport Stream


cdef int copy_elements(int device, Stream stream, tuple shape, size_t itemsize, uint64_t to, tuple to_strides,
                       uint64_t source, tuple from_strides, object keep, str what) except -1
cdef int repeat_bytes(int device, Stream stream, uint64_t to, size_t nbytes, size_t period, unsigned char value,
                      str what) except -1
cdef int order_streams(int device, Stream before, Stream after, str what) except -1
cdef uint64_t address_for(int device, uint64_t host) except? 0
