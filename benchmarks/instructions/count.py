"""Counts instructions under callgrind: of a whole program, of slabpool's own libraries in it, or locked ones.

The cost of one operation is the difference between many and few operations, divided by the number between:
start-up, set-up and the end of the program cancel out.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import native
from benchmarks.harness.programs import ROOT

#: Few and many operations: multiples of 64, below the 4,000 devices that the ack operations set up.
_FEW, _MANY = 1024, 3072
NATIVE = (
    "allocate_free_4KiB",
    "allocate_free_1MiB",
    "open_close",
    "ack",
    "request",
    "four_acks",
    "tensors_64",
    "tensors_64_viewed",
    "stats",
)
PYTHON = ("empty", "ack", "request", "four_acks")
#: The name of a count that has the instructions of the interpreter and of numpy too.
WHOLE = "Python {} in all"
#: The name of a count of locked instructions: each costs as much as some twenty others.
LOCKED = "C++ {} locked"


class CannotCountError(RuntimeError):
    """valgrind or a compiler is missing, or a program failed under valgrind."""


def callgrind(command: list[str], folder: Path, options: tuple[str, ...] = ()) -> Path:
    """Runs a command, and returns its profile."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotCountError("valgrind is not installed (Debian: valgrind)")
    output = folder / "callgrind.out"
    output.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # its threads, which numpy starts, spin while they wait
    done = subprocess.run(
        [valgrind, "--tool=callgrind", f"--callgrind-out-file={output}", "--compress-pos=no", *options,
         *command],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise CannotCountError(f"{' '.join(command)} under valgrind: {done.stderr[-2000:]}")
    return output


def total(profile: Path) -> int:
    """All instructions of a profile."""
    found = re.search(r"^totals: (\d+)", profile.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise CannotCountError(f"{profile} has no total")
    return int(found[1])


def _costs(profile: Path) -> Iterator[tuple[str, str, int]]:
    """(object, line number or 0xaddress, cost) of what a profile's functions executed themselves."""
    # An "ob=" line names the object to which the following lines belong: first as "(7) path", later as "(7)".
    # A cost line is "position cost"; the one after "calls=" is the cost of the callee.
    names: dict[str, str] = {}
    inside = ""
    called = False
    with profile.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("ob=", "cob=")):
                number, _, path = line.split("=", 1)[1].strip().partition(" ")
                if path:
                    names[number] = path
                if line.startswith("ob="):
                    inside = names[number]
            elif line.startswith("calls="):
                called = True
            elif line[:1].isdigit():
                if not called:
                    position, *_, cost = line.split()
                    yield inside, position, int(cost)
                called = False


def own(profile: Path) -> int:
    """Instructions executed in slabpool's own libraries, without those of the functions they call."""
    return sum(
        cost for path, _, cost in _costs(profile) if "/slabpool/_core/" in path or "/libslabpool." in path
    )


@functools.cache
def _locked_in(path: str) -> frozenset[int]:
    """The addresses of an object's instructions that lock the bus: prefixed, or an exchange with memory."""
    if not os.path.isfile(path):
        return frozenset()
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    )
    found = re.finditer(
        r"^\s*([0-9a-f]+):\s+(?:lock |xchg .*\()", listing.stdout, re.MULTILINE
    )  # "address: mnemonic operands"
    return frozenset(int(one[1], 16) for one in found)


def locked(profile: Path) -> int:
    """Locked instructions of a profile with an address for each cost, of all objects that are files."""
    return sum(
        cost for path, address, cost in _costs(profile) if path and int(address, 16) in _locked_in(path)
    )


def count_all() -> dict[str, float]:
    """Instructions per operation, by name."""
    counts: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="slabpool-instructions-") as name:
        folder = Path(name)
        sources = Path(__file__).parent
        program = native.build([sources / "hot_paths.cpp"], folder / "hot-paths")
        for operation in NATIVE:
            profiles = []
            for n in (_FEW, _MANY):
                profile = callgrind(
                    [str(program), operation, str(n)], folder, ("--dump-instr=yes", "--dump-line=no")
                )
                profiles.append((total(profile), locked(profile)))
            for name, few, many in zip(("C++ {}", LOCKED), *profiles, strict=True):
                counts[name.format(operation)] = (many - few) / (_MANY - _FEW)
        script = str(sources / "hot_paths.py")
        for operation in PYTHON:
            profiles = []
            for n in (_FEW, _MANY):
                profile = callgrind([sys.executable, script, operation, str(n)], folder)
                profiles.append((own(profile), total(profile)))
            for name, few, many in zip(("Python {}", WHOLE), *profiles, strict=True):
                counts[name.format(operation)] = (many - few) / (_MANY - _FEW)
    return counts
