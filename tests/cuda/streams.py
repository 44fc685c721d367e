"""Context managers over gpu_work.py: a stream, and holding its work on the stand-in."""

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
    """Hold the work of the stream in the block; finish it at its end."""
    work = Work(standin, device)
    work.hold(handle)
    try:
        yield
    finally:
        work.let_go(handle)


def settle(standin: Standin) -> None:
    """Return once every stream that is not held has done its work."""
    standin.library.standin_settle()
