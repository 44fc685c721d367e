"""growth: operations that cost the same whatever stands beside them, in instructions.

Lines of the caller's function, other devices, other generations and other blocks must not make an operation
dearer. Counted under callgrind, with the interpreter's share.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics
from benchmarks.harness.native import NoCompilerError
from benchmarks.instructions.count import CannotCountError
from benchmarks.instructions.growth import OPERATIONS, counts, holds

MOST = 1.5
SIZES = [10, 1000, 50_000]
#: A pool tells 4,096 devices apart.
DEVICES = [10, 1000, 4000]
HOLDS = "holds"
GROUPS = dict(
    zip(
        (*OPERATIONS, HOLDS),
        (
            Group("request() and close() after n lines of a function"),
            Group("ack() of a request with n devices"),
            Group("ack() by id and generation, n generations open"),
            Group("a look at a request with n blocks"),
            Group("what an allocation waits for a count of the views of n blocks"),
        ),
        strict=True,
    )
)
RATIO = "most over least"


def grown(operation: str, sizes: list[int]) -> Metrics:
    """Instructions at each size."""
    with tempfile.TemporaryDirectory(prefix="slabpool-growth-") as folder:
        try:
            if operation == HOLDS:
                found = holds(sizes, Path(folder))
            else:
                found = counts([(operation, n) for n in sizes], Path(folder))
        except (CannotCountError, NoCompilerError) as error:
            raise SystemExit(f"cannot count instructions: {error}") from error
    metrics = {f"n = {n:,}": Metric("instructions", [count]) for n, count in zip(sizes, found, strict=True)}
    return {**metrics, RATIO: Metric("", [max(found) / min(found)])}


def _cases(effort: Effort) -> list[Case]:
    def sizes(operation: str) -> list[int]:
        return [n for n in (DEVICES if "device" in operation else SIZES) if n <= 1000 or not effort.quick]

    return [
        Case(group, OURS, "measured", "benchmarks.suite.growth:grown",
             {"operation": operation, "sizes": sizes(operation)}, peer="valgrind")
        for operation, group in GROUPS.items()
    ]  # fmt: skip


def _bars(effort: Effort) -> list[Bar]:
    return [Bar(f"{group.label}: {RATIO}", value(group, RATIO), "at most", MOST) for group in GROUPS.values()]


BENCHMARK = Benchmark(
    "growth",
    "What an operation costs beside 10, 1,000 and 50,000 of something",
    _cases,
    _bars,
    ("Instructions (callgrind), those of the interpreter included. A quick run goes to 1,000.",),
    exact=True,
)
