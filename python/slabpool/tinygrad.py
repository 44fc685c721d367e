"""tinygrad's CPU buffers in a pool, counted to the active request.

If a request is released while tinygrad (usually a TinyJit) still uses one of its buffers, the pool counts the
bytes as retained, and `retained` reports what keeps them. Known versions: tinygrad 0.14.0.
"""

from __future__ import annotations

import gc
from collections import Counter
from importlib import import_module
from types import TracebackType
from typing import Any, NamedTuple

from slabpool._core import active as _active
from slabpool._core.pool import Pool
from slabpool.arguments.sizes import show_size
from slabpool.errors import InvalidArgumentError, SlabpoolError
from slabpool.records import RequestState

try:
    # Typed as Any, so that mypy gives the same result without tinygrad.
    Device: Any = import_module("tinygrad").Device
    Tensor: Any = import_module("tinygrad").Tensor
    from slabpool.libraries.tinygrad_buffers import Buffer, PoolAllocator, block_of, find_keepers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"slabpool.tinygrad needs tinygrad ({error}): pip install 'tinygrad==0.14.0'", name=error.name
    ) from error
except (ImportError, AttributeError) as error:
    raise ImportError(
        f"slabpool.tinygrad supports tinygrad 0.14.0, and the installed version is not compatible ({error}): "
        "pip install 'tinygrad==0.14.0'"
    ) from error

__all__ = ["Installed", "Retained", "install", "installed", "retained", "uninstall"]


class Retained(NamedTuple):
    """Bytes of a released request that tinygrad still uses.

    Examples
    --------
    >>> import slabpool
    >>> print(slabpool.tinygrad.Retained("chat-42", 7, 16384, 2, "TinyJit step"))
    request 'chat-42' generation 7: 16 KiB in 2 buffers, kept by TinyJit step
    """

    request_id: str | int | bytes
    generation: int
    #: Bytes of the buffers, without the pool's rounding.
    nbytes: int
    #: Number of buffers.
    buffers: int
    #: What keeps them: "TinyJit <name of its function>", "Tensor" or "Buffer".
    keeper: str

    def __str__(self) -> str:
        return (
            f"request {self.request_id!r} generation {self.generation}: {show_size(self.nbytes)} in "
            f"{self.buffers} buffer{'s' if self.buffers != 1 else ''}, kept by {self.keeper}"
        )


class Installed:
    """An installation of a pool on a device; `install` returns it. A ``with`` block or `uninstall` ends it.

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
        self._allocator = PoolAllocator.over(self._device.allocator, pool)
        self._device.allocator = self._allocator
        _active.on_leave.append(self._allocator.release_parked)

    def uninstall(self) -> None:
        """Restore tinygrad's allocator for new buffers. Buffers in the pool stay valid."""
        if _installed.get(self.device) is self:
            del _installed[self.device]
            self._device.allocator = self._allocator.original
            _active.on_leave.remove(self._allocator.release_parked)
            self._allocator.release_parked(None)

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


_installed: dict[str, Installed] = {}


def install(pool: Pool, device: str = "CPU") -> Installed:
    """Let tinygrad allocate new buffers of a CPU device in a pool.

    While a request is active (``with req.activate():``), new buffers belong to it: each is a child of the
    request. Its memory returns when tinygrad frees the buffer. If tinygrad still uses the buffer when the
    request is released, its memory is retained until then. Without an active request, a buffer belongs only
    to the pool, and its memory returns when tinygrad frees it. Existing buffers are not moved.

    Parameters
    ----------
    pool : Pool
    device : str, default "CPU"
        tinygrad's name of the device: "CPU", "CPU:1" and so on.

    Returns
    -------
    Installed

    Raises
    ------
    InvalidArgumentError
        `device` is not a CPU device.
    SlabpoolError
        A pool is already installed on the device.

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
            f"device must be a CPU device of tinygrad, got {device!r}, because the pool is host memory"
        )
    if name in _installed:
        raise SlabpoolError(
            f"pool {_installed[name].pool.name!r} is installed on tinygrad's device {name}; "
            "uninstall it first"
        )
    # Run a first kernel, because it allocates the device's own queues, which should not be in the pool.
    (Tensor([1.0], device=name) + 1).realize()
    Device[name].synchronize()
    _installed[name] = Installed(pool, name)
    return _installed[name]


def installed(device: str = "CPU") -> Installed | None:
    """Return the current installation on a device, or None.

    Returns
    -------
    Installed or None

    Examples
    --------
    >>> import slabpool
    >>> slabpool.tinygrad.installed() is None
    True
    """
    return _installed.get(Device.canonicalize(device))


def uninstall(device: str = "CPU") -> None:
    """Restore tinygrad's allocator on a device. Without an installation it does nothing.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.tinygrad.uninstall()
    """
    here = installed(device)
    if here is not None:
        here.uninstall()


def retained(pool: Pool) -> list[Retained]:
    """Report the released requests whose bytes tinygrad still uses, and what uses them.

    This walks all objects of the process, so use it for reports and logs and not in a hot loop.

    Parameters
    ----------
    pool : Pool

    Returns
    -------
    list of Retained
        Largest first.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.tinygrad.retained(slabpool.Pool("1MiB"))
    []
    """
    # The child of a buffer that still exists is released together with its request.
    over = {record.parent for record in pool.requests() if record.state is RequestState.RELEASED}
    if not over:
        return []
    objects = gc.get_objects()
    keepers = find_keepers(objects)
    sums: Counter[tuple[Any, int, str]] = Counter()  # by request id, generation and keeper
    counts: Counter[tuple[Any, int, str]] = Counter()
    for buffer in objects:
        if issubclass(type(buffer), Buffer):
            block = block_of(buffer)
            if block is not None and block.array is not None and block.generation in over:
                key = (block.request_id, block.generation, keepers.get(id(buffer), "Buffer"))
                sums[key] += block.array.nbytes
                counts[key] += 1
    return [
        Retained(request_id, generation, nbytes, counts[request_id, generation, keeper], keeper)
        for (request_id, generation, keeper), nbytes in sums.most_common()
    ]
