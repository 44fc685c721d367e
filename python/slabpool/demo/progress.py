"""How far a run is, on standard error: a bar where `rich` is installed and a person looks, else lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of steps done since the last call."""
    if not enabled:
        yield lambda steps: None
        return
    if sys.stderr.isatty():
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
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task(label, total=total)
                yield lambda steps: bar.advance(task, steps)
            return
    yield _lines(label, total)


def _lines(label: str, total: int) -> Callable[[int], None]:
    """One line for each tenth."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        before, done = done, done + steps
        if before * 10 // total != done * 10 // total:
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)

    return advance
