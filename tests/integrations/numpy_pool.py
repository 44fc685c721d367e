"""A pool for the tests of `numpy_handler`, and a check whether an array is in it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import slabpool
from tests.integrations.numpy_suite import handler_name

DEFAULT = "default_allocator"


@pytest.fixture(name="pool")
def numpys_pool() -> Iterator[slabpool.Pool]:
    """A pool that must have all of its memory back at the end."""
    assert handler_name() == DEFAULT
    with slabpool.Pool("16MiB", name="np") as pool:
        yield pool
        assert handler_name() == DEFAULT
        gc.collect()
        assert pool.stats().live == 0
        assert pool._verify() is None


def ours(array: np.ndarray[Any, Any] | None = None) -> bool:
    """Whether the memory of an array, or of a new array, belongs to the pool."""
    return (handler_name() if array is None else handler_name(array)) == "slabpool np"
