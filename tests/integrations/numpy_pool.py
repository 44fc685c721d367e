"""A pool for tests of `numpy_handler`, and whether an array is in it."""

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
    """A pool that must have everything back in the end."""
    assert handler_name() == DEFAULT
    with slabpool.Pool("16MiB", name="np") as pool:
        yield pool
        assert handler_name() == DEFAULT
        gc.collect()
        assert pool.stats().live == 0
        assert pool._verify() is None


def ours(array: np.ndarray[Any, Any] | None = None) -> bool:
    """Whether an array's memory, or a new one's, is the pool's."""
    return (handler_name() if array is None else handler_name(array)) == "slabpool np"
