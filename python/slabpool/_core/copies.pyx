# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""Copies that involve device memory, and what those that are under way keep.

A copy that returns before it is done leaves a record of both sides, and with it their view holds; the record
goes when the stream has come past the copy and somebody looks. Who looks: every further such copy, an allocation
that finds no room, one that waits, and whoever asks the pool how it stands or closes it. What must stay true: a
record is made before its copy is queued, and only one thread, with the GIL, looks at a mark at a time.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from slabpool._core.array cimport note_copies
from slabpool._core.cpp_copies cimport (
    CopySpec, Event, Stream, copy, describe, device_address, extents, forget, order, passed, repeat,
)
from libcpp cimport bool
from libcpp.string cimport string

from slabpool.messages import cuda as _report_cuda

# How many records each new copy looks at, so that they do not gather where nobody asks.
cdef Py_ssize_t A_FEW = 4


@cython.final
cdef class _UnderWay:
    cdef Event mark         # null until the copy is queued
    cdef int device
    cdef object keep


cdef list _under_way = []
cdef Py_ssize_t _next = 0


cdef bint _settle(Py_ssize_t most) noexcept:
    """Lets go of what is done, after a look at `most` records; whether there was any."""
    global _next
    cdef _UnderWay record
    cdef list done = []
    while most > 0 and _under_way:
        most -= 1
        if _next >= len(_under_way):
            _next = 0
        record = _under_way[_next]
        if record.mark is NULL or not passed(record.device, record.mark):
            _next += 1
            continue
        _under_way[_next] = _under_way[len(_under_way) - 1]
        _under_way.pop()
        done.append(record)
    note_copies(<int>len(_under_way), _settle_all)
    for record in done:
        forget(record.device, record.mark)
    return len(done) > 0  # here they die, and with them the holds


cdef bint _settle_all() noexcept:
    return _settle(len(_under_way))


cdef int _failed(str what, int result) except -1:
    cdef bool lost = False
    cdef string text = describe(result, lost)
    _report_cuda.failed(what, result, text.decode("utf-8", "replace"), lost)
    return -1


cdef int copy_elements(int device, Stream stream, tuple shape, size_t itemsize, uint64_t to, tuple to_strides,
                       uint64_t source, tuple from_strides, object keep, str what) except -1:
    """Copies; with `keep` returns at once, and keeps that until it is done."""
    cdef int64_t dims[64]
    cdef int64_t to_steps[64]
    cdef int64_t from_steps[64]
    cdef size_t nd = len(shape)
    cdef size_t i
    cdef int result = 0
    cdef Event mark = NULL
    cdef _UnderWay record = None
    cdef CopySpec spec
    for i in range(nd):
        dims[i] = shape[i]
        to_steps[i] = to_strides[i]
        from_steps[i] = from_strides[i]
    spec.to = to
    spec.from_ = source
    spec.itemsize = itemsize
    spec.shape = extents(dims, nd)
    spec.to_strides = extents(to_steps, nd)
    spec.from_strides = extents(from_steps, nd)
    if keep is None:
        with nogil:
            result = copy(device, stream, spec, NULL)
    else:
        _settle(A_FEW)
        record = _UnderWay.__new__(_UnderWay)
        record.device = device
        record.keep = keep
        _under_way.append(record)
        note_copies(<int>len(_under_way), _settle_all)
        try:
            with nogil:
                result = copy(device, stream, spec, &mark)
        finally:
            if mark is NULL:  # nothing is under way
                _under_way.remove(record)
                note_copies(<int>len(_under_way), _settle_all)
            else:
                record.mark = mark
    return _failed(what, result) if result != 0 else 0


cdef int repeat_bytes(int device, Stream stream, uint64_t to, size_t nbytes, size_t period, unsigned char value,
                      str what) except -1:
    cdef int result
    with nogil:
        result = repeat(device, stream, to, nbytes, period, value)
    return _failed(what, result) if result != 0 else 0


cdef int order_streams(int device, Stream before, Stream after, str what) except -1:
    cdef int result
    if before == after:
        return 0
    with nogil:
        result = order(device, before, after)
    return _failed(what, result) if result != 0 else 0


cdef uint64_t address_for(int device, uint64_t host) except? 0:
    cdef uint64_t address = 0
    cdef int result
    with nogil:
        result = device_address(device, <const void*>host, address)
    if result != 0:
        _failed(f"asking for the device's address of pinned memory at {host:#x}", result)
    return address
