"""Sizes as users write them: 2147483648, "2GiB", "512 MB", "0.5GiB"."""

from __future__ import annotations

import operator
import re

from slabpool.arguments.reading import UnreadableError, decimal
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError

_UNITS = {
    "": 1, "b": 1,
    "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
}  # fmt: skip
_SIZE = r"([0-9.]+)\s*([a-zA-Z]*)"


def parse_size(value: object, what: str, *, least: int, most: int) -> int:
    """Bytes of a size, within bounds.

    Parameters
    ----------
    value : int or str
        Bytes, or a number with a unit: KiB, MiB, GiB, TiB (or K, M, G, T) are powers of 1024; kB, MB,
        GB, TB powers of 1000. Upper and lower case are the same.
    what : str
        The argument's name, for messages.
    least, most : int
        Bounds in bytes.

    Returns
    -------
    int

    Raises
    ------
    InvalidTypeError, InvalidArgumentError

    Examples
    --------
    >>> from slabpool.arguments.sizes import parse_size
    >>> parse_size("2GiB", "capacity", least=1, most=1 << 40)
    2147483648
    """
    if isinstance(value, str):
        try:
            match = re.fullmatch(_SIZE, value.strip() if len(value) < 100 else "")
            number, scale = decimal(match[1] if match else "")
            size = number * _UNITS[match[2].lower() if match else ""] // scale
        except (UnreadableError, KeyError):
            raise InvalidArgumentError(
                f"{what} must be bytes or a size such as '2GiB', got {show(value)}"
            ) from None
    else:
        if isinstance(value, bool):
            raise InvalidTypeError(f"{what} must be bytes or a size such as '2GiB', got {show(value)}")
        try:
            size = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise InvalidTypeError(
                f"{what} must be bytes or a size such as '2GiB', got {show_typed(value)}"
            ) from None
    if not least <= size <= most:
        # Python limits the length of numbers that it prints.
        got = (
            f"{show(value)} ({size} bytes)"
            if size.bit_length() < 256
            else f"a number of {size.bit_length()} bits"
        )
        raise InvalidArgumentError(f"{what} must be from {least} to {most} bytes, got {got}")
    return size


def show_size(nbytes: int) -> str:
    """A size for messages, in binary units.

    Examples
    --------
    >>> from slabpool.arguments.sizes import show_size
    >>> show_size(1536), show_size(10)
    ('1.5 KiB', '10 bytes')
    """
    if nbytes < 1024:
        return f"{nbytes} bytes"
    size = float(nbytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.4g} {unit}"
    return f"{size / 1024:.4g} TiB"
