"""What an operation costs beside much of something: instructions, those of the interpreter included.

callgrind counts between two marks, so that the set-up costs little time and is not counted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import native
from benchmarks.harness.programs import ROOT
from benchmarks.instructions.count import CannotCountError, callgrind, total

HERE = Path(__file__).parent
#: How often an operation is done. Less than the devices of a request, each of which acknowledges once.
TIMES = 500
#: Operations of growing_paths.py.
OPERATIONS = ("open_after_lines", "ack_among_devices", "ack_by_generation", "look_beside_blocks")
_MARKED = ("--instr-atstart=no",)


def counts(wanted: list[tuple[str, int]], folder: Path) -> list[float]:
    """Instructions of each operation beside so many lines, devices, generations or blocks.

    Raises
    ------
    CannotCountError, NoCompilerError
        valgrind, its headers or a compiler is missing.
    """
    script = [sys.executable, str(HERE / "growing_paths.py"), str(_marks(folder)), str(TIMES)]
    profile = callgrind([*script, *(str(word) for pair in wanted for word in pair)], folder, _MARKED)
    parts = [profile.with_name(f"{profile.name}.{number}") for number in range(1, len(wanted) + 1)]
    return [total(part) / TIMES for part in parts]


def holds(sizes: list[int], folder: Path) -> list[float]:
    """Instructions for which an observer that counts the views of so many blocks holds their lock at most."""
    core = ROOT / "csrc" / "slabpool" / "request" / "blocks.cpp"
    program = native.build([HERE / "growing_blocks.cpp", core], folder / "growing-blocks")
    return [float(total(callgrind([str(program), str(n)], folder, _MARKED))) for n in sizes]


def _marks(folder: Path) -> Path:
    library = folder / "marks.so"
    if not library.exists():
        command = [*native.compiler(), "-x", "c", "-O2", "-shared", "-fPIC", str(HERE / "marks.c"), "-o"]
        made = subprocess.run([*command, str(library)], capture_output=True, text=True)
        if made.returncode != 0:
            raise CannotCountError(f"the marks do not compile (Debian: valgrind): {made.stderr.strip()}")
    return library
