"""Reading the two trace formats: the contents of good rows, and the errors for bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slabpool.cli import main
from slabpool.errors import InvalidArgumentError
from slabpool.replay.trace import Trace, TraceFormatError, read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD_AZURE = "2023-11-16 18:15:46.6805900,374,44\n"
GOOD_MOONCAKE = '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [0]}\n'
DEEP = 100_000  # far more than any JSON reader's limit
NESTED = "[" * DEEP + "]" * DEEP


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_azure_excerpt(azure_path: Path) -> None:
    trace = read_trace(azure_path)
    assert (trace.name, trace.format, len(trace)) == ("azure_excerpt.csv", "azure", 200)
    assert trace.prompt[:2].tolist() == [374, 396]
    assert trace.output[:2].tolist() == [44, 109]
    # 18:15:46.6805900 to 18:15:50.9951690; digits beyond a microsecond are cut off.
    assert trace.arrival_us[:2].tolist() == [0, 4_314_579]


def test_mooncake_excerpt(mooncake_path: Path) -> None:
    trace = read_trace(mooncake_path)
    assert (trace.format, len(trace)) == ("mooncake", 150)
    assert trace.prompt[:4].tolist() == [6758, 7322, 7236, 2290]
    assert trace.output[:4].tolist() == [500, 490, 794, 316]
    assert trace.arrival_us[0] == 0
    assert (trace.arrival_us % 1000 == 0).all()  # milliseconds in the file


def test_format_is_detected_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(GOOD_MOONCAKE)
    assert read_trace(path).format == "mooncake"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_blank_lines_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    path = written(tmp_path, "\ufeff" + (AZURE + "\n" + GOOD_AZURE + "\n").replace("\n", end))
    assert read_trace(path).prompt.tolist() == [374]


def test_later_azure_times_with_an_offset(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 00:00:01+00:00,3,4\n"
    assert read_trace(written(tmp_path, AZURE + rows)).arrival_us.tolist() == [0, 990_070]


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE + GOOD_AZURE * 3 + "rubbish\n")
    assert len(read_trace(path, limit=3)) == 3
    with pytest.raises(TraceFormatError, match="line 5"):
        read_trace(path, limit=4)
    with pytest.raises(InvalidArgumentError, match="limit"):
        read_trace(path, limit=0)


def test_limit_of_mooncake(mooncake_path: Path) -> None:
    assert len(read_trace(mooncake_path, limit=1)) == 1


def test_rows_out_of_order_are_sorted_and_ties_keep_their_order(tmp_path: Path) -> None:
    pairs = [(7, 1), (3, 2), (7, 3), (3, 4)]
    rows = [json.dumps({"timestamp": when, "input_length": size, "output_length": 1}) for when, size in pairs]
    trace = read_trace(written(tmp_path, "\n".join(rows)))
    assert trace.arrival_us.tolist() == [0, 0, 4000, 4000]
    assert trace.prompt.tolist() == [2, 4, 1, 3]


def test_zero_tokens_are_valid(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, AZURE + "2023-11-16 18:15:46,0,0\n"))
    assert (trace.prompt.tolist(), trace.output.tolist()) == ([0], [0])


def test_arrays_are_integers(trace: Trace) -> None:
    for column in (trace.arrival_us, trace.prompt, trace.output):
        assert column.dtype == np.int64
        assert column.shape == (len(trace),)
    assert (np.diff(trace.arrival_us) >= 0).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: neither"),
        ("\n\n", "line 1: neither"),
        ("hello\nworld\n", "line 1: neither"),
        ("\nTIMESTAMP,ContextTokens\n", "line 2: neither"),
        (AZURE, "no requests"),
        (AZURE + "2023-11-16 18:15:46.68,374\n", "line 2: expected 3 fields, found 2"),
        (AZURE + GOOD_AZURE + "2023-11-16 18:15:46.68,374,44,1\n", "line 3: expected 3 fields, found 4"),
        (AZURE + "\n" + GOOD_AZURE + "yesterday,374,44\n", "line 4: TIMESTAMP"),
        (AZURE + "2023-13-16 18:15:46.68,374,44\n", "line 2: TIMESTAMP"),
        (AZURE + "2023-11-16 18:15:46.68,-3,44\n", "line 2: ContextTokens"),
        (AZURE + "2023-11-16 18:15:46.68,3.5,44\n", "line 2: ContextTokens"),
        (AZURE + "2023-11-16 18:15:46.68,3,\n", "line 2: GeneratedTokens"),
        (AZURE + "2023-11-16 18:15:46.68,3,99999999999999999999999\n", "line 2: GeneratedTokens"),
        ("{", "line 1: not JSON"),
        (GOOD_MOONCAKE + "[1, 2]\n", "line 2: not a JSON object"),
        (GOOD_MOONCAKE + '{"timestamp": 1, "input_length": 2}\n', "line 2: no 'output_length'"),
        ('{"timestamp": "x", "input_length": 2, "output_length": 2}', "line 1: timestamp"),
        ('{"timestamp": -1, "input_length": 2, "output_length": 2}', "line 1: timestamp"),
        ('{"timestamp": NaN, "input_length": 2, "output_length": 2}', "line 1: a number is not finite"),
        ('{"timestamp": 1, "input_length": true, "output_length": 2}', "line 1: input_length"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 2.5}', "line 1: output_length"),
        ('{"timestamp": 1, "input_length": 2, "output_length": null}', "line 1: output_length"),
        (GOOD_MOONCAKE + '{"timestamp": ' + NESTED + "}", "line 2: nested too deeply"),
        (GOOD_MOONCAKE + '{"input_length": 2, "x": ' + '{"x": ' * DEEP, "line 2: nested too deeply"),
        ("{" + GOOD_MOONCAKE[1:-2] + ', "hash_ids": ' + NESTED + "}", "line 1: nested too deeply"),
        ('{"timestamp": [[1]], "input_length": 2, "output_length": 2}', "line 1: timestamp"),
        ('{"timestamp": 1, "input_length": {"a": 1}, "output_length": 2}', "line 1: input_length"),
        (b"TIMESTAMP\xff\xfe\x00\x81", "not a text file"),
    ],
)
def test_bad_traces_are_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceFormatError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("depth", [1, 10, 100, 300, 900, DEEP])
def test_a_bad_value_of_any_depth_and_length_is_one_short_error(tmp_path: Path, depth: int) -> None:
    nested = "[" * depth + "1" * depth + "]" * depth
    mooncake = GOOD_MOONCAKE + '{"timestamp": %s, "input_length": 2, "output_length": 2}'
    for text in (mooncake, AZURE + "2023-11-16 18:15:46,3,%s\n"):
        path = written(tmp_path, text % nested)
        with pytest.raises(TraceFormatError, match=r": line 2: ") as caught:
            read_trace(path)
        assert len(str(caught.value)) < 1000


def test_the_command_names_a_row_that_is_nested_too_deeply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, GOOD_MOONCAKE + '{"timestamp": 0, "x": ' + NESTED + "}\n")
    assert main(["replay", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"slabpool replay: {path}: line 2: nested too deeply")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "nothing")
