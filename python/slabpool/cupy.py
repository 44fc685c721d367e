"""CuPy's device memory in pools, and its pinned host memory too.

CuPy calls C functions of libslabpool, with the GIL held, for each allocation; what they cannot know, on
which stream and for which request, is told by a line of Python before. What must stay true: memory is freed
on the stream that it was allocated on, whatever stream is current then; running out is CuPy's own
OutOfMemoryError. CuPy itself looks at no null pointer. Facts of cupy/cuda/memory.pyx and pinned_memory.pyx.

Known versions: written for CuPy 14.2. Nothing here has run on a GPU yet.
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

# As Any: mypy sees the same with CuPy and without.
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
    """One pool's allocator, as CuPy sees it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.heap: StreamHeap = _stream_heaps.heap_of(pool, for_good=True)
        self._allocator = cupy.cuda.CFunctionAllocator(
            self.heap.address, heaps.CUPY_MALLOC, heaps.CUPY_FREE, self.heap
        )

    def malloc(self, size: int) -> Any:
        """Memory on CuPy's current stream."""
        _stream_heaps.tell()
        heaps.set_stream(cupy.cuda.get_current_stream().ptr)
        pointer = self._allocator.malloc(size)
        if pointer.ptr == 0 and size > 0:
            self.heap.wait()  # not in the C function, which has the GIL: queued work may need it
            pointer = self._allocator.malloc(size)
        if pointer.ptr == 0 and size > 0:
            stats = self.pool.stats()
            raise cupy.cuda.memory.OutOfMemoryError(size, stats.live + stats.retained, stats.capacity)
        return pointer


class _Pinned:
    """What CuPy takes for pinned memory: an address, a size, and who keeps both."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array
        self.ptr = array.ctypes.data
        self.size = array.nbytes


class Installed:
    """What `install` gives: ends with a ``with`` block or `uninstall`.

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
        of_device: dict[int, Pool] = {}
        for pool in pools:
            device = _stream_heaps.device_of(pool, "slabpool.cupy.install")
            if device in of_device:
                raise InvalidArgumentError(
                    f"pools {of_device[device].name!r} and {pool.name!r} are both of device {device}"
                )
            of_device[device] = pool
        self._serving = {device: _Serving(pool) for device, pool in of_device.items()}
        self._before: Any = cupy.cuda.get_allocator() if pools else None

    def _malloc(self, size: int) -> Any:
        serving = self._serving.get(cupy.cuda.runtime.getDevice())
        return (self._before if serving is None else serving.malloc)(size)

    def _malloc_pinned(self, size: int) -> Any:
        assert self.pinned is not None
        try:
            # CuPy keeps what it is given until copies through it are done. Size 0 has no address there.
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
        """New arrays are CuPy's own again; those in the pools stay there as long as they live."""
        global _installed
        with _lock:
            if _installed is not self:
                return
            _installed = None
            if self.pools:
                cupy.cuda.set_allocator(self._before)
            if self.pinned is not None:
                # What was in force before is not to be had from CuPy: this is what it begins with.
                cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


def install(*pools: Pool, pinned: Pool | None = None) -> Installed:
    """CuPy's arrays come from the pools, and what it copies through from a pinned pool.

    While a request is active (``with req.activate():``) they are the request's, in each asyncio task its
    own. Memory is CuPy's on the stream that is current when it is allocated; freed, it is given out again
    at once on that stream, and to others when that stream has come so far. An array that is used on another
    stream too must be kept until that is done, as with CuPy's own pool.

    Parameters
    ----------
    *pools : Pool
        Of device memory (``memory="cuda:0"``), each of another device. Devices without one keep CuPy's
        allocator.
    pinned : Pool, optional
        Of pinned memory (``memory="pinned"`` or ``"pinned:0"``).

    Returns
    -------
    Installed

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        Neither, a pool of another kind of memory, or two of one device.
    SlabpoolError
        Installed already.

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
        raise InvalidArgumentError("slabpool.cupy.install needs a pool of device memory, or pinned=, or both")
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
    """What is installed, or None.

    Examples
    --------
    >>> import slabpool.cupy
    >>> slabpool.cupy.installed() is None
    True
    """
    return _installed


def uninstall() -> None:
    """Takes the pools off CuPy; again: nothing happens.

    Examples
    --------
    >>> import slabpool.cupy
    >>> slabpool.cupy.uninstall()
    """
    here = _installed
    if here is not None:
        here.uninstall()
