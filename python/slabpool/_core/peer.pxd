# A device of a pool that another process owns.

from libcpp.memory cimport unique_ptr

from slabpool._core.cpp_shared cimport SharedPeer


# The maps of a pool of another process, kept by everything that may still touch them.
cdef class Maps:
    cdef unique_ptr[SharedPeer] owned
    cdef SharedPeer* peer
    cdef object __weakref__


cdef class Peer:
    cdef Maps maps
    cdef object connection      # slabpool.shared.attach.Connection
    cdef readonly str name
    cdef readonly object device
    cdef bint closed
    cdef object __weakref__
