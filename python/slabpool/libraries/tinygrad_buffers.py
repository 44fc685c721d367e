"""Buffers of tinygrad's CPU devices in a pool; `slabpool.tinygrad` is the public module.

tinygrad runs kernels on a thread of its own, and keeps freed buffers for the next tensor of the same size.

Invariant: a buffer's memory returns to the pool only after the device was synchronized, so no queued kernel
can still write to it. Until then only tinygrad may reuse the memory, because its kernels run in order.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slabpool._core import active as _active
from slabpool._core.pool import Pool
from slabpool._core.request import Request
from slabpool.errors import PoolClosedError, PoolExhausted, UnknownDeviceError

# Typed as Any, so that mypy gives the same result without tinygrad.
Buffer: Any = import_module("tinygrad.device").Buffer
BufferSpec: Any = import_module("tinygrad.device").BufferSpec
TinyJit: Any = import_module("tinygrad.engine.jit")._TinyJit
all_tensors: Any = import_module("tinygrad.tensor").all_tensors
Ops: Any = import_module("tinygrad.uop.ops").Ops
buffers_of: Any = import_module("tinygrad.uop.ops").buffers


class Block:
    """The memory of a buffer, stored as the buffer's `meta`: keeps it until tinygrad frees the buffer.

    The memory belongs to a child of the active request, because tinygrad frees buffers before the request
    ends.
    """

    __slots__ = ("array", "child", "devices", "generation", "request", "request_id")

    def __init__(self, size: int, zero: bool, pool: Pool, request: Request | None) -> None:
        self.child: Request | None = None
        self.devices: frozenset[str | int] = frozenset()
        self.generation = 0
        self.request_id: str | int | bytes | None = None
        self.request: weakref.ref[Request] | None = None  # weak: a buffer must not keep the request open
        if request is None:
            self.array: NDArray[np.uint8] | None = (pool.zeros if zero else pool.empty)(size, np.uint8)
            return
        self.request = weakref.ref(request)
        self.generation = request.generation
        self.request_id = request.id
        while True:
            self.devices = request.pending  # the devices that may read the buffer after the host's close
            try:
                self.child = request.child(self.devices)
                break
            except UnknownDeviceError:
                if self.devices <= request.pending:
                    raise  # no device has acknowledged in between, so the error has another cause
        try:
            self.array = (self.child.zeros if zero else self.child.empty)(size, np.uint8)
        except BaseException:
            self._end_child()
            raise

    def release(self) -> None:
        """Free the memory. tinygrad must not use it any more."""
        self.array = None
        self._end_child()

    def _end_child(self) -> None:
        if self.child is not None:
            with contextlib.suppress(PoolClosedError):
                self.child.close()
                for device in self.devices:  # they could read the memory only through the freed buffer
                    self.child.ack(device)


class PoolAllocator:
    """An allocator of a CPU device that takes memory from a pool; mixed into the device's allocator class."""

    dev: Any
    original: Any
    pool: Pool
    # Buffers that were freed during an activation of their request, by activation and size. tinygrad may
    # reuse them; they return to the pool at the end of the activation.
    _parked: dict[_active.Activation, dict[int, list[Any]]]
    # tinygrad may free buffers on any thread. It is an RLock, because the garbage collector may free one on a
    # thread that holds the lock.
    _lock: threading.RLock

    @classmethod
    def over(cls, original: Any, pool: Pool) -> PoolAllocator:
        """Make an allocator that behaves as `original` except for `alloc` and `free`."""
        kind: Any = type("PoolAllocator", (cls, type(original)), {})
        allocator: PoolAllocator = kind.__new__(kind)
        vars(allocator).update(vars(original))
        allocator.original = original
        allocator.pool = pool
        allocator._parked = {}
        allocator._lock = threading.RLock()
        return allocator

    def alloc(self, size: int, options: Any = None) -> Any:
        """Allocate a buffer in the pool. If the options ask for another kind of memory, use `original`."""
        if options is not None and options != BufferSpec(nolru=options.nolru, zero=options.zero):
            return self.original.alloc(size, options)
        activation = _active.current()
        request = None if activation is None else activation.request
        zero = options is not None and options.zero
        if activation is not None and not zero:
            with self._lock:
                parked = self._parked.get(activation, {}).get(size)
                if parked:
                    return parked.pop()
        try:
            block = Block(size, zero, self.pool, request)
        except PoolExhausted:
            if not self.release_parked(None):
                raise
            block = Block(size, zero, self.pool, request)
        assert block.array is not None
        opaque = self.original.alloc(size, BufferSpec(external_ptr=block.array.ctypes.data))
        opaque.meta = block
        return opaque

    def free(self, opaque: Any, size: int, options: Any = None) -> None:
        """Return a buffer to the pool; during an activation of its request, park it until that ends."""
        block = opaque.meta
        if type(block) is not Block:
            self.original.free(opaque, size, options)
            return
        activation = _active.current()
        if activation is not None and block.request is not None and block.request() is activation.request:
            with self._lock:
                # The end of the activation, on another thread, clears `live` before it takes the lock.
                if activation.live:
                    self._parked.setdefault(activation, {}).setdefault(size, []).append(opaque)
                    return
        self.dev.synchronize()
        block.release()

    def release_parked(self, activation: _active.Activation | None) -> bool:
        """Return the parked buffers of an activation (None: of all) to the pool; False if there were none."""
        with self._lock:
            if activation is None:
                taken, self._parked = self._parked, {}
                by_size = list(taken.values())
            else:
                by_size = [self._parked.pop(activation, {})]
        opaques = [opaque for sizes in by_size for parked in sizes.values() for opaque in parked]
        if opaques:
            self.dev.synchronize()
            for opaque in opaques:
                opaque.meta.release()
        return bool(opaques)


def block_of(buffer: Any) -> Block | None:
    """Return the block of a buffer; None for a view, and for a buffer that is not in a pool."""
    if buffer._base is not None or buffer.device not in buffer._bufs:
        return None
    block = getattr(buffer._bufs[buffer.device], "meta", None)
    return block if type(block) is Block else None


def _referenced(uop: Any) -> Iterator[int]:
    """Yield the ids of the base buffers that a graph of operations refers to."""
    for node in uop.toposort():
        if node.op is Ops.BUFFER and node in buffers_of:
            found = buffers_of[node]
            for buffer in getattr(found, "bufs", (found,)):
                yield id(buffer.base)


def find_keepers(objects: list[Any]) -> dict[int, str]:
    """Find what keeps each buffer alive: its id, and "TinyJit <name of its function>" or "Tensor"."""
    keepers: dict[int, str] = {}
    for jit in objects:
        # type(), because isinstance() would run code of lazy objects of other libraries.
        if issubclass(type(jit), TinyJit) and jit.captured is not None:
            name = f"TinyJit {getattr(jit.fxn, '__qualname__', jit.fxn)}"
            for uop in (jit.captured._linear, jit.captured.linear):
                for buffer in _referenced(uop):
                    keepers.setdefault(buffer, name)
    for reference in list(all_tensors):
        tensor = reference()
        if tensor is not None:
            for buffer in _referenced(tensor.uop):
                keepers.setdefault(buffer, "Tensor")
    return keepers
