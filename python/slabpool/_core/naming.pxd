# Names as the core knows them: of requests, sessions and devices, and lines of code.

from slabpool._core.array cimport Core
from slabpool._core.cpp_request cimport SourceLocation


cdef bytes name_key(object name, str what)
cdef tuple identity(bytes raw, bint kept)
cdef tuple caller_of(Core core)
cdef object location(SourceLocation where)


cdef class Devices:
    cdef Core core
    cdef str pool               # its name, for messages
    cdef dict numbers           # name -> number; names are never forgotten
    cdef list names             # number -> name

    cdef object number(self, object device)
    cdef object known(self, object device, object request)
    cdef bint room_for(self, tuple devices) except -1
