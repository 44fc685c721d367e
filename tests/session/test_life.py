"""How sessions end: by their ttl, by the user, with the pool; not in a fork. And what keeps them alive."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import slabpool
from slabpool import Pool, SessionLostError
from tests.session.conftest import turn_with
from tests.waiting import PATIENCE, until


def keepers() -> list[threading.Thread]:
    """Threads that expire sessions."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("slabpool-sessions")]


def test_an_idle_session_expires_without_a_call(pool: Pool) -> None:
    assert keepers() == []
    session = pool.session("chat-42", ttl=3600)
    turn_with(session, "kv", 1000)
    assert [thread.name for thread in keepers()] == ["slabpool-sessions-chats"]
    pool.session("chat-42", ttl=0.05)
    until(lambda: pool.stats().live == 0)
    assert session.expired and session.closed and not session.evicted
    with pytest.raises(SessionLostError, match=r"expired: no request used it for its ttl of 0\.05 s"):
        session.keep("kv", pool.zeros(1))
    assert repr(session) == "<Session 'chat-42': expired>" and pool.sessions() == []
    again = pool.session("chat-42", ttl=3600)
    assert again is not session and not again.closed
    pool.close()
    assert keepers() == []


def test_a_session_in_use_expires_a_ttl_after_its_last_request(pool: Pool) -> None:
    session = pool.session("chat-42")
    turn = session.request(devices=["gpu0"])
    turn.close()
    pool.session("chat-42", ttl=0.02)
    other = pool.session("other", ttl=0.05)  # when it expires, the ttl of the first would be over too
    until(lambda: other.expired)
    assert not session.closed and pool.sessions()[0].idle is None
    before = time.monotonic()
    turn.ack("gpu0")
    until(lambda: session.closed)
    assert session.expired and time.monotonic() - before >= 0.02


def test_a_ttl_may_change(pool: Pool) -> None:
    session = pool.session("chat-42", ttl=3600)
    assert pool.session("chat-42").ttl == 3600
    assert pool.session("chat-42", ttl=0.01) is session and session.ttl == 0.01
    until(lambda: session.expired)
    longer = pool.session("chat-42")
    with longer.request():  # in use, it does not expire in between
        assert pool.session("chat-42", ttl=0.05) is longer
        assert pool.session("chat-42", ttl=3600) is longer
    first = pool.session("first", ttl=0.06)
    until(lambda: first.expired)
    assert not longer.closed


def test_a_session_is_expired_before_the_thread_ends_it(pool: Pool) -> None:
    session = pool.session("chat-42", ttl=1e-9)
    with pytest.raises(SessionLostError):
        list(session)
    assert pool.session("chat-42", ttl=1e-9) is not session


def test_closing(pool: Pool) -> None:
    with pool.session("chat-42") as session:
        turn_with(session, "kv", 1000)
        assert pool.session("chat-42") is session and not session.closed
    assert session.closed and pool.stats().live == 0
    session.close()
    for call in (lambda: list(session), session.request, lambda: session["kv"], lambda: session.drop("kv"),
                 lambda: session.keep("kv", None)):  # fmt: skip
        with pytest.raises(SessionLostError, match=r"'chat-42' was closed .* s ago.* opens a new one"):
            call()
    assert (session.nbytes, session.budget, session.in_use) == (0, None, False)


def test_closed_while_a_turn_is_being_opened(pool: Pool) -> None:
    session = pool.session("chat-42")
    held = pool.zeros(pool.capacity, "u1")
    failed: list[BaseException] = []

    def open_turn() -> None:
        try:
            session.request(["gpu0"], reserve=1000, timeout=PATIENCE)
        except SessionLostError as error:
            failed.append(error.with_traceback(None))

    thread = threading.Thread(target=open_turn)
    thread.start()
    until(lambda: session.in_use)
    session.close()
    del held
    thread.join(PATIENCE)
    assert len(failed) == 1
    assert pool.requests() == [] and pool.stats().requests_open == 0


def test_a_pool_closes_over_idle_sessions(pool: Pool) -> None:
    session, other = pool.session("chat-42", ttl=3600), pool.session("other")
    turn_with(session, "kv", 1000)
    turn_with(other, "kv", 1000)
    view = session["kv"]
    turn = other.request(devices=["gpu0"])
    for _ in range(2):
        with pytest.raises(slabpool.PoolBusyError, match="session 'chat-42' keeps 'kv'"):
            pool.close()
        assert not session.closed and not other.closed and not pool.closed
        if not turn.pending:
            break
        turn.close()
        turn.ack("gpu0")
    del view
    array = pool.zeros(10)
    with pytest.raises(slabpool.PoolBusyError):
        pool.close()
    del array
    pool.close()
    assert pool.closed and session.closed and keepers() == []
    with pytest.raises(SessionLostError, match="closed with its pool"):
        list(session)
    with pytest.raises(slabpool.PoolClosedError):
        pool.session("chat-42")


def test_closing_a_pool_by_force_ends_its_sessions(pool: Pool) -> None:
    session = pool.session("chat-42", ttl=3600)
    turn_with(session, "kv", 1000, 7)
    turn = session.request(devices=["gpu0"])
    view = session["kv"]
    pool.close(force=True)
    assert (view == 7).all() and session.closed and turn.state is slabpool.RequestState.RELEASED
    assert keepers() == [] and pool.sessions() == []


def test_nothing_is_left_of_a_dropped_pool() -> None:
    pool = Pool("1MiB")
    session = pool.session("chat-42", ttl=3600)
    turn_with(session, "kv", 1000)
    session.keep("growing", (turn := session.request()).growable(3, limit=10))
    turn.close()
    del turn
    gone = weakref.ref(pool)
    gc.disable()  # by reference counts alone
    try:
        del pool
        assert gone() is not None, "the session must keep the pool alive"
        del session
        assert gone() is None
        until(lambda: keepers() == [])
    finally:
        gc.enable()


def test_a_session_lives_without_its_object(pool: Pool) -> None:
    turn_with(pool.session("chat-42"), "kv", 1000, 5)
    gc.collect()
    assert (pool.session("chat-42")["kv"] == 5).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_does_not_touch_sessions(pool: Pool) -> None:
    session = pool.session("chat-42")
    turn_with(session, "kv", 1000, 7)
    turn = session.request()
    pool.session("chat-42", ttl=0.1)  # which begins when the turn is over
    view = session["kv"]
    read, write = os.pipe()

    def says_forked(call: Callable[[], Any]) -> bool:
        try:
            call()
        except slabpool.ForkedPoolError:
            return True
        return False

    pid = os.fork()
    if pid == 0:
        answer: object = None
        try:
            calls = (lambda: list(session), session.request, lambda: session["kv"], session.close,
                     pool.sessions, lambda: session.nbytes, lambda: session.expired,
                     lambda: pool.session("new"), lambda: setattr(pool, "session_budget", 3),
                     pool.close)  # fmt: skip
            said = [says_forked(call) for call in calls]
            with session:
                pass
            own = Pool("1MiB")
            turn_with(mine := own.session("chat-42", ttl=3600), "kv", 10)
            answer = all(said), repr(session), int(view.sum()), tuple(mine)
            del session, turn, pool, own, mine
            gc.collect()
        except BaseException as error:
            answer = repr(error)
        finally:
            os.write(write, pickle.dumps(answer))
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert pickle.loads(said) == (True, "<Session 'chat-42': inherited through fork>", 7000, ("kv",))
    assert not session.closed
    del view
    turn.close()
    until(lambda: session.expired)
