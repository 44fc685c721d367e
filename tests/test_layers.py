"""The check of the layers of csrc/slabpool finds an include that goes up, and none in the core as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import layers


def core_with(tmp_path: Path, files: dict[str, str]) -> Path:
    """Write a core of these files, with the layers' folders."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_every_include_of_the_core_goes_down() -> None:
    assert layers.CORE == ROOT / "csrc" / "slabpool"
    assert {path.name for path in layers.CORE.iterdir() if path.is_dir()} == set(layers.USES)
    assert list(layers.faults()) == []


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("base/a.hpp", "memory/b.hpp"),
        ("slab/a.cpp", "request/b.hpp"),
        ("cuda/a.cpp", "pool/b.hpp"),
        ("wait/a.hpp", "shared/b.hpp"),
    ],
)
def test_an_include_that_goes_up_is_a_fault(tmp_path: Path, source: str, target: str) -> None:
    core = core_with(tmp_path, {source: f'#pragma once\n#include "slabpool/{target}"\n', target: ""})
    (fault,) = layers.faults(core)
    assert fault.startswith(f"{source}:2: {source.split('/')[0]} may not include {target.split('/')[0]}")


def test_an_include_that_goes_down_is_none(tmp_path: Path) -> None:
    files = {"pool/a.cpp": '#include "slabpool/base/b.hpp"\n#include <vector>\n', "base/b.hpp": ""}
    assert list(layers.faults(core_with(tmp_path, files))) == []


def test_a_file_in_no_layer_and_a_missing_file_are_faults(tmp_path: Path) -> None:
    files = {"loose.hpp": "", "base/a.hpp": '#include "slabpool/base/none.hpp"\n'}
    found = list(layers.faults(core_with(tmp_path, files)))
    assert len(found) == 2
    assert "does not exist" in found[0] and "in no layer" in found[1]
