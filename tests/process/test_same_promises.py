"""A shared pool makes the same promises as a private one: the tests of laws and requests, on shared memory.

They run in a separate process, where every `slabpool.Pool` is made shared (``pytest --pool-memory=shared``).
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.timeout(1600)  # a minute or two on two free cores
@pytest.mark.parametrize("folder", ["laws", "request", "pool"])
def test_on_shared_memory(folder: str) -> None:
    command = [sys.executable, "-m", "pytest", "--pool-memory=shared", "-q", "-m", "not slow"]
    options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    result = subprocess.run(
        [*command, *options, str(ROOT / "tests" / folder)], capture_output=True, text=True, timeout=1500
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None and int(passed[1]) > 10
