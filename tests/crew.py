"""Several threads at once, for tests of races: they start together, and an error in one fails the test."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TIMEOUT = 300  # seconds after which a thread counts as stuck; no test takes so long, also on a busy machine


def together(*works: Callable[[], object]) -> None:
    """Runs each work in its own thread, all released at the same moment; raises the first error."""
    start = threading.Barrier(len(works))
    failed: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            start.wait(TIMEOUT)
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a thread is stuck"
    if failed:
        raise failed[0]


@contextmanager
def switching_often() -> Iterator[None]:
    """Python switches threads a thousand times more often than by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
