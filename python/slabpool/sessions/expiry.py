"""The thread by which idle sessions expire although nobody calls the pool.

One for each pool that has sessions with a ttl. It sleeps until the first may expire, or there is news; it
keeps neither the pool nor its sessions, and ends with either.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabpool.sessions.registry import Sessions


def start(sessions: Sessions, name: str, news: threading.Event) -> threading.Thread:
    """The thread, running; `news` tells it of an earlier deadline, or of the end."""
    thread = threading.Thread(target=_expire, args=(weakref.ref(sessions), news), name=name, daemon=True)
    # Its end if nobody closes the pool. Not in a fork, where the event's lock may be anybody's.
    weakref.finalize(sessions, _wake, news, os.getpid()).atexit = False
    thread.start()
    return thread


def _wake(news: threading.Event, pid: int) -> None:
    if os.getpid() == pid:
        news.set()


def _expire(sessions_of: weakref.ref[Sessions], news: threading.Event) -> None:
    while True:
        news.clear()  # before looking: what comes after the look wakes
        sessions = sessions_of()
        wait = None if sessions is None else sessions.expire_due()
        del sessions
        if wait is None:
            return
        news.wait(min(wait, threading.TIMEOUT_MAX))
