"""numpy's own tests, with and without their arrays in a pool.

A pytest plugin (``-p tests.integrations.numpy_suite``), which enables the handler for the whole run if asked
to and records the outcome of every test; and `start`, which runs pytest with the plugin in a separate
process. The plugin fails the run if numpy did not get its memory from the pool, or did not give all of it
back.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import slabpool

ROOT = Path(__file__).resolve().parents[2]
#: The package in which numpy keeps these tests; it was renamed in numpy 2.0.
CORE = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
MODULES = ("test_multiarray", "test_numeric", "test_ufunc", "test_mem_policy", "test_nditer", "test_indexing")
#: Tests that need more memory than this are left out, with and without the pool, because their outcome
#: depends on the memory that is free at the moment.
MEMORY = "1 GB"
_OUT = "SLABPOOL_NUMPY_SUITE_OUT"
_POOLED = "SLABPOOL_NUMPY_SUITE_POOLED"
CAPACITY = "4GiB"


def start(out: Path, *, pooled: bool, marked: str = "", names: str = "") -> subprocess.Popen[bytes]:
    """Starts pytest on numpy's test modules; `marked` and `names` are its -m and -k."""
    environment = {**os.environ, _OUT: str(out), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["NPY_AVAILABLE_MEM"] = MEMORY
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the plugins of this venv cost time in each test
    # test_mem_policy builds a module, and needs programs that are installed beside Python.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment.pop(_POOLED, None)
    environment.pop("PYTEST_ADDOPTS", None)
    if pooled:
        environment[_POOLED] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(out.parent), "-p", "tests.integrations.numpy_suite"]
    command += ["-m", marked, "-k", names, "--pyargs", *(f"{CORE}.tests.{name}" for name in MODULES)]
    # Output goes to a file: a pipe would fill up while this process waits for the other run.
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            command, env=environment, cwd=out.parent, stdout=log, stderr=subprocess.STDOUT
        )


def read(process: subprocess.Popen[bytes], out: Path) -> dict[str, str]:
    """The outcome of each test, once the run has ended."""
    process.wait()
    # Status 0: all passed. Status 1: some failed, which the comparison judges.
    assert process.returncode in (0, 1), out.with_suffix(".log").read_text()[-20_000:]
    return dict(json.loads(out.read_text()))


def handler_name(*array: object) -> str | None:
    """The name of the handler in force, or of the handler of an array."""
    multiarray = importlib.import_module(f"{CORE}.multiarray")
    name: str | None = multiarray.get_handler_name(*array)
    return name


# ---- the plugin


class _Outcomes:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # The first outcome of set-up, test and tear-down that is not a pass.
        if self.outcomes.get(report.nodeid, "passed") == "passed":
            expected = "x" if hasattr(report, "wasxfail") else ""
            self.outcomes[report.nodeid] = expected + report.outcome

    def pytest_sessionfinish(self) -> None:
        self.out.write_text(json.dumps(self.outcomes))


class _InPool:
    def __init__(self) -> None:
        self.pool = slabpool.Pool(CAPACITY, name="numpy-suite")
        self.handler = slabpool.numpy_handler(self.pool)

    def pytest_sessionstart(self) -> None:
        self.handler.__enter__()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        name = handler_name()
        assert name == "slabpool numpy-suite", f"numpy's handler is {name!r} as {item.nodeid} begins"
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.handler.__exit__(None, None, None)
        gc.collect()
        stats = self.pool.stats()
        print(f"\nslabpool: {stats.allocations} arrays, {stats.peak_live} bytes at most, {stats.live} left")
        wrong = self.pool._verify()
        if stats.allocations < 100 or wrong is not None:
            print(f"slabpool: {stats}, {wrong}")
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def pytest_configure(config: pytest.Config) -> None:
    """Register the recorder of outcomes and the plugin that enables the handler, as the environment asks."""
    if _OUT in os.environ:
        config.pluginmanager.register(_Outcomes(Path(os.environ[_OUT])))
        if _POOLED in os.environ:
            config.pluginmanager.register(_InPool())
