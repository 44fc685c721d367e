"""Each test has its own directory for the sockets of shared pools, so that parallel runs do not interfere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slabpool
from tests.conftest import _missing


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


@pytest.fixture(scope="session")
def pid_namespace(require_program: Callable[..., str]) -> list[str]:
    """A command line that runs a program in a new PID namespace; skips or fails if that is refused."""
    command = [require_program("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    for more in ([], ["--user", "--map-root-user"]):
        if subprocess.run([*command, *more, "true"], capture_output=True).returncode == 0:
            return [*command, *more]
    _missing("needs the right to make PID namespaces")
    raise AssertionError("not reached")
