"""The excerpts of the two published traces, and a small schedule made from each."""

from __future__ import annotations

from pathlib import Path

import pytest

from slabpool.replay.trace import Trace, read_trace

DATA = Path(__file__).parent / "data"


@pytest.fixture
def azure_path() -> Path:
    return DATA / "azure_excerpt.csv"


@pytest.fixture
def mooncake_path() -> Path:
    return DATA / "mooncake_excerpt.jsonl"


@pytest.fixture(params=["azure", "mooncake"])
def trace(request: pytest.FixtureRequest, azure_path: Path, mooncake_path: Path) -> Trace:
    return read_trace(azure_path if request.param == "azure" else mooncake_path)
