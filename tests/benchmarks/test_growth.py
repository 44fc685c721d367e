"""What an operation costs does not depend on what stands beside it: instructions, counted under callgrind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FEW, MANY = 10, 1000


@pytest.fixture(autouse=True)
def _needs_pyperf(require_module: Callable[[str], ModuleType]) -> None:
    require_module("pyperf")


def test_operations_cost_the_same_beside_a_thousand_of_what_may_stand_beside_them(tmp_path: Path) -> None:
    from benchmarks.harness.native import NoCompilerError
    from benchmarks.instructions.count import CannotCountError
    from benchmarks.instructions.growth import OPERATIONS, counts, holds

    wanted = [(operation, n) for operation in OPERATIONS for n in (FEW, MANY)]
    try:
        found = dict(zip(wanted, counts(wanted, tmp_path), strict=True))
        few, many = holds([FEW, MANY], tmp_path)
    except (CannotCountError, NoCompilerError) as error:
        pytest.skip(str(error))
    ratios = {operation: found[operation, MANY] / found[operation, FEW] for operation in OPERATIONS}
    assert all(0.8 < ratio < 1.2 for ratio in ratios.values()), (ratios, found)
    assert 0 < many <= 1.5 * few
