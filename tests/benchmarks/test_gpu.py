"""The C++ program of the GPU benchmarks reports what it measures, on any driver. No time is judged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cuda.standin_build import Standin


@pytest.fixture(scope="module")
def program(
    cuda: Standin | None,
    require_program: Callable[..., str],
    require_module: Callable[[str], ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    require_program("c++")
    require_module("pyperf")
    from benchmarks.harness import native

    return native.build_driver(tmp_path_factory.mktemp("gpu"), "gpu")


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *args, "values=2", "seconds=0.001"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("args", "metrics"),
    [
        (("allocate", "slabpool", "bytes=4096"), {"time"}),
        (("allocate", "slabpool", "bytes=67108864"), {"time"}),
        (("ack", "none"), {"time", "until the host knows", "the call"}),
        (("ack", "event"), {"time", "until the host knows", "the call"}),
    ],
    ids=" ".join,
)
def test_it_reports_what_it_measured(program: Path, args: tuple[str, ...], metrics: set[str]) -> None:
    done = run(program, *args)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert set(report) == metrics
    for metric in report.values():
        assert metric["unit"] == "s" and len(metric["values"]) == 2
        assert all(0 < value < 1 for value in metric["values"])


@pytest.mark.parametrize(
    "args", [("allocate", "driver"), ("ack", "host_function"), ("ack", "write_value")], ids=" ".join
)
def test_what_a_driver_lacks_is_named(standin: Standin, program: Path, args: tuple[str, ...]) -> None:
    # The stand-in has the functions that slabpool calls. The functions of these cases are not among them.
    refused = run(program, *args)
    assert refused.returncode == 2
    assert f"{standin.path} has no cu" in refused.stderr


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("sing", "slabpool"), "sing"),
        (("ack", "pigeon"), "pigeon"),
        (("allocate", "malloc"), "malloc"),
        (("ack", "event", "loud=1"), "loud"),
    ],
)
def test_wrong_arguments_are_refused(program: Path, args: tuple[str, ...], word: str) -> None:
    refused = run(program, *args)
    assert refused.returncode == 2 and refused.stdout == "" and word in refused.stderr
