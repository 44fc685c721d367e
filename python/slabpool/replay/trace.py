"""Reads request traces: arrival times and numbers of tokens.

Two published formats are supported; the content of a file decides, never its name. A row that cannot be read
is an error with its line number: a trace is read whole or not at all. Times are integers, in microseconds
since the first request, so no result depends on rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from slabpool.arguments.reading import UnreadableError, read_json, whole_number
from slabpool.arguments.texts import show
from slabpool.errors import InvalidArgumentError

IntArray = npt.NDArray[np.int64]

_AZURE_HEADER = ("timestamp", "contexttokens", "generatedtokens")
# The 2023 trace has seven decimals (100 ns). Later traces have an offset from UTC.
_AZURE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:?00)?")
_EPOCH = datetime(1970, 1, 1)
# Far above any context window. Larger numbers mean a damaged file, and would overflow byte counts.
_MAX_TOKENS = 1 << 31
_LONGEST_LINE = 1 << 20  # characters; a row of Mooncake has one number for each 512 tokens of its prompt
_DEEPEST = 4  # levels of a row
_MOST_ROWS = 10_000_000

_Row = tuple[int, int, int]


class TraceFormatError(InvalidArgumentError):
    """A trace cannot be read. The message names the file and, for a bad row, its line."""


class _RowError(Exception):
    """An error in a line; `read_trace` adds the name of the file."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests, in order of arrival.

    Attributes
    ----------
    name : str
        File name without its folder.
    format : str
        ``"azure"`` or ``"mooncake"``.
    arrival_us : ndarray of int64, shape (n,)
        Microseconds since the first request, never decreasing.
    prompt, output : ndarray of int64, shape (n,)
        Tokens of the prompt and generated tokens.
    """

    name: str
    format: str
    arrival_us: IntArray
    prompt: IntArray
    output: IntArray

    def __len__(self) -> int:
        return len(self.arrival_us)


def read_trace(path: str | Path, limit: int | None = None) -> Trace:
    """Read a trace of either format.

    Parameters
    ----------
    path : str or Path
        ``AzureLLMInferenceTrace_*.csv`` of AzurePublicDataset, or a ``*_trace.jsonl`` of Mooncake.
        Mooncake's ``hash_ids`` (shared prefixes) are not used: every request has memory of its own.
    limit : int, optional
        Read only the first `limit` requests; later rows are not checked.

    Returns
    -------
    Trace

    Raises
    ------
    TraceFormatError
        The file is neither format, has no requests, or has a row that cannot be read.
    OSError
        The file cannot be opened.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from slabpool.replay.trace import read_trace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "two.jsonl")
    ...     _ = path.write_text('{"timestamp": 0, "input_length": 10, "output_length": 2}\\n'
    ...                         '{"timestamp": 5, "input_length": 20, "output_length": 3}\\n')
    ...     trace = read_trace(path)
    >>> trace.format, trace.arrival_us.tolist(), trace.prompt.tolist(), trace.output.tolist()
    ('mooncake', [0, 5000], [10, 20], [2, 3])
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise InvalidArgumentError(f"limit must be at least 1, not {limit}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            trace_format, rows = _read_rows(_numbered(file), limit)
    except UnicodeDecodeError as error:
        raise TraceFormatError(f"{path}: not a text file ({error.reason})") from None
    except _RowError as error:
        raise TraceFormatError(f"{path}: {error}") from None
    if not rows:
        raise TraceFormatError(f"{path}: no requests after the header")
    table = np.array(rows, dtype=np.int64)
    # Published files are in order of arrival; merged or edited files may not be.
    table = table[np.argsort(table[:, 0], kind="stable")]
    return Trace(path.name, trace_format, table[:, 0] - table[0, 0], table[:, 1].copy(), table[:, 2].copy())


def _read_rows(lines: Iterator[tuple[int, str]], limit: int | None) -> tuple[str, list[_Row]]:
    """Return the format, which the first line decides, and up to `limit` rows."""
    number, first = next(lines, (1, ""))
    if first.startswith("{"):
        return "mooncake", [_mooncake_row(*line) for line in islice(chain([(number, first)], lines), limit)]
    if tuple(field.strip().lower() for field in first.split(",")) == _AZURE_HEADER:
        return "azure", [_azure_row(*line) for line in islice(lines, limit)]
    raise _RowError(
        f"line {number}: neither a trace of Azure (header TIMESTAMP,ContextTokens,GeneratedTokens) "
        f"nor of Mooncake (one JSON object in each line): {first[:40]!r}"
    )


def _numbered(file: TextIO) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and stripped text of each line that is not blank."""
    rows = 0
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise _RowError(f"line {number}: longer than {_LONGEST_LINE} characters: {line[:40]!r}")
        stripped = line.strip()
        if stripped:
            rows += 1
            if rows > _MOST_ROWS:
                raise _RowError(f"line {number}: more than {_MOST_ROWS} rows; read fewer with a limit")
            yield number, stripped


def _azure_row(number: int, line: str) -> _Row:
    fields = line.split(",")
    if len(fields) != 3:
        raise _RowError(f"line {number}: expected 3 fields, found {len(fields)}: {line[:60]!r}")
    match = _AZURE_TIME.fullmatch(fields[0].strip())
    if match is None:
        raise _RowError(f"line {number}: TIMESTAMP is not a time: {fields[0][:40]!r}")
    try:
        seconds = datetime.fromisoformat(match[1])
    except ValueError as error:
        raise _RowError(f"line {number}: TIMESTAMP is not a time: {fields[0][:40]!r} ({error})") from None
    micros = int((match[2] or "0").ljust(6, "0")[:6])
    return (
        (seconds - _EPOCH) // timedelta(microseconds=1) + micros,
        _tokens(number, "ContextTokens", fields[1]),
        _tokens(number, "GeneratedTokens", fields[2]),
    )


def _mooncake_row(number: int, line: str) -> _Row:
    try:
        row = read_json(line, longest=_LONGEST_LINE, deepest=_DEEPEST)
    except UnreadableError as error:
        raise _RowError(f"line {number}: {error}: {line[:40]!r}") from None
    if not isinstance(row, dict):
        raise _RowError(f"line {number}: not a JSON object: {line[:40]!r}")
    for name in ("timestamp", "input_length", "output_length"):
        if name not in row:
            raise _RowError(f"line {number}: no {name!r}")
    stamp = row["timestamp"]
    if isinstance(stamp, bool) or not isinstance(stamp, (int, float)) or not 0 <= stamp < 1e15:
        raise _RowError(f"line {number}: timestamp must be a number of milliseconds, got {show(stamp)}")
    return (
        round(stamp * 1000),
        _tokens(number, "input_length", row["input_length"]),
        _tokens(number, "output_length", row["output_length"]),
    )


def _tokens(number: int, name: str, value: object) -> int:
    """Parse a number of tokens from a CSV field or a JSON value."""
    tokens: object = value
    if isinstance(value, str):
        try:
            tokens = whole_number(value.strip(), most=_MAX_TOKENS)
        except UnreadableError:
            tokens = None
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= _MAX_TOKENS:
        raise _RowError(f"line {number}: {name} must be a number of tokens, got {show(value)}")
    return tokens
