"""`numpy_handler`: arrays that numpy itself makes have their memory in a pool (NEP 49).

Invariants:
- A handler is in force in the context that entered it and in copies of that context, never in others.
- After its block has ended, no allocation uses it, even in a context that still has it.
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
from slabpool.arguments.texts import show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.records import NumpyUsage

if TYPE_CHECKING:
    from typing_extensions import CapsuleType, Self

#: The handler for threads that this context starts.
_for_threads: ContextVar[CapsuleType | None] = ContextVar("slabpool_numpy_for_threads", default=None)

_install_lock = threading.Lock()
_installed = False


class numpy_handler:
    """Inside the block, every array that numpy makes has its memory in a pool.

    The arrays are ordinary ones: they may outlive the block, and each frees its memory when it is destroyed.
    They belong to no request; `numpy_usage` counts them. If the pool has no room, numpy raises
    ``MemoryError``. Tasks started inside the block (`asyncio.create_task`, `asyncio.to_thread`) inherit the
    handler. After the block has ended, arrays that these tasks make are in ordinary memory again. So are
    arrays in the child of a fork.

    Parameters
    ----------
    pool : Pool
    threads : bool, default False
        Whether threads that are started inside the block, and threads that these start, use the handler too.
        (Before Python 3.14 a new thread does not inherit the context.) The first use wraps
        `threading.Thread.start` for good; the wrapper does nothing for other threads.

    Raises
    ------
    PoolClosedError, ForkedPoolError
        On entering: the pool is closed, or belongs to the parent process.
    InvalidArgumentError
        On entering: this object is already in use. Make one for each ``with``.

    Notes
    -----
    As with `numpy.errstate`, if a generator is suspended inside the block, the handler stays in force in the
    code that runs the generator.

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
                f"numpy_handler needs a Pool, got {show_typed(pool)}. A Request cannot "
                "serve numpy, because its memory returns only when the request ends"
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
    """Count the arrays in a pool that numpy made under `numpy_handler`.

    This walks every block of the pool, so use it for reports and not in a hot loop. To see where the arrays
    were made use `tracemalloc`: numpy reports each allocation to it.

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
        raise InvalidTypeError(f"numpy_usage needs a Pool, got {show_typed(pool)}")
    return NumpyUsage(*heaps.usage(pool))


# ---- threads


def _install() -> None:
    """Wrap `Thread.start` once. It stays wrapped, because other code may have wrapped it in the meantime."""
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
            restore()  # also breaks the reference cycle between the thread and this function
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
