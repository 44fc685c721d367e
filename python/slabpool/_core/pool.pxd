# The pool as other Cython modules use it.

from slabpool._core.core cimport Core, Devices


cdef class Pool:
    cdef Core core
    cdef Devices devices
    cdef readonly str name
    cdef readonly str memory    # its kind, as `memory=` takes it
    cdef readonly object capacity
    cdef object service         # of a shared pool: slabpool.shared.owner.Service
    cdef object sessions_       # slabpool.sessions.Sessions, made when first needed
    cdef object __weakref__
    cdef dict __dict__          # for what Python modules keep with a pool (event loops' wake-ups)
