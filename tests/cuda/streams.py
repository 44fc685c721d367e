"""Streams for the tests, made with the driver that slabpool uses; and holding them back, on the stand-in."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cuda.standin_build import Standin


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    found = ctypes.c_void_p()
    library.cuGetProcAddress.argtypes = [
        ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_uint64,
    ]  # fmt: skip
    assert library.cuGetProcAddress(name.encode(), ctypes.byref(found), 12000, 0) == 0
    return ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(found.value or 0)


@contextmanager
def stream(device: int = 0) -> Iterator[int]:
    """The handle of a stream that is not blocked by the default stream, in the device's primary context."""
    library = ctypes.CDLL(os.environ.get("SLABPOOL_CUDA_DRIVER", "libcuda.so.1"))
    pointer = ctypes.POINTER(ctypes.c_void_p)
    context, made = ctypes.c_void_p(), ctypes.c_void_p()
    retain = _function(library, "cuDevicePrimaryCtxRetain", pointer, ctypes.c_int)
    push = _function(library, "cuCtxPushCurrent", ctypes.c_void_p)
    pop = _function(library, "cuCtxPopCurrent", pointer)
    create = _function(library, "cuStreamCreate", pointer, ctypes.c_uint)
    destroy = _function(library, "cuStreamDestroy", ctypes.c_void_p)
    assert retain(ctypes.byref(context), device) == 0
    assert push(context) == 0
    assert create(ctypes.byref(made), 1) == 0
    assert pop(ctypes.byref(ctypes.c_void_p())) == 0
    yield made.value or 0
    assert push(context) == 0
    assert destroy(made) == 0
    assert pop(ctypes.byref(ctypes.c_void_p())) == 0


@contextmanager
def held(standin: Standin, handle: int, device: int = 0) -> Iterator[None]:
    """Nothing that is queued on the stream begins in the block."""
    hold, release = standin.library.standin_hold, standin.library.standin_release
    for function in (hold, release):
        function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], None
    hold(device, handle)
    try:
        yield
    finally:
        release(device, handle)
        settle(standin)


def settle(standin: Standin) -> None:
    """Returns once every stream that is not held back has done its work."""
    standin.library.standin_settle()
