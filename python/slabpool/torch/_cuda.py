"""A pool under torch's CUDA allocations: of the whole process (`use_cuda`), or of a block of code
(`mem_pool`).

torch calls functions of libslabpool, with the GIL and without; they look up the heap of the device
(`slabpool.libraries.stream_heaps`). What must stay true: once torch has the functions, they, the heaps and
torch's own allocator object stay for the life of the process, since tensors are freed whenever torch likes,
after this module is gone too. Facts of torch/csrc/cuda/CUDAPluggableAllocator and
c10/cuda/CUDACachingAllocator.

Known versions: written for torch 2.11 to 2.13. Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from slabpool import paths
from slabpool._core.pool import Pool
from slabpool.errors import DeviceUnavailableError, SlabpoolError
from slabpool.libraries import stream_heaps as _stream_heaps

_ALLOCATE, _FREE, _RECORD = "slabpool_stream_alloc", "slabpool_stream_free", "slabpool_stream_record"

_lock = threading.Lock()
_allocator: Any = None  # torch's, one for all pools
_global = False


def _library() -> str:
    folder = paths.get_lib()
    for name in ("libslabpool.so", "libslabpool.dylib"):
        if os.path.exists(path := os.path.join(folder, name)):
            return path
    raise FileNotFoundError(f"no libslabpool in {folder}")


def _needs_cuda(what: str) -> None:
    if not hasattr(torch._C, "_cuda_customAllocator"):
        raise DeviceUnavailableError(
            f"{what}: this torch ({torch.__version__}) is built without CUDA; install one that is"
        )


def _torch_allocator() -> Any:
    """torch's object over our functions, made once."""
    global _allocator
    with _lock:
        if _allocator is None:
            library = _library()
            made = torch.cuda.memory.CUDAPluggableAllocator(library, _ALLOCATE, _FREE)
            record = ctypes.cast(getattr(ctypes.CDLL(library), _RECORD), ctypes.c_void_p).value
            # Without it `Tensor.record_stream` would be forgotten, and memory reused under a kernel.
            made.allocator().set_record_stream_fn(record)
            _allocator = made
        return _allocator


def use_cuda(*pools: Pool) -> None:
    """Every CUDA tensor that torch makes in this process has its memory from these pools.

    One pool for each device that torch will use; before torch uses CUDA; for good. torch's own cache is not
    used then, so `torch.cuda.memory_allocated` and its like are not to be had: `Pool.stats` tells. Memory
    that is freed is given out again at once on the stream that it was allocated on, and to others when that
    stream has come so far. `Tensor.record_stream` is followed. While a request is active on the thread
    (``with req.activate():``) what that thread allocates is the request's; see `Request.activate`.

    Parameters
    ----------
    *pools : Pool
        Of device memory (``memory="cuda:0"``), each of another device. They stay open as long as torch has
        tensors.

    Raises
    ------
    DeviceUnavailableError
        This torch is built without CUDA.
    InvalidArgumentError, InvalidTypeError
        No pool, not a pool of device memory, or two of one device.
    SlabpoolError
        torch has used CUDA already, or another pool is under torch on that device.

    Notes
    -----
    A device without a pool has no memory: torch's allocations there fail as out of memory.

    Examples
    --------
    >>> import slabpool, slabpool.torch, torch
    >>> if torch.cuda.is_available() and not torch.cuda.is_initialized():
    ...     slabpool.torch.use_cuda(slabpool.Pool("1GiB", memory="cuda:0"))
    """
    global _global
    _needs_cuda("use_cuda")
    for pool in pools:
        _stream_heaps.device_of(pool, "use_cuda")
    if torch.cuda.is_initialized() and not _global:
        raise SlabpoolError(
            "use_cuda: torch has used CUDA in this process already, and its allocator cannot be "
            "exchanged any "
            "more. Call it first, or put `with slabpool.torch.mem_pool(pool):` around what is to come "
            "from the pool"
        )
    allocator = _torch_allocator()
    _stream_heaps.serve(pools, "use_cuda")
    with _lock:
        if not _global:
            torch.cuda.memory.change_current_allocator(allocator)
            _global = True


@contextmanager
def mem_pool(pool: Pool) -> Iterator[Any]:
    """Within the block, what this thread allocates on the pool's device comes from the pool.

    torch's cache stays on top: it takes segments (2 MiB and more) from the pool and cuts them itself, so
    its statistics work, and the pool sees segments only. They go back when the block ends; those with a
    tensor that lives on, when torch next empties its cache (``torch.cuda.empty_cache()``). To have them
    counted to a request, enter its activation first, and use one block for each request: ``with
    req.activate(), slabpool.torch.mem_pool(pool):``.

    Parameters
    ----------
    pool : Pool
        Of device memory. A device has one pool under torch in a process.

    Yields
    ------
    torch.cuda.MemPool

    Raises
    ------
    DeviceUnavailableError, InvalidArgumentError, InvalidTypeError, SlabpoolError
        As for `use_cuda`; and after `use_cuda`, when there is no cache of torch's to go through.

    Examples
    --------
    >>> import slabpool, slabpool.torch, torch
    >>> if torch.cuda.is_available():
    ...     pool = slabpool.Pool("1GiB", memory="cuda:0")
    ...     with pool.request("chat-42") as req, req.activate(), slabpool.torch.mem_pool(pool):
    ...         x = torch.ones(1 << 20, device="cuda:0")
    """
    _needs_cuda("mem_pool")
    device = _stream_heaps.device_of(pool, "mem_pool")
    if _global:
        raise SlabpoolError("mem_pool: use_cuda has put pools under all of torch's CUDA allocations already")
    allocator = _torch_allocator()
    _stream_heaps.serve((pool,), "mem_pool")
    with torch.cuda.device(device):  # it is of the device that is current when it is made
        made = torch.cuda.MemPool(allocator.allocator())
    try:
        with torch.cuda.use_mem_pool(made, device=device):
            yield made
    finally:
        # The generator's frame would keep it in a traceback; torch gives its segments back when it goes.
        del made
