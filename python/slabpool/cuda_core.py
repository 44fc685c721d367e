"""Pools as a memory resource of NVIDIA's `cuda.core`, whose calls all name their stream.

What must stay true: a buffer gives its memory back once, on the stream that cuda.core names, and keeps the
pool until then. Facts of cuda.core's MemoryResource and Buffer.

Known versions: written for cuda.core 1.0 to 1.2.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from slabpool._core.pool import Pool
from slabpool.errors import PoolExhausted
from slabpool.libraries import stream_heaps as _stream_heaps

# As Any: mypy sees the same with cuda.core and without.
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
    """A pool of device memory where cuda.core takes a memory resource.

    While a request is active (``with req.activate():``) what is allocated is the request's.

    Parameters
    ----------
    pool : Pool
        Of device memory (``memory="cuda:0"``).

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
        # Addresses that are not back yet, and for which allocation. Without a lock: a buffer may be collected
        # anywhere, and single operations of a dict are atomic.
        self._out: dict[int, object] = {}

    def allocate(self, size: int, *, stream: Any) -> Any:
        """A `cuda.core.Buffer` of `size` bytes, to be used on `stream` or after it.

        Raises
        ------
        PoolExhausted
            No room; also a MemoryError.
        """
        _stream_heaps.tell()
        address = self._heap.allocate(size, stream, wait=True)
        if address == 0:
            stats = self.pool.stats()
            raise PoolExhausted(
                f"pool {self.pool.name!r} has no room for {size} bytes: {stats.live + stats.retained} of "
                f"{stats.capacity} are in use"
            )
        mine = self._out[address] = object()
        try:
            return core.Buffer.from_handle(address, size, mr=self, stream=stream)
        except BaseException:
            # Where it fails half-way it may have called deallocate() already.
            if self._out.get(address) is mine:
                self.deallocate(address, size, stream=stream)
            raise

    def deallocate(self, ptr: Any, size: int, *, stream: Any) -> None:
        """Called by the buffer, once."""
        if self._out.pop(int(ptr), None) is not None:
            self._heap.release(int(ptr), stream)

    @property
    def is_device_accessible(self) -> bool:
        """True."""
        return True

    @property
    def is_host_accessible(self) -> bool:
        """False."""
        return False

    @property
    def is_managed(self) -> bool:
        """False."""
        return False

    @property
    def device_id(self) -> int:
        """The CUDA device's number."""
        return self._device
