"""The ``slabpool`` command: finding subcommands, and one clear line for errors that the user can correct."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import slabpool
from slabpool.cli import main

TRACE = Path(__file__).parent / "replay" / "data" / "azure_excerpt.csv"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slabpool", *argv], capture_output=True, text=True, check=False
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"slabpool {slabpool.__version__}\n"


def test_help_names_the_subcommands_without_importing_them() -> None:
    code = (
        "import sys, slabpool.cli\n"
        "try: slabpool.cli.main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "assert not [name for name in sys.modules if name.startswith(('slabpool.demo', 'slabpool.replay'))]\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "demo" in ended.stdout
    assert "replay" in ended.stdout


@pytest.mark.parametrize("command", ["demo", "replay"])
def test_help_of_a_subcommand(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: slabpool {command}" in capsys.readouterr().out


def test_module_and_status() -> None:
    ended = run("replay", str(TRACE), "--bytes-per-token", "4096", "--limit", "20", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["requests"] == 20


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["replay", "no-such-file.csv"], "no-such-file.csv: No such file or directory"),
        (["replay", str(Path(__file__).parent)], "Is a directory"),
        (["replay", __file__], "neither a trace of Azure"),
        (["replay", str(TRACE), "--capacity", "lots"], "lots"),
        (["replay", str(TRACE), "--capacity", "0"], "0"),
        (["replay", str(TRACE), "--capacity=-1GiB"], "-1GiB"),
        (["replay", str(TRACE), "--capacity", "1MiB"], "could never be served"),
        (["replay", str(TRACE), "--model", "gpt-5"], "no model 'gpt-5'"),
        (["replay", str(TRACE), "--plot", "no/such/folder/x.png"], "no/such/folder"),
        (["replay", str(TRACE), "--bytes-per-token", str(1 << 40)], "bytes per token"),
    ],
)
def test_errors_are_one_line_and_status_two(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("slabpool replay: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["no-such-command"],
        ["replay"],
        ["replay", "x", "--abort", "2"],
        ["replay", "x", "--late-acks", "nan"],
        ["replay", "x", "--devices", "0"],
        ["replay", "x", "--devices", "100000"],
        ["replay", "x", "--limit", "-1"],
        ["replay", "x", "--limit", "ten"],
        ["replay", "x", "--decode-rate", "0"],
        ["replay", "x", "--prefill-rate", "inf"],
        ["replay", "x", "--ack-delay", "-1"],
        ["replay", "x", "--wait", "-1"],
        ["replay", "x", "--wait", "soon"],
        ["replay", "x", "--seed", "-1"],
        ["replay", "x", "--ids", "both"],
        ["replay", "x", "--model", "llama-2-7b", "--bytes-per-token", "5"],
    ],
)
def test_bad_options_are_refused_with_status_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err


def test_a_closed_output_pipe_makes_no_traceback() -> None:
    argv = [sys.executable, "-m", "slabpool", "replay", str(TRACE), "--bytes-per-token", "4096", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from slabpool.replay import command

    def broken(args: object) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(command, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["replay", str(TRACE)])


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from slabpool.replay import command

    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert main(["replay", str(TRACE)]) == 130
    assert capsys.readouterr().err == "slabpool replay: interrupted\n"
