"""Checks that the Cython files of slabpool import only what lies below them, as import linters do not.

Two rules: `_core` uses only itself and `BELOW`; a Cython module uses only the modules before it in `ORDER`.

Usage: python tools/python_layers.py [folder of the package]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BELOW = {"errors", "records", "arguments"}
#: The Cython modules; each uses only those before it.
ORDER = ["core", "array", "cuda", "tensors", "device_array", "shared", "request", "pool", "session", "heaps"]

_IMPORT = re.compile(
    r"^\s*(?:from\s+slabpool(?P<of>[\w.]*)\s+c?import\s+(?P<names>[\w, ()*]*)"
    r"|c?import\s+slabpool(?P<plain>[\w.]*))"
)
_INCLUDE = re.compile(r'^\s*include\s+"(\w+)\.pxi"')


def used(line: str) -> list[str]:
    """Modules of slabpool that a line imports or cimports, without the package's name.

    >>> used("from slabpool._core.core cimport Core"), used("from slabpool._core import hooks, active")
    (['_core.core'], ['_core.hooks', '_core.active'])
    """
    found = _IMPORT.match(line)
    if found is None:
        return []
    base = (found["of"] or found["plain"] or "").lstrip(".")
    if found["names"] and base in ("", "_core"):
        names = [name.split()[0] for name in found["names"].strip("() ").split(",") if name.strip()]
        return [f"{base}.{name}".lstrip(".") for name in names]
    return [base]


def check(package: Path) -> list[str]:
    """What is wrong, a line each."""
    core = package / "_core"
    files = [path for pattern in ("*.pyx", "*.pxd", "*.pxi") for path in sorted(core.glob(pattern))]
    owner = {part: path.stem for path in core.glob("*.pyx") for part in _parts(path)}
    wrong = [
        f"{name}: not in ORDER of {Path(__file__).name}" for name in sorted(set(owner.values()) - set(ORDER))
    ]
    for path in files:
        module = owner.get(path.stem, path.stem)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for name in used(line):
                layer, _, inner = name.partition(".")
                if layer != "_core" and layer not in BELOW:
                    wrong.append(f"{path}:{number}: _core uses slabpool.{name}, which is above it")
                elif inner in ORDER and module in ORDER and ORDER.index(inner) > ORDER.index(module):
                    wrong.append(f"{path}:{number}: {module} uses {inner}, which is after it")
    return wrong if files else [f"{core}: no Cython files"]


def _parts(pyx: Path) -> list[str]:
    """A module's .pyx, and the files that it includes."""
    return [pyx.stem, *(found[1] for line in pyx.read_text().splitlines() if (found := _INCLUDE.match(line)))]


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "python" / "slabpool"
    problems = check(root)
    print("\n".join(problems) or f"{root}: each Cython module uses only those below it")
    sys.exit(bool(problems))
