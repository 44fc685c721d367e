"""Numbers and spans of time that callers give as arguments."""

from __future__ import annotations

import math

from slabpool.arguments.texts import show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError

MOST = 1e9  # seconds, 31 years: more is as good as for ever, and fits in 64 bits of nanoseconds


def number(value: object, what: str, wanted: str = "a number") -> float:
    """A number of any numeric type. Text and bool are none.

    Raises
    ------
    InvalidTypeError
        It is something else. `what` and `wanted` are words of the message.

    Examples
    --------
    >>> from slabpool.arguments.seconds import number
    >>> number(3, "fraction"), number(10**400, "timeout")
    (3.0, inf)
    """
    try:
        if isinstance(value, (str, bytes, bytearray, bool)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        raise InvalidTypeError(f"{what} must be {wanted}, got {show_typed(value)}") from None


def seconds(value: object, what: str, or_none: str = "") -> float:
    """Seconds from 0 on, at most `MOST`. `or_none` is added to what the message says is wanted.

    Examples
    --------
    >>> from slabpool.arguments.seconds import seconds
    >>> seconds(0.5, "timeout"), seconds(float("inf"), "timeout")
    (0.5, 1000000000.0)
    """
    span = number(value, what, "seconds" + or_none)
    if not span >= 0:
        raise InvalidArgumentError(f"{what} must be seconds from 0 on{or_none}, got {show_typed(value)}")
    return min(span, MOST)


def some_seconds(value: object, what: str) -> float:
    """Seconds above 0, at most `MOST`.

    Examples
    --------
    >>> from slabpool.arguments.seconds import some_seconds
    >>> some_seconds(60, "ttl")
    60.0
    """
    span = number(value, what, "seconds")
    if not 0 < span <= MOST:
        raise InvalidArgumentError(
            f"{what} must be more than 0 seconds and at most 1e9, got {show_typed(value)}"
        )
    return span
