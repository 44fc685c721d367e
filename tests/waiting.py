"""Detects that a thread waits, without sleeping for a guessed time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable


def waits(ident: int) -> Callable[[], bool]:
    """A condition: has this thread been at the same place in the last twenty checks?"""
    last: object = None
    count = 0

    def look() -> bool:
        nonlocal last, count
        frame = sys._current_frames()[ident]
        here = (frame.f_code, frame.f_lasti)
        count = count + 1 if here == last else 0
        last = here
        return count >= 20

    return look


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; fail if it does not within half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def once(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """A started thread that acts once the condition holds, or after half a minute, so that no test hangs."""

    def run() -> None:
        try:
            until(condition)
        finally:
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
