"""request_pattern: all tensors of a request are made, every byte is written, everything is dropped.

This is what engines do. Where an allocator returns pages to the system at each drop, every round pays for
page faults again. The fair competitors are numpy with mimalloc or tcmalloc preloaded, which keep the pages.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import ratio, times_faster
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics
from benchmarks.harness.worker import Loop

#: Count, bytes of each, and how many times faster than numpy.empty slabpool must be.
PATTERNS = (
    (64, 64 << 10, 5.0),
    (64, 256 << 10, 5.0),
    (64, 1 << 20, 3.0),
    (8, 16 << 20, 1.5),
    (4, 64 << 20, 1.4),
)
WARM = {(k, n): Group("filled, memory used before", n, f"{k} x") for k, n, _ in PATTERNS}
COLD = {(k, n): Group("filled, first time in the process", n, f"{k} x") for k, n, _ in PATTERNS[2::2]}
PRELOADED = ("mimalloc", "tcmalloc", "jemalloc")


def _pattern(empty: Callable[..., Any], count: int, nbytes: int) -> Callable[[int], float]:
    import numpy as np

    def run(loops: int) -> float:
        dtype = np.uint8
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            arrays = [empty((nbytes,), dtype) for _ in range(count)]
            for array in arrays:
                array.fill(1)
            # The loop variable would keep one array alive.
            del arrays, array
        return time.perf_counter() - start

    return run


def _empty(contender: str, count: int, nbytes: int) -> Callable[..., Any]:
    import numpy as np

    import slabpool

    if contender != OURS:
        return np.empty
    pool = slabpool.Pool(max(64 << 20, 2 * count * nbytes))
    empty: Callable[..., Any] = pool.empty
    return empty


def warm(contender: str, count: int, nbytes: int) -> Loop:
    return Loop(_pattern(_empty(contender, count, nbytes), count, nbytes))


def cold(contender: str, count: int, nbytes: int) -> Metrics:
    return {"time": Metric("s", [_pattern(_empty(contender, count, nbytes), count, nbytes)(1)])}


def preloaded_name(library: str) -> str:
    return f"numpy.empty with {library}"


def _cases(effort: Effort) -> list[Case]:
    contenders = [(OURS, None), ("numpy.empty", None), *((preloaded_name(p), p) for p in PRELOADED)]
    here = "benchmarks.suite.request_pattern:"
    cases = []
    for groups, hot in ((WARM, True), (COLD, False)):
        for (count, nbytes), group in groups.items():
            for contender, library in contenders:
                args = {"contender": contender, "count": count, "nbytes": nbytes}
                if hot:
                    cases.append(Case(group, contender, "timed", here + "warm", args, preload=library))
                else:
                    cases.append(Case(group, contender, "measured", here + "cold", args, preload=library))
    return cases


def _bars(effort: Effort) -> list[Bar]:
    bars = []
    for (_, _, limit), group in zip(PATTERNS, WARM.values(), strict=True):
        faster = times_faster(group, "numpy.empty")
        bars.append(Bar(f"{group.size}: times faster than numpy.empty", faster, "at least", limit))
    for group in WARM.values():
        for library in PRELOADED[:2]:
            name = preloaded_name(library)
            bars.append(Bar(f"{group.size}: time over {name}", ratio(group, name), "at most", 1.0))
    return bars


BENCHMARK = Benchmark(
    "request_pattern",
    "The request pattern: make all, fill all, drop all",
    _cases,
    _bars,
    (
        "numpy.uint8 arrays, filled with `array.fill(1)`. For the large patterns nearly all the time is "
        "writing the memory, which is the same for every contender that has it ready. Between rounds "
        "the process keeps memory: a pool at most its capacity, mimalloc, tcmalloc and jemalloc what their "
        "rules allow.",
        "`first time` is one pass in a fresh process, page faults included.",
    ),
)
