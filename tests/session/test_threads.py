"""Threads race in sessions: turns at once, keeps of one name, evictions while a turn is being opened."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

import slabpool
from slabpool import Pool, Session, SessionLostError
from tests.crew import switching_often, together

ROUNDS = 300


@pytest.fixture(params=[{}, {"debug": 2}, {"memory": "shared"}], ids=["plain", "debug", "shared"])
def crowd(
    request: pytest.FixtureRequest, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pool]:
    """A pool that is empty and whole again at the end."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    pool = Pool("1MiB", **request.param)
    with switching_often():
        yield pool
    for record in pool.sessions():
        pool.session(record.session_id).close()
    s = pool.stats()
    assert (s.live, s.retained, s.requests_open, s.requests_draining) == (0, 0, 0, 0)
    assert s.allocations == s.frees > 0
    assert pool.requests() == [] and pool.corruptions() == [] and pool._verify() is None
    pool.close()
    assert pool.stats().committed == 0


def test_two_turns_at_once_in_one_session(crowd: Pool) -> None:
    """Each turn sees one whole tensor, of whichever turn kept last, and its bytes stay while the turn
    reads."""
    session = crowd.session("chat-42", budget="64KiB")
    with session.request() as first:
        session.keep("kv", first.full(1000, 0, "u1"))

    def turns(number: int) -> None:
        device = f"gpu{number}"
        for n in range(ROUNDS):
            turn = session.request(devices=[device])
            seen = session["kv"]
            value = seen[0]
            session.keep("kv", turn.full(1000 + 100 * number, n % 256, "u1"))
            turn.close()
            assert (seen == value).all(), "bytes of another turn"
            del seen
            turn.ack(device)

    together(*(lambda number=number: turns(number) for number in range(3)))  # type: ignore[misc]
    assert session.nbytes == crowd.stats().live and not session.in_use


def test_two_threads_keep_from_one_turn(crowd: Pool) -> None:
    session = crowd.session("chat-42")
    for _ in range(ROUNDS // 3):
        with session.request() as turn:
            arrays = [turn.full(500, n, "u1") for n in range(4)]
            size = turn.nbytes

            def keep(order: int, arrays: list[object] = arrays) -> None:
                for n in random.Random(order).sample(range(4), 4):
                    session.keep(f"t{n}", arrays[n])  # type: ignore[arg-type]
                    session.keep("last", arrays[n])  # type: ignore[arg-type]

            together(lambda: keep(1), lambda: keep(2))
            assert turn.nbytes == 0 and [int(session[f"t{n}"][0]) for n in range(4)] == [0, 1, 2, 3]
            assert session.nbytes == size
            del arrays
    session.close()


def test_evictions_race_with_turns(crowd: Pool) -> None:
    """A turn that was opened has all that the session kept; a turn that came too late gets an error."""
    lost, found = [0], [0]

    def chat(number: int) -> None:
        choice = random.Random(number)
        for n in range(ROUNDS):
            session = crowd.session(choice.randrange(12), ttl=choice.choice([None, 0.001, 60]))
            try:
                with session.request(devices=["gpu"]) as turn:
                    if "kv" in session:
                        kept = session["kv"]
                        assert (kept == kept[0]).all()
                        found[0] += 1
                        del kept
                    session.keep("kv", turn.full(60_000, n % 256, "u1"))
                    turn.ack("gpu")
            except SessionLostError:
                lost[0] += 1
            except slabpool.PoolExhausted:
                turn.ack("gpu")

    def press() -> None:
        for n in range(ROUNDS):
            try:
                array = crowd.full(100_000 + 50_000 * (n % 10), n % 256, "u1")
                assert (array == n % 256).all()
                del array
            except slabpool.PoolExhausted:
                pass

    together(lambda: chat(1), lambda: chat(2), press)
    assert found[0] > 0


def test_growing_while_other_threads_read_and_keep(crowd: Pool) -> None:
    session = crowd.session("chat-42")
    for _ in range(ROUNDS // 30):
        with session.request() as turn:
            keys = turn.growable((0, 64), "u1", limit=8192)

            def grow(keys: slabpool.GrowableTensor = keys) -> None:
                for n in range(200):
                    array = keys.extend(20)
                    array[-1] = n % 256

            def keep(keys: slabpool.GrowableTensor = keys) -> None:
                for n in range(50):
                    session.keep("keys" if n % 2 else "same", keys)
                    assert session.nbytes <= crowd.capacity

            together(grow, keep)
            assert session["keys"].shape == (4000, 64) and turn.nbytes == 0
            del keys


def test_closing_races_with_everything(crowd: Pool) -> None:
    def use(session: Session, number: int) -> None:
        try:
            for n in range(5):
                with session.request() as turn:
                    session.keep(f"{number}-{n}", turn.zeros(1000, "u1"))
                    list(session)
        except SessionLostError:
            pass

    for _ in range(ROUNDS // 3):
        session = crowd.session("chat-42")
        use(session, 0)
        together(lambda: use(session, 1), lambda: use(session, 2), session.close)
        assert session.closed and crowd.stats().live == 0
