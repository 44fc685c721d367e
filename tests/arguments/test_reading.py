"""Input of any shape is read, or is one error of slabpool's own: traces, sizes, references, messages."""

from __future__ import annotations

import argparse
import json
import socket
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import slabpool
from slabpool import InvalidArgumentError, InvalidReferenceError, InvalidTypeError, TensorRef
from slabpool.arguments.memory_kinds import parse_memory
from slabpool.arguments.reading import UnreadableError, decimal, read_json, whole_number
from slabpool.arguments.sizes import parse_size
from slabpool.exo import _wire as exo_wire
from slabpool.replay.command import _capacity
from slabpool.replay.console import whole_number as option
from slabpool.replay.trace import TraceFormatError, read_trace
from slabpool.shared import wire

fuzz = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = [
    "",
    "0",
    "-1",
    "+1",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "NaN",
    "Infinity",
    "1_000",
    "٣",
    "²",
    "0x10",
    "1" * 21,
]
NUMBERS += [
    "9" * 5000,
    "0." + "9" * 5000,
    "1" * 19 + "." + "1" * 19,
    ".",
    "1.",
    ".5",
    "1..2",
    " 1 ",
    "1\x00",
    "\ud800",
]


def short(error: Exception) -> None:
    assert 5 < len(str(error)) <= 1000


numbers = st.sampled_from(NUMBERS) | st.integers().map(str) | st.floats().map(str)
texts = st.text(max_size=50) | numbers
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.text() | st.tuples(numbers, st.sampled_from(["", "GiB", " mb", "k", "xib", "٣"])).map("".join))
@example("1e400GiB")
@example("9" * 5000 + "GiB")
@fuzz
def test_sizes(text):
    try:
        size = parse_size(text, "capacity", least=1, most=1 << 62)
    except InvalidArgumentError as error:
        short(error)
    else:
        assert 1 <= size <= 1 << 62 and text.isascii()


@given(values | st.integers(min_value=10**4000, max_value=10**5000))
@fuzz
def test_sizes_of_any_type(value):
    try:
        assert parse_size(value, "capacity", least=1, most=1 << 62) > 0
    except (InvalidArgumentError, InvalidTypeError) as error:
        short(error)


@given(
    st.text()
    | st.tuples(st.sampled_from(["cuda:", "pinned:", "managed:", "shared:cuda:"]), numbers).map("".join)
)
@fuzz
def test_kinds_of_memory(text):
    try:
        assert 0 <= parse_memory(text).device + 1 <= 1000
    except InvalidArgumentError as error:
        short(error)


@given(texts)
@fuzz
def test_whole_numbers(text):
    try:
        assert whole_number(text) == int(text)
    except UnreadableError as error:
        short(error)


@given(texts)
@fuzz
def test_decimals(text):
    try:
        number, scale = decimal(text)
    except UnreadableError as error:
        short(error)
    else:
        assert number / scale == pytest.approx(float(text))


@given(texts | st.tuples(numbers, st.just("x")).map("".join))
@fuzz
def test_options_of_the_replay(text):
    try:
        size, _ = _capacity(text, 1 << 30, 1 << 20)
        parse_size(size, "capacity", least=1, most=1 << 62)
    except InvalidArgumentError as error:
        short(error)
    try:
        assert 0 <= option(0, 10)(text) <= 10
    except (argparse.ArgumentTypeError, ValueError) as error:
        short(error)


@given(values)
@fuzz
def test_json_is_read_as_it_was_written(value):
    text = json.dumps(value)
    try:
        read = read_json(text, longest=10_000, deepest=4)
    except UnreadableError as error:
        short(error)
    else:
        assert read == json.loads(text)


@given(st.text() | st.binary() | values.map(json.dumps))
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example("[" + "9" * 100_000 + "]")
@example("[1e999999]")
@example('"' + '\\"' * 50_000)
@fuzz
def test_json_of_any_shape(data):
    try:
        read_json(data, longest=1 << 20, deepest=4)
    except UnreadableError as error:
        short(error)


def test_the_depth_counts_brackets_outside_of_strings():
    assert read_json('[["[[[[[", "\\"[[["]]', longest=100, deepest=2) == [["[[[[[", '"[[[']]
    with pytest.raises(UnreadableError, match="more than 1 level"):
        read_json('[["[[[[["]]', longest=100, deepest=1)


ROW = '{"timestamp": %s, "input_length": %s, "output_length": %s}\n'
MOONCAKE = (ROW % (0, 1, 1)).encode()
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
fields = values.map(lambda value: json.dumps(value)[:300])


@given(
    st.binary(max_size=200)
    | st.binary(max_size=100).map(lambda more: MOONCAKE + more)
    | st.lists(texts, min_size=2, max_size=4).map(
        lambda row: AZURE + ",".join(row).encode("utf-8", "surrogatepass")
    )
    | st.tuples(fields, fields, fields).map(
        lambda row: MOONCAKE + (ROW % row).encode("utf-8", "surrogatepass")
    )
)
@fuzz
def test_traces(tmp_path: Path, data):
    path = tmp_path / "trace"
    path.write_bytes(data)
    try:
        trace = read_trace(path)
    except TraceFormatError as error:
        short(error)
    else:
        assert len(trace) > 0 and (trace.prompt >= 0).all()


def test_a_trace_without_lines_is_not_read_whole(tmp_path: Path):
    path = tmp_path / "trace"
    path.write_bytes(MOONCAKE)
    with path.open("ab") as file:
        file.truncate(1 << 31)  # a hole: one line of 2 GiB
    with pytest.raises(TraceFormatError, match="line 2: longer than"):
        read_trace(path)


@pytest.fixture(scope="module")
def reference() -> bytes:
    with slabpool.Pool("1MiB", memory="shared") as pool, pool.request("r", devices=["d"]) as request:
        data = request.ref(request.empty((3, 5), np.float32)).to_bytes()
        request.ack("d")
        return data


def _sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@given(st.data())
@fuzz
def test_references(reference, data):
    """Bytes of any kind, and changed references with a right checksum."""
    raw = bytearray(reference[:-4])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if not raw:
            break
    given_ = data.draw(st.sampled_from([_sealed(bytes(raw)), bytes(raw), _sealed(bytes(raw) + b"[" * 100)]))
    try:
        ref = TensorRef.from_bytes(given_)
    except InvalidReferenceError as error:
        short(error)
    else:
        assert TensorRef.from_bytes(ref.to_bytes()) == ref


DTYPES = ["[" * 5000, "[('a','<f4')]", "[('a','|O')]", "-" * 9000 + "1", "[" + "-" * 9000 + "1]", "[(" * 100]
DTYPES += ["[('a','<f4',(1000000000,1000000000))]", "[('" + "a" * 9000 + "','<f4')]", "[1 is 1]", "[1]" * 3]


@given(st.sampled_from(DTYPES) | st.text(max_size=30))
@fuzz
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_dtypes_of_references(reference, text):
    head = bytearray(reference[:67])
    name = text.encode("utf-8", "surrogatepass")
    nd_at = 4 + 5 * 8 + 4
    head[nd_at : nd_at + 2] = (0).to_bytes(2, "little")
    head[nd_at + 2 : nd_at + 4] = len(name).to_bytes(2, "little")
    try:
        TensorRef.from_bytes(_sealed(bytes(head[: nd_at + 12]) + name))
    except InvalidReferenceError as error:
        short(error)


@given(values)
@fuzz
def test_references_of_any_type(value):
    with pytest.raises((InvalidReferenceError, InvalidTypeError)):
        TensorRef.from_bytes(value)


@given(st.binary(min_size=1, max_size=300) | values.map(lambda value: json.dumps(value).encode()))
@fuzz
def test_messages_of_shared_pools(data):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.send(data)
        message, files = wire.receive(there)
    assert files == [] and (message is None or isinstance(message, dict))


def test_a_message_that_is_too_long_is_not_sent():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there, pytest.raises(InvalidArgumentError, match="too long"):
        wire.send(here, {"attach": "x" * 5000})


@given(st.text() | values.map(json.dumps))
@fuzz
def test_messages_between_nodes(text):
    plain, tag = exo_wire.untagged("id\x1f" + text)
    assert plain == "id" if tag is not None else plain.startswith("id\x1f")
    message = exo_wire.parse('{"type": "slabpool", "x": ' + text + "}")
    assert message is None


def test_messages_between_nodes_are_read_back():
    tag = exo_wire.Tag("run", "node", ("a", "b"), True)
    assert exo_wire.untagged(exo_wire.tagged("a\x1fb", tag)) == ("a\x1fb", tag)
    message = exo_wire.Message("a", "run", True, False, True, "why")
    assert exo_wire.parse(message.to_status()) == message


@pytest.mark.parametrize(
    "data", ["[" * (1 << 20), '"' * (1 << 20), "[1," * (1 << 18), "9" * (1 << 20), "\\" * (1 << 20)]
)
def test_the_longest_input_is_refused_in_linear_time(data):
    seconds = []
    for part in (data[: len(data) // 16], data):
        begin = time.process_time()
        with pytest.raises(UnreadableError):
            read_json(part, longest=1 << 20, deepest=4)
        seconds.append(time.process_time() - begin)
    # Sixteen times the input: quadratic work would be 256 times as long.
    assert seconds[1] < 100 * max(seconds[0], 0.001)
