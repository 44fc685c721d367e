"""cuda.core's buffers in a pool: the real library, on a GPU or on the stand-in driver
(cuda_core_scenes.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.integrations import scenes

SOURCE = "cuda_core_scenes"


@pytest.fixture(scope="module")
def outcomes(require_module: Callable[[str], ModuleType], bindings: Path | None) -> dict[str, Any]:
    require_module("cuda.core")
    return scenes.run(SOURCE, bindings)


@pytest.mark.parametrize("scene", scenes.names(SOURCE))
def test_cuda_core(outcomes: dict[str, Any], scene: str) -> None:
    assert outcomes[scene] is None, outcomes[scene]
