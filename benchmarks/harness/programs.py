"""Runs one case in a fresh process and returns what it measured.

Timed cases are pyperf workers. The first process of a case also calibrates the number of loops, as pyperf's
own runner does. (That runner finishes one benchmark before it starts the next; here the harness decides the
order, so contenders take turns.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyperf

from benchmarks.harness import native, peers
from benchmarks.harness.model import Case, Effort, Metric, Metrics

ROOT = Path(__file__).resolve().parent.parent.parent
#: Seconds after which a case counts as hung.
_TIMEOUT = 1800.0


class CaseFailedError(RuntimeError):
    """The process of a case failed. The message has the end of its output."""


class Programs:
    """Everything needed to run cases: the temporary folder, the C++ drivers, pyperf's calibrated loop
    counts."""

    def __init__(self, folder: Path, effort: Effort) -> None:
        self._folder = folder
        self._effort = effort
        self._drivers: dict[str, Path] = {}
        self._loops: dict[Case, int] = {}

    def run(self, case: Case) -> Metrics:
        """Runs the case in one process."""
        if case.kind == "native":
            return self._native(case)
        if case.kind == "measured":
            return _metrics(self._process(case, self._python(case), []))
        return self._timed(case)

    def _native(self, case: Case) -> Metrics:
        if case.program not in self._drivers:
            self._drivers[case.program] = native.build_driver(self._folder, case.program)
        options = {"values": self._effort.values, "seconds": self._effort.min_time, **case.args}
        command = [
            str(self._drivers[case.program]),
            case.target,
            case.heap,
            *(f"{k}={v}" for k, v in options.items()),
        ]
        return _metrics(self._process(case, command, []))

    def _timed(self, case: Case) -> Metrics:
        effort = self._effort
        if case not in self._loops:
            found = self._pyperf(case, ["--calibrate-loops", "-w0", "-n1", f"--min-time={effort.min_time}"])
            self._loops[case] = found.get_runs()[0].get_loops()
        done = self._pyperf(case, [f"-l{self._loops[case]}", "-w1", f"-n{effort.values}"])
        return {"time": Metric("s", list(done.get_values()))}

    def _pyperf(self, case: Case, options: list[str]) -> pyperf.Benchmark:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            output = Path(folder, "run.json")
            self._process(case, self._python(case), ["--worker", *options, "-q", "-o", str(output)])
            return pyperf.Benchmark.load(str(output))

    def _python(self, case: Case) -> list[str]:
        return [sys.executable, "-m", "benchmarks.harness.worker", case.target, json.dumps(dict(case.args))]

    def _process(self, case: Case, command: list[str], options: list[str]) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        # Some peers report their usage to their makers. A benchmark must not.
        environment.update(LMCACHE_TRACK_USAGE="false", DO_NOT_TRACK="1", PYTHONHASHSEED="0")
        if case.preload is not None:
            environment["LD_PRELOAD"] = peers.preload_path(case.preload)
        done = subprocess.run(
            [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT
        )
        if done.returncode != 0:
            words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
            raise CaseFailedError(
                f"{case.contender} in {case.group.label!r} ended with status {done.returncode}: "
                + "\n".join(words)
            )
        return done.stdout


def _metrics(output: str) -> Metrics:
    """Parses the last line of a program's output."""
    report = json.loads(output.strip().splitlines()[-1])
    return {name: Metric(m["unit"], m["values"]) for name, m in report.items()}
