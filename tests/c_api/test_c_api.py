"""The C API of the installed package: C programs that use nothing else, and ctypes.

Invariant: the header compiles as plain C, and every declared function is exported.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import slabpool

HERE = Path(__file__).parent
PROGRAMS = sorted(HERE.glob("*_test.c"))
HEADER = Path(slabpool.get_include(), "slabpool", "c_api.h")


def _library() -> ctypes.CDLL:
    (path,) = Path(slabpool.get_lib()).glob("libslabpool.*")
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("source", PROGRAMS, ids=lambda path: path.stem)
def test_c_program(source: Path, require_program: Callable[..., str], tmp_path: Path) -> None:
    cc = require_program("cc", "gcc", "clang")
    program = tmp_path / source.stem
    lib = slabpool.get_lib()
    subprocess.run(
        [cc, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", slabpool.get_include(),
         str(source), "-o", str(program), "-L", lib, "-lslabpool", f"-Wl,-rpath,{lib}"],
        check=True,
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    checks = re.fullmatch(r"(\d+) checks\n", done.stdout)
    assert checks is not None and int(checks[1]) > 80


def test_every_declared_function_is_exported_and_tested() -> None:
    declared = set(re.findall(r"\b(slabpool_[a-z_]+)\(", HEADER.read_text()))
    assert "slabpool_allocate" in declared
    library = _library()
    missing = [name for name in declared if not hasattr(library, name)]
    assert not missing
    used = set(re.findall(r"\b(slabpool_[a-z_]+)\(", "".join(path.read_text() for path in PROGRAMS)))
    assert declared <= used


def test_ctypes_without_a_compiler() -> None:
    class PoolOptions(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_size_t),
            ("capacity", ctypes.c_uint64),
            ("scrub", ctypes.c_int32),
            ("debug", ctypes.c_int32),
            ("events", ctypes.c_uint64),
            ("no_huge_pages", ctypes.c_int32),
            ("numa_node", ctypes.c_int32),
        ]

    library = _library()
    library.slabpool_status_string.restype = ctypes.c_char_p
    library.slabpool_pool_trim.restype = ctypes.c_uint64
    library.slabpool_pool_trim.argtypes = [ctypes.c_void_p]
    library.slabpool_pool_destroy.argtypes = [ctypes.c_void_p]
    pool = ctypes.c_void_p()
    options = PoolOptions(size=ctypes.sizeof(PoolOptions), capacity=1 << 20)
    assert library.slabpool_pool_create(ctypes.byref(options), ctypes.byref(pool)) == 0
    assert pool.value is not None
    assert library.slabpool_pool_trim(pool) == 0
    assert library.slabpool_pool_destroy(pool) == 0
    too_small = PoolOptions(size=ctypes.sizeof(PoolOptions), capacity=1)
    status = library.slabpool_pool_create(ctypes.byref(too_small), ctypes.byref(pool))
    assert library.slabpool_status_string(status) == b"invalid argument"


def test_header_and_library_agree_on_the_version() -> None:
    declared = re.search(r"define SLABPOOL_C_API_VERSION (\d+)", HEADER.read_text())
    assert declared is not None
    assert _library().slabpool_c_api_version() == int(declared[1])
