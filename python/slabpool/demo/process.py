"""The resident memory of this process, as the operating system reports it."""

from __future__ import annotations

import os
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the resident size of this process in bytes.

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
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
