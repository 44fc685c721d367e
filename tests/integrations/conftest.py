"""The CUDA driver for drop-ins: a GPU's where there is one, else the stand-in, also as cuda.bindings finds
it."""

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
    """A folder whose libcuda.so.1 is the stand-in; None where a GPU's driver serves."""
    if cuda is None:
        return None
    compiler = require_program("c++", "g++", "clang++")
    return scenes.bindings_driver(tmp_path_factory.mktemp("bindings"), compiler)
