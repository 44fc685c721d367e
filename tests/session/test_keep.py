"""What a turn keeps is there for the next one: the same bytes, within the budget."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Layout, Pool, RequestState, Session
from tests.scene import picture, says
from tests.session.conftest import turn_with


def refused(pool: Pool, call: Callable[[], object], error: type[Exception], text: str) -> None:
    """The call raises exactly this error with this text, and changes nothing visible."""
    before, sessions = picture(pool), [(s.session_id, s.nbytes, s.names) for s in pool.sessions()]
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    says(raised, text)
    del raised
    assert picture(pool) == before
    assert [(s.session_id, s.nbytes, s.names) for s in pool.sessions()] == sessions


def test_the_next_turn_has_the_same_bytes(pool: Pool) -> None:
    session = pool.session("chat-42")
    with session.request(devices=["gpu0"]) as turn:
        made = turn.full((3, 1000), 7, np.int32)
        address = made.ctypes.data
        session.keep("kv", made)
        del made
        assert (turn.nbytes, session.nbytes) == (0, pool.stats().live)
    assert turn.ack("gpu0") is Ack.RELEASED
    with session.request() as turn:
        kept = session.writable("kv")
        assert kept.ctypes.data == address
        assert (kept == 7).all() and kept.shape == (3, 1000) and kept.dtype == np.int32
        kept[0] = 8
        del kept
    assert session["kv"].sum() == 7 * 2000 + 8 * 1000
    session.close()
    assert pool.stats().live == 0


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x,
        lambda x: x[1:],
        lambda x: x[:, ::2],
        lambda x: x[::-1, :, ::-3],
        lambda x: x.T,
        lambda x: x[1, 2, 3:4],
        lambda x: x[..., None],
        lambda x: x.reshape(-1)[5:6].reshape(()),
        lambda x: np.broadcast_to(x[0, 0, :1], (4, 7)),
        lambda x: x.view("u1")[:, :, 1:],
        lambda x: x.view([("a", "i4"), ("b", "f4")]),
    ],
)
def test_any_view_can_be_kept(pool: Pool, cut: Callable[[Any], Any]) -> None:
    session = pool.session("chat-42")
    with session.request() as turn:
        x = turn.empty((4, 5, 6), "f8")
        x[:] = np.arange(120).reshape(4, 5, 6)
        session.keep("part", cut(x))
        expected = cut(x.copy())
        kept = session["part"]
        assert (kept.shape, kept.dtype) == (expected.shape, expected.dtype)
        steps = zip(kept.shape, kept.strides, cut(x).strides, strict=True)
        assert all(mine == theirs for dim, mine, theirs in steps if dim > 1)
        del x
    np.testing.assert_array_equal(kept, expected)
    session.close()
    np.testing.assert_array_equal(kept, expected)  # a view keeps its memory, even after the session
    assert pool.stats().retained > 0
    del kept
    assert pool.stats().retained == 0


def test_tensors_of_a_layout_are_kept_together_or_by_name(pool: Pool) -> None:
    layout = Layout({"k": ((2, 8), "f4"), "v": ((2, 8), "f4")})
    session = pool.session("chat-42")
    with session.request() as turn:
        tensors = turn.allocate(layout, zero=True)
        tensors.k[:] = 1
        session.keep("all", tensors)
        session.keep("v", tensors.v)
        nbytes = session.nbytes
        tensors.v[:] = 2
    with pytest.raises(slabpool.RequestClosedError):
        assert tensors.v is None, "tensors of the turn itself must not make views after it"
    assert session.nbytes == nbytes == pool.stats().live, "one block, counted once"
    assert session["all"].k.sum() == 16 and session["all"].v.sum() == 32
    session.drop("all")
    assert session["v"].sum() == 32 and session.nbytes == nbytes
    session.keep("v", session["v"][1:])
    assert session["v"].shape == (1, 8) and pool.stats().live == nbytes
    session.drop("v")
    assert pool.stats().live == session.nbytes == 0


def test_a_growing_tensor_keeps_growing_in_the_next_turn(pool: Pool) -> None:
    session = pool.session("chat-42", budget="256KiB")
    with session.request() as turn:
        keys = turn.growable((2, 0, 64), "f4", axis=1, limit=10_000)
        keys.extend(3)[:] = 1
        session.keep("keys", keys)
        assert keys.request is None and turn.nbytes == 0 and session.nbytes == keys.nbytes
        keys.extend(200)[:, 3:] = 2  # still in this turn
        address = keys.array.ctypes.data
        del keys
    for length in range(204, 210):
        with session.request() as turn:
            keys = session.writable("keys")
            assert keys.length == length - 1
            array = keys.extend(1)
            array[:, -1] = 3
            assert array.ctypes.data == address and array.shape == (2, length, 64)
            assert array[:, :3].sum() == 2 * 3 * 64
            del array, keys
    assert session.nbytes == pool.stats().live == session["keys"].nbytes
    kept = session.writable("keys")
    refused(
        pool,
        lambda kept=kept: kept.extend(400),
        slabpool.QuotaExceededError,
        "'chat-42' ... 'keys' ... 256 KiB",
    )
    assert kept.length == 209
    session.close()
    with pytest.raises(slabpool.RequestClosedError, match="dropped or replaced"):
        kept.extend(1)
    assert kept.array[0, 3, 0] == 2
    del kept
    assert pool.stats().live + pool.stats().retained == 0


def test_an_array_of_a_growing_tensor_is_kept_at_its_length(pool: Pool) -> None:
    session = pool.session("chat-42")
    with session.request() as turn:
        keys = turn.growable((0, 64), "f4", limit=10_000)
        session.keep("keys", keys.extend(10))
        with pytest.raises(slabpool.RequestClosedError, match="Keep the GrowableTensor itself"):
            keys.extend(1000)
        assert session["keys"].shape == (10, 64)


def test_a_replaced_tensor_goes_with_the_last_turn_that_saw_it(pool: Pool) -> None:
    session = pool.session("chat-42", budget=4096)
    turn_with(session, "kv", 4096, 1)
    with session.request(devices=["gpu0"]) as turn:
        old = session["kv"].ctypes.data
        session.keep("kv", turn.full(4000, 2, "u1"))  # the budget counts only the new tensor
        assert session.nbytes == 4096 and session["kv"][0] == 2
        later = session.request(devices=["gpu1"])
        assert pool.stats().live == 8192, "gpu0 may still read the old one"
        (record,) = [r for r in pool.requests() if r.state is RequestState.DRAINING]
        assert (record.request_id, record.kept_as, record.nbytes) == ("chat-42", "kv", 4096)
    assert (pool.empty(4096, "u1").ctypes.data == old) is False
    turn.ack("gpu0")
    assert pool.stats().live == 4096, "the later turn never saw the old one"
    later.close()
    later.ack("gpu1")


def test_dropping_and_closing_wait_for_the_turns(pool: Pool) -> None:
    session = pool.session("chat-42")
    turn_with(session, "a", 1000)
    turn_with(session, "b", 1000)
    turn = session.request(devices=["gpu0"])
    session.drop("a")
    assert tuple(session) == ("b",) and "a" not in session and session.nbytes == 1024
    session.close()
    turn.close()
    assert pool.stats().live == 2048
    assert pool.device_lost("gpu0") == 1
    assert pool.stats().live == 0
    with pytest.raises(KeyError):
        pool.session("chat-42").drop("a")


def test_what_is_kept_is_no_request_and_no_leak(pool: Pool) -> None:
    session = pool.session("chat-42")
    with session.request(devices=["gpu0"]) as turn:
        session.keep("kv", turn.zeros(5000, "u1"))
        assert pool.ack("chat-42", "gpu0") is Ack.PENDING
    assert pool.ack("chat-42", "gpu0") is Ack.LATE, "the id is known, but only the turn had it"
    s = pool.stats()
    assert (s.requests_open, s.requests_draining, s.live) == (0, 0, 5120)
    (record,) = pool.requests()
    assert (record.request_id, record.kept_as, record.state) == ("chat-42", "kv", RequestState.KEPT)
    assert (record.nbytes, record.pending, record.parent) == (5120, frozenset(), None)
    assert "test_keep.py" in record.opened_at and "keeps 'kv'" in str(record)
    assert pool.leaks() == []
    (record,) = pool.sessions()
    assert (record.session_id, record.nbytes, record.names, record.requests) == ("chat-42", 5120, ("kv",), 0)
    assert record.idle is not None and 0 <= record.idle <= record.age
    assert "idle for" in str(record) and "test_keep.py" in record.opened_at


@pytest.mark.parametrize("id", ["7", 7, b"7", "k", ""])
def test_ids_of_any_kind(pool: Pool, id: str | int | bytes) -> None:
    sessions = [pool.session(other) for other in ("7", 7, b"7", "k", "")]
    session = pool.session(id)
    assert session is next(s for s in sessions if s.id == id and type(s.id) is type(id))
    turn_with(session, "=a\udc80", 100)
    assert [(r.request_id, r.kept_as) for r in pool.requests()] == [(id, "=a\udc80")]


def test_budgets(pool: Pool) -> None:
    session = pool.session("chat-42", budget="64KiB")
    turn_with(session, "a", 40_000)
    kept = session.nbytes
    with session.request(quota="128KiB", reserve="96KiB") as turn:
        more = turn.zeros(40_000, "u1")
        # fmt: off
        refused(pool, lambda more=more: session.keep("b", more), slabpool.QuotaExceededError,
                "'chat-42' cannot keep 'b' ... of its budget of 64 KiB ('a'")
        refused(pool, lambda: pool.session("chat-42", budget=1000), slabpool.QuotaExceededError,
                "'chat-42' keeps ... budget of 1000 bytes ... drop()")
        # fmt: on
        assert pool.session("chat-42", budget="1MiB") is session and session.budget == 1 << 20
        session.keep("b", more)
        assert turn.nbytes == 0 and session.nbytes == 2 * kept
        everything = turn.zeros(131072 - 1024, "u1")  # the quota no longer counts what is kept
        del more, everything
    assert pool.stats().live == 2 * kept and pool.stats().reserved == 0
    session.keep("a", session["b"])
    assert session.nbytes == kept


def test_what_cannot_be_kept(pool: Pool) -> None:
    session, other = pool.session("chat-42"), pool.session("other")
    turn_with(other, "theirs", 100)
    theirs = other["theirs"]
    req = pool.request("done", devices=["gpu0"])
    late = req.zeros(10)
    tensors = req.allocate(Layout({"x": (4, "f4")}))
    req.close()
    req.ack("gpu0")
    elsewhere = slabpool.Pool("1MiB").request("r")
    with session.request() as turn:
        given_up = turn.zeros(100)
        session.keep("gone", given_up)
        session.drop("gone")
        for tensor, error, text in [
            (np.zeros(3), slabpool.InvalidArgumentError, "'chat-42' cannot keep 'x' ... not in the memory"),
            (pool.zeros(3), slabpool.InvalidArgumentError, "not in the memory of a request of pool 'chats'"),
            (elsewhere.zeros(3), slabpool.InvalidArgumentError, "not in the memory of a request"),
            (
                elsewhere.allocate(Layout({"x": (4, "f4")})),
                slabpool.InvalidArgumentError,
                "not in the memory",
            ),
            (elsewhere.growable(4, limit=8), slabpool.InvalidArgumentError, "not in the memory of a request"),
            (turn.zeros((0, 4)), slabpool.InvalidArgumentError, "(0, 4) has no bytes"),
            (theirs, slabpool.InvalidArgumentError, "session 'other' keeps its memory"),
            (given_up, slabpool.InvalidArgumentError, "dropped or replaced"),
            (late, slabpool.RequestClosedError, "its request is released"),
            (tensors, slabpool.RequestClosedError, "request is released"),
            ([1, 2], slabpool.InvalidTypeError, "got list"),
            (None, slabpool.InvalidTypeError, "got NoneType"),
        ]:
            refused(pool, lambda tensor=tensor: session.keep("x", tensor), error, text)
            del tensor
        tensor = turn.zeros(1)
        refused(pool, lambda: session.keep(3, tensor), slabpool.InvalidTypeError, "must be a str, got 3")
    elsewhere.close()
    with pytest.raises(KeyError):
        session["x"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"session_id": 1.5}, slabpool.InvalidTypeError, "session_id must be a str, an int or bytes"),
        ({"session_id": ["chat-42"]}, slabpool.InvalidTypeError, "session_id"),
        ({"session_id": True}, slabpool.InvalidTypeError, "session_id"),
        ({"session_id": None}, slabpool.InvalidTypeError, "session_id"),
        ({"budget": 0}, slabpool.InvalidArgumentError, "budget must be from 1"),
        ({"budget": "much"}, slabpool.InvalidArgumentError, "budget must be bytes or a size"),
        ({"ttl": 0}, slabpool.InvalidArgumentError, "ttl must be more than 0"),
        ({"ttl": float("nan")}, slabpool.InvalidArgumentError, "ttl must be more than 0"),
        ({"ttl": "soon"}, slabpool.InvalidTypeError, "ttl must be seconds"),
    ],
)
def test_bad_arguments(pool: Pool, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments.setdefault("session_id", "chat-42")
    refused(pool, lambda: pool.session(**arguments), error, text)
    with pytest.raises(slabpool.InvalidArgumentError, match="session_budget"):
        pool.session_budget = -1


def test_a_session_is_only_made_by_a_pool(pool: Pool) -> None:
    with pytest.raises(slabpool.InvalidTypeError, match=r"Pool\.session"):
        Session()
    with pytest.raises(slabpool.InvalidTypeError, match="copied or pickled"):
        pickle.dumps(pool.session("chat-42"))


def test_as_a_mapping(pool: Pool) -> None:
    session = pool.session("chat-42")
    for name in ("b", "a", "c"):
        turn_with(session, name, 100, ord(name))
    assert list(session) == ["b", "a", "c"] and len(session) == 3
    assert {name: int(array[0]) for name, array in ((name, session[name]) for name in session)} == {
        "a": 97,
        "b": 98,
        "c": 99,
    }
    with pytest.raises(KeyError):
        session["d"]
    assert "a" in session and 3 not in session


def test_a_request_that_is_no_turn_may_keep_something(pool: Pool) -> None:
    """A prefill under another id, and a child of a turn."""
    session = pool.session("chat-42")
    prefill = pool.request("prefill", devices=["gpu0"])
    session.keep("prompt", prefill.zeros(1000, "u1"))
    prefill.close()
    assert session.in_use, "gpu0 may still read it"
    with session.request(devices=["gpu1"]) as turn, turn.child(devices=["gpu1"]) as step:
        session.keep("hidden", step.zeros(1000, "u1"))
    turn.ack("gpu1")
    assert session.in_use
    prefill.ack("gpu0")
    assert not session.in_use and session.nbytes == 2048


@pytest.mark.parametrize("options", [{"debug": 2}, {"scrub": "release"}, {"events": 64}], ids=str)
def test_in_other_kinds_of_pools(options: dict[str, Any]) -> None:
    with Pool("1MiB", **options) as pool:
        session = pool.session("chat-42")
        for value in range(1, 20):
            turn_with(session, "kv", 1000 * value, value)
            assert (session["kv"] == value).all()
        assert pool.corruptions() == []
        assert {"keep"} <= {event.kind for event in pool.events()} or not options.get("events")
