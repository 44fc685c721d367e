"""The CUDA driver for the drop-ins: the real one if there is a GPU, else the stand-in, installed so that
cuda.bindings finds it too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda.fixtures import cuda, gpu, standin
from tests.cuda.standin_build import Standin
from tests.integrations import scenes

__all__ = ["bindings", "cuda", "gpu", "standin"]


@pytest.fixture(scope="session")
def bindings(
    cuda: Standin | None, require_program: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Path | None:
    """A folder whose libcuda.so.1 is the stand-in; None if there is a GPU."""
    if cuda is None:
        return None
    compiler = require_program("c++", "g++", "clang++")
    return scenes.bindings_driver(tmp_path_factory.mktemp("bindings"), compiler)
