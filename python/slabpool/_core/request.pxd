# A reference-counted handle on the memory of one inference request.

cimport numpy as cnp
from libc.stdint cimport uint64_t

from slabpool._core.core cimport Core, Devices
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_request cimport Handle


cdef class Request:
    cdef Core core
    cdef object pool            # the Pool, for messages
    cdef Devices devices        # the pool's
    cdef Handle handle
    cdef readonly object id
    cdef readonly object parent
    cdef readonly object quota  # that of the request it descends from
    cdef readonly int priority  # of what it allocates, where the call names none
    cdef tuple named            # devices named when opened or added: tells a late ack from one of an unknown device
    cdef uint64_t named_mask    # the numbers of those below 64, as bits: answers most acks without the tuple
    cdef bint closed            # close() or cancel() was called on this object
    cdef bint gave_up           # cancel() was; the core forgets it with the request
    cdef object __weakref__
    cdef tuple _info(self)
    cdef void _leave(self, bint cancel) noexcept


# The block that all elements of an array are in; null if there is none, or the array has no bytes.
cdef Block* block_of_array(Core core, cnp.ndarray array)
# With `parent` a child of it. `opened_at` is (file, line), or None for the line that is running.
cdef Request open_request(object pool, Core core, Devices names, object request_id, object devices, object reserve,
                          object quota, object lease, object timeout, Request parent, object opened_at)
