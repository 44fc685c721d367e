"""Fixtures of the CUDA tests, for the conftest.py of each folder that has such tests.

`cuda` provides a driver: the machine's if it has a GPU, else the stand-in. `standin` provides the controls of
the stand-in, and skips on a real GPU. `gpu` skips without one. `work` queues work on the driver's streams.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slabpool
from tests.cuda.gpu_work import Work
from tests.cuda.standin_build import Standin, build

__all__ = ["cuda", "gpu", "standin", "work"]

VARIABLE = "SLABPOOL_CUDA_DRIVER"

# One for the process, because a loaded driver is not unloaded.
_loaded: list[Standin | None] = []


@pytest.fixture(scope="session")
def cuda(require_program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Standin | None:
    """The stand-in, or None if a real driver is used. Child processes use the same driver."""
    if not _loaded:
        if slabpool.cuda.is_available():
            _loaded.append(None)
        else:
            compiler = require_program("c++", "g++", "clang++")
            path = build(Path(tmp_path_factory.mktemp("standin")), compiler)
            os.environ[VARIABLE] = str(path)
            control = Standin(str(path))
            assert slabpool.cuda.is_available(), slabpool.cuda.why_unavailable()
            _loaded.append(control)
    return _loaded[0]


@pytest.fixture
def standin(cuda: Standin | None) -> Iterator[Standin]:
    """The controls of the stand-in in its initial state. Checks for complaints and leaks at the end."""
    if cuda is None:
        pytest.skip("controls the stand-in driver, and this machine has a GPU")
    gc.collect()
    cuda.reset()
    yield cuda
    cuda.clear_faults()
    gc.collect()
    complaints, leaks, depth = cuda.complaints(), cuda.leaks(), cuda.context_depth()
    cuda.reset()
    assert complaints == ""
    assert leaks == ""
    assert depth == 0


@pytest.fixture
def work(standin: Standin) -> Iterator[Work]:
    """Streams of device 0, on the stand-in."""
    made = Work(standin)
    yield made
    standin.library.standin_release_all()
    standin.library.standin_settle()
    made.close()


@pytest.fixture
def gpu(cuda: Standin | None) -> None:
    """Skips the test unless the machine has a GPU."""
    if cuda is not None:
        pytest.skip(f"needs a GPU: {os.environ[VARIABLE]} is the stand-in driver")
