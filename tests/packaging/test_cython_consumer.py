"""A Cython engine builds on the installed core: cimports slabpool's .pxd and allocates without the GIL."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

import slabpool

ENGINE = """\
# cython: language_level=3
from libc.stdint cimport uint64_t
from libc.string cimport memset

from slabpool._core.cpp_pool cimport AllocateSpec, Allocation
from slabpool._core.request cimport Request


def scratch(Request request, uint64_t nbytes):
    '''Give the request memory and write it, as an engine's own kernel would: without the GIL.'''
    cdef AllocateSpec spec
    cdef Allocation made
    spec.nbytes = nbytes
    spec.request = request.handle
    with nogil:
        made = request.core.pool.allocate(spec)
        if made.block is not NULL:
            memset(made.block.data, 0x5a, nbytes)
            request.core.pool.drop_view(made.block[0])
    return made.block is not NULL
"""

PROGRAM = """\
import engine, slabpool
with slabpool.Pool("64MiB") as pool:
    request = pool.request("chat-42", devices=["gpu0"])
    assert engine.scratch(request, 100_000)
    held = request.nbytes
    assert not engine.scratch(request, 1 << 40)
    assert request.nbytes == held
    request.close()
    ack = request.ack("gpu0")
    print(held >= 100_000, ack.name, pool.stats().live)
"""


def test_pxd_files_serve_an_engine(
    require_module: Callable[[str], ModuleType], require_program: Callable[..., str], tmp_path: Path
) -> None:
    require_module("Cython")
    compiler = require_program("c++", "g++", "clang++")
    (tmp_path / "engine.pyx").write_text(ENGINE)

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
        return result.stdout

    # No -I, because Cython finds the .pxd files of installed packages.
    run(sys.executable, "-m", "cython", "--cplus", "-3", "engine.pyx", "-o", "engine.cpp")
    includes = [sysconfig.get_path("include"), np.get_include(), slabpool.get_include()]
    run(
        compiler,
        *("-std=c++20", "-fPIC", "-shared", "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION"),
        *(f"-I{path}" for path in includes),
        *("engine.cpp", "-o", f"engine{sysconfig.get_config_var('EXT_SUFFIX')}"),
        *(f"-L{slabpool.get_lib()}", "-lslabpool", f"-Wl,-rpath,{slabpool.get_lib()}"),
    )
    assert run(sys.executable, "-c", PROGRAM) == "True RELEASED 0\n"
