"""replay: two traces of real services through a pool of 1.2 times their peak live bytes.

Runs ``slabpool replay`` as a user would. The full traces are not in the repository. Without --traces the
excerpts of the tests are replayed, which say little about fragmentation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics

EXCERPTS = Path(__file__).resolve().parents[2] / "tests" / "replay" / "data"


def traces(effort: Effort) -> dict[Group, Path]:
    """Azure's CSV files and Mooncake's JSONL files in the folder."""
    folder = Path(effort.traces) if effort.traces is not None else EXCERPTS
    found = sorted([*folder.glob("*.csv"), *folder.glob("*.jsonl")])
    if not found:
        raise FileNotFoundError(f"no trace (*.csv, *.jsonl) in {folder}")
    return {Group(f"{path.name}, capacity 1.2 x peak live"): path.resolve() for path in found}


def run(trace: str) -> Metrics:
    command = [sys.executable, "-m", "slabpool", "replay", trace, "--capacity", "1.2x", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    # Status 1 means that the report has leaks or broken laws. Its figures still count.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"slabpool replay: {done.stderr.strip()}")
    said = json.loads(done.stdout)
    refused = said["requests_that_waited"] + said["unserved"]
    return {
        "operation": Metric("s", [1 / said["operations_per_s"]]),
        "committed/live": Metric("", [said["committed_over_live"]]),
        "had to wait or not served": Metric("requests", [refused]),
        "leaked": Metric("bytes", [said["leaked_bytes"]]),
        "broken laws": Metric("", [said["violations"]]),
        "requests": Metric("", [said["requests"]]),
    }


def _cases(effort: Effort) -> list[Case]:
    target = "benchmarks.suite.replay:run"
    return [
        Case(group, OURS, "measured", target, {"trace": str(path)}) for group, path in traces(effort).items()
    ]


def _bars(effort: Effort) -> list[Bar]:
    bars = []
    for group in traces(effort):
        name = group.label.split(",")[0]
        bars += [
            Bar(
                f"{name}: requests that had to wait or were not served",
                value(group, "had to wait or not served"),
                "at most",
                0,
                ".0f",
            ),
            Bar(
                f"{name}: peak committed over peak live",
                value(group, "committed/live"),
                "at most",
                1.10,
                ".3f",
            ),
            Bar(f"{name}: bytes leaked", value(group, "leaked"), "at most", 0, ".0f"),
        ]
    return bars


BENCHMARK = Benchmark(
    "replay",
    "Traces of real services, capacity 1.2 times peak live",
    _cases,
    _bars,
    (
        "Arrivals and lengths are the traces'; service times and devices are synthetic (`slabpool replay "
        "--help`). `operation` is wall time divided by allocations, acks and releases, the replay's own "
        "bookkeeping included.",
    ),
)
