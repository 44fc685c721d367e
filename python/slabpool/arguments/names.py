"""Names of requests, sessions and devices as Python's own values."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

MOST_BITS = 2048  # of an int as a name; Python limits the length of ints that it prints


def plain_name(name: Any) -> Any:
    """The str, int or bytes that a name of a subclass or of numpy stands for; other values as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from slabpool.arguments.names import plain_name
    >>> plain_name(np.int64(5)), plain_name(np.str_("gpu0")), plain_name(True)
    (5, 'gpu0', True)
    """
    if type(name) in (str, int, bytes, bool):
        return name
    if isinstance(name, str):
        return str.__str__(name)
    if isinstance(name, int):
        return int.__int__(name)
    if isinstance(name, np.integer) and name.dtype.kind in "iu":  # np.timedelta64 is a subclass
        return operator.index(name)
    return bytes(memoryview(name)) if isinstance(name, bytes) else name
