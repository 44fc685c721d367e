"""numpy's own tests have the same outcomes whether its arrays are in a pool or not.

Both runs happen here, side by side; nothing is compared with a stored list. SLABPOOL_NUMPY_SUITE=fast leaves
out the tests that numpy itself marks as slow.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.integrations import numpy_suite

MARKED = "not slow" if os.environ.get("SLABPOOL_NUMPY_SUITE") == "fast" else ""


@pytest.mark.timeout(1500)  # 30 to 60 s on two free cores
def test_numpys_own_tests_have_the_same_outcomes(
    require_module: Callable[[str], ModuleType], require_program: Callable[..., str], tmp_path: Path
) -> None:
    for module in ("hypothesis", "mesonbuild"):  # test_mem_policy builds a module
        require_module(module)
    require_program("ninja")  # for meson
    runs = {}
    for name in ("plain", "pooled"):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "outcomes.json"
        runs[name] = numpy_suite.start(out, pooled=name == "pooled", marked=MARKED), out
    try:
        plain = numpy_suite.read(*runs["plain"])
        pooled = numpy_suite.read(*runs["pooled"])
    finally:
        for process, _ in runs.values():
            process.kill()
            process.wait()
    different = {
        test: (plain.get(test), pooled.get(test))
        for test in plain.keys() | pooled.keys()
        if plain.get(test) != pooled.get(test)
    }
    assert different == {}, runs["pooled"][1].with_suffix(".log").read_text()[-20_000:]
    # All of these modules ran. The plugin checks that they used the pool.
    assert Counter(pooled.values())["passed"] > 15_000
    assert Counter(pooled.values())["failed"] == 0
    said = runs["pooled"][1].with_suffix(".log").read_text()
    plain_said = runs["plain"][1].with_suffix(".log").read_text()
    assert "\nslabpool: " in said and "\nslabpool: " not in plain_said
