"""Telling that a thread waits, without sleeping for a time that one hopes is long enough."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable


def waits(ident: int) -> Callable[[], bool]:
    """A question: has this thread been at one and the same place for the last twenty looks?"""
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
    """Return once the condition holds; fail when it has not after half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def once(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """A started thread that acts once the condition holds (or, so that nobody hangs, after half a minute)."""

    def run() -> None:
        try:
            until(condition)
        finally:
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
