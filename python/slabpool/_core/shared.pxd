# References to tensors of a shared pool, and a device of a pool that another process owns.

cimport numpy as cnp
from libcpp.memory cimport unique_ptr

from slabpool._core.core cimport Core
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_shared cimport Reference, SharedPeer

# Dimensions that need no memory of their own.
cdef enum:
    FEW = 5


cdef class TensorRef:
    cdef Reference target               # the bytes from the lowest to the highest that the array touches
    cdef cnp.dtype descr
    cdef Py_ssize_t first               # of the array's first element, from the lowest byte
    cdef int nd
    cdef cnp.npy_intp* dims             # in `few`, or memory of its own if there are more
    cdef cnp.npy_intp* steps            # strides, bytes
    cdef cnp.npy_intp few[2 * FEW]


cdef TensorRef new_ref(Core core, Handle request, object array, object who)


# ---- peers (peer.pxi)

# The maps of a pool of another process, kept by everything that may still access them.
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
