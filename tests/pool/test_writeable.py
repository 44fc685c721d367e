"""`flags.writeable` of a pool's arrays may be cleared and set again; a read-only view stays read-only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import slabpool
from slabpool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("1MiB") as pool:
        yield pool


def frozen_and_thawed(array: np.ndarray) -> None:
    """Clear the flag and set it again, as libraries do around a call."""
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 0
    array.flags.writeable = True
    array[...] = 1
    assert (array == 1).all()


def test_every_kind_of_array(pool: Pool) -> None:
    request = pool.request("chat-42")
    tensors = request.allocate(slabpool.Layout({"k": ((4,), np.float64)}))
    growing = request.growable((0, 4), np.float32, axis=0, limit=10)
    part = growing.extend(2)
    arrays = [
        pool.empty(4),
        pool.full((4,), 2.0),
        pool.copy([1, 2]),
        request.empty(4),
        request.zeros((2, 2)),
        tensors.k,
    ]
    for array in [*arrays, growing.array, part, pool.empty(5)[1:], pool.empty((3, 4)).T]:
        frozen_and_thawed(array)


def test_an_empty_array(pool: Pool) -> None:
    array = pool.empty(0)
    array.flags.writeable = False
    array.flags.writeable = True


def test_a_kept_tensor(pool: Pool) -> None:
    session = pool.session("chat-42")
    turn = session.request()
    session.keep("kv", turn.full((4,), 3.0))
    frozen_and_thawed(session.writable("kv"))


def test_what_a_session_shows_for_reading_stays_read_only(pool: Pool) -> None:
    session = pool.session("chat-42")
    with session.request() as turn:
        session.keep("array", turn.full((4,), 3.0))
        session.keep("strided", turn.full((4, 4), 3.0).T)
        session.keep("layout", turn.allocate(slabpool.Layout({"k": (4, "f8")}), zero=True))
        session.keep("grows", turn.growable(2, "f8", limit=10))
    shown = session["array"], session["strided"], session["layout"].k, session["grows"].array
    for array in shown:
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        assert memoryview(array.base).readonly
    with pytest.raises(slabpool.InvalidArgumentError, match=r"read-only.*session\.writable"):
        session["grows"].extend(1)
    with pytest.raises(slabpool.InvalidArgumentError, match=r"read-only.*session\.writable"):
        session["grows"].truncate(1)
    for array in (session.writable("array"), session.writable("strided"), session.writable("layout").k,
                  session.writable("grows").extend(1)):  # fmt: skip
        array[:] = 5
    assert session["array"][0] == session["strided"][0, 0] == session["layout"].k[0] == shown[3][1] == 5


def test_a_large_block_that_is_scrubbed() -> None:
    with Pool("8MiB", scrub="release") as pool:
        frozen_and_thawed(pool.empty(1 << 20, np.uint8))


def test_a_buffer_of_the_base_keeps_the_block(pool: Pool) -> None:
    array = pool.full(1000, 7, np.uint8)
    buffer = memoryview(array.base)
    live = pool.stats().live
    del array
    assert pool.stats().live == live
    assert buffer[0] == 7
    buffer.release()
    assert pool.stats().live == 0


def test_a_devices_view_is_writable_only_if_it_was_opened_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with (
        Pool("1MiB", memory="shared", name="writeable") as pool,
        pool.request("q", devices=["gpu0"]) as request,
    ):
        ref = request.ref(request.full((4,), 1.0))
        with slabpool.attach("writeable", device="gpu0") as peer:
            read_only = peer.open(ref)
            with pytest.raises(ValueError, match="WRITEABLE"):
                read_only.flags.writeable = True
            frozen_and_thawed(peer.open(ref, writable=True))
            with pytest.raises(ValueError, match="WRITEABLE"):
                read_only.flags.writeable = True
            assert peer.ack(ref) is slabpool.Ack.PENDING  # the host still holds the request
