"""CuPy's device memory and its pinned host memory in pools.

CuPy calls C functions of libslabpool for each allocation, with the GIL held. These do not know the stream and
the request, so `_Serving.malloc` sets both before. CuPy does not check for a null pointer, so
`_Serving.malloc` does.

Invariants:
- Memory is freed on the stream on which it was allocated, whatever stream is current then.
- If a pool is exhausted, CuPy's own OutOfMemoryError is raised.

See cupy/cuda/memory.pyx and pinned_memory.pyx. Known versions: written for CuPy 14.2. Not yet tested on a
GPU.
"""

from __future__ import annotations

import threading
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slabpool._core import heaps
from slabpool._core.heaps import StreamHeap
from slabpool._core.pool import Pool
from slabpool.errors import InvalidArgumentError, InvalidTypeError, PoolExhausted, SlabpoolError
from slabpool.libraries import stream_heaps as _stream_heaps

if TYPE_CHECKING:
    from typing_extensions import Self

# Typed as Any, so that mypy gives the same result without CuPy.
try:
    cupy: Any = import_module("cupy")
except ModuleNotFoundError as error:
    if error.name != "cupy":
        raise
    raise ModuleNotFoundError(
        "slabpool.cupy needs CuPy, which is not installed: pip install cupy-cuda12x (or cupy-cuda13x)",
        name="cupy",
    ) from None

__all__ = ["Installed", "install", "installed", "uninstall"]

_lock = threading.Lock()
_installed: Installed | None = None


class _Serving:
    """The CuPy allocator of one pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.heap: StreamHeap = _stream_heaps.heap_of(pool, for_good=True)
        self._allocator = cupy.cuda.CFunctionAllocator(
            self.heap.address, heaps.CUPY_MALLOC, heaps.CUPY_FREE, self.heap
        )

    def malloc(self, size: int) -> Any:
        """Allocate `size` bytes on CuPy's current stream."""
        _stream_heaps.publish_request()
        heaps.set_stream(cupy.cuda.get_current_stream().ptr)
        pointer = self._allocator.malloc(size)
        if pointer.ptr == 0 and size > 0:
            self.heap.wait()  # not in the C function: it holds the GIL, which queued work may need
            pointer = self._allocator.malloc(size)
        if pointer.ptr == 0 and size > 0:
            stats = self.pool.stats()
            raise cupy.cuda.memory.OutOfMemoryError(size, stats.live + stats.retained, stats.capacity)
        return pointer


class _Pinned:
    """Pinned memory in the form that CuPy expects: `ptr`, `size`, and a reference to the array."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array
        self.ptr = array.ctypes.data
        self.size = array.nbytes


class Installed:
    """An installation of pools in CuPy; `install` returns it. A ``with`` block or `uninstall` ends it.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     import slabpool.cupy, cupy
    ...     with slabpool.cupy.install(slabpool.Pool("1GiB", memory="cuda:0")) as installed:
    ...         x = cupy.arange(10)
    """

    def __init__(self, pools: tuple[Pool, ...], pinned: Pool | None) -> None:
        self.pools = pools
        self.pinned = pinned
        of_device = _stream_heaps.by_device(pools, "slabpool.cupy.install") if pools else {}
        self._serving = {device: _Serving(pool) for device, pool in of_device.items()}
        self._before: Any = cupy.cuda.get_allocator() if pools else None

    def _malloc(self, size: int) -> Any:
        serving = self._serving.get(cupy.cuda.runtime.getDevice())
        return (self._before if serving is None else serving.malloc)(size)

    def _malloc_pinned(self, size: int) -> Any:
        assert self.pinned is not None
        try:
            # CuPy keeps the `_Pinned` object until all copies through it are done.
            array = self.pinned.empty(size, np.uint8)
        except PoolExhausted as error:
            raise MemoryError(f"CuPy asked for {size} bytes of pinned memory: {error}") from None
        return cupy.cuda.PinnedMemoryPointer(_Pinned(array), 0)

    def _put_in_force(self) -> None:
        if self.pools:
            cupy.cuda.set_allocator(self._malloc)
        if self.pinned is not None:
            cupy.cuda.set_pinned_memory_allocator(self._malloc_pinned)

    def uninstall(self) -> None:
        """Restore CuPy's allocators for new arrays. Arrays in the pools stay valid."""
        global _installed
        with _lock:
            if _installed is not self:
                return
            _installed = None
            if self.pools:
                cupy.cuda.set_allocator(self._before)
            if self.pinned is not None:
                # CuPy cannot return the earlier pinned allocator, so this restores CuPy's default.
                cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


def install(*pools: Pool, pinned: Pool | None = None) -> Installed:
    """Let CuPy allocate its arrays in pools, and its pinned memory in a pinned pool.

    While a request is active (``with req.activate():``), new arrays belong to it; each asyncio task has its
    own active request. Memory is allocated on CuPy's current stream. When it is freed, that stream can reuse
    it at once, and other streams can reuse it when the work queued so far on that stream is done. If you use
    an array on another stream, keep it until that work is done, as with CuPy's own pool.

    Parameters
    ----------
    *pools : Pool
        Pools of device memory (``memory="cuda:0"``), at most one for each device. Devices without a pool keep
        CuPy's allocator.
    pinned : Pool, optional
        A pool of pinned memory (``memory="pinned"`` or ``"pinned:0"``).

    Returns
    -------
    Installed

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        There is no pool at all, a pool has another kind of memory, or two pools are of one device.
    SlabpoolError
        Pools are already installed in CuPy.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     import slabpool.cupy, cupy
    ...     pool = slabpool.Pool("1GiB", memory="cuda:0")
    ...     with slabpool.cupy.install(pool), pool.request("chat-42") as req, req.activate():
    ...         x = cupy.ones(1 << 20)
    """
    global _installed
    if not pools and pinned is None:
        raise InvalidArgumentError(
            "slabpool.cupy.install needs a pool of device memory, or a pool of pinned memory as pinned=, or "
            "both"
        )
    if pinned is not None:
        if not isinstance(pinned, Pool):
            raise InvalidTypeError(f"pinned must be a Pool, got {pinned!r} of type {type(pinned).__name__}")
        if pinned.memory.partition(":")[0] != "pinned":
            raise InvalidArgumentError(
                f"pinned must be a pool of pinned memory (memory='pinned'), and pool {pinned.name!r} has "
                f"memory={pinned.memory!r}"
            )
    with _lock:
        if _installed is not None:
            raise SlabpoolError("slabpool.cupy is installed already; uninstall() it first")
        made = Installed(pools, pinned)
        made._put_in_force()
        _installed = made
    return made


def installed() -> Installed | None:
    """Return the current installation, or None.

    Returns
    -------
    Installed or None

    Examples
    --------
    >>> import slabpool.cupy
    >>> slabpool.cupy.installed() is None
    True
    """
    return _installed


def uninstall() -> None:
    """Restore CuPy's allocators. Without an installation it does nothing.

    Examples
    --------
    >>> import slabpool.cupy
    >>> slabpool.cupy.uninstall()
    """
    here = _installed
    if here is not None:
        here.uninstall()
