# Streams as libraries pass them, and copies that involve device memory.

from libc.stdint cimport uint64_t

from slabpool._core.cpp_cuda cimport Stream


# Never null: None and 0 are the legacy default stream, whose handle is 1.
cdef Stream stream_of(object stream) except NULL
# The number of the device that the object names; -1 if it names none.
cdef int stream_device(object stream) except? -1

# `what` is for messages: "copying 64 bytes to the host".
cdef int copy_elements(int device, Stream stream, tuple shape, size_t itemsize, uint64_t to, tuple to_strides,
                       uint64_t source, tuple from_strides, object keep, str what) except -1
cdef int repeat_bytes(int device, Stream stream, uint64_t to, size_t nbytes, size_t period, unsigned char value,
                      str what) except -1
cdef int order_streams(int device, Stream before, Stream after, str what) except -1
cdef uint64_t address_for(int device, uint64_t host) except? 0
