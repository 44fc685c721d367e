"""Callbacks for how much of a pool is in use, on a thread of the caller's choosing.

The core notices when the use passes a bound (csrc/slabpool/pool/pressure.cpp), and wakes what waits for it:
a thread in `PressureWatch.wait`, or an event loop through a file descriptor. That thread calls back. There
is no other thread.

A watch keeps the core of its pool alive and not the `Pool`. A loop refers to a watch weakly, and the pool
strongly. So a pool, its watch and a callback that refers to the pool are garbage together. The descriptor is
closed when the last of the watch, its loop's reader and the end of the watch has let go of it; a loop that is
closed lets go too.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, final

from slabpool._core.pool import PoolWatch
from slabpool._core.session import report
from slabpool.arguments.seconds import number
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError, SystemRefusedError

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from slabpool._core.pool import Pool

# Seconds between two looks of a loop at a pool whose memory other processes or streams give back.
LOOK = 50e-3


class Pressure(NamedTuple):
    """The argument of the callback of `Pool.on_pressure`.

    Attributes
    ----------
    high : bool
        The use passed the fraction upwards; False: downwards.
    usage : float
        The part of the capacity that was in use then.
    fraction : float
        As given to `Pool.on_pressure`.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> calls = []
    >>> watch = pool.on_pressure(0.5, calls.append)
    >>> array = pool.empty(3 << 18, "u1")
    >>> watch.check()
    1
    >>> calls
    [Pressure(high=True, usage=0.75, fraction=0.5)]
    >>> watch.close()
    """

    high: bool
    usage: float
    fraction: float


@final
class PressureWatch:
    """Calls back when the use of a pool passes a fraction of its capacity. Made by `Pool.on_pressure`.

    The callback is called once for each change, in their order, by one thread at a time. If the use passes
    the fraction and comes back before a thread looks, the callback is called for both changes. If there were
    more changes before a thread looked, it is called for the last one or two, so that the last call has the
    present state. An exception of the callback goes to `sys.unraisablehook`, because no caller waits for it.

    Examples
    --------
    >>> import threading, slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> high = threading.Event()
    >>> watch = pool.on_pressure(0.9, lambda now: high.set() if now.high else high.clear())
    >>> thread = threading.Thread(target=watch.serve)  # or: executor.submit(watch.serve)
    >>> thread.start()
    >>> array = pool.empty(1 << 20, "u1")
    >>> high.wait(60)
    True
    >>> watch.close()
    >>> thread.join()
    """

    _core: PoolWatch
    _callback: Callable[[Pressure], object]
    _fraction: float
    _hysteresis: float
    _capacity: int
    _high: bool
    _pool: weakref.ref[Pool]
    _loop: asyncio.AbstractEventLoop | None
    _turn: threading.RLock  # of the thread that calls back; the callback may call `check`
    _end: weakref.finalize[
        [PoolWatch, asyncio.AbstractEventLoop | None, _Descriptor | None, int], PressureWatch
    ]

    def __init__(self) -> None:
        raise InvalidTypeError("a PressureWatch is made by pool.on_pressure(fraction, callback)")

    @classmethod
    def _of(
        cls,
        pool: Pool,
        fraction: object,
        callback: Callable[[Pressure], object],
        hysteresis: object,
        loop: asyncio.AbstractEventLoop | None,
    ) -> PressureWatch:
        self = cls.__new__(cls)
        self._fraction = number(fraction, "fraction")
        self._hysteresis = number(hysteresis, "hysteresis")
        if not 0 < self._fraction <= 1:
            raise InvalidArgumentError(f"fraction must be above 0 and at most 1, got {show(fraction)}")
        if not 0 <= self._hysteresis < self._fraction:
            raise InvalidArgumentError(
                f"hysteresis must be from 0 on and less than the fraction ({show(fraction)}), "
                f"got {show(hysteresis)}"
            )
        if not callable(callback):
            raise InvalidTypeError(f"callback must be a callable, got {show_typed(callback)}")
        if inspect.iscoroutinefunction(callback):
            raise InvalidTypeError(
                f"callback must be a plain function, got the coroutine function {show(callback)}: its "
                "coroutine would not run. Pass a function that starts a task"
            )
        if loop is not None and not all(callable(getattr(loop, name, None)) for name in _OF_A_LOOP):
            raise InvalidTypeError(f"loop must be an asyncio event loop or None, got {show_typed(loop)}")
        self._callback = callback
        self._capacity = pool.capacity
        self._high = False
        up = _bytes(self._fraction * pool.capacity)
        down = _bytes((self._fraction - self._hysteresis) * pool.capacity)
        self._loop = loop
        self._turn = threading.RLock()
        descriptor = None if loop is None else _Descriptor()
        core = self._core = PoolWatch(pool, up, down, -1 if descriptor is None else descriptor.fd)
        self._end = weakref.finalize(self, _end, core, loop, descriptor, os.getpid())
        self._end.atexit = False
        # Threads that wait keep this, so they learn of the pool's end here.
        self._pool = weakref.ref(pool, lambda _: core.close())
        if loop is not None and descriptor is not None:
            leave_closed_loops(pool)
            try:
                loop.call_soon_threadsafe(_start, weakref.ref(self), loop, descriptor)
            except BaseException:  # the loop is closed
                self.close()
                raise
            _kept(pool).add(self)
        return self

    @property
    def fraction(self) -> float:
        """As given to `Pool.on_pressure`."""
        return self._fraction

    @property
    def hysteresis(self) -> float:
        """As given to `Pool.on_pressure`."""
        return self._hysteresis

    @property
    def high(self) -> bool:
        """Whether the last call of the callback was for a change upwards; False before the first."""
        return self._high

    @property
    def closed(self) -> bool:
        """Whether the watch, or the pool, was closed."""
        return self._core.closed

    def check(self) -> int:
        """Looks at the pool now, and calls back on this thread.

        Returns
        -------
        int
            Number of calls.
        """
        with self._turn:
            return self._tell(True)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the use has passed the fraction, and calls back on this thread.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default there is no limit.

        Returns
        -------
        bool
            True after a call. False if the timeout has ended, or the watch or the pool was closed.
        """
        deadline = self._core.deadline(timeout)
        while True:
            if not self._turn.acquire(timeout=self._core.seconds_until(deadline)):
                return False
            try:
                if self._tell(True):
                    return True
            finally:
                self._turn.release()
            if self._core.closed or not self._core.wait(deadline):
                return False

    def serve(self) -> None:
        """Calls back on this thread until the watch or the pool is closed."""
        while self.wait():
            pass

    def close(self) -> None:
        """Ends the watch, and at once what waits for it. Calling it again does nothing."""
        self._end()
        pool = self._pool()
        if pool is not None:
            _kept(pool).discard(self)

    def __enter__(self) -> PressureWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "high" if self._high else "low"
        return f"<PressureWatch: {self._fraction} of {self._capacity} bytes, {state}>"

    def _tell_unless_another_does(self, look: bool) -> None:
        """For a thread that may not wait. The thread that has the turn looks again after it."""
        while self._turn.acquire(blocking=False):
            try:
                self._tell(look)
            finally:
                self._turn.release()
            if not self._core.pending:
                break

    def _tell(self, look: bool) -> int:
        calls = 0
        while (change := self._core.take(look)) is not None:
            look = False
            calls += 1
            self._high, used = change
            try:
                self._callback(Pressure(self._high, used / self._capacity, self._fraction))
            except Exception as error:
                report(error, self._callback)
        return calls


def _bytes(bound: float) -> int:
    # The least number of bytes that is not below the bound, at least 1. Rounded, because 0.3 * 10 is more
    # than 3.
    return max(1, math.ceil(round(bound, 3)))


def _kept(pool: Pool) -> set[PressureWatch]:
    """The watches that the pool keeps: those of loops."""
    kept: set[PressureWatch] = pool.__dict__.setdefault("_pressure", set())
    return kept


class _Descriptor:
    """An eventfd, closed when nothing refers to it."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        try:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise SystemRefusedError(
                error.errno,
                f"the system refuses a descriptor for a watch ({error.strerror}): "
                "close some, or raise RLIMIT_NOFILE",
            ) from error

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def leave_closed_loops(pool: Pool) -> None:
    """Closes the watches of loops that are closed: they cannot do it when the pool closes."""
    for watch in list(_kept(pool)):
        if watch._loop is not None and watch._loop.is_closed():
            watch.close()


# ---- on the thread of a loop, which refers to the watch weakly

_OF_A_LOOP = ("add_reader", "remove_reader", "call_soon_threadsafe", "call_later", "is_closed")


def _start(of: weakref.ref[PressureWatch], loop: asyncio.AbstractEventLoop, descriptor: _Descriptor) -> None:
    watch = of()
    if watch is None or not watch._end.alive:
        return  # closed meanwhile
    loop.add_reader(descriptor.fd, _ready, of, descriptor)
    watch._tell_unless_another_does(True)  # what changed while the watch was added
    if watch._core.needs_looks:
        _look(of, loop)


def _ready(of: weakref.ref[PressureWatch], descriptor: _Descriptor) -> None:
    watch = of()
    if watch is None or not watch._end.alive:
        return
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(descriptor.fd)
    try:
        watch._tell_unless_another_does(False)
    except (
        BaseException
    ):  # KeyboardInterrupt, CancelledError: what is pending comes by the next turn of the loop
        os.eventfd_write(descriptor.fd, 1)
        raise
    if watch.closed:
        watch.close()


def _look(of: weakref.ref[PressureWatch], loop: asyncio.AbstractEventLoop) -> None:
    watch = of()
    if watch is not None and watch._end.alive:
        loop.call_later(LOOK, _look, of, loop)
        watch._tell_unless_another_does(True)


def _end(
    core: PoolWatch, loop: asyncio.AbstractEventLoop | None, descriptor: _Descriptor | None, pid: int
) -> None:
    if os.getpid() != pid:
        return  # a child of fork: the loop is its parent's
    core.close()
    if loop is not None and descriptor is not None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_stop, loop, descriptor)


def _stop(loop: asyncio.AbstractEventLoop, descriptor: _Descriptor) -> None:
    loop.remove_reader(descriptor.fd)
