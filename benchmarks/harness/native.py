"""The C++ drivers (benchmarks/cpp), compiled against the headers and the library of the installed slabpool.

They are built once per run of the harness, into its temporary folder, so a driver is never older than the
library it measures. Needs a C++20 compiler: CXX, or c++.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import slabpool

SOURCES = Path(__file__).resolve().parent.parent / "cpp"
#: The page heap, which the library does not export. Programs that measure it contain it.
_CORE = "../../csrc/slabpool"
_HEAP = (
    "memory/record_chunks",
    "slab/free_spans",
    "slab/page_heap",
    "slab/page_heap_growing",
    "slab/page_heap_holes",
    "slab/page_heap_quarantine",
    "slab/page_heap_ranges",
)
#: The source files of each program.
PROGRAMS = {
    "host": ("main.cpp", "floors.cpp"),
    "gpu": ("gpu.cpp",),
    "holes": ("holes.cpp", *(f"{_CORE}/{name}.cpp" for name in _HEAP)),
}
#: -fno-builtin, because the compiler would remove a malloc and free pair whose memory is not used.
FLAGS = ("-std=c++20", "-O2", "-g", "-fno-builtin-malloc", "-fno-builtin-free", "-fno-plt")


class NoCompilerError(RuntimeError):
    """The driver cannot be built here. The message says why."""


def compiler() -> list[str]:
    """The command of the C++ compiler."""
    command = os.environ.get("CXX", "").split() or ["c++"]
    if shutil.which(command[0]) is None:
        raise NoCompilerError(f"no C++ compiler: {command[0]} is not found (set CXX)")
    return command


def build(sources: list[Path], program: Path) -> Path:
    """Compile and link one program against the installed core."""
    include, lib = slabpool.get_include(), slabpool.get_lib()
    command = [*compiler(), *FLAGS, f"-I{include}", *map(str, sources), "-o", str(program)]
    command += [f"-L{lib}", "-lslabpool", f"-Wl,-rpath,{lib}", "-pthread", "-ldl"]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        raise NoCompilerError(f"the C++ driver does not compile:\n{made.stderr.strip()}")
    return program


def build_driver(folder: Path, program: str) -> Path:
    """Builds one of the drivers in `folder`."""
    return build([SOURCES / name for name in PROGRAMS[program]], folder / f"slabpool-bench-{program}")
