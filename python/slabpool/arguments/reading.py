"""Reads text that may come from anywhere: numbers and JSON, within limits.

Everything that slabpool parses (sizes, traces, references, the messages of shared pools) is read by these
functions. They raise `UnreadableError`, a ValueError whose text is short; each caller turns it into an error
of its own. No input makes them raise another exception, or work for longer than its length.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from slabpool.arguments.texts import short

DIGITS = 20  # of a whole number; 64 bits need no more
# Compiled when they are used first, and then kept by `re`.
_DECIMAL = r"[0-9]{1,20}(?:\.[0-9]{1,20})?|\.[0-9]{1,20}"
_MANY_DIGITS = "[0-9]{21}"  # more than DIGITS
# Digits of an int that is a name: names.MOST_BITS bits.
DIGITS_OF_NAMES = 617
_STRING = r'(?s)"[^"\\]*(?:\\.[^"\\]*)*"'
_BRACKET = r"[\[\](){}]"


class UnreadableError(ValueError):
    """Text that cannot be read. The message says why, in a few words."""


def whole_number(text: str, *, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """A whole number written in decimal ASCII digits.

    Examples
    --------
    >>> from slabpool.arguments.reading import whole_number
    >>> whole_number("2147483648")
    2147483648
    """
    if not 0 < len(text) <= DIGITS or not (text.isascii() and text.isdigit()):
        raise UnreadableError(f"not a whole number: {short(text)!r}")
    number = int(text)
    if not least <= number <= most:
        raise UnreadableError(f"not from {least} to {most}: {number}")
    return number


def decimal(text: str) -> tuple[int, int]:
    """A number such as "1.25", exactly: as a whole number and the power of ten to divide it by.

    Examples
    --------
    >>> from slabpool.arguments.reading import decimal
    >>> decimal("1.25"), decimal("3")
    ((125, 100), (3, 1))
    """
    if re.fullmatch(_DECIMAL, text) is None:
        raise UnreadableError(f"not a number: {short(text)!r}")
    whole, _, fraction = text.partition(".")
    return int(whole + fraction), 10 ** len(fraction)


def check_depth(text: str, deepest: int) -> None:
    """Raises if brackets outside of strings are nested deeper than that."""
    if text.count("[") + text.count("{") + text.count("(") <= deepest:
        return
    depth = 0
    for bracket in re.findall(_BRACKET, re.sub(_STRING, "", text)):
        depth += 1 if bracket in "[{(" else -1
        if depth > deepest:
            raise UnreadableError(f"nested too deeply, more than {deepest} levels")


def read_json(data: str | bytes, *, longest: int, deepest: int, digits: int = DIGITS) -> Any:
    """A JSON value of at most `longest` characters (of bytes: in UTF-8) and `deepest` levels.

    Numbers have at most `digits` (at least `DIGITS`) digits if they are whole, and are finite otherwise.

    Examples
    --------
    >>> from slabpool.arguments.reading import read_json
    >>> read_json('{"device": "gpu0"}', longest=100, deepest=1)
    {'device': 'gpu0'}
    """
    import json  # not loaded with the package

    if len(data) > longest:
        raise UnreadableError(f"longer than {longest} characters")
    try:
        text = data if isinstance(data, str) else data.decode()
        check_depth(text, deepest)
        # A function of Python's for each number is slow, and a trace may have thousands in a row.
        whole = functools.partial(_whole_in_json, digits) if re.search(_MANY_DIGITS, text) else None
        return json.loads(text, parse_int=whole, parse_float=_float_in_json, parse_constant=_no_constant)
    except UnreadableError:
        raise
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not a text ({error.reason})") from None
    except ValueError as error:
        raise UnreadableError(f"not JSON ({short(str(error), 100)})") from None
    except RecursionError:
        raise UnreadableError("nested too deeply") from None


def _whole_in_json(digits: int, text: str) -> int:
    if len(text.lstrip("-")) > digits:
        raise UnreadableError(f"a number has more than {digits} digits: {short(text)}")
    return int(text)


def _float_in_json(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UnreadableError(f"a number is not finite: {short(text)}")
    return number


def _no_constant(text: str) -> float:
    raise UnreadableError(f"a number is not finite: {text}")
