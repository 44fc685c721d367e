"""Fixtures of the tests of sessions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import slabpool


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    """A pool of 1 MiB whose figures add up at the end, and of which nothing is left once it is closed."""
    made = slabpool.Pool("1MiB", name="chats")
    yield made
    s = made.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached
    assert made._verify() is None
    made.close(force=True)
    s = made.stats()
    assert (s.live, s.retained, s.allocations) == (0, 0, s.frees)
    assert made.requests() == []


def turn_with(session: slabpool.Session, name: str, nbytes: int, value: int = 1) -> None:
    """A complete turn that keeps one tensor."""
    with session.request() as turn:
        session.keep(name, turn.full(nbytes, value, "u1"))
