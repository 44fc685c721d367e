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
    figures = json.loads(captured.out)
    assert isinstance(figures, dict)
    return figures


@pytest.mark.parametrize("name", ["azure", "mooncake"])
def test_json(name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    path = request.getfixturevalue(f"{name}_path")
    figures = as_json(capsys, str(path), *SMALL)
    assert figures["requests"] == figures["rows"] == (200 if name == "azure" else 150)
    assert figures["format"] == name
    assert figures["leaked_bytes"] == 0
    assert figures["leaks"] == []
    assert figures["violations"] == 0
    assert figures["ok"] is True
    assert figures["operations_per_s"] == pytest.approx(figures["operations"] / figures["wall_s"])
    assert 0 < figures["peak_live"] <= figures["peak_committed"] <= figures["capacity"]
    assert figures["committed_over_live"] == pytest.approx(figures["peak_committed"] / figures["peak_live"])
    assert set(figures["wait_s"]) == {"median", "p99", "max"}
    assert figures["synthetic"]["devices"] == 3
    assert figures["synthetic"]["fault_rates"] == {
        "duplicate_acks": 0,
        "late_acks": 0,
        "lost_devices": 0,
        "abort": 0,
    }


def test_waiting_in_the_pools_queue(azure_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capacity = ["--capacity", "0.5x"]
    outside = as_json(capsys, str(azure_path), *SMALL, *capacity)
    assert (outside["wait"], outside["timed_out"]) == (None, 0)
    figures = as_json(capsys, str(azure_path), *SMALL, *capacity, "--wait", "1000")
    assert figures["ok"] is True
    assert (figures["wait"], figures["timed_out"], figures["requests"]) == (1000, 0, 200)
    assert figures["wait_s"] == outside["wait_s"]
    assert figures["requests_that_waited"] == outside["requests_that_waited"] > 0
    figures = as_json(capsys, str(azure_path), *SMALL, *capacity, "--wait", "0.5")
    assert figures["timed_out"] == 200 - figures["requests"] > 0
    assert figures["wait_s"]["max"] <= 0.5
    assert main(["replay", str(azure_path), *SMALL, *capacity, "--wait", "0.5"]) == 0
    out = capsys.readouterr().out
    assert f"{figures['timed_out']} gave up after 0.5 s" in out
    assert "requests waited for memory in the pool's queue" in out


def test_faults_are_counted_and_called_synthetic(
    azure_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--duplicate-acks", "0.2", "--late-acks", "0.2", "--lost-devices", "0.05", "--abort", "0.1"]
    figures = as_json(capsys, str(azure_path), *SMALL, *rates, "--seed", "9")
    synthetic = figures["synthetic"]
    assert synthetic["seed"] == 9
    for name in ("duplicate_acks", "late_acks", "devices_lost", "holds_lost_with_devices", "aborted"):
        assert synthetic[name] > 0
        assert name not in figures
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
    assert "qwen2.5-0.5b, 12,288 bytes of KV cache for each token" in out
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
    figures = as_json(capsys, str(azure_path), *SMALL, "--capacity", "0.001x")
    assert "raised to hold the largest request" in figures["capacity_from"]
    assert figures["requests"] == 200
    assert figures["requests_that_waited"] > 0


@pytest.mark.parametrize("capacity", ["256MiB", str(256 << 20)])
def test_capacity_in_bytes(azure_path: Path, capsys: pytest.CaptureFixture[str], capacity: str) -> None:
    figures = as_json(capsys, str(azure_path), *SMALL, "--capacity", capacity)
    assert figures["capacity"] == 256 << 20
    assert figures["capacity_from"] == "as given"


def test_model_and_its_bytes_are_in_the_json(azure_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = as_json(capsys, str(azure_path), "--limit", "5")
    assert (figures["model"], figures["bytes_per_token"]) == ("llama-3.1-8b", 131_072)
    assert as_json(capsys, str(azure_path), *SMALL, "--limit", "5")["model"] is None


def test_a_leak_is_reported_and_makes_the_status_one(
    azure_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Pool", LosesAcks)
    figures = as_json(capsys, str(azure_path), *SMALL, status=1)
    assert figures["ok"] is False
    assert figures["leaked_bytes"] > 0
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
