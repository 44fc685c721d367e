"""Detects that a thread waits, and waits for conditions, without sleeping for a guessed time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120  # seconds after which a condition counts as one that never comes


def _sleeps(thread: int) -> bool:
    """Whether the kernel says that this thread sleeps. True where the kernel does not say."""
    try:
        stat = Path(f"/proc/self/task/{thread}/stat").read_text()
    except OSError:
        return True
    return stat[stat.rindex(")") + 2] == "S"


def waits(ident: int) -> Callable[[], bool]:
    """A condition: has this thread been seen sleeping twenty times since it came to where it is?

    A check of a thread that is ready to run counts for nothing: on a busy machine it has no processor, and a
    thread that waits may look now and then whether its wait is over.
    """
    number = next(thread.native_id for thread in threading.enumerate() if thread.ident == ident)
    assert number is not None
    last: object = None
    count = 0

    def look() -> bool:
        nonlocal last, count
        frame = sys._current_frames().get(ident)
        here = None if frame is None else (frame.f_code, frame.f_lasti)
        if here is None or here != last:
            count = 0
        elif _sleeps(number):
            count += 1
        last = here
        return count >= 20

    return look


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail if it does not within `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def once(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """A started thread that acts once the condition holds, or after `PATIENCE`, so that no test hangs."""

    def run() -> None:
        try:
            until(condition)
        finally:
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
