"""Waiting for a pool inside asyncio: one file descriptor a pool and event loop, no threads, no polling.

The core writes to the descriptor whenever memory came back or a request ended; the loop then wakes
every coroutine that waits, and each looks for itself. The descriptor exists only while somebody waits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from slabpool.errors import PoolExhausted, TensorTooLargeError

if TYPE_CHECKING:
    from slabpool._core.pool import Pool
    from slabpool._core.request import Request


class _Wakeup:
    """The descriptor of one pool in one event loop, and the coroutines that wait on it."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._waiters: set[asyncio.Future[None]] = set()
        self._count = 0
        self._read = self._write = -1

    def __enter__(self) -> _Wakeup:
        if self._count == 0:
            if hasattr(os, "eventfd"):
                self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            else:
                self._read, self._write = os.pipe()
                os.set_blocking(self._read, False)
                os.set_blocking(self._write, False)
            self._loop.add_reader(self._read, self._wake)
            self._pool._add_wakeup(self._write)
        self._count += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._pool._remove_wakeup(self._write)
            self._loop.remove_reader(self._read)
            for fd in {self._read, self._write}:
                os.close(fd)

    def _wake(self) -> None:
        try:
            os.read(self._read, 4096)
        except BlockingIOError:  # somebody read it in the meantime
            pass
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def next(self) -> None:
        """Returns after the next wake-up that comes after this call."""
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)


def _wakeup(pool: Pool) -> _Wakeup:
    loop = asyncio.get_running_loop()
    by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Wakeup]
    by_loop = pool.__dict__.setdefault("_wakeups", WeakKeyDictionary())
    if loop not in by_loop:
        by_loop[loop] = _Wakeup(pool, loop)
    return by_loop[loop]


async def until(pool: Pool, done: Callable[[], bool]) -> None:
    """Returns once `done()` is true; it is asked again whenever memory came back or a request ended."""
    if done():
        return
    with _wakeup(pool) as wakeup:
        # Asked after the wake-up is in place: what happens from now on is seen.
        while not done():
            await wakeup.next()


async def open_request(pool: Pool, attempt: Callable[[], Request], timeout: float | None) -> Request:
    """Calls `attempt` until it does not run out of memory any more, or the timeout (seconds) is over."""
    last: PoolExhausted | None = None
    opened: list[Request] = []

    def try_once() -> bool:
        nonlocal last
        try:
            opened.append(attempt())
        except TensorTooLargeError:
            raise
        except PoolExhausted as error:
            last = error
            return False
        return True

    try:
        await asyncio.wait_for(until(pool, try_once), timeout)
    except asyncio.TimeoutError:
        if opened:
            opened[0].close()
        if last is None:
            raise
        raise last from None
    except asyncio.CancelledError:
        if opened:
            opened[0].close()
        raise
    return opened[0]
