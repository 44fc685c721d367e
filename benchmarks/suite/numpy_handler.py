"""numpy_handler: the cost of an array that numpy makes, from a pool and from numpy's own allocator.

One array is made and dropped at once, which is the best case of numpy's allocator: it caches freed memory up
to 1 KiB, and beyond that the C library does. "filled" writes the memory, as programs do.
"""

from __future__ import annotations

from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Statement

SIZES = (512, 4 << 10, 64 << 10, 1 << 20)
WORK = {
    "untouched": "np.empty({n}, np.uint8)",
    "zeros": "np.zeros({n}, np.uint8)",
    "filled": "np.full({n}, 1, np.uint8)",
}


def numpys(text: str) -> Statement:
    import numpy as np

    return Statement(text, {"np": np})


def under_handler(text: str) -> Statement:
    import numpy as np

    import slabpool

    # Never exited, because this process does nothing else.
    slabpool.numpy_handler(slabpool.Pool("64MiB")).__enter__()
    return Statement(text, {"np": np})


def _cases(effort: Effort) -> list[Case]:
    cases = []
    for condition, text in WORK.items():
        for nbytes in SIZES:
            group = Group(condition, nbytes)
            for contender, function in ((OURS, "under_handler"), ("numpy's own", "numpys")):
                target = f"benchmarks.suite.numpy_handler:{function}"
                cases.append(Case(group, contender, "timed", target, {"text": text.format(n=nbytes)}))
    return cases


def _bars(effort: Effort) -> list[Bar]:
    return []  # the handler is for limits and for figures that add up, not for speed


BENCHMARK = Benchmark(
    "numpy_handler",
    "Arrays that numpy makes, under the handler",
    _cases,
    _bars,
    ("One thread; the same statement with and without the handler, in separate processes.",),
)
