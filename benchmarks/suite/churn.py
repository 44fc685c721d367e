"""churn_10000: 10,000 live tensors of 1 KiB to 8 MiB, replaced one after another, in C++.

Measures how much the pool commits per live byte, and how long its slowest allocations take.
"""

from __future__ import annotations

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.suite.native import contenders

GROUP = Group("10,000 live, 1 KiB to 8 MiB")


def _cases(effort: Effort) -> list[Case]:
    return contenders("churn", GROUP, ())


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar("peak committed over peak live", value(GROUP, "committed/live"), "at most", 1.15, ".3f"),
        Bar("99.9 percentile of allocate over its median", value(GROUP, "tail"), "at most", 20, ".1f"),
    ]


BENCHMARK = Benchmark(
    "churn_10000",
    "C++: 10,000 live tensors, churned",
    _cases,
    _bars,
    (
        "Sizes are log-uniform, any number of bytes; about 9.3 GiB are live, and the pool may commit "
        "15 GiB. A million replacements per value; each allocate is timed alone with the processor's "
        "counter, less the cost of reading it. `committed/live` counts whole blocks, as the pool does, "
        f"`committed/asked for` the requested bytes. What allocators other than {OURS} commit "
        "cannot be seen from outside while the memory is not touched.",
    ),
)
