"""What may wait for another process, kept away from the threads that must not.

Closing a descriptor can block: the last close of a socket with SO_LINGER waits until its data is read. A peer
can queue such a descriptor in its connection, and closing the connection then closes it too. Where the kernel
knows SO_PASSRIGHTS (Linux 6.16), it refuses descriptors that a peer sends to the owner. Elsewhere every
connection is closed on threads that nothing waits for.

Invariants: at most `THREADS` threads close at a time; a descriptor stays in `forks.held` until it is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from slabpool.messages.system import system_refused
from slabpool.shared import forks

Answer = TypeVar("Answer")

#: Threads that close at once, and things that may wait for one before no further connection is accepted.
THREADS = 8
MOST_WAITING = 64

# The option of a Unix socket that allows others to send it descriptors; Linux 6.16 and later.
_SO_PASSRIGHTS = 83

_lock = threading.RLock()  # a leaf in the order of locks
_waiting: deque[forks.Closable] = deque()
_threads = 0


def _start_anew() -> None:
    """In a forked child: it has none of the threads, and `forks` has closed what waited."""
    global _lock, _threads
    _lock = threading.RLock()  # another thread of the parent may have held it
    _waiting.clear()
    _threads = 0


os.register_at_fork(after_in_child=_start_anew)


def locked_here() -> bool:
    """Whether the calling thread holds a lock that a service thread takes before it ends.

    The garbage collector runs on any thread, at almost any place, and may drop a pool there.
    """
    return forks.owned(forks.lock) or forks.owned(_lock)


def refuse_descriptors(listener: socket.socket) -> bool:
    """Whether the kernel refuses descriptors that are sent to connections of this listener from now on.

    A sender then gets EPERM. Connections inherit the option, also for what is sent before they are accepted.
    """
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:  # an older kernel
        return False
    return True


def brings_descriptors(connection: socket.socket) -> bool:
    """Whether the next message of a connection has descriptors. It stays queued; none of them is opened."""
    _, _, flags, _ = connection.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return bool(flags & socket.MSG_CTRUNC)


def close_elsewhere(thing: forks.Closable) -> None:
    """Closes a descriptor that is in `forks.held`, on a thread that nothing waits for."""
    global _threads
    if isinstance(thing, socket.socket):
        with contextlib.suppress(OSError):  # the other side sees the end now, however long the closing takes
            thing.shutdown(socket.SHUT_RDWR)
    with _lock:
        _waiting.append(thing)
        if _threads >= THREADS:
            return
        _threads += 1
    try:
        threading.Thread(target=_close_waiting, name="slabpool-closer", daemon=True).start()
    except RuntimeError:  # no further thread: the next call tries again
        with _lock:
            _threads -= 1


def crowded() -> bool:
    """Whether so many descriptors wait to be closed that no further connection should be accepted."""
    return len(_waiting) >= MOST_WAITING


def _close_waiting() -> None:
    global _threads
    while True:
        with _lock:
            if not _waiting:
                _threads -= 1
                return
            thing = _waiting.popleft()
        with contextlib.suppress(OSError):
            thing.close()
        with forks.lock:
            forks.held.discard(thing)


def start(thread: threading.Thread) -> None:
    """Starts a thread; `SystemRefusedError` if there can be no further one."""
    try:
        thread.start()
    except RuntimeError as error:
        raise system_refused(
            "no thread can be started for a shared pool (RLIMIT_NPROC, or pids.max of the container)",
            errno.EAGAIN,
        ) from error


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The result of a call that may wait for another process. Raises TimeoutError if it takes longer.

    Raises `SystemRefusedError` if there can be no further thread.
    The call goes on in a thread of its own then, and its result is dropped.
    """
    results: list[Answer] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="slabpool-call", daemon=True)
    start(thread)
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError
    return results[0]
