"""Fixtures of the tests of groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import slabpool


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    """A pool of 1 MiB of which nothing is left once it is closed: no bytes, no promise, no group."""
    made = slabpool.Pool("1MiB", name="tenants")
    yield made
    assert made._verify() is None
    made.close(force=True)
    s = made.stats()
    assert (s.live, s.retained, s.reserved, s.allocations) == (0, 0, 0, s.frees)
    assert made.requests() == []
