# A reference-counted handle on the memory of one inference request.

cimport numpy as cnp
from libc.stdint cimport uint32_t, uint64_t
from libcpp.vector cimport vector

from slabpool._core.core cimport Core, Devices, LineReport, Site
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_observe cimport GroupInfo
from slabpool._core.cpp_request cimport Handle


# What keeps a group open: Group objects, and the requests and sessions under it. It does not keep the Pool alive.
cdef class GroupHold:
    cdef Core core
    cdef Handle handle
    cdef bytes key              # as the core knows it
    cdef readonly object id
    cdef readonly int priority


cdef class Request:
    cdef Core core
    cdef object pool            # the Pool, for messages
    cdef Devices devices        # the pool's
    cdef Handle handle
    cdef readonly object id
    cdef readonly object parent
    cdef readonly object quota  # its own, or that of its parent
    cdef GroupHold hold         # of the group that it is under, or None
    cdef readonly int priority  # of what it allocates, where the call names none
    # Devices named when opened or added: tells a late ack from one of an unknown device. A tuple, or a set if many.
    cdef object named
    # Their numbers as bits, those from 64 on in `named_more`: answers most acks without `named`. A bit that is not set is
    # of a device that was not named; one that is set may be of an older name of that number.
    cdef uint64_t named_mask
    cdef vector[uint64_t] named_more
    cdef bint closed            # close() or cancel() was called on this object
    cdef bint gave_up           # it was cancelled; the core may forget it once a later request of its slot is
    cdef object __weakref__
    cdef bint has_named(self, uint32_t number) noexcept
    cdef int add_named(self, object device, uint32_t number) except -1
    cdef object quick_named(self)
    cdef object _opened_at(self)
    cdef void _leave(self, bint cancel) noexcept


# The block that all elements of an array are in; null if there is none, or the array has no bytes.
cdef Block* block_of_array(Core core, cnp.ndarray array)
# With `parent` a child of it. `opened_at`: None for the line that is running.
cdef Request open_request(object pool, Core core, Devices names, object request_id, object devices, object reserve,
                          object quota, object lease, object timeout, Request parent, Site opened_at,
                          GroupHold group)
cdef object open_group(object pool, Core core, Devices names, object group_id, object quota, object reserve,
                       object priority)
cdef object group_record(const GroupInfo& info, LineReport lines)
cdef object refuser_of(Core core, Handle handle, object nbytes, bint drawn)
