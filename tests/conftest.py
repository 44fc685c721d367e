"""Shared by all tests: which slabpool is tested, and skips that say why.

The package under test is an installed one. An editable install is accepted for work on slabpool: with
`--allow-editable`, or without it where neither CI nor SLABPOOL_TESTS_REQUIRE_ALL is set. Its Python files are
the tree's and its compiled files the installed ones, so a test of what a wheel holds skips.

A test that needs a part of the system asks for it through `require_program` or `require_module`. It skips
with the reason if the part is missing. With SLABPOOL_TESTS_REQUIRE_ALL=1 (as .ci/run sets) a missing part is
a failure instead, so that no test is skipped unnoticed.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

import slabpool

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_ALL = os.environ.get("SLABPOOL_TESTS_REQUIRE_ALL", "") not in ("", "0")
CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

# No deadline per example and no check of how fast examples are made, because a busy machine is no bug.
# pytest-timeout bounds each test as a whole.
hypothesis.settings.register_profile(
    "slabpool", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("slabpool")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pool-memory=shared``: the same tests on pools of shared memory, which make the same promises."""
    parser.addoption("--pool-memory", choices=["host", "shared"], default="host")
    parser.addoption("--allow-editable", action="store_true", help="test an editable install, also in CI")


def _make_shared(make: Callable[..., slabpool.Pool], capacity: object, **options: Any) -> slabpool.Pool:
    # A test that asks for an option that only host memory has gets host memory.
    if not options.get("huge_pages") and options.get("numa_node") is None:
        options.setdefault("memory", "shared")
    return make(capacity, **options)


def is_editable() -> bool:
    """Whether slabpool is an editable install: the tree's Python files, and compiled ones from elsewhere."""
    return Path(slabpool.__file__).resolve().is_relative_to(ROOT / "python") and len(slabpool.__path__) > 1


def _refusal(allow_editable: bool) -> str:
    """Why slabpool, as it was imported, is not to be tested; empty if it is."""
    if not Path(slabpool.__file__).resolve().is_relative_to(ROOT / "python"):
        return ""
    if not is_editable():
        return f"{slabpool.__file__} is the source tree on PYTHONPATH: `make setup` installs it"
    if (CI or REQUIRE_ALL) and not allow_editable:
        return (
            f"{slabpool.__file__} is an editable install, and CI tests what a wheel installs: "
            "`pip install '.[test]'`, or give --allow-editable"
        )
    return ""


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source tree instead of the installed package; replace the pools if asked to."""
    if config.getoption("--pool-memory") == "shared":
        slabpool.Pool = functools.partial(_make_shared, slabpool.Pool)  # type: ignore[misc, assignment]
    refusal = _refusal(bool(config.getoption("--allow-editable")))
    if refusal:
        raise pytest.UsageError(refusal)
    if is_editable():
        # mypy does not run the import hook of an editable install: it finds the stubs in the tree.
        os.environ["MYPYPATH"] = os.pathsep.join(
            filter(None, [str(ROOT / "python"), os.environ.get("MYPYPATH")])
        )


def pytest_report_header(config: pytest.Config) -> str:
    """Say which package is under test."""
    kind = ", an editable install" if is_editable() else ""
    return f"slabpool: {slabpool.__version__} from {Path(slabpool.__file__).parent}{kind}"


def _missing(reason: str) -> None:
    if REQUIRE_ALL:
        pytest.fail(f"{reason}, and SLABPOOL_TESTS_REQUIRE_ALL is set", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require_program() -> Callable[..., str]:
    """Return the path of the first of these programs that is installed; skip or fail if none is."""

    def require(*names: str) -> str:
        for name in names:
            path = shutil.which(name)
            if path is not None:
                return path
        _missing(f"needs {' or '.join(names)} on the PATH")
        raise AssertionError("not reached")

    return require


@pytest.fixture(scope="session")
def require_module() -> Callable[[str], ModuleType]:
    """Import an optional module; skip or fail when it is not installed."""

    def require(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            _missing(f"needs the Python module {error.name}")
            raise AssertionError("not reached") from error

    return require


@pytest.fixture
def require_wheel() -> None:
    """Skip a test of the files that a wheel installs, if slabpool is an editable install."""
    if is_editable():
        pytest.skip("slabpool is an editable install: only a wheel installs these files")
