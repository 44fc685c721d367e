"""Numba's device memory in pools: a plugin of its External Memory Management, interface version 1.

In force by `use_cuda(pool)`, or without a line of code by ``NUMBA_CUDA_MEMORY_MANAGER=slabpool.numba`` and
``SLABPOOL_NUMBA_CAPACITY=8GiB``. Numba says no stream when it frees, and arrays may be used on several:
what must stay true is that memory is given out again only when everything that was queued on the device's
blocking streams at that moment is done, which an event on the legacy default stream tells. Nobody waits for
it.

Known versions: written for numba-cuda 0.30 (numba 0.68). Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from importlib import import_module
from typing import Any

from slabpool._core.pool import Pool
from slabpool.errors import InvalidArgumentError, SlabpoolError
from slabpool.libraries import stream_heaps as _stream_heaps

# As Any: mypy sees the same with Numba and without.
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
        f"slabpool.numba knows numba-cuda 0.30; what is installed is of another shape ({error}): pip "
        "install numba-cuda"
    ) from error

__all__ = ["MemoryManager", "use_cuda"]

_LEGACY = 1  # the default stream that waits for all blocking streams, and they for it
_PER_THREAD = 2

_lock = threading.Lock()
_pools: dict[int, Pool] = {}  # by device


class MemoryManager(cuda.GetIpcHandleMixin, cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc]
    """Numba makes one for each context; put in force by `use_cuda`. Host memory stays Numba's own business.

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
        """Of Numba's plugin interface."""
        return 1

    @property
    def pool(self) -> Pool:
        """The pool of this context's device."""
        if self._pool is None:
            self._pool = _pool_of(int(self.context.device.id))
        return self._pool

    def initialize(self) -> None:
        """Called by Numba when the context is about to be used, more than once."""
        if self.deallocations.memory_capacity == 0:  # bytes of host memory whose freeing Numba may put off
            self.deallocations.memory_capacity = self.pool.stats().capacity

    def memalloc(self, size: int) -> Any:
        """Device memory for an array; the request's that is active, if one is."""
        pool = self.pool
        heap = _stream_heaps.heap_of(pool)

        def allocate() -> int:
            address = heap.allocate(size, _LEGACY, wait=True)
            if address == 0:
                stats = pool.stats()
                raise _driver.CudaAPIError(
                    _OUT_OF_MEMORY,
                    f"pool {pool.name!r} has no room for {size} bytes: {stats.live + stats.retained} of "
                    f"{stats.capacity} are in use",
                )
            return int(address)

        address: int = self._attempt_allocation(allocate)  # Numba's: tries again after what it has put off

        def give_back() -> None:
            # Named another stream than its own, so that it waits for an event on both before anybody has it.
            heap.release(address, _PER_THREAD)

        return cuda.MemoryPointer(
            weakref.proxy(self.context), ctypes.c_void_p(address), size, finalizer=give_back
        )

    def get_memory_info(self) -> Any:
        """Of the pool, not of the device: what this process may still have, and its capacity."""
        stats = self.pool.stats()
        free = stats.capacity - stats.live - stats.retained - stats.in_doubt
        return cuda.MemoryInfo(free=free, total=stats.capacity)

    def get_ipc_handle(self, memory: Any) -> Any:
        """With the memory's offset in its allocation, where the driver has handles for a pool's memory.

        Raises
        ------
        NotImplementedError
            It has none for memory that it maps granule by granule, as pools have it wherever the device
            can.
        """
        try:
            return super().get_ipc_handle(memory)
        except _driver.CudaAPIError as error:
            raise NotImplementedError(
                f"the driver gives no IPC handle for memory of pool {self.pool.name!r} ({error}): it is "
                "mapped "
                "granule by granule (cuMemMap), which has none. Another process opens a pool of "
                "memory='shared:cuda:N' with slabpool.attach"
            ) from None


#: The name by which Numba finds the plugin of a module.
_numba_memory_manager = MemoryManager


def _pool_of(device: int) -> Pool:
    with _lock:
        pool = _pools.get(device)
        if pool is None:
            capacity = os.environ.get("SLABPOOL_NUMBA_CAPACITY")
            if not capacity:
                raise SlabpoolError(
                    f"Numba uses device {device}, and no pool is there for it: call "
                    "slabpool.numba.use_cuda(pool) "
                    "before, or set SLABPOOL_NUMBA_CAPACITY (such as 8GiB)"
                )
            pool = _pools[device] = Pool(capacity, memory=f"cuda:{device}", name=f"numba-{device}")
        return pool


def use_cuda(*pools: Pool) -> None:
    """Numba's device arrays have their memory from these pools.

    Before Numba uses CUDA, or after `numba.cuda.close()`. While a request is active (``with
    req.activate():``) they are the request's.

    Parameters
    ----------
    *pools : Pool
        Of device memory (``memory="cuda:0"``), each of another device.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        No pool, not a pool of device memory, or two of one device.

    Notes
    -----
    Streams that others made as non-blocking do not take part in the order of the default stream: finish
    work there before the last reference to an array goes.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     import slabpool.numba
    ...     from numba import cuda
    ...     slabpool.numba.use_cuda(slabpool.Pool("1GiB", memory="cuda:0"))
    ...     x = cuda.device_array(1 << 20)
    """
    if not pools:
        raise InvalidArgumentError("slabpool.numba.use_cuda needs a pool for each device, got none")
    wanted: dict[int, Pool] = {}
    for pool in pools:
        device = _stream_heaps.device_of(pool, "slabpool.numba.use_cuda")
        if device in wanted:
            raise InvalidArgumentError(
                f"pools {wanted[device].name!r} and {pool.name!r} are both of device {device}"
            )
        wanted[device] = pool
    cuda.set_memory_manager(MemoryManager)
    with _lock:
        _pools.update(wanted)
