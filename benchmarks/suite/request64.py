"""request64: the life of one request with 64 tensors of mixed sizes and four devices.

The request is opened, its tensors are allocated, it is closed and acknowledged by all four devices, and all
views are dropped. The peer loops make the same 64 arrays with numpy.empty and drop them, with no request and
no acks.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from benchmarks.harness.figures import ratio
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Loop

GROUP = Group("64 small tensors, 4 devices")
DEVICES = ("gpu0", "gpu1", "gpu2", "gpu3")

#: 64 bytes to 8 KiB, one to three dimensions, four dtypes; eight of each.
_KINDS: list[tuple[tuple[int, ...], Any]] = [
    ((2048,), np.dtype(np.float16)),
    ((64, 64), np.dtype(np.float16)),
    ((8, 128), np.dtype(np.float32)),
    ((1, 32, 64), np.dtype(np.float16)),
    ((16,), np.dtype(np.int32)),
    ((4, 4, 128), np.dtype(np.float16)),
    ((1024,), np.dtype(np.float32)),
    ((256,), np.dtype(np.int64)),
]
SPECS = _KINDS * 8

ONE_BY_ONE = f"{OURS}, one by one"
ALL_VIEWS = f"{OURS}, layout, all 64 views"
LAZY = f"{OURS}, layout, views when asked for"


def one_by_one() -> Loop:
    import slabpool

    pool = slabpool.Pool("64MiB")

    def run(loops: int) -> float:
        specs, devices = SPECS, DEVICES
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            req = pool.request("chat-42", devices)
            tensors = [req.empty(shape, dtype) for shape, dtype in specs]
            req.close()
            for device in devices:
                req.ack(device)
            del tensors
        return time.perf_counter() - start

    return Loop(run)


def layout(views: bool) -> Loop:
    import slabpool

    pool = slabpool.Pool("64MiB")
    made = slabpool.Layout({f"t{i}": spec for i, spec in enumerate(SPECS)})

    def all_views(loops: int) -> float:
        devices = DEVICES
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            req = pool.request("chat-42", devices)
            tensors = req.allocate(made).values()
            req.close()
            for device in devices:
                req.ack(device)
            del tensors
        return time.perf_counter() - start

    def none(loops: int) -> float:
        devices = DEVICES
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            req = pool.request("chat-42", devices)
            tensors = req.allocate(made)
            req.close()
            for device in devices:
                req.ack(device)
            del tensors
        return time.perf_counter() - start

    return Loop(all_views if views else none)


def numpy_loop() -> Loop:
    def run(loops: int) -> float:
        specs, empty = SPECS, np.empty
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            tensors = [empty(shape, dtype) for shape, dtype in specs]
            del tensors
        return time.perf_counter() - start

    return Loop(run)


def torch_loop() -> Loop:
    import torch

    specs = [(shape, getattr(torch, dtype.name)) for shape, dtype in SPECS]

    def run(loops: int) -> float:
        empty = torch.empty
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            tensors = [empty(shape, dtype=dtype) for shape, dtype in specs]
            del tensors
        return time.perf_counter() - start

    return Loop(run)


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.request64:"
    return [
        Case(GROUP, ONE_BY_ONE, "timed", here + "one_by_one"),
        Case(GROUP, ALL_VIEWS, "timed", here + "layout", {"views": True}),
        Case(GROUP, LAZY, "timed", here + "layout", {"views": False}),
        Case(GROUP, "numpy.empty in a loop", "timed", here + "numpy_loop"),
        Case(GROUP, "torch.empty in a loop", "timed", here + "torch_loop", peer="torch"),
    ]


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar(
            f"{name}: time over numpy.empty in a loop",
            ratio(GROUP, "numpy.empty in a loop", of=name),
            "at most",
            limit,
        )
        for name, limit in ((ONE_BY_ONE, 0.75), (ALL_VIEWS, 0.50), (LAZY, 0.10))
    ]


BENCHMARK = Benchmark(
    "request64",
    "A request of 64 tensors: open, allocate, close, 4 acks, drop",
    _cases,
    _bars,
    (
        "The same 64 shapes and dtypes for all (64 B to 8 KiB, 156 KiB in all). Beside allocating, slabpool "
        "opens the request, closes it and takes four acks. Views are dropped last.",
    ),
)
