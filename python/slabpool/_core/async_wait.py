"""Waiting for a pool inside asyncio: one file descriptor for each pool and event loop, and no threads.

The core writes to the descriptor whenever memory is returned or a request is released. The loop then wakes
every waiting coroutine, and each tries again. CUDA streams never wake waiters, so while acks wait for streams
the coroutines also poll, after pauses. The descriptor exists only while a coroutine waits, and the event loop
is not kept alive.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from slabpool.arguments.texts import show
from slabpool.errors import InvalidArgumentError, InvalidTypeError, PoolExhausted, TensorTooLargeError

if TYPE_CHECKING:
    import asyncio

    from slabpool._core.pool import Pool
    from slabpool._core.request import Request


# Seconds between two polls while acks wait for streams. Short at first, because most work on streams is
# short.
FIRST_PAUSE = 50e-6
LONGEST_PAUSE = 2e-3


class _Wakeup:
    """The descriptor of one pool in one event loop, and the coroutines that wait on it."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._waiters: set[asyncio.Future[bool]] = set()
        self._count = 0
        self._fd = -1

    def __enter__(self) -> _Wakeup:
        if self._count == 0:
            self._open()
        self._count += 1
        return self

    def _open(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._loop.add_reader(self._fd, self._wake)
            self._pool._add_wakeup(self._fd)
            if self._pool._bell >= 0:
                # Collecting the acks of peers wakes the waiters of what they release.
                self._loop.add_reader(self._pool._bell, self._pool._answer_bell)
        except BaseException:
            self._close()
            raise
        _wakeups(self._pool)[self._loop] = self

    def _close(self) -> None:
        # First remove it from the pool: after close() another file may have the same number.
        self._pool._remove_wakeup(self._fd)
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
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            _answer(waiter, True)

    async def next(self, deadline: float | None) -> bool:
        """True after the next wake-up; False if the deadline (by the loop's clock) comes first."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiters.add(waiter)
        timer = None if deadline is None else self._loop.call_at(deadline, _answer, waiter, False)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _answer(waiter: asyncio.Future[bool], woken: bool) -> None:
    if not waiter.done():
        waiter.set_result(woken)


def _wakeups(pool: Pool) -> dict[asyncio.AbstractEventLoop, _Wakeup]:
    """The wake-ups in use, by loop. The thread of a loop uses only the entry of its own loop."""
    wakeups: dict[asyncio.AbstractEventLoop, _Wakeup] = pool.__dict__.setdefault("_wakeups", {})
    return wakeups


async def until(pool: Pool, done: Callable[[], bool], timeout: float | None = None) -> bool:
    """True once `done()` is true; False if it is still false when the timeout (seconds) expires.

    `done` is called again whenever memory is returned or a request is released.
    """
    if done():
        return True
    import asyncio  # here, because `import slabpool` must not load it; a coroutine that runs has loaded it

    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    with _wakeups(pool).get(loop) or _Wakeup(pool, loop) as wakeup:
        # done() is called after the wake-up is in place, so that no event is missed. Nothing is awaited
        # between a true result and the return, so that a cancelled coroutine never leaves behind what `done`
        # opened.
        pause = FIRST_PAUSE
        while not done():
            until_then = deadline
            if pool._must_poll:
                look = loop.time() + pause
                until_then = look if deadline is None else min(look, deadline)
                pause = min(2 * pause, LONGEST_PAUSE)
            woken = await wakeup.next(until_then)
            # Also by the clock, because a busy pool wakes the loop at every turn.
            if (not woken and until_then is deadline) or (deadline is not None and loop.time() >= deadline):
                return done()
    return True


async def released(pool: Pool, done: Callable[[], bool]) -> None:
    """Returns once `done()` is true."""
    await until(pool, done)


async def open_request(pool: Pool, attempt: Callable[[], Request], timeout: float | None) -> Request:
    """Calls `attempt` until it does not run out of memory, or the timeout (seconds) expires."""
    if timeout is not None:
        try:
            timeout = float(timeout)
        except (TypeError, ValueError, OverflowError):
            raise InvalidTypeError(f"timeout must be seconds or None, got {show(timeout)}") from None
        if not timeout >= 0:
            raise InvalidArgumentError(f"timeout must be seconds from 0 on, or None; got {show(timeout)}")
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
        if await until(pool, try_once, timeout):
            return opened[0]
        assert last is not None  # it was tried at least once
        raise last
    finally:
        last = None  # its traceback refers to this frame: the cycle would keep the pool alive
