"""The stubs match the compiled modules, infer what a user needs, and the typed sample is complete.

tests/packaging/test_typing.py checks that the sample itself passes mypy --strict on the installed package.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import runpy
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import slabpool

SAMPLE = Path(__file__).resolve().parent / "typing" / "public_api.py"

#: A program full of mistakes: mypy must report each line marked "# wrong", and no other.
MISTAKES = """\
import asyncio
import numpy as np
import slabpool
from numpy.typing import NDArray

pool = slabpool.Pool("1MiB")
req = pool.request("r", devices=["gpu0"])
a: NDArray[np.float32] = pool.empty(3)  # wrong
b: NDArray[np.float32] = req.zeros(3)  # wrong
c: str = pool.empty(3, np.float16)  # wrong
d: int = req.ack("gpu0")  # wrong
slabpool.Pool()  # wrong
slabpool.Pool("1MiB", scrub="always")  # wrong
slabpool.Pool("1MiB", debug=3)  # wrong
slabpool.Pool(1.5)  # wrong
pool.empty("3")  # wrong
pool.empty((3.0,))  # wrong
pool.request(1.5)  # wrong
pool.request("r", [b"gpu0"])  # wrong
pool.request("r", ["gpu0"], "64KiB")  # wrong
pool.ack("r")  # wrong
pool.stats().live = 3  # wrong
req.generation = 3  # wrong
req.allocate({"k": (3, "f4")})  # wrong
req.id.upper()  # wrong
slabpool.Layout([("k", 3, "f4")])  # wrong
req.released().state  # wrong
"""


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)


def test_mistakes_are_found(require_module: Callable[[str], ModuleType], tmp_path: Path) -> None:
    require_module("mypy")
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    result = _run("-m", "mypy", "--strict", "--config-file=", "mistakes.py", cwd=tmp_path)
    found = {int(line) for line in re.findall(r"^mistakes\.py:(\d+): error: ", result.stdout, re.MULTILINE)}
    wrong = {number for number, line in enumerate(MISTAKES.splitlines(), 1) if line.endswith("# wrong")}
    assert len(wrong) > 15
    assert found == wrong, result.stdout + result.stderr


def test_stubs_agree_with_the_modules(require_module: Callable[[str], ModuleType], tmp_path: Path) -> None:
    require_module("mypy")
    # Private: modules that only other compiled modules use, what Cython adds to every module and class, and
    # constructors whose only use is to say what makes such objects.
    (tmp_path / "allow").write_text(
        "\n".join(
            [
                r"slabpool\._core\.(array|core\.(Devices|LineReport|Maker))",
                r"slabpool\._core\.device_array\.(DeviceMaker|Taken)",
                r"slabpool\._core\.(request\.Request|tensors\.Tensors|device_.*)\.__init__",
                r".*\.__(test|pyx_capi|pyx_vtable|reduce|reduce_cython|setstate|setstate_cython)__",
            ]
        )
    )
    options = ["--allowlist", "allow", "--ignore-unused-allowlist"]
    (tmp_path / "mypy.ini").write_text("[mypy]\nignore_missing_imports = true\n")
    options += ["--mypy-config-file", "mypy.ini"]
    result = _run("-m", "mypy.stubtest", *options, "slabpool._core", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_sample_runs(require_module: Callable[[str], ModuleType]) -> None:
    require_module("typing_extensions")
    runpy.run_path(str(SAMPLE), run_name="__main__")


def _used() -> tuple[set[str], dict[str, set[str]]]:
    """Names taken from `slabpool` in the sample, and members by class, from parameters annotated with the
    class."""
    tree = ast.parse(SAMPLE.read_text())
    names: set[str] = set()
    members: dict[str, set[str]] = defaultdict(set)
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        classes = {
            arg.arg: arg.annotation.attr
            for arg in function.args.args
            if isinstance(arg.annotation, ast.Attribute)
        }
        for node in ast.walk(function):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in classes
            ):
                members[classes[node.value.id]].add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "slabpool":
            names.add(node.attr)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            members[node.value.attr].add(node.attr)
    return names, members


def _members(public: type) -> set[str]:
    if issubclass(public, BaseException):
        return set()
    if dataclasses.is_dataclass(public):
        return {field.name for field in dataclasses.fields(public)}
    fields = getattr(public, "_fields", None)  # the fields of a named tuple
    return set(fields) if fields else {name for name in vars(public) if not name.startswith("_")}


def test_sample_leaves_out_no_public_name() -> None:
    names, _ = _used()
    assert set(slabpool.__all__) - names == set()


@pytest.mark.parametrize("name", sorted(n for n in slabpool.__all__ if inspect.isclass(getattr(slabpool, n))))
def test_sample_leaves_out_no_member(name: str) -> None:
    _, members = _used()
    assert _members(getattr(slabpool, name)) - members[name] == set()


def test_all_lists_every_public_name() -> None:
    public = {
        name
        for name, value in vars(slabpool).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public | {"__version__", "attach"} == set(slabpool.__all__)
