# A set of named tensors that are allocated together.

from libc.stdint cimport uint32_t, uint64_t

cimport numpy as cnp

from slabpool._core.array cimport Core, Shape
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_request cimport Handle


cdef class _Field:
    cdef Shape shape
    cdef cnp.dtype dtype
    cdef uint64_t offset            # from the start of the block


cdef class Layout:
    cdef readonly tuple names
    cdef readonly uint64_t nbytes
    cdef dict fields        # name -> _Field
    cdef object __weakref__


cdef class Tensors:
    cdef Core core
    cdef Handle request
    cdef Block* block
    cdef uint32_t serial
    cdef readonly Layout layout
    cdef object _view(self, _Field field)


cdef Tensors new_tensors(Core core, Handle request, Layout layout, bint zero, object timeout, object who)
cdef Tensors tensors_of(Core core, Handle request, Layout layout, Block* block, uint32_t serial)
