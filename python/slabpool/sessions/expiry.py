"""The thread that ends sessions whose ttl has passed, also if no call reaches the pool.

One for each pool that has sessions with a ttl. It sleeps until the first session may expire or `news` is set.
It keeps neither the pool nor its sessions alive. It ends when the pool or its sessions are gone.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabpool.sessions.registry import Sessions


def start(sessions: Sessions, name: str, news: threading.Event) -> threading.Thread:
    """Starts the thread. `news` wakes it for an earlier deadline, or for the end."""
    thread = threading.Thread(target=_expire, args=(weakref.ref(sessions), news), name=name, daemon=True)
    # Ends the thread of a pool that is never closed. Not in a fork, where another thread may hold the event's
    # lock.
    weakref.finalize(sessions, _wake, news, os.getpid()).atexit = False
    thread.start()
    return thread


def _wake(news: threading.Event, pid: int) -> None:
    if os.getpid() == pid:
        news.set()


def _expire(sessions_of: weakref.ref[Sessions], news: threading.Event) -> None:
    while True:
        news.clear()  # before expire_due(): what is set after it wakes the wait below
        sessions = sessions_of()
        wait = None if sessions is None else sessions.expire_due()
        del sessions
        if wait is None:
            return
        news.wait(min(wait, threading.TIMEOUT_MAX))
