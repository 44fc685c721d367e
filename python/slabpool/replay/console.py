"""Helpers that the commands share: option types, sizes as text, and a progress bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slabpool.arguments.reading import whole_number as read_number

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for integers from `minimum` to `maximum`.

    Examples
    --------
    >>> from slabpool.replay.console import whole_number
    >>> whole_number(1)("12")
    12
    """

    def parse(text: str) -> int:
        # A sign is allowed, so that a negative number is answered as one.
        value = read_number(text.strip().removeprefix("-"))
        value = -value if text.strip().startswith("-") else value
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"{value} is above {maximum}")
        return value

    parse.__name__ = "whole number"  # argparse names the type in its error if `int` raises
    return parse


def human_bytes(nbytes: float) -> str:
    """Format a number of bytes with a binary unit.

    Examples
    --------
    >>> from slabpool.replay.console import human_bytes
    >>> human_bytes(1536), human_bytes(0), human_bytes(-3 << 20)
    ('1.5 KiB', '0 B', '-3.0 MiB')
    """
    unit = 0
    while abs(nbytes) >= 1024 and unit < len(_UNITS) - 1:
        nbytes /= 1024
        unit += 1
    return f"{nbytes:.0f} B" if unit == 0 else f"{nbytes:.1f} {_UNITS[unit]}"


@contextmanager
def progress(
    label: str, total: int, *, enabled: bool = True, lines: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show on standard error how many of `total` steps are done.

    On a terminal with `rich` installed this is a bar that disappears at the end. Otherwise it is one line for
    each tenth if `lines` is true, else nothing.

    Yields
    ------
    callable
        Call it with the number of steps done since the last call.
    """
    if enabled and sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError:
            pass
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(label, total=total)
                yield lambda steps: bar.advance(task, steps)
            return
    yield _tenths(label, total) if enabled and lines else lambda steps: None


def _tenths(label: str, total: int) -> Callable[[int], None]:
    """Return a progress function that prints one line for each tenth of `total`."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        before, done = done, done + steps
        if before * 10 // total != done * 10 // total:
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)

    return advance
