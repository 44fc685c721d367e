# How an array over pooled memory is made. Shared by the pool, requests, layouts and sessions.

cimport numpy as cnp
from libc.stdint cimport uint64_t

from slabpool._core.core cimport Core, Shape
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_request cimport Handle


cdef cnp.dtype as_dtype(object dtype)
# Fills `out`; returns the bytes of all elements.
cdef uint64_t parse_shape(object shape, Py_ssize_t itemsize, Shape* out) except? 0xFFFFFFFFFFFFFFFF
# An object that stands for a view hold on a block, which it takes over. `bulk`: the block may be large when it is
# returned.
cdef object own(Core core, Block* block, bint bulk)
# The same, for arrays that are read-only and stay so.
cdef object own_frozen(Core core, Block* block)
# One more array over memory that `owner` keeps.
cdef object wrap_strided(object owner, void* data, cnp.dtype dtype, Shape* shape, cnp.npy_intp* strides, bint writable)
# An array over `data`, inside `block`. Takes over a view hold of the block, and drops it on failure.
cdef object wrap(Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape)
# The same, read-only.
cdef object wrap_frozen(Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape)
# `who`: the Request, for messages, or None.
cdef Block* allocate(Core core, Handle request, uint64_t nbytes, uint64_t align, bint view, bint zero,
                     object timeout, object who) except NULL
cdef object new_array(Core core, Handle request, object shape, object dtype, object align, bint zero,
                      object timeout, object who)
# new_array() of undefined contents, without alignment, timeout and priority: the hot path. new_quick(): without a request.
cdef object new_plain(Core core, Handle request, object shape, object dtype, object who)
cdef object new_quick(Core core, object shape, object dtype)
cdef object new_full(Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who)
cdef object new_copy(Core core, Handle request, object array, object align, object timeout, object who)
