"""allocators: slabpool and the pools inside inference engines, called from Python.

LMCache's tensor and paged allocators and Mooncake's BufferPool. One allocation and its release in the same
kind of loop, in one thread, and in two threads at once (which share the GIL).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import times_faster
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Loop
from benchmarks.suite.mooncake import Mooncake

SIZES = (4 << 10, 64 << 10, 1 << 20)
GROUPS = {
    (nbytes, threads): Group("one thread" if threads == 1 else "two threads at once", nbytes)
    for nbytes in SIZES
    for threads in (1, 2)
}
HOLES = Group("8 KiB behind 10,000 holes of 4 KiB")
_ARENA = 256 << 20

#: Contender, function, peer, and how many times faster slabpool must be.
_PEERS = (
    ("LMCache paged allocator", "lmcache_paged", "lmcache", 25.0),
    ("LMCache tensor allocator", "lmcache_tensor", "lmcache", 100.0),
    ("Mooncake BufferPool", "mooncake_pool", "mooncake", 10.0),
)

#: Does one operation the given number of times.
Body = Callable[[int], None]


def _timed(body: Body, threads: int, keep: list[Any]) -> Loop:
    """`loops` operations in all, divided evenly among the threads."""

    def one(loops: int) -> float:
        start = time.perf_counter()
        body(loops)
        return time.perf_counter() - start

    def several(loops: int) -> float:
        # Threads wait here until all have started. The clock starts when the first one goes on.
        began: list[float] = []
        barrier = threading.Barrier(threads, action=lambda: began.append(time.perf_counter()))

        def work() -> None:
            barrier.wait()
            body(loops)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return (time.perf_counter() - began[0]) / threads

    return Loop(one if threads == 1 else several, keep=keep)


def ours(nbytes: int, threads: int) -> Loop:
    import numpy as np

    import slabpool

    pool = slabpool.Pool(_ARENA)

    def body(loops: int) -> None:
        shape, dtype = (nbytes // 2,), np.float16
        for _ in itertools.repeat(None, loops):
            array = pool.empty(shape, dtype)
            del array

    return _timed(body, threads, [pool])


def numpy_empty(nbytes: int, threads: int) -> Loop:
    import numpy as np

    def body(loops: int) -> None:
        shape, dtype = (nbytes // 2,), np.float16
        for _ in itertools.repeat(None, loops):
            array = np.empty(shape, dtype)
            del array

    return _timed(body, threads, [])


def _lmcache_loop(allocator: Any, nbytes: int, threads: int) -> Loop:
    import torch

    shape, dtype = torch.Size([nbytes // 2]), torch.float16

    def body(loops: int) -> None:
        allocate, free = allocator.allocate, allocator.free
        for _ in itertools.repeat(None, loops):
            free(allocate(shape, dtype))

    return _timed(body, threads, [allocator])


def lmcache_paged(nbytes: int, threads: int) -> Loop:
    import torch
    from lmcache.v1.memory_allocators.paged_tensor_memory_allocator import PagedTensorMemoryAllocator

    buffer = torch.empty(64 * nbytes, dtype=torch.uint8)
    made = PagedTensorMemoryAllocator(buffer, [torch.Size([nbytes // 2])], [torch.float16])
    return _lmcache_loop(made, nbytes, threads)


def _lmcache_tensor_allocator() -> Any:
    import torch
    from lmcache.v1.memory_allocators.tensor_memory_allocator import TensorMemoryAllocator

    return TensorMemoryAllocator(torch.empty(_ARENA, dtype=torch.uint8))


def lmcache_tensor(nbytes: int, threads: int) -> Loop:
    return _lmcache_loop(_lmcache_tensor_allocator(), nbytes, threads)


def mooncake_pool(nbytes: int, threads: int) -> Loop:
    mooncake = Mooncake(_ARENA)

    def body(loops: int) -> None:
        acquire = mooncake.pool.acquire
        for _ in itertools.repeat(None, loops):
            acquire(nbytes).release()

    return _timed(body, threads, [mooncake])


# ---- behind holes


def ours_holes() -> Loop:
    import numpy as np

    import slabpool

    pool = slabpool.Pool(_ARENA)
    kept = [pool.empty(2048, np.float16) for _ in range(20_000)][::2]

    def body(loops: int) -> None:
        for _ in itertools.repeat(None, loops):
            array = pool.empty((4096,), np.float16)
            del array

    return _timed(body, 1, [pool, kept])


def lmcache_holes() -> Loop:
    import torch

    allocator = _lmcache_tensor_allocator()
    made = [allocator.allocate(torch.Size([2048]), torch.float16) for _ in range(20_000)]
    for one in made[1::2]:
        allocator.free(one)
    loop = _lmcache_loop(allocator, 8192, 1)
    loop.keep.append(made)
    return loop


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.allocators:"
    cases = []
    for (nbytes, threads), group in GROUPS.items():
        args = {"nbytes": nbytes, "threads": threads}
        cases.append(Case(group, OURS, "timed", here + "ours", args))
        for contender, function, peer, _ in _PEERS:
            cases.append(Case(group, contender, "timed", here + function, args, peer=peer))
        cases.append(Case(group, "numpy.empty", "timed", here + "numpy_empty", args))
    cases.append(Case(HOLES, OURS, "timed", here + "ours_holes"))
    cases.append(Case(HOLES, "LMCache tensor allocator", "timed", here + "lmcache_holes", peer="lmcache"))
    return cases


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar(
            f"{group.label}: times faster than {contender}",
            times_faster(group, contender),
            "at least",
            limit,
            ".1f",
        )
        for contender, _, _, limit in _PEERS
        for group in GROUPS.values()
    ]


BENCHMARK = Benchmark(
    "allocators",
    "Compared with the pools inside inference engines",
    _cases,
    _bars,
    (
        "slabpool makes a numpy array, LMCache a memory object with a torch tensor, Mooncake a lease "
        "with an address. With two threads, the time is wall time divided by the operations of both.",
        "LMCache's paged allocator has 64 pages of exactly the requested size. Mooncake runs with its "
        "own master on the loopback interface, and classes from 4 KiB (its default is 64 KiB).",
    ),
)
