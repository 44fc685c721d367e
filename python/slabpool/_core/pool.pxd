# The pool as other Cython modules use it.

from slabpool._core.array cimport Core
from slabpool._core.request cimport Request


cdef bytes name_key(object name, str what)


cdef class Pool:
    cdef Core core
    cdef dict devices           # name -> number; names are never forgotten
    cdef list device_names      # number -> name
    cdef readonly str name
    cdef readonly str memory    # its kind, as `memory=` takes it
    cdef readonly object capacity
    cdef object service         # of a shared pool: slabpool.shared.owner.Service
    cdef object sessions_       # slabpool._sessions.Sessions, once there was one
    cdef object __weakref__
    cdef dict __dict__          # for what Python modules keep with a pool (event loops' wake-ups)

    cdef Request _open(self, object request_id, object devices, object reserve, object quota, object lease,
                       object timeout, Request parent, object opened_at)
    cdef list _records(self, object older_than)
