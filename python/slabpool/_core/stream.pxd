# Streams as libraries pass them.

from slabpool._core.cpp_copies cimport Stream


# The legacy default stream, as handle 1, of None and 0. Never null.
cdef Stream stream_of(object stream) except NULL
# The device that the object says it is of; -1 where it does not.
cdef int stream_device(object stream) except? -1
