"""Numba's device memory in pools: a plugin for its External Memory Management, interface version 1.

`use_cuda(pool)` installs it. Without changing code, the environment variables
``NUMBA_CUDA_MEMORY_MANAGER=slabpool.numba`` and ``SLABPOOL_NUMBA_CAPACITY=8GiB`` install it too.

Invariant: freed memory is reused only when all work that was queued on the device's blocking streams at that
moment is done. Numba names no stream when it frees memory, and an array may be used on several streams. So
the heap records an event on the legacy default stream, which comes after that work, and polls it; no thread
waits.

Known versions: written for numba-cuda 0.30 (numba 0.68). Not yet tested on a GPU.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from importlib import import_module
from typing import Any

from slabpool._core.pool import Pool
from slabpool.errors import SlabpoolError
from slabpool.libraries import stream_heaps as _stream_heaps

# Typed as Any, so that mypy gives the same result without Numba.
try:
    cuda: Any = import_module("numba.cuda")
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "numba":
        raise
    raise ModuleNotFoundError(
        "slabpool.numba needs Numba with CUDA: pip install numba-cuda", name="numba"
    ) from None
try:
    _driver: Any = import_module("numba.cuda.cudadrv.driver")
    _OUT_OF_MEMORY = _driver.binding.CUresult.CUDA_ERROR_OUT_OF_MEMORY
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"slabpool.numba supports numba-cuda 0.30, and the installed version is not compatible ({error}): "
        "pip install 'numba-cuda==0.30.*'"
    ) from error

__all__ = ["MemoryManager", "use_cuda"]

# Handles of the default streams. The legacy one synchronizes with all blocking streams.
_LEGACY = 1
_PER_THREAD = 2

_lock = threading.Lock()
_pools: dict[int, Pool] = {}  # by device


class MemoryManager(cuda.GetIpcHandleMixin, cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc]
    """Numba's memory manager over pools; Numba makes one for each context. Numba still manages host memory.

    Examples
    --------
    >>> import slabpool.numba
    >>> slabpool.numba.MemoryManager(context=None).interface_version
    1
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pool: Pool | None = None

    @property
    def interface_version(self) -> int:
        """Version of Numba's plugin interface."""
        return 1

    @property
    def pool(self) -> Pool:
        """The pool of this context's device."""
        if self._pool is None:
            self._pool = _pool_of(int(self.context.device.id))
        return self._pool

    def initialize(self) -> None:
        """Prepare the context. Numba calls this before each use of the context."""
        if self.deallocations.memory_capacity == 0:  # bytes of host memory whose freeing Numba may defer
            self.deallocations.memory_capacity = self.pool.stats().capacity

    def memalloc(self, size: int) -> Any:
        """Allocate `size` bytes of device memory. They belong to the active request, if there is one."""
        pool = self.pool
        heap = _stream_heaps.heap_of(pool)

        def allocate() -> int:
            address = heap.allocate(size, _LEGACY, wait=True)
            if address == 0:
                raise _driver.CudaAPIError(_OUT_OF_MEMORY, _stream_heaps.no_room(pool, size))
            return int(address)

        address: int = self._attempt_allocation(allocate)  # Numba: retries after its deferred deallocations

        def free() -> None:
            # A stream other than the one of the allocation, so that the heap records events on both.
            heap.release(address, _PER_THREAD)

        return cuda.MemoryPointer(weakref.proxy(self.context), ctypes.c_void_p(address), size, finalizer=free)

    def get_memory_info(self) -> Any:
        """Return free bytes and capacity of the pool (not of the device)."""
        stats = self.pool.stats()
        free = stats.capacity - stats.live - stats.retained - stats.in_doubt
        return cuda.MemoryInfo(free=free, total=stats.capacity)

    def get_ipc_handle(self, memory: Any) -> Any:
        """Return an IPC handle of the memory, if the driver supports that.

        Raises
        ------
        NotImplementedError
            The driver has no IPC handles for memory that it maps granule by granule. Pools use such memory on
            all devices that support it.
        """
        try:
            return super().get_ipc_handle(memory)
        except _driver.CudaAPIError as error:
            raise NotImplementedError(
                f"the driver has no IPC handle for memory of pool {self.pool.name!r} ({error}), because it "
                "is mapped granule by granule (cuMemMap). To share memory with another process, make a pool "
                "with memory='shared:cuda:N' and open it there with slabpool.attach"
            ) from None


#: Numba looks up this name in the module that NUMBA_CUDA_MEMORY_MANAGER names.
_numba_memory_manager = MemoryManager


def _pool_of(device: int) -> Pool:
    """Return the pool of a device; make it with SLABPOOL_NUMBA_CAPACITY bytes if `use_cuda` gave none."""
    with _lock:
        pool = _pools.get(device)
        if pool is None:
            capacity = os.environ.get("SLABPOOL_NUMBA_CAPACITY")
            if not capacity:
                raise SlabpoolError(
                    f"Numba uses device {device}, but there is no pool for it: call "
                    "slabpool.numba.use_cuda(pool) first, or set SLABPOOL_NUMBA_CAPACITY (such as 8GiB)"
                )
            pool = _pools[device] = Pool(capacity, memory=f"cuda:{device}", name=f"numba-{device}")
        return pool


def use_cuda(*pools: Pool) -> None:
    """Let Numba allocate its device arrays in pools.

    Call this before Numba uses CUDA, or after `numba.cuda.close()`. While a request is active (``with
    req.activate():``), new arrays belong to it.

    Parameters
    ----------
    *pools : Pool
        Pools of device memory (``memory="cuda:0"``), one for each device.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        There is no pool, a pool has another kind of memory, or two pools are of one device.

    Notes ----- Non-blocking streams do not synchronize with the default stream. Finish the work on such a
    stream before you drop the last reference to an array that it uses.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     import slabpool.numba
    ...     from numba import cuda
    ...     slabpool.numba.use_cuda(slabpool.Pool("1GiB", memory="cuda:0"))
    ...     x = cuda.device_array(1 << 20)
    """
    wanted = _stream_heaps.by_device(pools, "slabpool.numba.use_cuda")
    cuda.set_memory_manager(MemoryManager)
    with _lock:
        _pools.update(wanted)
