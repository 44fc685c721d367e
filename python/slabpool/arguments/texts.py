"""Values in messages and reprs: names of any number and length, in a text of bounded length."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 5  # devices, names or requests in one message
_LONGEST = 40  # characters of one name


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


def few(texts: Iterable[str], shown: int = SHOWN) -> str:
    """A list for a message: a few of the texts, in the order given, and the number of the others.

    Examples
    --------
    >>> from slabpool.arguments.texts import few
    >>> few(["gpu0", "gpu1"]), few(["a", "b", "c"], shown=2), few([])
    ('gpu0, gpu1', 'a, b and 1 more', '')
    """
    known = list(texts)
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return ", ".join(map(short, known[:shown])) + more
