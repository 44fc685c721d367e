"""``slabpool demo`` as a whole: the verdict, the figures, and the results of faults."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slabpool.cli import main
from slabpool.demo import add_arguments, run
from slabpool.demo.memory import PoolConversation
from slabpool.demo.model import F32, Decoder, KvPair


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="slabpool demo")
    add_arguments(parser)
    return parser.parse_args(["--no-progress", *options])


def figures(tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "figures.json"
    status = run(parse("--json", str(path), *options))
    return status, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "options", [(), ("--unique-ids",), ("--devices", "6", "--concurrency", "8"), ("--devices", "1")]
)
def test_a_run_leaks_nothing_and_has_the_right_tokens(tmp_path: Path, options: tuple[str, ...]) -> None:
    status, result = figures(tmp_path, "--requests", "70", *options)
    assert status == 0
    assert result["ok"] is True
    assert result["requests"] == result["answered_requests"] == 70
    assert result["leaked_requests"] == result["leaked_bytes"] == result["final_live"] == 0
    assert result["wrong_tokens"] == result["wrong_requests"] == 0
    assert result["tokens"] == result["tokens_given"] > 140
    assert result["requests_per_s"] == pytest.approx(70 / result["seconds"])
    assert 0 < result["peak_live"] <= result["peak_committed"] <= 64 << 20
    assert result["latency_first_tenth_s"] > 0
    assert result["most_requests_at_once"] >= result["concurrency"]


def test_the_same_id_is_slow_and_wrong_without_a_pool(tmp_path: Path) -> None:
    status, result = figures(tmp_path, "--requests", "40", "--baseline")
    assert status == 1
    assert result["ok"] is False
    assert result["leaked_requests"] == 1  # one id, with everything ever stored under it
    assert result["wrong_requests"] >= 36
    assert result["final_live"] == result["peak_live"] > 0


def test_the_same_id_is_not_answered_once_its_context_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slabpool.demo.baseline.MAX_CONTEXT", 256)
    status, result = figures(tmp_path, "--requests", "40", "--baseline")
    assert status == 1
    assert 3 < result["answered_requests"] < 30


def test_new_ids_add_up_without_a_pool(tmp_path: Path) -> None:
    held = []
    for requests in (20, 40):
        status, result = figures(tmp_path, "--requests", str(requests), "--baseline", "--unique-ids")
        assert status == 1
        assert result["wrong_tokens"] == 0
        assert result["leaked_requests"] == requests
        held.append(result["final_live"])
    assert held[1] == 2 * held[0]


def test_a_count_evicts_requests_that_are_still_running(tmp_path: Path) -> None:
    status, result = figures(
        tmp_path, "--requests", "32", "--baseline", "--unique-ids", "--baseline-limit", "2"
    )
    assert status == 1
    assert result["leaked_requests"] == 2
    assert 0 < result["wrong_requests"] <= 8  # only those of the two bursts


def test_baseline_and_pool_serve_the_same_job(tmp_path: Path) -> None:
    _, pooled = figures(tmp_path, "--requests", "25")
    _, baseline = figures(tmp_path, "--requests", "25", "--baseline")
    for key in ("requests", "tokens", "schedule", "length_scale", "devices", "concurrency", "seed"):
        assert pooled[key] == baseline[key]


def test_standard_output_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parse("--requests", "5", "--json", "-")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["requests"] == 5
    assert "equal the reference" in captured.err


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_needs_no_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rich: bool
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        for module in ("rich", "rich.console", "rich.table", "rich.text", "rich.progress"):
            monkeypatch.setitem(sys.modules, module, None)
    assert run(parse("--requests", "12")) == 0
    out = capsys.readouterr().out
    for label in (
        "requests/s, tokens/s",
        "latency, first tenth",
        "live bytes, final",
        "process growth",
        "leaked",
    ):
        assert label in out
    assert "OK" in out


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    args = parse("--requests", "20")
    args.no_progress = False
    assert run(args) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("pool: ")
    assert {"pool: 20 of 20", "reference: 20 of 20"} <= set(lines)
    assert len(lines) <= 20


def test_a_device_that_forgets_one_ack_is_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PoolConversation.ack

    def forgetful(self: PoolConversation, device: str) -> None:
        if (self.job.index, device) != (3, "device1"):
            honest(self, device)

    monkeypatch.setattr(PoolConversation, "ack", forgetful)
    status, result = figures(tmp_path, "--requests", "16")
    assert status == 1
    assert result["leaked_requests"] == 1
    assert result["leaked_bytes"] == result["final_live"] > 0
    assert "device1" in result["leaks"][0]
    assert result["wrong_tokens"] == 0


def test_a_foreign_write_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PoolConversation.caches

    def overwritten(
        self: PoolConversation, device: str, layers: range, start: int, count: int
    ) -> tuple[int, list[KvPair]]:
        position, pairs = honest(self, device, layers, start, count)
        if (self.job.index, device) == (4, "device1"):
            for _, values in pairs:
                values[:, :start] = 0
        return position, pairs

    monkeypatch.setattr(PoolConversation, "caches", overwritten)
    status, result = figures(tmp_path, "--requests", "10")
    assert status == 1
    assert result["wrong_requests"] == 1
    assert result["wrong_tokens"] >= 1
    assert result["leaked_requests"] == 0


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_an_error_in_a_device_thread_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    honest = Decoder.run_layers

    def broken(self: Decoder, hidden: F32, first: int, caches: Sequence[KvPair], start: int) -> F32:
        if first == 2 and start > 12:
            raise error("broken on purpose")
        return honest(self, hidden, first, caches, start)

    monkeypatch.setattr(Decoder, "run_layers", broken)
    assert run(parse("--requests", "30")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err.splitlines()[-1] == f"slabpool demo: device1 failed: {error.__name__}: broken on purpose"
    )
    assert "in broken" in captured.err  # a defect keeps its traceback


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--capacity", "lots"], "lots"),
        (["--capacity", "4KiB"], ""),
        (["--devices", "7"], "only 6 layers"),
        (["--baseline-limit", "2"], "--baseline"),
        (["--trace", "no-such-file"], "no-such-file"),
        (["--prompts", "no-such-file"], "no-such-file"),
    ],
)
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["demo", "--no-progress", "--requests", "4", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("slabpool demo: ")
    assert message in line


@pytest.mark.parametrize("options", [["--requests", "0"], ["--devices", "-1"], ["--seed", "x"]])
def test_numbers_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err
