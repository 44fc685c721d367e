"""mypy --strict accepts the typed sample, and finds a planted mistake, against the installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SAMPLES = sorted(path for path in (Path(__file__).resolve().parents[1] / "typing").glob("*.py"))


@pytest.fixture
def mypy(
    require_module: Callable[[str], ModuleType], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    require_module("mypy")

    def run(*files: str) -> subprocess.CompletedProcess[str]:
        # Without this project's configuration and outside its tree, as in a user's project.
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--cache-dir",
            str(tmp_path / "cache"),
        ]
        return subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True)

    return run


def test_sample_is_clean(mypy: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    assert SAMPLES
    names = [shutil.copy(path, tmp_path / path.name).name for path in SAMPLES if path.name != "__init__.py"]
    result = mypy(*names)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mistake_is_found(mypy: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "mistake.py").write_text(
        "import slabpool\n\npool = slabpool.Pool('1MiB')\nnumber: int = pool.request('a').empty((1,))\n"
    )
    result = mypy("mistake.py")
    assert result.returncode == 1
    assert "mistake.py:4: error: Incompatible types in assignment" in result.stdout
