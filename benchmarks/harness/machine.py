"""Describes the machine and the moment, so that a reader can place the figures."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.harness import native, peers


def _first_line(path: str, after: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(after)), None)


def _compiler() -> str:
    try:
        asked = subprocess.run([*native.compiler(), "--version"], capture_output=True, text=True)
    except native.NoCompilerError as error:
        return str(error)
    return (asked.stdout.splitlines() or ["unknown"])[0]


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return text[text.find("[") + 1 : text.find("]")]


def describe() -> dict[str, str]:
    """The machine and the moment."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "transparent huge pages": _huge_pages(),
        "compiler": _compiler(),
        "Python": platform.python_version(),
        "load when it began": load + " (1, 5, 15 min)",
    }


def versions(names: set[str]) -> dict[str, str]:
    """Versions of slabpool and of the peers that are installed."""
    import slabpool

    found = {"slabpool": slabpool.__version__, "numpy": peers.version("numpy")}
    found.update({name: peers.version(name) for name in sorted(names) if peers.missing(name) is None})
    return found
