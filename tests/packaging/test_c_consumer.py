"""c_api.h and libslabpool are all that a C or a ctypes program needs. Both run on the installed package."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import slabpool

ENGINE = Path(__file__).with_name("c_engine.c")
LIBRARY = next(Path(slabpool.get_lib()).glob("libslabpool.*"))


@pytest.mark.parametrize("standard", ["c11", "c17"])
def test_plain_cc_builds_an_engine(
    standard: str, require_program: Callable[..., str], tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    command = [
        require_program("cc", "gcc", "clang"),
        *(f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"),
        *(f"-I{slabpool.get_include()}", str(ENGINE), "-o", str(engine)),
        *(f"-L{slabpool.get_lib()}", "-lslabpool", f"-Wl,-rpath,{slabpool.get_lib()}", "-pthread"),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    ran = subprocess.run([str(engine)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ok\n", "")


class PoolOptions(ctypes.Structure):
    """slabpool_pool_options up to `events`, as declared by an older header."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("capacity", ctypes.c_uint64),
        ("scrub", ctypes.c_int32),
        ("debug", ctypes.c_int32),
        ("events", ctypes.c_uint64),
    )


def test_ctypes_reaches_the_copy_that_python_uses() -> None:
    library = ctypes.CDLL(str(LIBRARY))
    options = PoolOptions(size=ctypes.sizeof(PoolOptions), capacity=1 << 20)
    pool = ctypes.c_void_p()
    assert library.slabpool_pool_create(ctypes.byref(options), ctypes.byref(pool)) == 0
    assert pool.value
    assert library.slabpool_pool_destroy(pool) == 0
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert {line.split()[-1] for line in maps if line.endswith("/libslabpool.so")} == {str(LIBRARY.resolve())}
