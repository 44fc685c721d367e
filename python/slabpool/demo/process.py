"""How much memory this process has resident, from the system."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Bytes of this process in memory now; where only the peak is known (macOS), the peak.

    Either way the difference of two calls is how much the process grew, as long as it did not shrink.

    Examples
    --------
    >>> from slabpool.demo.process import resident_bytes
    >>> resident_bytes() > 1_000_000
    True
    """
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
