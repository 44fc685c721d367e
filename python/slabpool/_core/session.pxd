# What a session keeps, as the core knows it. Nothing here keeps the Pool alive.

cimport numpy as cnp
from libc.stdint cimport uint32_t

from slabpool._core.core cimport Core, Wait
from slabpool._core.cpp_block cimport Block, byte
from slabpool._core.cpp_request cimport Handle


cdef class Shelf:
    cdef Core core
    cdef Handle handle          # of the session, which the core has as a kept request without memory
    cdef bytes key              # the session's id as the core knows it
    cdef int priority           # of its turns, where the call names none: the group's
    cdef Wait _depend(self, Wait wait)


cdef class Kept:
    cdef Core core
    cdef Handle handle
    cdef Block* block
    cdef uint32_t serial


cdef class Form:
    cdef object descr           # cnp.dtype, or a Layout, or a _Growth
    cdef tuple shape
    cdef tuple strides          # None: C order
    cdef byte* first            # the first element, whose address does not change; NULL: of a Layout or a _Growth
