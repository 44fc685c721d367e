# A reference-counted handle on the memory of one inference request.

from libc.stdint cimport uint64_t

from slabpool._core.array cimport Core
from slabpool._core.cpp_request cimport Handle
from slabpool._core.naming cimport Devices


cdef class Request:
    cdef Core core
    cdef object pool            # the Pool, for messages
    cdef Devices devices        # the pool's
    cdef Handle handle
    cdef readonly object id
    cdef readonly object parent
    cdef readonly object quota      # of the request it descends from
    cdef tuple named            # names given when opened or added: to tell late from unknown
    cdef uint64_t named_mask    # the numbers of those below 64, as bits: answers most acks at once
    cdef bint closed            # close() or cancel() was called here
    cdef bint gave_up           # by cancel(); the core forgets it with the request
    cdef object __weakref__
    cdef tuple _info(self)
    cdef void _leave(self, bint cancel) noexcept


cdef Request new_request(object pool, Core core, Devices devices, Handle handle, object id, tuple named,
                         uint64_t named_mask, object parent, object quota)
cdef object ack_answer(int result)
