"""The contents of the installed package: headers, the one library, .pxd, stubs, CMake files, metadata.

All of it comes from the installed distribution; the source tree only says which headers there are.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import slabpool

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(slabpool.get_lib()).parent
EXTENSIONS = sorted(
    path
    for path in (INSTALLED / "_core").iterdir()
    if path.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
)
HEADERS = sorted(Path(slabpool.get_include()).rglob("*.h*"))
LIBRARY = next(Path(slabpool.get_lib()).glob("libslabpool.*"))


def test_every_public_header_of_the_tree_is_installed() -> None:
    source = ROOT / "csrc"
    in_tree = {str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".h", ".hpp")}
    installed = {str(path.relative_to(slabpool.get_include())) for path in HEADERS}
    assert "slabpool/c_api.h" in installed
    assert installed == in_tree


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: str(path.relative_to(slabpool.get_include())))
def test_header_compiles_alone(header: Path, require_program: Callable[..., str], tmp_path: Path) -> None:
    if header.suffix == ".h":
        compiler, options, unit = require_program("cc", "gcc", "clang"), ["-std=c11"], tmp_path / "unit.c"
    else:
        compiler, options, unit = (
            require_program("c++", "g++", "clang++"),
            ["-std=c++20"],
            tmp_path / "unit.cpp",
        )
    name = header.relative_to(slabpool.get_include())
    # Included twice, because the include guard must work too.
    unit.write_text(f'#include "{name}"\n#include "{name}"\n')
    command = [
        compiler,
        *options,
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-I",
        slabpool.get_include(),
        str(unit),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_the_core_knows_no_python(header: Path) -> None:
    assert not re.search(r"#\s*include\s*[<\"](Python\.h|numpy/|pybind11/)", header.read_text())


@pytest.mark.usefixtures("require_wheel")
def test_files_for_type_checkers_cython_and_cmake() -> None:
    files = {str(path) for path in importlib.metadata.files("slabpool") or ()}
    assert EXTENSIONS
    assert any(re.fullmatch(r"slabpool/_core/\w+\.pyi", name) for name in files)
    assert "slabpool/py.typed" in files
    assert any(re.fullmatch(r"slabpool/_core/\w+\.pxd", name) for name in files)
    assert "slabpool/lib/cmake/slabpool/slabpoolConfig.cmake" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not [name for name in files if name.endswith((".pyx", ".cpp"))]


def test_one_version_everywhere() -> None:
    version = importlib.metadata.version("slabpool")
    assert slabpool.__version__ == version
    config = Path(slabpool.get_cmake_dir(), "slabpoolConfigVersion.cmake").read_text()
    assert f'set(PACKAGE_VERSION "{version}")' in config


def test_numpy_is_the_only_dependency_without_extras() -> None:
    required = [line for line in importlib.metadata.requires("slabpool") or () if "extra ==" not in line]
    assert [re.split(r"[^a-z]", line)[0] for line in required] == ["numpy"]


def test_import_loads_nothing_but_numpy() -> None:
    code = (
        "import sys, json, numpy; before = set(sys.modules); import slabpool;"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # Cython adds modules for types that its extensions share.
    own = {name for name in json.loads(output) if not re.match(r"_?cython", name)}
    assert own - set(sys.stdlib_module_names) <= {"slabpool", "numpy"}


def test_console_script_is_declared() -> None:
    scripts = importlib.metadata.distribution("slabpool").entry_points.select(group="console_scripts")
    assert [(script.name, script.value) for script in scripts] == [("slabpool", "slabpool.cli:main")]


def test_one_copy_of_the_core_per_process() -> None:
    modules = [f"slabpool._core.{path.name.split('.')[0]}" for path in EXTENSIONS]
    code = (
        f"import importlib; [importlib.import_module(m) for m in {modules!r}];"
        "print(len({l.split()[-1] for l in open('/proc/self/maps') if 'libslabpool' in l}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "1"


def test_modules_find_the_library_beside_them(require_program: Callable[..., str]) -> None:
    readelf = require_program("readelf")
    needing = 0
    for extension in EXTENSIONS:
        dynamic = subprocess.run(
            [readelf, "-dW", str(extension)], capture_output=True, text=True, check=True
        ).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        paths = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", dynamic)
        assert paths == ["$ORIGIN/../lib"], extension.name
        needing += "libslabpool.so" in needed
    assert needing > 0


def test_thread_locals_leave_room_for_others(require_program: Callable[..., str]) -> None:
    # Thread-locals with the initial-exec model are in glibc's static TLS surplus (about 1.6 KiB by default),
    # which all libraries loaded by dlopen share. A library that finds no room there fails to load.
    program_headers = subprocess.run(
        [require_program("readelf"), "-lW", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"^\s*TLS\s+\S+\s+\S+\s+\S+\s+\S+\s+(0x[0-9a-f]+)", program_headers, re.MULTILINE)
    assert match is None or int(match[1], 16) <= 128
    # A module with its own thread-locals, or with its own copy of the core, would show here.
    for extension in EXTENSIONS:
        program_headers = subprocess.run(
            ["readelf", "-lW", str(extension)], capture_output=True, text=True, check=True
        ).stdout
        assert not re.search(r"^\s*TLS\s", program_headers, re.MULTILINE), extension.name


def test_the_library_exports_only_its_own_names(require_program: Callable[..., str]) -> None:
    symbols = subprocess.run(
        [require_program("nm"), "-D", "--defined-only", "-C", str(LIBRARY)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = [line.split(maxsplit=2)[2] for line in symbols]
    # Weak templates of the standard library (std::…) are shared by design.
    foreign = [name for name in names if "slabpool" not in name and "std::" not in name]
    assert any(name.startswith("slabpool_") for name in names), "no C API"
    assert foreign == []
