# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""Which CUDA stream an object means: an int, or a stream of torch, CuPy, Numba or cuda.core.

Asks objects, and the driver nothing. Sources: the protocol ``__cuda_stream__`` of cuda.core 0.2 on (a pair of a
version, 0, and the handle); ``torch.cuda.Stream.cuda_stream``; ``cupy.cuda.Stream.ptr``; ``numba.cuda`` streams,
whose ``handle`` is an int, a ctypes.c_void_p or the binding's own type.
"""

from cpython.long cimport PyLong_AsVoidPtr
from libc.stdint cimport uintptr_t

import operator

from slabpool.errors import InvalidArgumentError, InvalidTypeError

cdef object END = int("10000000000000000", 16)  # a literal would be taken for a C integer
cdef tuple _ATTRIBUTES = ("cuda_stream", "ptr", "handle")
cdef tuple _DEVICES = ("device_index", "device_id")


cdef object _number(object value):
    """An int of what libraries keep a handle in, or None."""
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
        told = ask() if callable(ask) else ask
        try:
            version, handle = told
        except (TypeError, ValueError):
            raise InvalidTypeError(
                f"__cuda_stream__ of {stream!r} must give (0, handle), gave {told!r}") from None
        if version != 0:
            raise InvalidTypeError(
                f"__cuda_stream__ of {stream!r} gives version {version!r} of the protocol, and this slabpool knows 0")
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
            f"cuda_stream, ptr or handle), got {stream!r} of type {type(stream).__name__}")
    if not 0 <= handle < END:
        raise InvalidArgumentError(f"stream must be the handle of a stream, got {handle} of {stream!r}")
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
    """The handle of a stream, and the device that it says it is of, or -1. For what is written in Python."""
    return <uintptr_t>stream_of(stream), stream_device(stream)
