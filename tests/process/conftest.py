"""Shared pools meet in a directory of the test's own, so that runs side by side do not see each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import slabpool


@pytest.fixture(autouse=True)
def meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the names of shared pools, for this test and the processes it starts."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "slabpool"


@pytest.fixture
def shared_pool(meeting_place: Path) -> Iterator[slabpool.Pool]:
    """A shared pool "engine" of 16 MiB; sound at the end, and nothing of it left."""
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    yield pool
    assert pool._verify() is None
    pool.close(force=True)
    assert list(meeting_place.iterdir()) == []
