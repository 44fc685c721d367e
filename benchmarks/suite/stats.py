"""stats: the cost of Pool.stats(), and whether it slows down a thread that allocates meanwhile."""

from __future__ import annotations

import threading
from typing import Any

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Statement

PYTHON = {n: Group(f"Pool.stats() from Python, {n} thread{'s' * (n > 1)} used the pool") for n in (1, 16)}
BESIDE = Group("a C++ thread allocates 4 KiB while another calls stats()")


def python_stats(threads: int) -> Statement:
    import numpy as np

    import slabpool

    pool = slabpool.Pool("64MiB")
    kept: list[Any] = [pool.empty((2048,), np.float16)]
    for _ in range(threads - 1):
        # The counters of a thread that has ended remain, and the pool sums all of them.
        worker = threading.Thread(target=lambda: kept.append(pool.empty((2048,), np.float16)))
        worker.start()
        worker.join()
    return Statement("pool.stats()", {"pool": pool, "kept": kept})


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.stats:python_stats"
    cases = [Case(group, OURS, "timed", here, {"threads": n}) for n, group in PYTHON.items()]
    return [*cases, Case(BESIDE, OURS, "native", "stats_load", {"bytes": 4096}, heap="slabpool")]


def _bars(effort: Effort) -> list[Bar]:
    return [
        *(Bar(group.label, value(group, scale=1e6), "at most", 2, ".2f", " us") for group in PYTHON.values()),
        *(
            Bar(
                f"slow-down {how}, of a thread that allocates",
                value(BESIDE, f"slow-down {how}"),
                "at most",
                1.02,
            )
            for how in ("by 1,000 a second", "without pause")
        ),
    ]


BENCHMARK = Benchmark(
    "stats",
    "Pool.stats()",
    _cases,
    _bars,
    (
        "`slow-down` is the allocating thread's time beside one that calls stats(), divided by its time "
        "beside one that only computes (so a busy second core is in both); no slow-down means within 2 %. "
        "Called without pause, every stats() takes the cache line with the other thread's counters out of "
        "that thread's cache. Figures that the thread itself keeps cannot avoid this.",
    ),
)
