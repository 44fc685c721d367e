"""`numpy_handler`: arrays that numpy itself makes are allocated from a pool (NEP 49).

Invariants: a handler is in force in the context that entered it and in copies of that context, and in no
other; once its block has ended, no array gets pool memory through it, also in contexts that still have it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any

from slabpool._core import heaps
from slabpool._core.pool import Pool
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.records import NumpyUsage

if TYPE_CHECKING:
    from typing_extensions import CapsuleType, Self

#: The capsule that threads started by this context inherit.
_for_threads: ContextVar[CapsuleType | None] = ContextVar("slabpool_numpy_for_threads", default=None)

_install_lock = threading.Lock()
_installed = False


class numpy_handler:
    """Inside the block, every array that numpy makes has its memory in a pool.

    The arrays are ordinary: they can outlive the block, and each returns its memory when it dies. They belong
    to no request; `numpy_usage` counts them. If the pool has no room, numpy raises ``MemoryError``. Tasks
    started inside (`asyncio.create_task`, `asyncio.to_thread`) inherit the handler, as they inherit numpy's
    own settings. After the block has ended, and in the child of a fork, arrays are allocated from ordinary
    memory.

    Parameters
    ----------
    pool : Pool
    threads : bool, default False
        Also in threads that `threading` starts inside, and in those that they start. (Before Python 3.14 a
        new thread does not inherit the context of its starter.) The first use wraps `threading.Thread.start`
        for good; the wrapper does nothing for other threads.

    Raises
    ------
    PoolClosedError, ForkedPoolError
        On entering: the pool is closed, or was inherited from the parent process.
    InvalidArgumentError
        On entering: this object is already in use. Make one for each ``with``.

    Notes
    -----
    As with `numpy.errstate`, a generator that is suspended inside the block leaves the handler in force in
    the code that runs the generator.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> with slabpool.numpy_handler(pool):
    ...     a = np.ones((4, 1024), np.float32) * 2
    >>> slabpool.numpy_usage(pool)
    NumpyUsage(arrays=1, nbytes=16384)
    >>> del a
    >>> pool.stats().live
    0
    """

    def __init__(self, pool: Pool, *, threads: bool = False) -> None:
        if not isinstance(pool, Pool):
            raise InvalidTypeError(
                f"numpy_handler needs a Pool, got {pool!r} of type {type(pool).__name__}. A request cannot "
                "serve numpy: memory of dropped arrays would be returned only when the request is released"
            )
        self._pool = pool
        self._threads = bool(threads)
        self._capsule: CapsuleType | None = None
        self._threads_before: CapsuleType | None = None

    def __enter__(self) -> Self:
        if self._capsule is not None:
            raise InvalidArgumentError(
                "this numpy_handler is in force already; make one numpy_handler(pool) for each `with`"
            )
        if self._threads:
            _install()
        self._capsule = heaps.enter(self._pool)
        if self._threads:
            self._threads_before = _for_threads.get()
            _for_threads.set(self._capsule)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        capsule, self._capsule = self._capsule, None
        if capsule is None:
            raise InvalidArgumentError("this numpy_handler is not in force; use it in a `with` statement")
        heaps.leave(capsule)
        if self._threads and _for_threads.get() is capsule:
            _for_threads.set(self._threads_before)
        self._threads_before = None


def numpy_usage(pool: Pool) -> NumpyUsage:
    """How much memory of a pool is held by arrays that numpy made under `numpy_handler`.

    It reads every block of the pool: use it for reports, not in every step. `tracemalloc`, to which numpy
    reports its arrays, knows where they were made.

    Parameters
    ----------
    pool : Pool

    Returns
    -------
    NumpyUsage

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> with slabpool.numpy_handler(pool):
    ...     kept = [np.zeros(1000) for _ in range(3)]
    >>> slabpool.numpy_usage(pool).arrays
    3
    """
    if not isinstance(pool, Pool):
        raise InvalidTypeError(f"numpy_usage needs a Pool, got {pool!r} of type {type(pool).__name__}")
    return NumpyUsage(*heaps.usage(pool))


# ---- threads


def _install() -> None:
    """Wraps `Thread.start` once. It is never unwrapped, because other code may have wrapped it since."""
    global _installed
    with _install_lock:
        if not _installed:
            threading.Thread.start = _carrying(threading.Thread.start)  # type: ignore[method-assign]
            _installed = True


def _carrying(start: Callable[..., None]) -> Callable[..., None]:
    """Return a `Thread.start` that puts the handler of the starting context in force in the new thread."""

    @functools.wraps(start)
    def carrying(self: threading.Thread, *args: Any, **options: Any) -> None:
        capsule = _for_threads.get()
        if capsule is None:
            return start(self, *args, **options)
        own = vars(self).get("run")  # set if the object itself has a `run` that shadows the one of its class

        def restore() -> None:
            vars(self).pop("run", None)
            if own is not None:
                self.run = own  # type: ignore[method-assign]

        def run() -> None:
            restore()  # also breaks the cycle from the thread to this function
            heaps.adopt(capsule)
            _for_threads.set(capsule)
            self.run()

        self.run = run  # type: ignore[method-assign]
        try:
            return start(self, *args, **options)
        except BaseException:
            restore()
            raise

    return carrying
