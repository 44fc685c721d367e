"""The command from trace to report: text, JSON, picture, capacity and exit status."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from slabpool.cli import main
from slabpool.replay import command

from .sabotage import LosesAcks

SMALL = ["--bytes-per-token", "4096"]


def as_json(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> dict[str, Any]:
    assert main(["replay", *argv, "--json"]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert isinstance(report, dict)
    return report


@pytest.mark.parametrize("name", ["azure", "mooncake"])
def test_json(name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    path = request.getfixturevalue(f"{name}_path")
    report = as_json(capsys, str(path), *SMALL)
    assert report["requests"] == report["rows"] == (200 if name == "azure" else 150)
    assert report["format"] == name
    assert report["leaked_bytes"] == 0
    assert report["leaks"] == []
    assert report["violations"] == 0
    assert report["ok"] is True
    assert report["operations_per_s"] == pytest.approx(report["operations"] / report["wall_s"])
    assert 0 < report["peak_live"] <= report["peak_committed"] <= report["capacity"]
    assert report["committed_over_live"] == pytest.approx(report["peak_committed"] / report["peak_live"])
    assert set(report["wait_s"]) == {"median", "p99", "max"}
    assert report["synthetic"]["devices"] == 3
    assert report["synthetic"]["fault_rates"] == {
        "duplicate_acks": 0,
        "late_acks": 0,
        "lost_devices": 0,
        "abort": 0,
    }


def test_faults_are_counted_and_called_synthetic(
    azure_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--duplicate-acks", "0.2", "--late-acks", "0.2", "--lost-devices", "0.05", "--abort", "0.1"]
    report = as_json(capsys, str(azure_path), *SMALL, *rates, "--seed", "9")
    synthetic = report["synthetic"]
    assert synthetic["seed"] == 9
    for name in ("duplicate_acks", "late_acks", "devices_lost", "holds_lost_with_devices", "aborted"):
        assert synthetic[name] > 0
        assert name not in report
    again = as_json(capsys, str(azure_path), *SMALL, *rates, "--seed", "9")
    assert again["synthetic"] == synthetic
    assert main(["replay", str(azure_path), *SMALL, *rates]) == 0
    faults = next(line for line in capsys.readouterr().out.splitlines() if "late acks" in line)
    assert faults.startswith("synthetic")


def test_text_has_the_main_figures(mooncake_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(mooncake_path), "--model", "Qwen2.5-0.5B", "--limit", "40"]) == 0
    out = capsys.readouterr().out
    heads = [line.split()[0] for line in out.splitlines()]
    assert heads == [
        "trace",
        "model",
        "synthetic",
        "capacity",
        "requests",
        "operations",
        "memory",
        "waits",
        "leaked",
    ]
    assert "mooncake_excerpt.jsonl (mooncake), 40 requests" in out
    assert "qwen2.5-0.5b, 12,288 bytes of KV cache a token" in out
    assert "leaked      0 bytes" in out


def test_capacity_as_a_multiple(azure_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tight = as_json(capsys, str(azure_path), *SMALL, "--capacity", "0.5x")
    roomy = as_json(capsys, str(azure_path), *SMALL, "--capacity", "3x")
    assert tight["requests_that_waited"] > 0
    assert tight["wait_s"]["max"] > 0
    assert tight["requests"] == roomy["requests"] == 200
    assert roomy["requests_that_waited"] == 0
    assert 5.9 < roomy["capacity"] / tight["capacity"] < 6.1
    assert "0.5 times the peak" in tight["capacity_from"]


def test_a_multiple_below_the_largest_request_is_raised_to_it(
    azure_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = as_json(capsys, str(azure_path), *SMALL, "--capacity", "0.001x")
    assert "raised to hold the largest request" in report["capacity_from"]
    assert report["requests"] == 200
    assert report["requests_that_waited"] > 0


@pytest.mark.parametrize("capacity", ["256MiB", str(256 << 20)])
def test_capacity_in_bytes(azure_path: Path, capsys: pytest.CaptureFixture[str], capacity: str) -> None:
    report = as_json(capsys, str(azure_path), *SMALL, "--capacity", capacity)
    assert report["capacity"] == 256 << 20
    assert report["capacity_from"] == "as given"


def test_model_and_its_bytes_are_in_the_json(azure_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, str(azure_path), "--limit", "5")
    assert (report["model"], report["bytes_per_token"]) == ("llama-3.1-8b", 131_072)
    assert as_json(capsys, str(azure_path), *SMALL, "--limit", "5")["model"] is None


def test_a_leak_is_reported_and_makes_the_status_one(
    azure_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Pool", LosesAcks)
    report = as_json(capsys, str(azure_path), *SMALL, status=1)
    assert report["ok"] is False
    assert report["leaked_bytes"] > 0
    assert main(["replay", str(azure_path), *SMALL]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_plot(
    azure_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    require_module: Callable[[str], ModuleType],
) -> None:
    require_module("matplotlib")
    picture = tmp_path / "memory.png"
    assert as_json(capsys, str(azure_path), *SMALL, "--plot", str(picture))["ok"]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size > 10_000


def test_plot_without_matplotlib_is_refused_before_any_work(
    azure_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["replay", str(azure_path), *SMALL, "--plot", str(tmp_path / "memory.png")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pip install 'slabpool[cli]'" in captured.err


def test_touching_more_than_the_machine_has_is_refused(
    mooncake_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 256}.__getitem__)
    assert main(["replay", str(mooncake_path), *SMALL, "--limit", "20", "--touch"]) == 2
    assert "--touch would use" in capsys.readouterr().err
