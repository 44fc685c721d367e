"""Waiting for a pool inside asyncio: one file descriptor for each pool and event loop, and no threads.

A coroutine stands in the same queue as threads do. The core writes to the descriptor when the turn of one of
the loop's coroutines has come, and the loop wakes that coroutine alone. CUDA streams never wake waiters, so
while acks wait for streams the first coroutine also polls, after pauses. The descriptor exists only while a
coroutine waits, and the event loop is not kept alive.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from slabpool._core.core import LoopWaiters, Wait
from slabpool.arguments.seconds import seconds
from slabpool.errors import SlabpoolError

if TYPE_CHECKING:
    import asyncio

    from slabpool._core.pool import Pool
    from slabpool._core.request import Request

T = TypeVar("T")

# Seconds between two polls while acks wait for streams. Short at first, because most work on streams is
# short.
FIRST_PAUSE = 50e-6
LONGEST_PAUSE = 2e-3
# Seconds between two looks of the first coroutine at what gives way without a wake-up: heaps, copies, idle
# sessions.
LOOK = 50e-3


class _Wakeup:
    """The descriptor of one pool in one event loop."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._count = 0
        self._fd = -1
        self.waiters: LoopWaiters

    def __enter__(self) -> _Wakeup:
        if self._count == 0:
            self._open()
        self._count += 1
        return self

    def _open(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self.waiters = LoopWaiters(self._fd)
            self._loop.add_reader(self._fd, self._wake)
            if self._pool._bell >= 0:
                # Collecting the acks of peers wakes the waiters of what they release.
                self._loop.add_reader(self._pool._bell, self._pool._answer_bell)
        except BaseException:
            self._close()
            raise
        _wakeups(self._pool)[self._loop] = self

    def _close(self) -> None:
        # All waiters have left, so the core does not write to it any more.
        self._loop.remove_reader(self._fd)
        if self._pool._bell >= 0:
            self._loop.remove_reader(self._pool._bell)
        os.close(self._fd)

    def __exit__(self, *exc: object) -> None:
        self._count -= 1
        if self._count == 0:
            del _wakeups(self._pool)[self._loop]
            self._close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # another wake-up has read it
            os.eventfd_read(self._fd)
        for wait in self.waiters.take():
            if wait.future is not None:
                _answer(wait.future, True)

    async def next(self, wait: Wait, until: float | None) -> bool:
        """True after the next wake-up; False if the instant (by the loop's clock) comes first."""
        future: asyncio.Future[bool] = self._loop.create_future()
        wait.future = future
        timer = None if until is None else self._loop.call_at(until, _answer, future, False)
        try:
            return await future
        finally:
            wait.future = None
            if timer is not None:
                timer.cancel()


def _answer(future: asyncio.Future[bool], woken: bool) -> None:
    if not future.done():
        future.set_result(woken)


def _wakeups(pool: Pool) -> dict[asyncio.AbstractEventLoop, _Wakeup]:
    """The wake-ups in use, by loop. The thread of a loop uses only the entry of its own loop."""
    wakeups: dict[asyncio.AbstractEventLoop, _Wakeup] = pool.__dict__.setdefault("_wakeups", {})
    return wakeups


def _seconds(timeout: object) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout", " or None")


class _Pauses:
    """When the first coroutine tries again without a wake-up."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._next = FIRST_PAUSE

    def until(self, deadline: float | None, otherwise: float | None) -> float | None:
        """The instant of the next poll, or the deadline; `otherwise`: seconds where nothing is polled."""
        pause = otherwise
        if self._pool._must_poll:
            pause = self._next
            self._next = min(2 * pause, LONGEST_PAUSE)
        if pause is None:
            return deadline
        look = self._loop.time() + pause
        return look if deadline is None else min(look, deadline)


async def served(pool: Pool, wait: Wait, attempt: Callable[[Wait], T], timeout: object) -> T:
    """The result of ``attempt(wait)``, once it is this waiter's turn and there is room.

    Nothing is awaited between an attempt that succeeds and the return, so a coroutine that is cancelled
    leaves nothing behind that the attempt made.
    """
    seconds = _seconds(timeout)
    wait.timeout = timeout
    try:
        return attempt(wait)
    except SlabpoolError:
        if not wait.waits:
            raise
    import asyncio  # here, because `import slabpool` must not load it; a coroutine that runs has loaded it

    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    pauses = _Pauses(pool, loop)
    with _wakeups(pool).get(loop) or _Wakeup(pool, loop) as wakeup:
        wait.join(wakeup.waiters)
        try:
            while True:
                # By the clock, because a busy pool wakes the loop at every turn.
                wait.last = deadline is not None and loop.time() >= deadline
                try:
                    return attempt(wait)
                except SlabpoolError:
                    if wait.last or not wait.waits:
                        raise
                woken = False
                while not woken:
                    first = wait.first
                    until = pauses.until(deadline, LOOK) if first else deadline
                    woken = await wakeup.next(wait, until) or first or until is deadline
        finally:
            wait.leave()


async def released(pool: Pool, wait: Wait, request: Request) -> None:
    """Returns once the request is released."""
    if request._is_released:
        return
    import asyncio

    loop = asyncio.get_running_loop()
    pauses = _Pauses(pool, loop)
    with _wakeups(pool).get(loop) or _Wakeup(pool, loop) as wakeup:
        wait.join(wakeup.waiters)
        try:
            request._wait_for_end(wait)
            while not request._is_released:
                await wakeup.next(wait, pauses.until(None, None))
        finally:
            wait.leave()
