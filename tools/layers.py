"""Check that each folder of csrc/slabpool includes only the layers below it.

Run from anywhere: ``python tools/layers.py``. Exit status 1 and one line for each include that goes up.
The layers and what each may use are the table below; docs/design/layers.md explains them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "csrc" / "slabpool"

# Each layer and the layers that it uses directly. A layer may also include what these use.
USES = {
    "base": [],
    "memory": ["base"],
    "cuda": ["memory"],
    "slab": ["memory"],
    "wait": ["base"],
    "request": ["slab"],
    "shared": ["request", "cuda", "wait"],
    "acks": ["request", "shared", "cuda"],
    "observe": ["request"],
    "pool": ["acks", "observe", "wait"],
    "adapters": ["pool"],
}
# The C header lies beside the folders, because users include it as slabpool/c_api.h. It may use base alone.
TOP = {"c_api.h": "base"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"slabpool/([^"]+)"', re.MULTILINE)


def below(layer: str) -> set[str]:
    """Give the layers that a layer may include, itself among them."""
    found = {layer}
    for used in USES[layer]:
        found |= below(used)
    return found


def layer_of(path: str) -> str:
    """Give the layer of a file, by its path below csrc/slabpool."""
    return TOP.get(path) or path.split("/")[0]


def faults(core: Path = CORE) -> Iterator[str]:
    """Give a line for each include that goes up, and for each file that is in no layer."""
    for source in sorted(p for p in core.rglob("*") if p.suffix in {".h", ".hpp", ".cpp"}):
        path = source.relative_to(core).as_posix()
        layer = layer_of(path)
        if layer not in USES:
            yield f"{path}: in no layer; the layers are {', '.join(USES)}"
            continue
        text = source.read_text(encoding="utf-8")
        for include in INCLUDE.finditer(text):
            line = text.count("\n", 0, include.start()) + 1
            target = include[1]
            if not (core / target).is_file():
                yield f"{path}:{line}: includes {target}, which does not exist"
            elif layer_of(target) not in below(layer) and not (layer == "adapters" and target in TOP):
                yield f"{path}:{line}: {layer} may not include {layer_of(target)} ({target})"


def main() -> int:
    """Print the faults; 1 if there are any."""
    found = list(faults())
    for fault in found:
        print(fault)
    print(f"layers: {len(found)} includes go up" if found else "layers: every include goes down")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
