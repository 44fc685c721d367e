"""Each test has its own directory for the sockets of shared pools, so that parallel runs do not interfere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import slabpool


@pytest.fixture(autouse=True)
def meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for the sockets of shared pools, for this test and the processes it starts."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "slabpool"


@pytest.fixture
def shared_pool(meeting_place: Path) -> Iterator[slabpool.Pool]:
    """A shared pool "engine" of 16 MiB; consistent at the end, and nothing of it is left."""
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    yield pool
    assert pool._verify() is None
    pool.close(force=True)
    assert list(meeting_place.iterdir()) == []
