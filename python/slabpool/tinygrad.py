"""tinygrad's CPU buffers in a pool, counted to the active request.

tinygrad runs kernels on a thread of its own and keeps freed buffers for the next tensor of that size. What
must stay true: memory goes back to the pool only after the device was synchronised, so that no queued kernel
still writes it; until then it may be reused by tinygrad alone, whose kernels run in order. A request that is
released while something of tinygrad's (a TinyJit above all) still has one of its buffers keeps those bytes as
retained, and `retained` tells what has them.

Known versions: tinygrad 0.14.0.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slabpool._core import active as _active
from slabpool._core.pool import Pool
from slabpool._core.request import Request
from slabpool.errors import (
    InvalidArgumentError,
    PoolClosedError,
    PoolExhausted,
    SlabpoolError,
    UnknownDeviceError,
)
from slabpool.records import RequestState

# As Any: mypy sees the same with tinygrad and without.
try:
    Device: Any = import_module("tinygrad").Device
    Tensor: Any = import_module("tinygrad").Tensor
    Buffer: Any = import_module("tinygrad.device").Buffer
    BufferSpec: Any = import_module("tinygrad.device").BufferSpec
    TinyJit: Any = import_module("tinygrad.engine.jit")._TinyJit
    all_tensors: Any = import_module("tinygrad.tensor").all_tensors
    Ops: Any = import_module("tinygrad.uop.ops").Ops
    buffers_of: Any = import_module("tinygrad.uop.ops").buffers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"slabpool.tinygrad needs tinygrad ({error}): pip install 'tinygrad==0.14.0'", name=error.name
    ) from error
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"slabpool.tinygrad knows tinygrad 0.14.0; the one installed is of another shape ({error}): "
        "pip install 'tinygrad==0.14.0'"
    ) from error

__all__ = ["Installed", "Retained", "install", "installed", "retained", "uninstall"]


class Retained(NamedTuple):
    """Bytes of a released request that something of tinygrad's keeps.

    Examples
    --------
    >>> import slabpool
    >>> print(slabpool.tinygrad.Retained("chat-42", 7, 16384, 2, "TinyJit step"))
    request 'chat-42' generation 7: 16384 bytes in 2 buffers, kept by TinyJit step
    """

    request_id: str | int | bytes
    generation: int
    nbytes: int
    buffers: int
    #: "TinyJit <name of its function>", "Tensor" or "Buffer".
    keeper: str

    def __str__(self) -> str:
        return (
            f"request {self.request_id!r} generation {self.generation}: {self.nbytes} bytes in "
            f"{self.buffers} buffer{'s' if self.buffers != 1 else ''}, kept by {self.keeper}"
        )


class _Block:
    """What a buffer of ours has as its `meta`: keeps the memory until tinygrad has let go of the buffer.

    A request's memory comes back with the request, and a buffer's before that: so it is of a child.
    """

    __slots__ = ("array", "child", "devices", "generation", "request", "request_id")

    def __init__(self, size: int, zero: bool, pool: Pool, request: Request | None) -> None:
        self.child: Request | None = None
        self.devices: frozenset[str | int] = frozenset()
        self.generation = 0
        self.request_id: str | int | bytes | None = None
        self.request: weakref.ref[Request] | None = None  # not the request: a buffer must not keep it open
        if request is None:
            self.array: NDArray[np.uint8] | None = (pool.zeros if zero else pool.empty)(size, np.uint8)
            return
        self.request = weakref.ref(request)
        self.generation = request.generation
        self.request_id = request.id
        while True:
            self.devices = request.pending  # who may still read it when the host has closed the request
            try:
                self.child = request.child(self.devices)
                break
            except UnknownDeviceError:
                if self.devices <= request.pending:
                    raise  # not because one has acknowledged in between
        try:
            self.array = (self.child.zeros if zero else self.child.empty)(size, np.uint8)
        except BaseException:
            self._end_child()
            raise

    def release(self) -> None:
        """tinygrad does not touch it any more."""
        self.array = None
        self._end_child()

    def _end_child(self) -> None:
        if self.child is not None:
            with contextlib.suppress(PoolClosedError):
                self.child.close()
                for device in self.devices:  # they could only read it through the buffer that is gone
                    self.child.ack(device)


class _PoolAllocator:
    """What a CPU device's allocator does differently: where bytes come from, and when they go back."""

    dev: Any
    original: Any
    pool: Pool
    # Freed during an activation of their request, by size: not yet the pool's, see the head of this file.
    _parked: dict[_active.Activation, dict[int, list[Any]]]
    # tinygrad's garbage is freed on any thread, and by the collector on this one inside of what it guards.
    _lock: threading.RLock

    @classmethod
    def over(cls, original: Any, pool: Pool) -> _PoolAllocator:
        """In place of `original`, and in all else (copying, mapping, views) the same."""
        kind: Any = type("PoolAllocator", (cls, type(original)), {})
        allocator: _PoolAllocator = kind.__new__(kind)
        vars(allocator).update(vars(original))
        allocator.original = original
        allocator.pool = pool
        allocator._parked = {}
        allocator._lock = threading.RLock()
        return allocator

    def alloc(self, size: int, options: Any = None) -> Any:
        """A buffer in the pool; the device's own (with options of its kind) are where they were."""
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
            block = _Block(size, zero, self.pool, request)
        except PoolExhausted:
            if not self.give_back(None):
                raise
            block = _Block(size, zero, self.pool, request)
        assert block.array is not None
        opaque = self.original.alloc(size, BufferSpec(external_ptr=block.array.ctypes.data))
        opaque.meta = block
        return opaque

    def free(self, opaque: Any, size: int, options: Any = None) -> None:
        """To the pool; within an activation of its request, at its end."""
        block = opaque.meta
        if type(block) is not _Block:
            self.original.free(opaque, size, options)
            return
        activation = _active.current()
        if activation is not None and block.request is not None and block.request() is activation.request:
            with self._lock:
                if activation.live:  # its end, on another thread, sets this before it takes the lock
                    self._parked.setdefault(activation, {}).setdefault(size, []).append(opaque)
                    return
        self.dev.synchronize()
        block.release()

    def give_back(self, activation: _active.Activation | None) -> bool:
        """Buffers parked in the activation, or in all, go back to the pool; whether there were any."""
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


class Installed:
    """What `install` gives: ends with a ``with`` block or `uninstall`.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> with slabpool.tinygrad.install(pool) as installed:
    ...     print(installed.pool is pool, installed.device)
    True CPU
    """

    def __init__(self, pool: Pool, device: str) -> None:
        self.pool = pool
        self.device = device
        self._device = Device[device]
        self._allocator = _PoolAllocator.over(self._device.allocator, pool)
        self._device.allocator = self._allocator
        _active.on_leave.append(self._allocator.give_back)

    def uninstall(self) -> None:
        """New buffers are tinygrad's own again; those in the pool stay there as long as tinygrad has them."""
        if _installed.get(self.device) is self:
            del _installed[self.device]
            self._device.allocator = self._allocator.original
            _active.on_leave.remove(self._allocator.give_back)
            self._allocator.give_back(None)

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


_installed: dict[str, Installed] = {}


def install(pool: Pool, device: str = "CPU") -> Installed:
    """New buffers of tinygrad's CPU device come from the pool.

    While a request is active (``with req.activate():``) they are the request's: each is a child of it, so
    that its memory comes back when tinygrad frees it, and at the request's end at the latest, or is retained.
    Otherwise they are the pool's own, kept until tinygrad lets go of them. Buffers that exist stay where they
    are.

    Parameters
    ----------
    pool : Pool
    device : str, default "CPU"
        Of tinygrad; "CPU" or "CPU:1" and so on.

    Returns
    -------
    Installed

    Raises
    ------
    InvalidArgumentError
        Not a CPU device.
    SlabpoolError
        A pool is installed on the device already.

    Examples
    --------
    >>> import slabpool
    >>> from tinygrad import Tensor
    >>> pool = slabpool.Pool("16MiB")
    >>> with slabpool.tinygrad.install(pool):
    ...     req = pool.request("chat-42")
    ...     with req.activate():
    ...         x = Tensor.ones(1000, device="CPU").contiguous().realize()
    ...     print([record.nbytes for record in pool.requests() if record.parent == req.generation])
    ...     del x
    ...     req.close()
    [4096]
    >>> pool.stats().live
    0
    """
    name = Device.canonicalize(device)
    if name.split(":")[0] != "CPU":
        raise InvalidArgumentError(
            f"device must be a CPU device of tinygrad, got {device!r}; pools are host memory"
        )
    if name in _installed:
        raise SlabpoolError(
            f"pool {_installed[name].pool.name!r} is installed on tinygrad's device {name}; "
            "uninstall it first"
        )
    # The device's own queues are made with its first kernel, and stay: before the pool is there.
    (Tensor([1.0], device=name) + 1).realize()
    Device[name].synchronize()
    _installed[name] = Installed(pool, name)
    return _installed[name]


def installed(device: str = "CPU") -> Installed | None:
    """What is installed on the device, or None.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.tinygrad.installed() is None
    True
    """
    return _installed.get(Device.canonicalize(device))


def uninstall(device: str = "CPU") -> None:
    """Takes the pool off the device; again: nothing happens.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.tinygrad.uninstall()
    """
    here = installed(device)
    if here is not None:
        here.uninstall()


def _ours(buffer: Any) -> _Block | None:
    """The block of a buffer that has memory of its own, if that is a pool's."""
    if buffer._base is not None or buffer.device not in buffer._bufs:
        return None
    block = getattr(buffer._bufs[buffer.device], "meta", None)
    return block if type(block) is _Block else None


def _under(uop: Any) -> Iterator[int]:
    """Ids of the buffers that a graph of operations refers to, the base of each view."""
    for node in uop.toposort():
        if node.op is Ops.BUFFER and node in buffers_of:
            found = buffers_of[node]
            for buffer in getattr(found, "bufs", (found,)):
                yield id(buffer.base)


def _keepers(objects: list[Any]) -> dict[int, str]:
    """What keeps each buffer, by the buffer's id."""
    keepers: dict[int, str] = {}
    for jit in objects:
        # type(): isinstance() would ask lazy objects of other libraries for their class.
        if issubclass(type(jit), TinyJit) and jit.captured is not None:
            name = f"TinyJit {getattr(jit.fxn, '__qualname__', jit.fxn)}"
            for uop in (jit.captured._linear, jit.captured.linear):
                for buffer in _under(uop):
                    keepers.setdefault(buffer, name)
    for reference in list(all_tensors):
        tensor = reference()
        if tensor is not None:
            for buffer in _under(tensor.uop):
                keepers.setdefault(buffer, "Tensor")
    return keepers


def retained(pool: Pool) -> list[Retained]:
    """Which released requests tinygrad keeps bytes of, and what keeps them.

    Looks through all objects of the process: for people and logs, not for every step.

    Parameters
    ----------
    pool : Pool

    Returns
    -------
    list of Retained
        Largest first. Bytes are of whole buffers, without the pool's rounding.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.tinygrad.retained(slabpool.Pool("1MiB"))
    []
    """
    # A buffer's child is over together with its request, unless the buffer went first.
    over = {record.parent for record in pool.requests() if record.state is RequestState.RELEASED}
    if not over:
        return []
    objects = gc.get_objects()
    keepers = _keepers(objects)
    sums: Counter[tuple[Any, int, str]] = Counter()  # by id, generation and keeper
    counts: Counter[tuple[Any, int, str]] = Counter()
    for buffer in objects:
        if issubclass(type(buffer), Buffer):
            block = _ours(buffer)
            if block is not None and block.array is not None and block.generation in over:
                key = (block.request_id, block.generation, keepers.get(id(buffer), "Buffer"))
                sums[key] += block.array.nbytes
                counts[key] += 1
    return [
        Retained(request_id, generation, nbytes, counts[request_id, generation, keeper], keeper)
        for (request_id, generation, keeper), nbytes in sums.most_common()
    ]
