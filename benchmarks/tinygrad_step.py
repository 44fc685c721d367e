"""Time of a step of a small jitted decoder in tinygrad, with its own allocator and slabpool's in turns.

`python -m benchmarks.tinygrad_step`: medians in microseconds, and how many buffers a step takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

import slabpool

DIM = 256
ROUNDS = 7
STEPS = 60


def make_step(tinygrad: Any) -> Callable[[Any], Any]:
    """A feed-forward block under TinyJit."""
    random = np.random.default_rng(0)
    up, down = (
        tinygrad.Tensor(random.normal(size=shape).astype(np.float32), device="CPU").realize()
        for shape in ((DIM, 2 * DIM), (2 * DIM, DIM))
    )

    def forward(x: Any) -> Any:
        return ((x @ up).silu() @ down).softmax().realize()

    jitted: Callable[[Any], Any] = tinygrad.TinyJit(forward)
    return jitted


def run(tinygrad: Any, step: Callable[[Any], Any]) -> float:
    """Microseconds per step: a new input, the step, its result."""
    taken = []
    data = np.ones((1, DIM), np.float32)
    for _ in range(STEPS):
        start = time.perf_counter_ns()
        step(tinygrad.Tensor(data, device="CPU").realize()).numpy()
        taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken) / 1e3


def main() -> None:
    """Measures both in turns, so that a machine that slows down affects both."""
    tinygrad: Any = import_module("tinygrad")
    pool = slabpool.Pool("64MiB")
    own, ours = [], []
    plain, pooled = make_step(tinygrad), make_step(tinygrad)
    for _ in range(ROUNDS):
        own.append(run(tinygrad, plain))
        before = pool.stats().allocations
        with slabpool.tinygrad.install(pool), pool.request("bench", ["gpu0"]) as req:
            with req.activate():
                ours.append(run(tinygrad, pooled))
            req.ack("gpu0")
    buffers = (pool.stats().allocations - before) / STEPS
    for name, values in (("tinygrad's own", own), ("slabpool", ours)):
        print(
            f"{name:15} {statistics.median(values):8.0f} us a step ({min(values):.0f} to {max(values):.0f})"
        )
    print(f"{buffers:.2f} buffers a step from the pool, {pool.stats().retained} bytes kept by the TinyJit")


if __name__ == "__main__":
    main()
