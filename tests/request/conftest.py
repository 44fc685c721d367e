"""Fixtures of the tests of requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scene import Scene, make_scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = make_scene()
    yield scene
    scene.pool.close(force=True)
