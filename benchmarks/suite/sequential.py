"""sequential: millions of requests one after another, all with the same id and the same three devices.

The problem this project began with: does the ten-millionth request cost what the first did, in time and in
memory? Every request opens, makes a tensor, closes and is acknowledged three times.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from array import array
from collections.abc import Callable

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics

GROUP = Group("same id, 3 devices")
#: A run has this many equal parts, each timed alone.
PARTS = 100


class Resident:
    """Pages of this process in memory, counted by the kernel from its page tables, because its quick counters
    (statm) are inexact. Reads without buffers or text, so that reading does not make the process grow."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
        self.pages()

    def pages(self) -> int:
        said = os.pread(self._file, 4096, 0)
        start = said.index(b"Rss:") + 4
        return int(said[start : said.index(b"kB", start)]) // 4


def _sampled(part: Callable[[int], float], requests: int) -> Metrics:
    loops = requests // PARTS
    # Allocated in full and as plain numbers, because recording must not make the process grow.
    times, pages = array("d", [0.0] * PARTS), array("q", [0] * PARTS)
    resident = Resident()
    for number in range(PARTS):
        times[number] = part(loops) / loops
        pages[number] = resident.pages()
    tenth = PARTS // 10
    drift = statistics.median(times[-tenth:]) / statistics.median(times[:tenth])
    return {
        "time": Metric("s", times.tolist()),
        "last tenth over first": Metric("", [drift]),
        "growth after the first tenth": Metric("pages", [max(pages[tenth:]) - pages[tenth - 1]]),
        "resident": Metric("pages", pages.tolist()),
    }


def ours(requests: int) -> Metrics:
    import numpy as np

    import slabpool

    pool = slabpool.Pool("64MiB")
    devices = a, b, c = "gpu0", "gpu1", "gpu2"

    def part(loops: int) -> float:
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            req = pool.request("chat-42", devices)
            tensor = req.empty((2048,), np.float16)
            del tensor
            req.close()
            req.ack(a)
            req.ack(b)
            req.ack(c)
        return time.perf_counter() - start

    metrics = _sampled(part, requests)
    stats = pool.stats()
    if stats.acks != 3 * (requests // PARTS) * PARTS or stats.live or stats.requests_open:
        raise AssertionError(f"not every request came back: {stats}")
    return metrics


def control(requests: int) -> Metrics:
    """The same run without a pool: the growth and drift of Python, numpy and the machine."""
    import numpy as np

    def part(loops: int) -> float:
        start = time.perf_counter()
        for _ in itertools.repeat(None, loops):
            tensor = np.empty((2048,), np.float16)
            del tensor
        return time.perf_counter() - start

    return _sampled(part, requests)


def total(effort: Effort) -> int:
    return 100_000 if effort.quick else 10_000_000


def _cases(effort: Effort) -> list[Case]:
    args = {"requests": total(effort)}
    here = "benchmarks.suite.sequential:"
    return [
        Case(GROUP, OURS, "measured", here + "ours", args),
        Case(GROUP, "control: numpy.empty, no request", "measured", here + "control", args),
    ]


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar(
            "process growth after the first tenth",
            value(GROUP, "growth after the first tenth"),
            "at most",
            0,
            ".0f",
            " pages",
        ),
        Bar(
            "latency of the last tenth over the first",
            value(GROUP, "last tenth over first"),
            "at most",
            1.02,
            ".3f",
        ),
    ]


BENCHMARK = Benchmark(
    "sequential",
    "Ten million sequential requests with the same id",
    _cases,
    _bars,
    (
        f"The run is cut into {PARTS} parts; latencies are medians over the ten parts of a tenth; growth is "
        "the most by which a later part exceeds the end of the first tenth. A quick run has 100,000 "
        "requests.",
    ),
)
