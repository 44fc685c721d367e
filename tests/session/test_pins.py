"""What keeps a session: pins, its priority, and turns that were refused; and the figures of all sessions."""

from __future__ import annotations

import time

import pytest

import slabpool
from slabpool import Pool, SessionLostError
from slabpool.sessions import registry
from tests.session.conftest import turn_with
from tests.waiting import until

HALF = 1 << 19


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seconds by which the clock of the sessions is ahead; the test sets them."""
    seconds = [0]

    class Clock:
        @staticmethod
        def monotonic_ns() -> int:
            return time.monotonic_ns() + seconds[0] * 1_000_000_000

    monkeypatch.setattr(registry, "time", Clock)
    return seconds


def test_a_pinned_session_does_not_give_way(pool: Pool) -> None:
    pinned, other = pool.session("pinned"), pool.session("other")
    turn_with(pinned, "kv", HALF, 1)
    turn_with(other, "kv", HALF, 2)
    pinned.pin()
    with pinned.pin() as same:
        assert same is pinned and pinned.pinned
        (record,) = [r for r in pool.sessions() if r.session_id == "pinned"]
        assert record.pinned and "pinned" in str(record) and "pinned=True" in repr(record)
    assert pinned.pinned, "it was pinned twice"
    assert pool.empty(HALF, "u1").nbytes == HALF
    assert other.evicted and not pinned.closed
    with pytest.raises(slabpool.PoolExhausted):
        pool.empty(2 * HALF, "u1")
    pinned.unpin()
    assert not pinned.pinned
    with pytest.raises(slabpool.InvalidArgumentError, match="'pinned' is not pinned"):
        pinned.unpin()
    assert pool.empty(2 * HALF, "u1").nbytes == 2 * HALF
    assert pinned.evicted
    with pytest.raises(SessionLostError):
        pinned.pin()


def test_a_pin_taken_back_in_its_block_hides_no_error(pool: Pool) -> None:
    session = pool.session("pinned")
    with pytest.raises(KeyError), session.pin():
        session.unpin()
        raise KeyError("the caller's own")
    with pytest.raises(slabpool.InvalidArgumentError, match="'pinned' is not pinned"), session.pin():
        session.unpin()


def test_a_pin_is_no_hold_of_the_pool(pool: Pool) -> None:
    session = pool.session("pinned")
    with session.pin():
        turn_with(session, "kv", 1000)
        session.close()
        assert session.closed and pool.stats().live == 0
    with pool.session("again").pin():
        pool.close()
    assert pool.closed


def test_a_pinned_session_expires_a_ttl_after_its_last_pin(pool: Pool, ahead: list[int]) -> None:
    session = pool.session("pinned", ttl=1000)
    session.pin()
    ahead[0] = 5000
    assert not session.closed and pool.sessions()[0].pinned
    session.unpin()
    ahead[0] = 5900
    assert not session.closed
    ahead[0] = 6100
    assert session.expired


def test_a_lower_priority_goes_first(pool: Pool) -> None:
    names = ["old", "low", "lowest", "high"]
    sessions = [pool.session(n, priority=p) for n, p in zip(names, [None, -1, -7, 1], strict=True)]
    for session in sessions:
        turn_with(session, "kv", HALF // 2)
    assert [s.priority for s in sessions] == [0, -1, -7, 1] and pool.sessions()[0].priority in (0, -1, -7, 1)
    held = []
    for expected in ("lowest", "low", "old", "high"):
        held.append(pool.empty(HALF // 2, "u1"))
        assert [s.evicted for s in sessions] == [
            name in ("lowest", "low", "old", "high")[: len(held)] for name in names
        ], expected


def test_a_priority_may_change(pool: Pool) -> None:
    first, second = pool.session("first"), pool.session("second")
    turn_with(first, "kv", HALF)
    turn_with(second, "kv", HALF)
    assert pool.session("first", priority=3) is first and first.priority == 3
    assert pool.session("first").priority == 3
    array = pool.empty(HALF, "u1")
    assert second.evicted and not first.closed
    for wrong in (1.5, "1"):
        with pytest.raises(slabpool.InvalidTypeError, match="priority must be an int"):
            pool.session("first", priority=wrong)  # type: ignore[arg-type]
    with pytest.raises(slabpool.InvalidArgumentError):
        pool.session("first", priority=1 << 31)
    del array


def test_a_refused_turn_is_a_use(pool: Pool) -> None:
    """Its ttl and its place among the idle ones count from the refusal."""
    session, other = pool.session("refused", ttl=3600), pool.session("other")
    turn_with(session, "kv", HALF // 2)
    turn_with(other, "kv", HALF // 2)
    before = {record.session_id: record.idle for record in pool.sessions()}
    assert before["refused"] > before["other"]  # type: ignore[operator]
    hog = pool.request("hog", reserve=HALF)
    with pytest.raises(slabpool.PoolExhausted):
        session.request(reserve=HALF + 1)
    assert not session.closed and not other.closed
    after = {record.session_id: record.idle for record in pool.sessions()}
    assert after["refused"] < after["other"]  # type: ignore[operator]
    hog.close()
    assert pool.empty(HALF + HALF // 2, "u1").nbytes == HALF + HALF // 2
    assert other.evicted and not session.closed


def test_a_refusal_renews_the_ttl(pool: Pool, ahead: list[int]) -> None:
    refused, idle = pool.session("refused", ttl=1000), pool.session("idle", ttl=1000)
    hog = pool.request("hog", reserve=HALF)
    ahead[0] = 900
    with pytest.raises(slabpool.PoolExhausted):
        refused.request(reserve=HALF + 1)
    ahead[0] = 1500
    assert idle.expired and not refused.closed
    ahead[0] = 2500
    assert refused.expired
    hog.close()


def test_figures(pool: Pool) -> None:
    assert pool.session_stats() == (0,) * 8
    session = pool.session("a", ttl=3600)
    turn_with(session, "kv", 1000)
    assert pool.session("a", ttl=0.01) is session
    until(lambda: session.expired)
    stats = pool.session_stats()
    assert (stats.hits, stats.misses, stats.expired, stats.evicted) == (1, 1, 1, 0)
    turn_with(pool.session("b"), "kv", HALF)
    assert pool.empty(pool.capacity, "u1").nbytes == pool.capacity
    with pool.session("c").request() as turn:
        kept = turn.growable(0, "u1", limit=pool.stats().address_space * 3 // 4)
        pool.session("c").keep("kv", kept)
        del kept
    with pool.request("r") as request:
        assert request.growable(0, "u1", limit=pool.stats().address_space * 3 // 4).length == 0
    turn_with(pool.session("d"), "kv", 1000)
    pool.session_budget = 100
    pool.session("e").close()
    stats = pool.session_stats()
    assert stats == (2, 5, 1, 1, 0, 1, 0, 1) and stats.evicted == 3
    assert stats.evicted_for_bytes == stats.evicted_for_addresses == stats.evicted_for_budget == 1


def test_a_request_slot_evicts_one(pool: Pool) -> None:
    """Slots are tested in full in test_giving_way; here that the reason is counted, with the slots taken."""
    idle, kept = pool.session("idle"), pool.session("kept")
    kept.pin()
    requests = []
    while not idle.closed:
        requests.append(pool.request(len(requests)))
    assert idle.evicted and not kept.closed
    assert pool.session_stats().evicted_for_slots == 1
    with pytest.raises(slabpool.PoolExhausted):
        while True:
            requests.append(pool.request(len(requests)))
    assert not kept.closed
    for request in requests:
        request.close()


def test_a_refusal_looks_at_no_session_in_use(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions in use are seen once; then a refusal does not look at them until their turns end."""
    sessions = [pool.session(n) for n in range(20)]
    for session in sessions:
        turn_with(session, "kv", 40_000)
    turns = [session.request() for session in sessions]
    looks = [0]
    state = type(sessions[0]._state)
    original = state.idle_since

    def counted(self: object) -> int | None:
        looks[0] += 1
        return original(self)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "idle_since", counted)
    for expected in (20, 0, 0):
        looks[0] = 0
        with pytest.raises(slabpool.PoolExhausted):
            pool.empty(700_000, "u1")
        assert looks[0] == expected
    turns[3].close()
    looks[0] = 0
    with pytest.raises(slabpool.PoolExhausted):
        pool.empty(700_000, "u1")
    assert 1 <= looks[0] <= 3
    for turn in turns:
        turn.close()
    assert pool.empty(700_000, "u1").nbytes == 700_000
