"""Runs a file of scenes in a separate process, because libraries load their CUDA driver once and keep what
was installed.

A scene is a function `scene_…` of a module in this folder. ``python -m tests.integrations.NAME`` runs all
scenes of one and prints their outcomes. With the stand-in driver, the process finds it as libcuda.so.1
(standin_for_bindings.cpp).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def names(source: str) -> list[str]:
    """The scenes of a file, without importing it."""
    lines = (HERE / f"{source}.py").read_text(encoding="utf-8").splitlines()
    return [line[4 : line.index("(")] for line in lines if line.startswith("def scene_")]


def play(module: ModuleType) -> None:
    """Run all scenes of a module, and print their outcomes as one line of JSON."""
    outcomes = {}
    for name in [name for name in vars(module) if name.startswith("scene_")]:
        try:
            outcomes[name] = getattr(module, name)()
        except BaseException:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))


def run(source: str, driver: Path | None = None, **environment: str) -> dict[str, Any]:
    """The outcome of each scene of `source`: None for a pass. `driver`: a folder with a libcuda.so.1."""
    env = {**os.environ, **environment}
    if driver is not None:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(driver), env.get("LD_LIBRARY_PATH"))))
    command = [sys.executable, "-c", _PLAY, source]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outcomes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


# Without -m from the root of the checkout, so that the installed slabpool is imported.
_PLAY = """
import importlib, sys
sys.path.insert(0, "")
from tests.integrations import scenes
scenes.play(importlib.import_module("tests.integrations." + sys.argv[1]))
"""


def bindings_driver(folder: Path, compiler: str) -> Path:
    """Compile the stand-in for cuda.bindings; returns the folder of its libcuda.so.1."""
    command = [compiler, "-std=c++20", "-O0", "-g", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    command += [str(HERE / "standin_for_bindings.cpp"), "-o", str(folder / "libcuda.so.1"), "-ldl"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder
