"""The k-th call of each function that may fail does fail, for every k, over host and shared pools.

Invariants: no such failure ends the process, loses a byte or a descriptor, or leaves the pool in another
state. The call that meets it raises an error with a text, and succeeds when it is made again. A call that
returns memory succeeds. The scenario is in scenario.py, and what fails the calls is in interpose.cpp.
tests/cpp/faults does the same for operator new in every function of the core.

SLABPOOL_TESTS_FAULTS: the most k of one function; by default 25, evenly spread over all calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MOST = int(os.environ.get("SLABPOOL_TESTS_FAULTS", "25"))
LEAST = 25  # k that are made however long they take
SECONDS = 60  # after which no further k of one function is started, beyond LEAST

# Each function, and whose calls count: those of slabpool's own library and modules, or all of the process.
FUNCTIONS = {
    "malloc": "native",
    "mmap": "native",
    "mprotect": "native",
    "madvise": "native",
    "fallocate": "native",
    "ftruncate": "native",
    "memfd_create": "process",
    "eventfd": "process",
    "epoll_ctl": "process",
    "pthread_create": "process",
}
# Functions that a pool of this kind never calls.
UNUSED = {
    "host": {"fallocate", "ftruncate", "memfd_create", "eventfd", "epoll_ctl", "pthread_create"},
    "shared": set(),
}
HERE = Path(__file__).parent
TIMEOUT = 1500
pytestmark = pytest.mark.timeout(TIMEOUT + 100)


@pytest.fixture(scope="module")
def interposer(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[..., str]) -> Path:
    """The library to preload."""
    compiler = require_program(os.environ.get("CXX") or "c++", "c++", "g++")
    made = tmp_path_factory.mktemp("faults") / "interpose.so"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-o",
        str(made),
        str(HERE / "interpose.cpp"),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return made


def runs_of(
    interposer: Path, place: Path, kind: str, function: str, most: int, least: int = LEAST
) -> list[dict[str, Any]]:
    """What the scenario's process prints: one run for each k."""
    program = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    done = subprocess.run(
        [
            *program,
            str(HERE / "scenario.py"),
            kind,
            function,
            FUNCTIONS[function],
            str(most),
            str(least),
            str(SECONDS),
        ],
        env={
            **os.environ,
            "LD_PRELOAD": str(interposer),
            "XDG_RUNTIME_DIR": str(place),
            "SLABPOOL_CUDA_DRIVER": "/nowhere/libcuda.so.1",  # the stand-in is not what is tested here
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    for run in runs:
        assert "error" not in run, f"call {run['k']} of {function}: {run['error']}\n{done.stderr[-2000:]}"
    return runs


def test_names_and_texts_of_any_length_without_memory(interposer: Path, tmp_path: Path) -> None:
    """A std::string that the bindings copy allocates, and that may fail like any other allocation."""
    first, *others = runs_of(interposer, tmp_path, "names", "malloc", 1000, 1000)
    assert first["failed"] == 0 and not first["refused"]
    assert len(others) == first["calls"] > 50
    assert all(run["failed"] == 1 for run in others)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["host", "shared"])
def test_the_kth_call_fails(kind: str, function: str, interposer: Path, tmp_path: Path) -> None:
    """Nothing is lost, whichever call fails."""
    first, *others = runs_of(interposer, tmp_path, kind, function, MOST)
    assert first["failed"] == 0 and not first["refused"]
    assert (first["calls"] == 0) == (function in UNUSED[kind]), first
    step = max(1, -(-first["calls"] // MOST))
    assert len(others) >= min(LEAST, -(-first["calls"] // step)), "too few of the calls were made to fail"
    for run in others:
        # With threads the number of calls differs from run to run by a few.
        assert run["failed"] == 1 or run["calls"] < run["k"], run
        assert len(run["refused"]) <= 1, "a call that succeeds may not be refused later"
    if others:
        assert any(run["failed"] for run in others)
