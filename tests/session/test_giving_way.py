"""Idle sessions give way, oldest first, before a request is refused; a session in use never does."""

from __future__ import annotations

import asyncio
import threading

import pytest

import slabpool
from slabpool import Pool, Session, SessionLostError
from tests.session.conftest import turn_with
from tests.waiting import once, waits

QUARTER = 1 << 18


def four(pool: Pool) -> list[Session]:
    """Sessions that fill the pool, a quarter each; the first has been idle longest."""
    made = [pool.session(n) for n in range(4)]
    for session in made:
        turn_with(session, "kv", QUARTER, 1)
    assert pool.stats().live == pool.capacity
    return made


def test_the_session_idle_longest_goes_first(pool: Pool) -> None:
    sessions = four(pool)
    with sessions[0].request():
        pass  # now it was used last
    array = pool.empty(QUARTER, "u1")
    assert [s.evicted for s in sessions] == [False, True, False, False]
    assert pool.stats().exhaustions == 0, "a request was refused"
    with pytest.raises(
        SessionLostError, match=r"was evicted while it was idle, because the pool had no room \(bytes\)"
    ):
        sessions[1]["kv"]
    with pytest.raises(SessionLostError):
        sessions[1].request()
    again = pool.session(1)
    assert again is not sessions[1] and tuple(again) == ()
    again.close()
    other = pool.empty(2 * QUARTER, "u1")
    assert [s.evicted for s in sessions] == [False, True, True, True]
    assert array.nbytes + other.nbytes + sessions[0].nbytes == pool.capacity


def test_a_session_in_use_never_goes(pool: Pool) -> None:
    sessions = four(pool)
    turns = [session.request(devices=["gpu0"]) for session in sessions[:3]]
    for turn in turns:
        turn.close()  # its device still reads
    with pytest.raises(slabpool.PoolExhausted, match=r"session 0 keeps 'kv' .* in use"):
        pool.empty(2 * QUARTER, "u1")
    assert not any(s.closed for s in sessions), "the idle one alone would not do"
    assert pool.stats().exhaustions == 1
    assert [int(s["kv"][0]) for s in sessions[:3]] == [1, 1, 1]
    turns[1].ack("gpu0")
    assert pool.empty(2 * QUARTER, "u1").nbytes == 2 * QUARTER
    assert sessions[1].evicted and sessions[3].evicted and not sessions[0].closed
    for turn in turns:
        turn.ack("gpu0")


def test_a_session_with_live_views_does_not_go(pool: Pool) -> None:
    sessions = four(pool)
    view = sessions[0]["kv"]
    assert pool.empty(QUARTER, "u1").nbytes == QUARTER
    assert sessions[1].evicted and not sessions[0].closed
    del view


def test_reserves_and_layouts_and_growing_tensors_find_room_too(pool: Pool) -> None:
    sessions = four(pool)
    with pool.request("r", reserve=QUARTER) as req:
        assert sessions[0].evicted
        layout = slabpool.Layout({"x": (QUARTER + 1000, "u1")})
        tensors = req.allocate(layout)
        assert sessions[1].evicted and tensors.x.nbytes > QUARTER
        growing = req.growable(0, "u1", limit=4 * QUARTER)
        growing.extend(QUARTER)
        assert sessions[2].evicted
        assert pool.stats().exhaustions == 0
        with pytest.raises(slabpool.TensorTooLargeError):
            req.empty(8 * QUARTER, "u1")
        assert not sessions[3].closed, "a size that can never fit must evict no session"
        assert req.growable(0, "u1", limit=4 * QUARTER).extend(1).nbytes == 1
        del growing, tensors


def test_a_growing_kept_tensor_evicts_others_but_not_itself(pool: Pool) -> None:
    sessions = four(pool)
    sessions[0].close()
    session = pool.session("grows")
    with session.request() as turn:
        session.keep("kv", turn.growable(0, "u1", limit=8 * QUARTER))
    kept = session.writable("kv")
    kept.extend(QUARTER)
    kept.extend(2 * QUARTER)
    assert sessions[1].evicted and sessions[2].evicted and not sessions[3].closed
    with session.request():
        kept.extend(QUARTER)
        assert sessions[3].evicted
        with pytest.raises(slabpool.PoolExhausted):
            kept.extend(QUARTER)
    assert kept.length == 4 * QUARTER and not session.closed
    del kept


def test_waiting_begins_after_evictions_and_ends_when_a_session_becomes_idle(pool: Pool) -> None:
    sessions = four(pool)
    assert pool.empty(QUARTER, "u1", timeout=120).nbytes == QUARTER
    assert sessions[0].evicted
    turns = [s.request() for s in sessions[1:]]
    held = pool.empty(QUARTER, "u1")
    thread = once(waits(threading.get_ident()), turns[1].close)
    array = pool.empty(QUARTER, "u1", timeout=120)
    thread.join()
    assert sessions[2].evicted and not sessions[1].closed
    for turn in turns:
        turn.close()
    assert held.nbytes == array.nbytes


def test_an_event_loop_waits_likewise(pool: Pool) -> None:
    sessions = four(pool)
    turn = sessions[0].request()

    async def main() -> None:
        request = await pool.request_async("a", reserve=2 * QUARTER)
        assert sessions[1].evicted and sessions[2].evicted
        waiting = asyncio.ensure_future(sessions[3].request_async(reserve=QUARTER))
        await asyncio.sleep(0)
        assert sessions[3].in_use, "a request that waits for its memory uses its session"
        turn.close()
        next_turn = await waiting
        assert sessions[0].evicted and next_turn.id == 3
        assert sessions[3]["kv"][0] == 1
        next_turn.close()
        request.close()
        with pytest.raises(SessionLostError):
            await sessions[0].request_async()
        cancelled = asyncio.ensure_future(sessions[3].request_async(reserve=4 * QUARTER))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not sessions[3].in_use

    asyncio.run(main())


def test_all_sessions_share_a_budget(pool: Pool) -> None:
    assert pool.session_budget is None
    pool.session_budget = "512KiB"
    assert pool.session_budget == 2 * QUARTER
    sessions = [pool.session(n) for n in range(4)]
    turn_with(sessions[0], "kv", QUARTER)
    turn_with(sessions[1], "kv", QUARTER)
    turn_with(sessions[2], "kv", QUARTER)
    assert [s.evicted for s in sessions] == [True, False, False, False]
    assert pool.stats().live == 2 * QUARTER
    with sessions[1].request(), sessions[3].request() as turn:
        much = turn.zeros(2 * QUARTER, "u1")
        with pytest.raises(slabpool.QuotaExceededError, match="session_budget of 512 KiB"):
            sessions[3].keep("kv", much)
        assert not sessions[2].closed, "evicting all would not be enough, so none may go"
        some = turn.zeros(QUARTER, "u1")
        sessions[3].keep("kv", some)
        assert sessions[2].evicted
        with pytest.raises(slabpool.QuotaExceededError):
            pool.session(3, budget=100)
        del much, some
    with sessions[3].request():
        pool.session_budget = QUARTER
        assert sessions[1].evicted and not sessions[3].closed
    pool.session_budget = None
    turn_with(sessions[3], "more", QUARTER)
    assert sessions[3].nbytes == 2 * QUARTER


def test_a_growing_tensor_counts_in_the_shared_budget(pool: Pool) -> None:
    pool.session_budget = 2 * QUARTER
    idle, session = pool.session("idle"), pool.session("grows")
    turn_with(idle, "kv", QUARTER)
    with session.request() as turn:
        keys = turn.growable(0, "u1", limit=8 * QUARTER)
        keys.extend(1000)
        session.keep("kv", keys)
        keys.extend(2 * QUARTER - 1000)
        assert idle.evicted
        with pytest.raises(slabpool.QuotaExceededError, match="session_budget"):
            keys.extend(1)
        assert keys.length == 2 * QUARTER


def test_sessions_without_memory_free_their_slots() -> None:
    """A pool has 65,536 slots for requests, sessions and kept tensors."""
    pool = Pool("1MiB")
    made = 0
    first = pool.session("first")
    while not first.evicted:
        pool.session(made)
        made += 1
        assert made <= 65_536
    assert made == 65_536
    assert pool.request("r").state is slabpool.RequestState.OPEN
    pool.close(force=True)
