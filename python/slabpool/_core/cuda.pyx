# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""CUDA as the other modules use it: the driver, streams as libraries pass them, and copies that involve device memory.

`slabpool.cuda` is the public module. A copy that returns before it is done leaves a record that keeps both memories.
The record is dropped after the stream has passed the copy, by the next poll: one is made by every further such copy, by
an allocation that finds no room, and by reading or closing the pool. Invariants: a record exists before its copy is
queued; only one thread, with the GIL, polls a mark at a time.
"""

cimport cython
from cpython.long cimport PyLong_AsVoidPtr
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.string cimport string

from slabpool._core.core cimport note_copies, text_of
from slabpool._core.cpp_cuda cimport (
    CopySpec, DeviceInfo, Driver, Event, copy, describe_device, device_address, extents, forget, free_memory, order,
    passed, repeat,
)
from slabpool._core.cpp_cuda cimport describe as describe_result
from slabpool._core.cpp_status cimport Error

import operator

from slabpool._core import hooks
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import DeviceUnavailableError, InvalidArgumentError, InvalidTypeError


# ---- the driver

cdef str _text(const string& given):
    # Messages name files, which need not be UTF-8.
    cdef bytes raw = given
    return raw.decode("utf-8", "surrogateescape")


cdef const Driver* _find(Error& error) noexcept:
    # Loading a driver and starting it may take seconds.
    cdef const Driver* driver
    with nogil:
        driver = Driver.get(error)
    return driver


cdef const Driver* _need() except NULL:
    cdef Error error
    cdef const Driver* driver = _find(error)
    if driver == NULL:
        raise DeviceUnavailableError(_text(error.text))
    return driver


def why_unavailable():
    """Why no driver can be used, or None if one can."""
    cdef Error error
    return _text(error.text) if _find(error) == NULL else None


def driver_version():
    """The version as the driver gives it: 12040 is 12.4."""
    return _need().version()


def library():
    """The library that was loaded."""
    return _text(_need().library())


def device_count():
    """Number of devices that the driver listed when it was loaded."""
    return _need().devices()


def describe(int device):
    """The fields of `slabpool.cuda.Device`, in order."""
    cdef const Driver* driver = _need()
    cdef DeviceInfo info
    cdef Error error
    cdef cbool ok
    with nogil:
        ok = describe_device(driver[0], device, info, error)
    if not ok:
        raise DeviceUnavailableError(_text(error.text))
    return (device, _text(info.name), info.total_bytes, _text(info.pci),
            None if info.numa_node < 0 else info.numa_node,
            info.virtual_memory, info.exportable, info.managed)


def free_bytes(int device):
    """Free bytes of the device's memory."""
    cdef const Driver* driver = _need()
    cdef uint64_t free = 0
    cdef Error error
    cdef cbool ok
    with nogil:
        ok = free_memory(driver[0], device, free, error)
    if not ok:
        raise DeviceUnavailableError(_text(error.text))
    return free


# ---- streams
#
# An object is asked, never the driver. Sources: the protocol ``__cuda_stream__`` of cuda.core 0.2 on (a pair of a
# version, 0, and the handle); ``torch.cuda.Stream.cuda_stream``; ``cupy.cuda.Stream.ptr``; ``numba.cuda`` streams,
# whose ``handle`` is an int, a ctypes.c_void_p or the binding's own type.

cdef object END = int("10000000000000000", 16)  # a literal would be taken for a C integer
cdef tuple _ATTRIBUTES = ("cuda_stream", "ptr", "handle")
cdef tuple _DEVICES = ("device_index", "device_id")


cdef object _number(object value):
    """The int in an object that holds a handle, or None."""
    if value is None:
        return 0  # what ctypes makes of a null pointer
    for convert in (operator.index, int):
        try:
            return convert(value)
        except (TypeError, ValueError):
            pass
    return _number(value.value) if hasattr(value, "value") and not hasattr(value.value, "value") else None


cdef object _handle(object stream):
    if isinstance(stream, bool):
        return None
    if hasattr(stream, "__index__"):
        return operator.index(stream)
    ask = getattr(stream, "__cuda_stream__", None)
    if ask is not None:
        answer = ask() if callable(ask) else ask
        try:
            version, handle = answer
        except (TypeError, ValueError):
            raise InvalidTypeError(
                f"__cuda_stream__ of {show(stream)} must give (0, handle), gave {show(answer)}") from None
        if version != 0:
            raise InvalidTypeError(
                f"__cuda_stream__ of {show(stream)} gives version {show(version)} of the protocol, and this slabpool knows 0")
        return _number(handle)
    for name in _ATTRIBUTES:
        found = getattr(stream, name, _ATTRIBUTES)
        if found is not _ATTRIBUTES:
            return _number(found)
    return None


cdef Stream stream_of(object stream) except NULL:
    if stream is None:
        return <Stream><uintptr_t>1
    handle = _handle(stream)
    if handle is None:
        raise InvalidTypeError(
            "stream must be an int, or a stream of torch, CuPy, Numba or cuda.core (something with __cuda_stream__, "
            f"cuda_stream, ptr or handle), got {show_typed(stream)}")
    if not 0 <= handle < END:
        raise InvalidArgumentError(f"stream must be the handle of a stream, got {handle} of {show(stream)}")
    return PyLong_AsVoidPtr(handle if handle else 1)


cdef int stream_device(object stream) except? -1:
    if stream is None or isinstance(stream, int):
        return -1
    for name in _DEVICES:
        number = getattr(stream, name, None)
        if isinstance(number, int):
            return number if 0 <= number < 65536 else -1
    device = getattr(stream, "device", None)
    for name in ("device_id", "index"):
        number = getattr(device, name, None)
        if isinstance(number, int):
            return number if 0 <= number < 65536 else -1
    return -1


def handle_of(stream):
    """(handle, device) of a stream; the device is -1 if the object does not name one. For Python code."""
    return <uintptr_t>stream_of(stream), stream_device(stream)


# ---- copies

# How many records each new copy polls, so that they do not accumulate.
cdef Py_ssize_t A_FEW = 4


@cython.final
cdef class _UnderWay:
    cdef Event mark         # null until the copy is queued
    cdef int device
    cdef object keep


cdef list _under_way = []
cdef Py_ssize_t _next = 0


cdef bint _settle(Py_ssize_t most) noexcept:
    """Polls `most` records and drops those whose copies are done. Returns whether there was any."""
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
    return len(done) > 0  # `done` dies here, and with it what it keeps


cdef bint _settle_all() noexcept:
    return _settle(len(_under_way))


cdef int _failed(str what, int result) except -1:
    cdef cbool lost = False
    cdef string text = describe_result(result, lost)
    hooks.messages.cuda_failed(what, result, text_of(text), lost)
    return -1


cdef int copy_elements(int device, Stream stream, tuple shape, size_t itemsize, uint64_t to, tuple to_strides,
                       uint64_t source, tuple from_strides, object keep, str what) except -1:
    """Copies. With `keep` it returns once the copy is queued, and `keep` stays alive until the copy is done."""
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
            if mark is NULL:  # nothing was queued
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
