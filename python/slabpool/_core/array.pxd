# How an array over pooled memory is made. Shared by the pool, requests and layouts.

cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.memory cimport unique_ptr

from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_pool cimport Pool as CppPool
from slabpool._core.cpp_request cimport Handle, SourceLocation
from slabpool._core.cpp_status cimport Status

# numpy's own limit is 64 since 2.0, 32 before; the array call enforces the lower one.
cdef enum:
    MAX_DIMS = 64
    # Bytes from which zeroing, or having the system do so, lets the GIL go: below, switching costs more than it gives.
    BULK = 1 << 18


cdef struct Shape:
    int nd
    cnp.npy_intp dims[MAX_DIMS]


cdef class Core

# Lets go of what finished copies kept; whether there was any.
ctypedef bint (*SettleCopies)() noexcept


# Of pools whose memory the host does not reach: makes what is there in place of numpy arrays. As wrap(), new_full() and
# new_copy() below.
cdef class Maker:
    cdef object wrap(self, Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape)
    cdef object full(self, Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who)
    cdef object copy(self, Core core, Handle request, object array, object align, object timeout, object who)


# The C++ pool, kept alive by everything that may still touch its memory.
cdef class Core:
    cdef unique_ptr[CppPool] owned
    cdef CppPool* pool
    cdef readonly dict filenames      # keeps the strings that the core's SourceLocations point into
    cdef bint records_lines           # debug: every block remembers the line that allocated it
    cdef bint cleans                  # blocks are scrubbed or poisoned as they come back: bulk work, without the GIL
    cdef object report                # (status, context...) -> raises; slabpool.messages.pool
    cdef Maker maker                  # None where the host reaches the memory
    cdef object give_way              # None, or a weak method: True if memory may have come back; slabpool.sessions.registry
    cdef list heaps                   # None, or weak references to the stream-ordered heaps over it
    cdef object __weakref__


cdef Handle NO_REQUEST

cdef int check_here(Core core) except -1
cdef void note_copies(int under_way, SettleCopies settle) noexcept
cdef bint settle_copies() noexcept
cdef bint trim_heaps(Core core, bint wait) except -1
cdef bint can_give_way(Core core) noexcept
cdef bint others_give_way(Core core, Status status) except -1
cdef SourceLocation caller(Core core) except *
cdef SourceLocation located(Core core, object file, int line) except *
cdef cnp.dtype as_dtype(object dtype)
cdef uint64_t parse_shape(object shape, Py_ssize_t itemsize, Shape* out) except? 0xFFFFFFFFFFFFFFFF
cdef int64_t deadline_of(object timeout) except? -1
cdef int64_t next_slice(int64_t deadline) noexcept
cdef uint64_t check_align(object align) except 0
cdef object own(Core core, Block* block, bint bulk)
cdef object wrap_strided(object owner, void* data, cnp.dtype dtype, Shape* shape, cnp.npy_intp* strides)
cdef object wrap(Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape)
cdef Block* allocate(Core core, Handle request, uint64_t nbytes, uint64_t align, bint view, bint zero,
                     object timeout, object who) except NULL
cdef object new_array(Core core, Handle request, object shape, object dtype, object align, bint zero,
                      object timeout, object who)
cdef object new_full(Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who)
cdef object new_copy(Core core, Handle request, object array, object align, object timeout, object who)
