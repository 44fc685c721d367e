"""Shared by all tests: the check that the *installed* package is tested, and the skips.

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

# No deadline per example, because a busy machine is no bug. pytest-timeout bounds each test as a whole.
hypothesis.settings.register_profile("slabpool", deadline=None, print_blob=True)
hypothesis.settings.load_profile("slabpool")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pool-memory=shared``: the same tests on pools of shared memory, which make the same promises."""
    parser.addoption("--pool-memory", choices=["host", "shared"], default="host")


def _make_shared(make: Callable[..., slabpool.Pool], capacity: object, **options: Any) -> slabpool.Pool:
    # A test that asks for an option that only host memory has gets host memory.
    if not options.get("huge_pages") and options.get("numa_node") is None:
        options.setdefault("memory", "shared")
    return make(capacity, **options)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source tree instead of the installed package; replace the pools if asked to."""
    if config.getoption("--pool-memory") == "shared":
        slabpool.Pool = functools.partial(_make_shared, slabpool.Pool)  # type: ignore[misc, assignment]
    if Path(slabpool.__file__).resolve().is_relative_to(ROOT / "python"):
        raise pytest.UsageError(
            f"{slabpool.__file__} is the source tree (an editable install, or on PYTHONPATH): "
            "the tests are for an installed slabpool, `pip install '.[test]'`"
        )


def pytest_report_header(config: pytest.Config) -> str:
    """Say which package is under test."""
    return f"slabpool: {slabpool.__version__} from {Path(slabpool.__file__).parent}"


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
