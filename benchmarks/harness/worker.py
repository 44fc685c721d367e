"""Runs in the fresh process of a Python case: ``python -m benchmarks.harness.worker TARGET ARGS …``.

TARGET is ``module:function`` of the suite, ARGS its keyword arguments as JSON. For a timed case the function
returns a `Statement` or a `Loop`, and pyperf's worker times it (the rest of the command line is pyperf's).
For a measured case it returns metrics, which are printed as one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.model import Metric


@dataclass(frozen=True)
class Statement:
    """A statement as a user writes it, with the names it uses. It is repeated inside the loop, so that the
    loop itself costs almost nothing."""

    text: str
    names: Mapping[str, Any]
    repeat: int = 10


@dataclass(frozen=True)
class Loop:
    """A function that takes a number of loops and returns the seconds they took; `inner` operations per
    loop."""

    run: Callable[[int], float]
    inner: int = 1
    #: An object kept alive while the loop runs.
    keep: list[Any] = field(default_factory=list)


def _check_preload() -> None:
    """Raises if the preload failed, because the wrong malloc would be timed."""
    wanted = os.environ.get("LD_PRELOAD")
    if wanted:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            if os.path.basename(wanted) not in maps.read():
                raise RuntimeError(f"{wanted} was not preloaded")


def main() -> None:
    target, args, *options = sys.argv[1:]
    _check_preload()
    module, _, name = target.partition(":")
    made = getattr(importlib.import_module(module), name)(**json.loads(args))
    if isinstance(made, Mapping):
        metrics: Mapping[str, Metric] = made
        report = {name: {"unit": m.unit, "values": list(m.values)} for name, m in metrics.items()}
        print(json.dumps(report))
        return
    import pyperf

    runner = pyperf.Runner()
    runner.parse_args(options)
    if isinstance(made, Statement):
        runner.timeit(name, stmt=made.text, globals=dict(made.names), duplicate=made.repeat)
    else:
        runner.bench_time_func(name, made.run, inner_loops=made.inner)


if __name__ == "__main__":
    # Run under its importable name, so that `Statement` and `Loop` are the classes that the suite returns.
    from benchmarks.harness import worker

    worker.main()
