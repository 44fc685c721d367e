"""What is kept is available on every device, and never goes while a turn's device may read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import slabpool
from slabpool import Ack
from tests.process.devices import ack, attached, fill, total
from tests.session.conftest import turn_with

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[slabpool.Pool]:
    """A shared pool "engine" of 1 MiB."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    pool = slabpool.Pool("1MiB", memory="shared", name="engine")
    yield pool
    assert pool._verify() is None
    pool.close()
    assert pool.stats().committed == 0


def test_turns_of_two_devices(shared: slabpool.Pool) -> None:
    """Each device reads in a later turn what another wrote in an earlier one. Nothing is copied or sent."""
    session = shared.session("chat-42")
    with attached(shared, "gpu0", "gpu1") as (gpu0, gpu1):
        with session.request(["gpu0", "gpu1"]) as turn:
            kv = turn.zeros((4, 1000), np.float64)
            session.keep("kv", kv)
            ref = turn.ref(kv)  # the session keeps it by now
            gpu0.ask(fill, ref, 1)
            assert gpu1.ask(total, ref) == 4000
            assert (gpu0.ask(ack, ref), gpu1.ask(ack, ref)) == (Ack.PENDING, Ack.PENDING)
        del kv
        assert not session.in_use
        for value in range(2, 5):
            with session.request(["gpu0", "gpu1"]) as turn:
                ref = turn.ref(session["kv"][1:])
                assert gpu1.ask(total, ref) == 3000 * (value - 1)
                gpu0.ask(fill, ref, value)
                gpu0.ask(ack, ref)
            assert session.in_use
            assert gpu1.ask(ack, ref) is Ack.RELEASED
            assert not session.in_use
            with pytest.raises(slabpool.StaleReferenceError):
                gpu1.ask(total, ref)


def test_a_reader_keeps_a_session_from_eviction(shared: slabpool.Pool) -> None:
    session = shared.session("chat-42")
    turn_with(session, "kv", 400_000, 3)
    with attached(shared, "gpu0") as (gpu0,):
        turn = session.request(["gpu0"])
        ref = turn.ref(session["kv"])
        turn.close()
        with pytest.raises(slabpool.PoolExhausted):
            shared.empty(800_000, "u1")
        session.close()
        with pytest.raises(slabpool.PoolExhausted):
            shared.empty(800_000, "u1")
        assert gpu0.ask(total, ref) == 1_200_000
        gpu0.kill()
        assert shared.empty(800_000, "u1", timeout=120).nbytes == 800_000


def test_a_turn_refers_only_to_what_it_may_read(shared: slabpool.Pool) -> None:
    session, other = shared.session("chat-42"), shared.session("other")
    turn_with(other, "kv", 1000)
    earlier = session.request()
    with session.request() as turn, earlier:
        session.keep("kv", turn.zeros(1000))
        assert turn.ref(session["kv"]).shape == (1000,)
        for array in (other["kv"], shared.zeros(3), np.zeros(3)):
            with pytest.raises(slabpool.InvalidArgumentError):
                turn.ref(array)
        # This turn was opened before the tensor was kept, so its end does not show that the tensor has no
        # reader.
        with pytest.raises(slabpool.InvalidArgumentError):
            earlier.ref(session["kv"])
        kept = session["kv"]
        session.drop("kv")
        assert turn.ref(kept).nbytes == 8000, "the turn may read it to its end"
    with pytest.raises(slabpool.RequestClosedError):
        turn.ref()
    del kept
