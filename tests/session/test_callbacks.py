"""`on_evict`: called before the memory goes, without a lock, once; what it may and may not do."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Pool, Session, SessionLostError
from tests.crew import switching_often, together
from tests.session.conftest import turn_with
from tests.waiting import until

QUARTER = 1 << 18


def four(pool: Pool) -> list[Session]:
    """Sessions that fill the pool, a quarter each; the first has been idle longest."""
    made = [pool.session(n) for n in range(4)]
    for number, session in enumerate(made):
        turn_with(session, "kv", QUARTER, number)
    return made


def test_it_can_copy_what_leaves(pool: Pool) -> None:
    sessions = four(pool)
    saved: dict[object, Any] = {}

    def save(session: Session) -> None:
        assert session.evicted and session.closed and list(session) == ["kv"] and session.nbytes == QUARTER
        assert not session["kv"].flags.writeable
        saved[session.id] = session["kv"].copy()
        for call in (session.request, lambda: session.keep("x", None), lambda: session.drop("kv")):  # type: ignore[arg-type]
            with pytest.raises(SessionLostError, match=r"evicted.*\(bytes\)"):
                call()

    for session in sessions:
        session.on_evict(save)
    array = pool.empty(2 * QUARTER, "u1")
    assert list(saved) == [0, 1] and all((saved[n] == n).all() and len(saved[n]) == QUARTER for n in saved)
    with pytest.raises(SessionLostError):
        sessions[0]["kv"]
    assert sessions[0].nbytes == 0 and len(pool.sessions()) == 2
    del array


def test_the_last_callback_counts_and_none_removes_it(pool: Pool) -> None:
    sessions = four(pool)
    called: list[str] = []
    sessions[0].on_evict(lambda session: called.append("first"))
    sessions[0].on_evict(lambda session: called.append("second"))
    sessions[1].on_evict(lambda session: called.append("removed"))
    sessions[1].on_evict(None)
    sessions[2].on_evict(lambda session: called.append("closed"))
    sessions[2].close()
    assert pool.empty(3 * QUARTER, "u1").nbytes == 3 * QUARTER
    assert called == ["second"] and sessions[1].evicted
    with pytest.raises(slabpool.InvalidTypeError, match="callable"):
        sessions[3].on_evict(3)  # type: ignore[arg-type]

    async def save(session: slabpool.Session) -> None: ...

    with pytest.raises(slabpool.InvalidTypeError, match="plain function, got the coroutine function"):
        sessions[3].on_evict(save)
    with pytest.raises(SessionLostError):
        sessions[0].on_evict(None)


def test_an_exception_is_reported_and_changes_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[object, object]] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda hook: reported.append((str(hook.exc_value), hook.object))
    )
    sessions = four(pool)

    def fails(session: Session) -> None:
        raise ValueError(f"no room for {session.id}")

    for session in sessions:
        session.on_evict(fails)
    assert pool.empty(2 * QUARTER, "u1").nbytes == 2 * QUARTER
    assert reported == [("no room for 0", fails), ("no room for 1", fails)]
    assert [s.evicted for s in sessions] == [True, True, False, False]


def test_an_interrupt_is_raised_once_all_have_gone(pool: Pool) -> None:
    sessions = four(pool)

    def interrupted(session: Session) -> None:
        raise KeyboardInterrupt

    for session in sessions:
        session.on_evict(interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.empty(2 * QUARTER, "u1")
    assert pool.stats().live == 2 * QUARTER and [s.nbytes for s in sessions[:2]] == [0, 0]
    assert pool.empty(QUARTER, "u1").nbytes == QUARTER, "its thread may evict again"


def test_a_view_that_outlives_it_keeps_its_memory(pool: Pool) -> None:
    sessions = four(pool)
    stolen: list[Any] = []
    sessions[0].on_evict(lambda session: stolen.append(session["kv"]))
    array = pool.full(QUARTER, 9, "u1")
    assert sessions[0].evicted and sessions[1].evicted, "the first brought nothing"
    assert (stolen[0] == 0).all() and (array == 9).all()
    assert pool.stats().retained == QUARTER
    stolen.clear()


def test_it_may_allocate_and_evicts_nothing_by_that(pool: Pool) -> None:
    sessions = four(pool)
    found: list[object] = []

    def allocates(session: Session) -> None:
        try:
            pool.empty(2 * QUARTER, "u1")
        except slabpool.PoolExhausted:
            found.append("refused")
        with pytest.raises(slabpool.PoolExhausted, match="on_evict"):
            pool.session("new")
        with pytest.raises(slabpool.PoolExhausted, match="on_evict"):
            sessions[3].keep("kv", session["kv"])
        found.append(pool.session(3) is sessions[3])

    for session in sessions:
        session.on_evict(allocates)
    assert pool.empty(QUARTER, "u1").nbytes == QUARTER
    assert found == ["refused", True]
    assert [s.evicted for s in sessions] == [True, False, False, False]


def test_room_that_it_takes_is_made_again_while_sessions_are_left(pool: Pool) -> None:
    """It keeps a copy in the pool itself, so that each eviction brings nothing: that ends with a refusal."""
    sessions = four(pool)
    copies: list[Any] = []

    def copies_in_the_pool(session: Session) -> None:
        kv = np.array(session["kv"])
        held.clear()  # room for the copy
        copies.append(pool.copy(kv))

    held: list[Any] = []
    for session in sessions:
        session.on_evict(copies_in_the_pool)
    sessions[3].close()
    held.append(pool.empty(QUARTER, "u1"))
    with pytest.raises(slabpool.PoolExhausted):
        held.append(pool.empty(2 * QUARTER, "u1"))
    assert 1 <= len(copies) <= 3
    del copies[:]


def test_expiry_calls_it_from_the_thread_that_ends_sessions(pool: Pool) -> None:
    saved: list[tuple[bool, str, int]] = []
    session = pool.session("chat-42", ttl=3600)
    session.on_evict(lambda s: saved.append((s.expired, threading.current_thread().name, int(s["kv"][0]))))
    with session.request() as turn:
        session.keep("kv", turn.full(1000, 7, "u1"))
    assert pool.session("chat-42", ttl=0.02) is session
    until(lambda: pool.stats().live == 0)
    ((expired, thread, first),) = saved
    assert expired and thread == "slabpool-sessions-chats" and first == 7


def test_a_call_that_finds_the_session_expired_calls_it(pool: Pool) -> None:
    saved: list[int] = []
    session = pool.session("chat-42", ttl=3600)
    turn_with(session, "kv", 1000, 7)
    session.on_evict(lambda s: saved.append(int(s["kv"][0])))
    session._state.touched_ns = 0
    session._state.ttl = 1e-9
    with pytest.raises(SessionLostError):
        session["kv"]
    assert saved == [7] and pool.stats().live == 0


def test_many_that_leave_at_once_call_without_recursion() -> None:
    """Each callback looks at the pool, which ends the next expired session."""
    pool = Pool("64MiB")
    called: list[object] = []

    def looks(session: Session) -> None:
        called.append(session.id)
        pool.sessions()

    for number in range(3000):
        session = pool.session(number, ttl=3600)
        session.on_evict(looks)
    for number in range(3000):
        pool.session(number)._state.ttl = 1e-9
    pool.sessions()
    assert sorted(called) == list(range(3000))  # type: ignore[type-var]
    pool.close()


def test_the_budget_and_its_setting_call_it(pool: Pool) -> None:
    called: list[object] = []
    sessions = four(pool)
    for session in sessions:
        session.on_evict(lambda session: called.append(session.id))
    pool.session_budget = 3 * QUARTER
    assert called == [0]
    with pool.session("new").request() as turn:
        pool.session("new").keep("kv", turn.empty(QUARTER, "u1"))
    assert called == [0, 1] and pool.session_stats().evicted_for_budget == 2


def test_no_lock_is_held_while_it_runs(pool: Pool) -> None:
    """Another thread uses the pool and its sessions meanwhile."""
    sessions = four(pool)
    done = threading.Event()

    def elsewhere() -> None:
        with pool.session("other").request(["gpu0"]) as turn:
            turn.ack("gpu0")
        assert len(pool.sessions()) == 4 and sessions[3]["kv"][0] == 3
        pool.session(0).close()  # a new one of the id that leaves
        done.set()

    def waits(session: Session) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        assert done.wait(60)
        thread.join()

    sessions[0].on_evict(waits)
    assert pool.empty(QUARTER, "u1").nbytes == QUARTER
    assert done.is_set() and sessions[0].evicted


def test_threads_that_press_each_save_what_leaves_once() -> None:
    pool = Pool("4MiB")
    saved: list[object] = []
    wrong: list[object] = []

    def save(session: Session) -> None:
        kv = session["kv"]
        if not (kv == kv[0]).all():
            wrong.append(session.id)
        saved.append(session.id)

    made = [0]

    def chat(number: int) -> None:
        for n in range(150):
            session = pool.session((number, n).__repr__())
            session.on_evict(save)
            try:
                with session.request() as turn:
                    session.keep("kv", turn.full(100_000, n % 256, "u1"))
                    made[0] += 1
            except (slabpool.PoolExhausted, SessionLostError):
                session.close()

    with switching_often():
        together(lambda: chat(1), lambda: chat(2), lambda: chat(3))
    assert not wrong and len(saved) == len(set(saved)) > 100
    stats = pool.session_stats()
    assert stats.evicted == len(saved) and stats.misses == 450
    assert pool._verify() is None
    for record in pool.sessions():
        pool.session(record.session_id).close()
    assert pool.stats().live == 0
    pool.close()
