"""Descriptors that a fork must not inherit.

The end of a socket, and a released lock, show that a process is gone. Neither works while a forked child has
a copy of the descriptor. Everything in `held` is closed in every child, before its own code runs. Order of
locks: `lock` is outermost; a thread that holds it waits for nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Protocol


class Closable(Protocol):
    """A socket, or anything else with a descriptor to close."""

    def close(self) -> None:
        """Closes the descriptor."""


#: Held while such a descriptor is made, until it is in `held`, and during a fork.
lock = threading.RLock()
held: set[Closable] = set()


class Descriptor:
    """A bare descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """The descriptor's number."""
        return self.fd

    def close(self) -> None:
        """Closes it, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def owned(a_lock: threading.RLock) -> bool:  # type: ignore[valid-type, unused-ignore]
    """Whether the calling thread holds the lock."""
    # What threading.Condition uses. A count of this module's own would be wrong for a moment in `acquire`.
    return bool(a_lock._is_owned())  # type: ignore[attr-defined, unused-ignore]


def release(thing: Closable) -> None:
    """Closes a descriptor in this process."""
    with lock:
        held.discard(thing)
        thing.close()


def _close_in_child() -> None:
    for thing in held:
        with contextlib.suppress(OSError):
            thing.close()
    held.clear()
    lock.release()


os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=_close_in_child)
