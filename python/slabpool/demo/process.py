"""The resident memory of this process, as the operating system reports it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the resident size of this process in bytes; without ``/proc`` (macOS), the peak of it.

    The difference of two calls is the growth of the process, provided that it did not shrink in between.

    Returns
    -------
    int

    Examples
    --------
    >>> from slabpool.demo.process import resident_bytes
    >>> resident_bytes() > 1_000_000
    True
    """
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
