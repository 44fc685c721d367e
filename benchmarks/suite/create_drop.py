"""create_drop: makes one tensor and drops it at once, as one statement of a user's program.

Nothing else is alive, so every allocator is at its best: compared are the costs of the call and of the array
object. "untouched" never writes to the memory; "filled" writes all of it.
"""

from __future__ import annotations

from benchmarks.harness.figures import ratio
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Statement

SIZES = (4 << 10, 64 << 10, 1 << 20)
UNTOUCHED = [Group("untouched", nbytes) for nbytes in SIZES]
FILLED = [Group("filled", nbytes) for nbytes in SIZES]

#: Untouched only: pyarrow and shared memory have no fill function.
_CONTENDERS = (
    (OURS, "ours", None),
    ("numpy.empty", "numpy_empty", None),
    ("torch.empty", "torch_empty", "torch"),
    ("pyarrow buffer", "pyarrow_buffer", "pyarrow"),
    ("shared_memory", "shared_memory", None),
)


def ours(nbytes: int, fill: str = "") -> Statement:
    import numpy as np

    import slabpool

    return Statement(
        f"pool.empty(({nbytes // 2},), np.float16){fill}", {"pool": slabpool.Pool("64MiB"), "np": np}
    )


def numpy_empty(nbytes: int, fill: str = "") -> Statement:
    import numpy as np

    return Statement(f"np.empty(({nbytes // 2},), np.float16){fill}", {"np": np})


def torch_empty(nbytes: int, fill: str = "") -> Statement:
    import torch

    # Fill with one thread, as numpy does.
    torch.set_num_threads(1)
    fill = fill.replace("fill", "fill_")
    return Statement(f"torch.empty(({nbytes // 2},), dtype=torch.float16){fill}", {"torch": torch})


def pyarrow_buffer(nbytes: int) -> Statement:
    import pyarrow

    return Statement(f"pyarrow.allocate_buffer({nbytes})", {"pyarrow": pyarrow})


def shared_memory(nbytes: int) -> Statement:
    from multiprocessing.shared_memory import SharedMemory

    text = f"s = SharedMemory(create=True, size={nbytes}); s.close(); s.unlink()"
    return Statement(text, {"SharedMemory": SharedMemory}, repeat=1)


def _cases(effort: Effort) -> list[Case]:
    cases = []
    for group in UNTOUCHED:
        for contender, function, peer in _CONTENDERS:
            target = f"benchmarks.suite.create_drop:{function}"
            cases.append(Case(group, contender, "timed", target, {"nbytes": group.nbytes}, peer=peer))
    for group in FILLED:
        for contender, function, peer in _CONTENDERS[:3]:
            target = f"benchmarks.suite.create_drop:{function}"
            args = {"nbytes": group.nbytes, "fill": ".fill(1)"}
            cases.append(Case(group, contender, "timed", target, args, peer=peer))
    return cases


def _bars(effort: Effort) -> list[Bar]:
    return [
        Bar(f"{group.label}: time over numpy.empty", ratio(group, "numpy.empty"), "at most", 0.60)
        for group in UNTOUCHED
    ]


BENCHMARK = Benchmark(
    "create_drop",
    "Create and drop one tensor",
    _cases,
    _bars,
    (
        "One thread; the statement `pool.empty((n,), np.float16)` against `numpy.empty((n,), np.float16)` "
        "and its equivalents. The shared_memory case creates, closes and unlinks a segment.",
        "A single `numpy.empty` that is dropped at once reuses memory of the C library's cache; see "
        "request_pattern for what engines do.",
    ),
)
