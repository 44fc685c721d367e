"""The benchmarks run, and their reports match what they measured. Short runs; no figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "create_drop", "request_pattern", "request64", "allocators", "cpp_same_thread", "cpp_two_threads",
    "cpp_cross_thread", "cpp_live_set_1000", "churn_10000", "replay", "full", "sequential", "ack", "stats",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_pyperf(require_module: Callable[[str], ModuleType]) -> None:
    require_module("pyperf")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_list_names_every_row_of_the_table_of_promises() -> None:
    listed = run("--list")
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()} >= ROWS


def test_an_unknown_name_is_refused() -> None:
    refused = run("no_such")
    assert refused.returncode == 2
    assert "no_such" in refused.stderr
    assert "create_drop" in refused.stderr


def test_a_quick_run_reports_medians_ratios_and_bars(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    done = run("request64", "sequential", "--quick", "--rounds", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["quick"] is True
    assert report["versions"]["slabpool"]

    group = report["benchmarks"]["request64"]["groups"]["64 small tensors, 4 devices"]["contenders"]
    ours, numpy = group["slabpool, one by one"]["time"], group["numpy.empty in a loop"]["time"]
    assert len(ours["values"]) == 2
    assert all(0 < value < 1 for process in ours["values"] for value in process)
    assert ours["q1"] <= ours["median"] <= ours["q3"]
    # The ratio of a round compares processes that ran in the same round: recomputed here from the values.
    ratios = [mid(theirs) / mid(mine) for theirs, mine in zip(numpy["values"], ours["values"], strict=True)]
    assert numpy["over_slabpool"]["low"] == pytest.approx(min(ratios))
    assert numpy["over_slabpool"]["high"] == pytest.approx(max(ratios))

    bars = report["benchmarks"]["request64"]["bars"]
    assert [bar["limit"] for bar in bars] == [0.75, 0.5, 0.1]
    assert bars[0]["reached"] == pytest.approx(mid([1 / r for r in ratios]))
    assert all(bar["met"] == (bar["reached"] <= bar["limit"]) for bar in bars)

    grown = report["benchmarks"]["sequential"]["groups"]["same id, 3 devices"]["contenders"]["slabpool"]
    assert len(grown["resident"]["values"][0]) == 100
    assert min(grown["resident"]["values"][0]) > 1000
    for heading in ("request64", "sequential", "Promises"):
        assert heading in done.stdout


def mid(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def test_a_missing_peer_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.harness import peers, rounds
    from benchmarks.harness.model import Benchmark, Case, Effort, Group, Metric, Metrics
    from benchmarks.harness.programs import CaseFailedError, Programs

    class Recorder(Programs):
        """Runs nothing; records the order."""

        order: list[str] = []

        def run(self, case: Case) -> Metrics:
            self.order.append(case.contender)
            if case.contender == "breaks":
                raise CaseFailedError("it broke")
            return {"time": Metric("s", [1.0])}

    monkeypatch.setattr(peers, "missing", lambda name: "not installed" if name == "torch" else None)
    group = Group("anything")
    names = ("slabpool", "numpy.empty", "breaks")
    cases = [Case(group, name, "timed", "x:y") for name in names]
    cases.append(Case(group, "torch.empty", "timed", "x:y", peer="torch"))
    benchmark = Benchmark("one", "One", lambda effort: cases, lambda effort: [])
    effort = Effort(rounds=3)
    result = rounds.run(benchmark, effort, Recorder(tmp_path, effort), lambda what: None)

    assert result.left_out == {"torch": "not installed", "breaks in anything": "it broke"}
    assert {outcome.case.contender for outcome in result.outcomes} == {"slabpool", "numpy.empty"}
    # In turns: each round begins with another contender.
    assert Recorder.order == [
        "slabpool",
        "numpy.empty",
        "breaks",
        "numpy.empty",
        "slabpool",
        "slabpool",
        "numpy.empty",
    ]


def test_the_instruction_guard_fails_beyond_its_tolerance() -> None:
    from benchmarks.instructions.__main__ import compare

    budget = {"ack": 100.0, "empty": 200.0}
    assert compare({"ack": 103.0, "empty": 150.0}, budget)[1]
    lines, right = compare({"ack": 103.1, "empty": 200.0}, budget)
    assert not right
    assert any("ack" in line and "OVER" in line for line in lines)
    assert not compare({"ack": 100.0}, budget)[1]
    assert not compare({**budget, "new": 1.0}, budget)[1]


def test_gpu_benchmarks_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLABPOOL_CUDA_DRIVER", raising=False)
    asked = subprocess.run(
        [sys.executable, "-c", "import slabpool; print(slabpool.cuda.is_available())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if asked.stdout.strip() == "True":
        pytest.skip("this machine has a GPU")
    for names in (["gpu"], ["gpu_allocate"], ["gpu_acks", "gpu_decoder"]):
        refused = run(*names)
        assert refused.returncode == 2 and refused.stdout == ""
        assert "cannot run without a GPU" in refused.stderr
        assert "libcuda.so.1" in refused.stderr  # the library that was looked for


def test_benchmarks_on_a_gpu_are_listed_and_run_apart() -> None:
    listed = {line.split()[0] for line in run("--list").stdout.splitlines()}
    assert {"gpu_allocate", "gpu_request64", "gpu_acks", "gpu_decoder"} <= listed
    mixed = run("ack", "gpu_allocate")
    assert mixed.returncode == 2 and "apart from all others" in mixed.stderr


def test_results_of_a_gpu_are_kept_as_a_short_table() -> None:
    from benchmarks.harness.model import Bar, Benchmark, Case, Group, Metric, Outcome, Result
    from benchmarks.harness.text import short
    from benchmarks.suite import gpu

    case = Case(Group("allocate and free", 4096), "slabpool", "measured", "x:y")
    bar = Bar("over the best", lambda result: [0.25], "at most", 0.3)
    benchmark = Benchmark("gpu_allocate", "GPU", lambda effort: [case], lambda effort: [bar])
    outcome = Outcome(case, [{"time": Metric("s", [1e-7, 3e-7])}])
    machine = {
        "GPU": "NVIDIA X 80GB",
        "date": "2026-11-23 05:00 UTC",
        "processor": "p",
        "CUDA driver": "13.0",
    }
    result = Result(benchmark, [outcome], [bar], {"cupy": "not installed"})
    summary = short([result], machine, {"slabpool": "0.1.0"})
    assert summary.startswith("# NVIDIA X 80GB, 2026-11-23 05:00 UTC\n")
    for part in (
        "| 4 KiB, allocate and free | slabpool",
        "200 ns",
        "0.25",
        "met",
        "Left out: cupy (not installed)",
    ):
        assert part in summary
    assert gpu.file_stem(machine) == "nvidia-x-80gb-2026-11-23"


def test_the_programs_of_the_core_build_and_report(
    require_program: Callable[..., str], tmp_path: Path
) -> None:
    require_program("c++")
    from benchmarks.harness import native

    for program, work in (
        ("host", ("same_thread", "slabpool", "bytes=4096")),
        ("holes", ("holes", "none", "count=10")),
    ):
        built = native.build_driver(tmp_path, program)
        command = [str(built), *work, "values=1", "seconds=0.001"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (program, done.stderr)
        assert json.loads(done.stdout)["time"], program
