"""Waiting for a pool inside asyncio: one file descriptor a pool and event loop, no threads, no polling.

The core writes to the descriptor whenever memory came back or a request ended; the loop then wakes
every coroutine that waits, and each looks for itself. While acks wait for CUDA streams, which wake nobody,
it also looks after a pause. The descriptor exists only while somebody waits, and nothing of the loop is
kept beyond.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from slabpool.errors import InvalidArgumentError, InvalidTypeError, PoolExhausted, TensorTooLargeError

if TYPE_CHECKING:
    from slabpool._core.pool import Pool
    from slabpool._core.request import Request


# Seconds between two looks at acks that wait for streams. Short at first: so is most of what they wait for.
FIRST_PAUSE = 50e-6
LONGEST_PAUSE = 2e-3


class _Wakeup:
    """The descriptor of one pool in one event loop, and the coroutines that wait on it."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._waiters: set[asyncio.Future[bool]] = set()
        self._count = 0
        self._read = self._write = -1

    def __enter__(self) -> _Wakeup:
        if self._count == 0:
            self._open()
        self._count += 1
        return self

    def _open(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)
        try:
            self._loop.add_reader(self._read, self._wake)
            self._pool._add_wakeup(self._write)
            if self._pool._bell >= 0:
                # What ends by the acks that are taken in then, wakes.
                self._loop.add_reader(self._pool._bell, self._pool._answer_bell)
        except BaseException:
            self._close()
            raise
        _wakeups(self._pool)[self._loop] = self

    def _close(self) -> None:
        # Off the pool first: from then on nobody writes to a number that may soon be another file's.
        self._pool._remove_wakeup(self._write)
        self._loop.remove_reader(self._read)
        if self._pool._bell >= 0:
            self._loop.remove_reader(self._pool._bell)
        for fd in {self._read, self._write}:
            os.close(fd)

    def __exit__(self, *exc: object) -> None:
        self._count -= 1
        if self._count == 0:
            del _wakeups(self._pool)[self._loop]
            self._close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # somebody read it in the meantime
            os.read(self._read, 4096)
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            _answer(waiter, True)

    async def next(self, deadline: float | None) -> bool:
        """True after the next wake-up that comes after this call; False if the deadline (of the loop's
        clock) was first.
        """
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
    """Those in use, by loop. Each loop's thread touches the entry of its own loop alone."""
    wakeups: dict[asyncio.AbstractEventLoop, _Wakeup] = pool.__dict__.setdefault("_wakeups", {})
    return wakeups


async def until(pool: Pool, done: Callable[[], bool], timeout: float | None = None) -> bool:
    """True once `done()` is; it is asked again whenever memory came back or a request ended. False if the
    timeout (seconds) is over and it still is not.
    """
    if done():
        return True
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    with _wakeups(pool).get(loop) or _Wakeup(pool, loop) as wakeup:
        # Asked after the wake-up is in place: what happens from now on is seen. Between the answer and the
        # return nothing is awaited, so that a cancelled coroutine never has what `done` opened.
        pause = FIRST_PAUSE
        while not done():
            until_then = deadline
            if pool._stream_acks:
                look = loop.time() + pause
                until_then = look if deadline is None else min(look, deadline)
                pause = min(2 * pause, LONGEST_PAUSE)
            woken = await wakeup.next(until_then)
            # The clock is asked too: a pool that is busy enough has news at every turn.
            if (not woken and until_then is deadline) or (deadline is not None and loop.time() >= deadline):
                return done()
    return True


async def released(pool: Pool, done: Callable[[], bool]) -> None:
    """Returns once `done()` is true."""
    await until(pool, done)


async def open_request(pool: Pool, attempt: Callable[[], Request], timeout: float | None) -> Request:
    """Calls `attempt` until it does not run out of memory any more, or the timeout (seconds) is over."""
    if timeout is not None:
        try:
            timeout = float(timeout)
        except (TypeError, ValueError, OverflowError):
            raise InvalidTypeError(f"timeout must be seconds or None, got {timeout!r}") from None
        if not timeout >= 0:
            raise InvalidArgumentError(f"timeout must be seconds from 0 on, or None; got {timeout!r}")
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
        last = None  # its traceback leads here: a circle, which would keep the pool
