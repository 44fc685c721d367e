"""stats: what looking at a pool costs, and whether a thread that allocates meanwhile feels it."""

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
        # A thread that ends leaves its counters behind: the pool sums them all.
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
        "`slow-down` is the allocating thread's time beside one that calls stats(), over its time beside "
        "one that only computes (so that a busy second core is in both); no slow-down: within 2 %. Called "
        "without pause, every look takes the line with the other thread's counters out of its cache, which "
        "no figure kept by that thread can avoid.",
    ),
)
