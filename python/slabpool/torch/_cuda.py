"""Pools under torch's CUDA allocations: for the whole process (`use_cuda`) or a block of code (`mem_pool`).

torch calls C functions of libslabpool, with and without the GIL. They look up the heap of the device
(`slabpool.libraries.stream_heaps`).

Invariant: once torch has the functions, they, the heaps and torch's allocator object live as long as the
process, because torch may free a tensor at any time, even after this module is gone.

See torch/csrc/cuda/CUDAPluggableAllocator and c10/cuda/CUDACachingAllocator. Known versions: written for
torch 2.11 to 2.13. Not yet tested on a GPU.
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
_allocator: Any = None  # torch's allocator object, one for all pools
_global = False  # whether `use_cuda` was called


def _library() -> str:
    """Return the path of libslabpool."""
    folder = paths.get_lib()
    for name in ("libslabpool.so", "libslabpool.dylib"):
        if os.path.exists(path := os.path.join(folder, name)):
            return path
    raise FileNotFoundError(f"no libslabpool in {folder}")


def _needs_cuda(what: str) -> None:
    """Raise `DeviceUnavailableError` if torch is built without CUDA; the error names the caller `what`."""
    if not hasattr(torch._C, "_cuda_customAllocator"):
        raise DeviceUnavailableError(
            f"{what}: the installed torch ({torch.__version__}) is built without CUDA; install one with CUDA"
        )


def _torch_allocator() -> Any:
    """Return torch's allocator object over our C functions; make it on the first call."""
    global _allocator
    with _lock:
        if _allocator is None:
            library = _library()
            made = torch.cuda.memory.CUDAPluggableAllocator(library, _ALLOCATE, _FREE)
            record = ctypes.cast(getattr(ctypes.CDLL(library), _RECORD), ctypes.c_void_p).value
            # Without this torch would ignore `Tensor.record_stream`, and memory could be reused under a
            # kernel.
            made.allocator().set_record_stream_fn(record)
            _allocator = made
        return _allocator


def use_cuda(*pools: Pool) -> None:
    """Let torch allocate all CUDA tensors of this process in pools.

    Call this before torch uses CUDA. It cannot be undone. torch's own cache is not used, so
    `torch.cuda.memory_allocated` and similar functions do not work; use `Pool.stats`. When memory is freed,
    the stream on which it was allocated can reuse it at once; other streams can reuse it when the work queued
    so far on that stream is done. `Tensor.record_stream` works. While a request is active on a thread (``with
    req.activate():``), allocations of that thread belong to the request; see `Request.activate`.

    Parameters
    ----------
    *pools : Pool
        Pools of device memory (``memory="cuda:0"``), one for each device that torch will use. They must stay
        open as long as torch has tensors.

    Raises
    ------
    DeviceUnavailableError
        The installed torch is built without CUDA.
    InvalidArgumentError, InvalidTypeError
        There is no pool, a pool has another kind of memory, or two pools are of one device.
    SlabpoolError
        torch has already used CUDA, or another pool already serves torch on the device.

    Notes
    -----
    On a device without a pool, torch's allocations fail with an out-of-memory error.

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
            "use_cuda: torch has already used CUDA in this process, so its allocator cannot be replaced. "
            "Call use_cuda earlier, or allocate inside `with slabpool.torch.mem_pool(pool):`"
        )
    allocator = _torch_allocator()
    _stream_heaps.serve(pools, "use_cuda")
    with _lock:
        if not _global:
            torch.cuda.memory.change_current_allocator(allocator)
            _global = True


@contextmanager
def mem_pool(pool: Pool) -> Iterator[Any]:
    """Inside the block, this thread's allocations on the pool's device are in the pool.

    torch's cache is still used: it takes segments of 2 MiB or more from the pool and divides them. So torch's
    statistics work, and the pool sees only segments. A segment returns to the pool at the end of the block.
    If it still has a live tensor, it returns when torch next empties its cache
    (``torch.cuda.empty_cache()``). To count segments to a request, activate the request first, and use one
    block for each request: ``with req.activate(), slabpool.torch.mem_pool(pool):``.

    Parameters
    ----------
    pool : Pool
        A pool of device memory. In a process only one pool can serve torch on a device.

    Yields
    ------
    torch.cuda.MemPool

    Raises
    ------
    DeviceUnavailableError, InvalidArgumentError, InvalidTypeError, SlabpoolError
        As for `use_cuda`. SlabpoolError is also raised after `use_cuda`, because torch's cache is not used
        then.

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
        raise SlabpoolError("mem_pool: after use_cuda, all of torch's CUDA allocations are in pools already")
    allocator = _torch_allocator()
    _stream_heaps.serve((pool,), "mem_pool")
    with torch.cuda.device(device):  # a MemPool belongs to the device that is current when it is made
        made = torch.cuda.MemPool(allocator.allocator())
    try:
        with torch.cuda.use_mem_pool(made, device=device):
            yield made
    finally:
        # torch returns the segments when the MemPool is destroyed, and a traceback would keep this frame
        # alive.
        del made
