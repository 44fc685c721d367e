"""Builds the stand-in CUDA driver with the system's C++ compiler, and controls it (standin/standin.h).

CMake builds the same sources for the C++ tests. On a machine with a GPU the tests use its driver, and tests
that need the controls skip.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "standin"
CORE = HERE.parent.parent / "csrc"

OUT_OF_MEMORY = 2
ILLEGAL_ADDRESS = 700
LAUNCH_FAILED = 719
ALL_CALLS = "*"
UNKNOWN_ATTRIBUTE = -(2**31)

_FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "standin_reset": (None, []),
    "standin_set_memory": (None, [ctypes.c_int, ctypes.c_uint64]),
    "standin_used": (ctypes.c_uint64, [ctypes.c_int]),
    "standin_set_attribute": (None, [ctypes.c_int, ctypes.c_int, ctypes.c_int]),
    "standin_lose_device": (None, [ctypes.c_int, ctypes.c_int]),
    "standin_fail": (None, [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]),
    "standin_clear_faults": (None, []),
    "standin_faults_left": (ctypes.c_uint64, []),
    "standin_calls": (ctypes.c_uint64, [ctypes.c_char_p]),
    "standin_calls_after_fork": (ctypes.c_uint64, []),
    "standin_complaints": (ctypes.c_char_p, []),
    "standin_clear_complaints": (None, []),
    "standin_leaks": (ctypes.c_char_p, []),
    "standin_context_depth": (ctypes.c_uint64, []),
    "standin_peek": (ctypes.c_int, [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64]),
    "standin_poke": (ctypes.c_int, [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64]),
}


def build(folder: Path, compiler: str) -> Path:
    """Compile the stand-in into `folder`, and return the path of the library."""
    library = folder / "libslabpool_standin_cuda.so"
    command = [compiler, "-std=c++20", "-O0", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    command += [f"-I{CORE}", *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


class Standin:
    """The controls of this process' copy of the stand-in."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.library = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments

    def reset(self) -> None:
        """Free everything made through the driver; clear faults, counts and settings."""
        self.library.standin_reset()

    def set_memory(self, device: int, nbytes: int) -> None:
        """Set the bytes of memory of the device."""
        self.library.standin_set_memory(device, nbytes)

    def used(self, device: int = 0) -> int:
        """Bytes of the device's physical memory in use."""
        return int(self.library.standin_used(device))

    def set_attribute(self, device: int, attribute: int, value: int) -> None:
        """Set an attribute of a device; ``UNKNOWN_ATTRIBUTE``: the driver does not know it."""
        self.library.standin_set_attribute(device, attribute, value)

    def lose_device(self, device: int, result: int = LAUNCH_FAILED) -> None:
        """Every call on the device returns `result` from now on; with 0 it works again."""
        self.library.standin_lose_device(device, result)

    def fail(self, name: str, nth: int = 1, result: int = OUT_OF_MEMORY, times: int = -1) -> None:
        """From the `nth` call of a function from now on, `times` calls fail (-1: all)."""
        self.library.standin_fail(name.encode(), nth, result, times)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self.library.standin_clear_faults()

    def faults_left(self) -> int:
        """Number of faults that have not occurred as often as they may."""
        return int(self.library.standin_faults_left())

    def calls(self, name: str) -> int:
        """How often a function was called since the last reset."""
        return int(self.library.standin_calls(name.encode()))

    def calls_after_fork(self) -> int:
        """Number of calls that a fork's child has made, which must be 0."""
        return int(self.library.standin_calls_after_fork())

    def complaints(self) -> str:
        """What the program did that it must not do, one line for each."""
        return (self.library.standin_complaints() or b"").decode()

    def clear_complaints(self) -> None:
        """Clear the complaints."""
        self.library.standin_clear_complaints()

    def leaks(self) -> str:
        """Memory, streams and events that exist now, one line for each."""
        return (self.library.standin_leaks() or b"").decode()

    def context_depth(self) -> int:
        """Number of contexts that this thread has pushed."""
        return int(self.library.standin_context_depth())

    def peek(self, address: int, nbytes: int) -> bytes:
        """Read device memory, without the streams."""
        buffer = ctypes.create_string_buffer(nbytes)
        assert self.library.standin_peek(address, buffer, nbytes), self.complaints()
        return buffer.raw

    def poke(self, address: int, data: bytes) -> None:
        """Write device memory, without the streams."""
        assert self.library.standin_poke(address, data, len(data)), self.complaints()
