"""Numba's device arrays in a pool: the real library, on a GPU or on the stand-in driver
(cuda_numba_scenes.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.integrations import scenes

SOURCE = "cuda_numba_scenes"


@pytest.fixture(scope="module")
def outcomes(require_module: Callable[[str], ModuleType], bindings: Path | None) -> dict[str, Any]:
    require_module("numba_cuda")
    return scenes.run(SOURCE, bindings)


@pytest.mark.parametrize("scene", scenes.names(SOURCE))
def test_numba(outcomes: dict[str, Any], scene: str) -> None:
    if str(outcomes[scene]).startswith("skip: "):
        pytest.skip(outcomes[scene][6:])
    assert outcomes[scene] is None, outcomes[scene]


def test_ipc_handles_have_the_offset(
    require_module: Callable[[str], ModuleType], bindings: Path | None
) -> None:
    require_module("numba_cuda")
    if bindings is None:
        pytest.skip("controls the stand-in driver, and this machine has a GPU")
    name = "scene_ipc_handle_or_why_there_is_none"
    assert scenes.run(SOURCE, bindings, STANDIN_IPC="1")[name] is None


def test_by_environment_variables_alone(
    require_module: Callable[[str], ModuleType], bindings: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_module("numba_cuda")
    if bindings is not None:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(bindings))
    monkeypatch.setenv("NUMBA_CUDA_MEMORY_MANAGER", "slabpool.numba")
    program = (
        "from numba import cuda; x = cuda.device_array(1000); print(cuda.current_context().get_memory_info())"
    )

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)

    refused = run()
    assert "SLABPOOL_NUMBA_CAPACITY" in refused.stderr and "use_cuda(pool)" in refused.stderr
    monkeypatch.setenv("SLABPOOL_NUMBA_CAPACITY", "32MiB")
    done = run()
    assert f"total={32 << 20}" in done.stdout, done.stderr
