"""A stream for one block of a test, and holding it back on the stand-in: gpu_work.py, as context managers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cuda.gpu_work import Work
from tests.cuda.standin_build import Standin


@contextmanager
def stream(device: int = 0) -> Iterator[int]:
    """The handle of a stream that does not wait for the default stream, in the device's primary context."""
    work = Work(device=device)
    yield work.stream()
    work.close()


@contextmanager
def held(standin: Standin, handle: int, device: int = 0) -> Iterator[None]:
    """Nothing that is queued on the stream begins in the block; afterwards all is done."""
    work = Work(standin, device)
    work.hold(handle)
    try:
        yield
    finally:
        work.let_go(handle)


def settle(standin: Standin) -> None:
    """Returns once every stream that is not held back has done its work."""
    standin.library.standin_settle()
