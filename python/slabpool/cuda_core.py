"""A pool as a memory resource of NVIDIA's `cuda.core`.

Every call of cuda.core names its stream.

Invariant: a buffer frees its memory exactly once, on the stream that cuda.core names, and keeps the pool
alive until then.

See MemoryResource and Buffer in cuda.core. Known versions: written for cuda.core 1.0 to 1.2.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from slabpool._core.pool import Pool
from slabpool.errors import PoolExhausted
from slabpool.libraries import stream_heaps as _stream_heaps

# Typed as Any, so that mypy gives the same result without cuda.core.
try:
    core: Any = import_module("cuda.core")
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "cuda":
        raise
    raise ModuleNotFoundError(
        "slabpool.cuda_core needs cuda.core: pip install 'cuda-core>=1'", name="cuda"
    ) from None

__all__ = ["PoolMemoryResource"]


class PoolMemoryResource(core.MemoryResource):  # type: ignore[misc]
    """A memory resource for cuda.core over a pool of device memory.

    While a request is active (``with req.activate():``), new buffers belong to it.

    Parameters
    ----------
    pool : Pool
        A pool of device memory (``memory="cuda:0"``).

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     import slabpool.cuda_core
    ...     from cuda.core import Device
    ...     device = Device(0)
    ...     device.set_current()
    ...     resource = slabpool.cuda_core.PoolMemoryResource(slabpool.Pool("1GiB", memory="cuda:0"))
    ...     buffer = resource.allocate(1 << 20, stream=device.default_stream)
    ...     buffer.close()
    """

    def __init__(self, pool: Pool) -> None:
        self._device = _stream_heaps.device_of(pool, "PoolMemoryResource")
        self.pool = pool
        self._heap = _stream_heaps.heap_of(pool)
        # Allocated addresses, each with an object that identifies the allocation. There is no lock, because
        # the garbage collector may free a buffer at any point, and single operations of a dict are atomic.
        self._allocated: dict[int, object] = {}

    def allocate(self, size: int, *, stream: Any) -> Any:
        """Allocate a buffer.

        Parameters
        ----------
        size : int
            Bytes.
        stream : cuda.core.Stream
            The buffer may be used on this stream, or after the work that is queued on it.

        Returns
        -------
        cuda.core.Buffer

        Raises
        ------
        PoolExhausted
            The pool has no room. This is also a MemoryError.
        """
        _stream_heaps.publish_request()
        address = self._heap.allocate(size, stream, wait=True)
        if address == 0:
            raise PoolExhausted(_stream_heaps.no_room(self.pool, size))
        allocation = self._allocated[address] = object()
        try:
            return core.Buffer.from_handle(address, size, mr=self, stream=stream)
        except BaseException:
            # from_handle() may have called deallocate() before it failed.
            if self._allocated.get(address) is allocation:
                self.deallocate(address, size, stream=stream)
            raise

    def deallocate(self, ptr: Any, size: int, *, stream: Any) -> None:
        """Free a buffer's memory. cuda.core's Buffer calls this."""
        if self._allocated.pop(int(ptr), None) is not None:
            self._heap.release(int(ptr), stream)

    @property
    def is_device_accessible(self) -> bool:
        """Always True."""
        return True

    @property
    def is_host_accessible(self) -> bool:
        """Always False."""
        return False

    @property
    def is_managed(self) -> bool:
        """Always False."""
        return False

    @property
    def device_id(self) -> int:
        """Number of the CUDA device."""
        return self._device
