"""Values in messages and reprs: names of any number and length, in a text of bounded length.

Every message and repr shows values of the caller by `show` and lists by `few`, so a text of a few values
stays within about 1,000 characters.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

SHOWN = 5  # devices, names or requests in one message
_LONGEST = 40  # characters of one name
_VALUE = 100  # characters of one value


def short(text: str, longest: int = _LONGEST) -> str:
    """A text; if it is long, its beginning and its end.

    Examples
    --------
    >>> from slabpool.arguments.texts import short
    >>> short("gpu0"), short("abcdefghijklmnopqrstuvwxyz", 10)
    ('gpu0', 'abcd...xyz')
    """
    if len(text) <= longest:
        return text
    end = (longest - 3) // 2
    return f"{text[: longest - 3 - end]}...{text[-end:]}"


class _Repr(reprlib.Repr):
    """repr() of a value, made without making all of a long one's first."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = SHOWN
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = _VALUE

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print longer numbers, and takes quadratic time for long ones.
        return repr(x) if x.bit_length() < 256 else f"<an int of {x.bit_length()} bits>"

    def repr_str(self, x: str, level: int) -> str:
        return short(repr(x if len(x) <= 4 * _VALUE else short(x, 4 * _VALUE)), _VALUE)

    def repr_bytes(self, x: bytes, level: int) -> str:
        return short(repr(x if len(x) <= 2 * _VALUE else x[:_VALUE] + b"..." + x[-_VALUE:]), _VALUE)

    def repr_ndarray(self, x: Any, level: int) -> str:
        return f"<array of shape {x.shape} and dtype {short(str(x.dtype))}>"

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, int):  # of a subclass
            return self.repr_int(int(x), level) if x.bit_length() >= 256 else short(repr(x), _VALUE)
        try:
            return short(repr(x), _VALUE)
        except Exception:
            return f"<{short(type(x).__name__)}>"


_repr = _Repr()


def show(value: object) -> str:
    """The repr of a caller's value for a message, in about 100 characters. Never raises.

    Examples
    --------
    >>> from slabpool.arguments.texts import show
    >>> show("gpu0"), show([1, 2, 3, 4, 5, 6, 7])
    ("'gpu0'", '[1, 2, 3, 4, 5, ...]')
    """
    try:
        return short(_repr.repr(value), 3 * _VALUE)
    except Exception:  # a class of the caller's that only looks like one of Python's
        return f"<{short(type(value).__name__)}>"


def show_typed(value: object) -> str:
    """`show`, and the type.

    Examples
    --------
    >>> from slabpool.arguments.texts import show_typed
    >>> show_typed(1.5)
    '1.5 of type float'
    """
    return f"{show(value)} of type {short(type(value).__name__)}"


def few(texts: Iterable[str], shown: int = SHOWN, longest: int = _LONGEST) -> str:
    """A list for a message: a few of the texts, in the order given, and the number of the others.

    Examples
    --------
    >>> from slabpool.arguments.texts import few
    >>> few(["gpu0", "gpu1"]), few(["a", "b", "c"], shown=2), few([])
    ('gpu0, gpu1', 'a, b and 1 more', '')
    """
    known = list(texts)
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return ", ".join(short(text, longest) for text in known[:shown]) + more
