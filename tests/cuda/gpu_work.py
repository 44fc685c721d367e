"""Streams and work on them, through the driver that slabpool uses: a GPU's, or the stand-in."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from tests.cuda.standin_build import Standin

_POINTER = ctypes.POINTER(ctypes.c_void_p)


class Work:
    """Streams of one device's primary context. `close` destroys them."""

    def __init__(self, standin: Standin | None = None, device: int = 0) -> None:
        self._standin = standin
        self._device = device
        self._library = ctypes.CDLL(os.environ.get("SLABPOOL_CUDA_DRIVER", "libcuda.so.1"))
        self._library.cuGetProcAddress.argtypes = [ctypes.c_char_p, _POINTER, ctypes.c_int, ctypes.c_uint64]
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", (_POINTER, ctypes.c_int), ctypes.byref(self._context), device)
        self._streams: list[int] = []
        self.kept: list[object] = []  # objects that the queued work uses
        if standin is not None:
            for name in ("hold", "release"):
                function = getattr(standin.library, f"standin_{name}")
                function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], None
            standin.library.standin_capture.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]

    def _call(self, name: str, types: tuple[Any, ...], *arguments: Any) -> None:
        found = ctypes.c_void_p()
        assert self._library.cuGetProcAddress(name.encode(), ctypes.byref(found), 12000, 0) == 0, name
        result = ctypes.CFUNCTYPE(ctypes.c_int, *types)(found.value or 0)(*arguments)
        assert result == 0, f"{name}: {result}"

    def _inside(self, name: str, types: tuple[Any, ...], *arguments: Any) -> None:
        self._call("cuCtxPushCurrent", (ctypes.c_void_p,), self._context)
        try:
            self._call(name, types, *arguments)
        finally:
            self._call("cuCtxPopCurrent", (_POINTER,), ctypes.byref(ctypes.c_void_p()))

    def stream(self) -> int:
        """A stream that does not wait for the default stream."""
        made = ctypes.c_void_p()
        self._inside("cuStreamCreate", (_POINTER, ctypes.c_uint), ctypes.byref(made), 1)
        self._streams.append(made.value or 0)
        return self._streams[-1]

    def fill(self, address: int, value: int, nbytes: int, stream: int) -> None:
        """Queue a memset."""
        types = (ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p)
        self._inside("cuMemsetD8Async", types, address, value, nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """Wait for all queued work."""
        self._inside("cuStreamSynchronize", (ctypes.c_void_p,), stream)

    def hold(self, stream: int) -> None:
        """On the stand-in: no further work of the stream begins."""
        assert self._standin is not None
        self._standin.library.standin_hold(self._device, stream)

    def let_go(self, stream: int) -> None:
        """On the stand-in: undo `hold`, and return once all work is done."""
        assert self._standin is not None
        self._standin.library.standin_release(self._device, stream)
        self._standin.library.standin_settle()

    def capture(self, stream: int, on: bool) -> None:
        """On the stand-in: mark the stream as captured into a graph."""
        assert self._standin is not None
        self._standin.library.standin_capture(self._device, stream, int(on))

    def close(self) -> None:
        """Destroy the streams."""
        for stream in self._streams:
            self._inside("cuStreamDestroy", (ctypes.c_void_p,), stream)
        self._streams.clear()
        self.kept.clear()
