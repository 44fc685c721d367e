"""Sessions of a group: what they keep counts in its quota, and gives way for the group alone."""

from __future__ import annotations

import pytest

from slabpool import Pool, PoolExhausted, QuotaExceededError, Session, SessionLostError

KiB = 1 << 10


def keep(session: Session, nbytes: int, name: str = "kv") -> None:
    with session.request() as turn:
        session.keep(name, turn.empty(nbytes, "u1"))


def test_what_sessions_keep_counts_in_the_quota(pool: Pool) -> None:
    with pool.group("tenant", quota="64KiB") as group:
        session = group.session("chat")
        assert session.group == "tenant"
        with session.request() as turn:
            assert turn.group == "tenant"
            tensor = turn.empty(48 * KiB, "u1")
            session.keep("kv", tensor)
            del tensor
            assert group.stats().nbytes == 48 * KiB, "moved, and counted once"
            with pytest.raises(QuotaExceededError, match=r"its largest: 'chat' 'kv' 48 KiB"):
                turn.empty(32 * KiB, "u1")
        assert (group.stats().nbytes, group.stats().sessions) == (48 * KiB, 1)
        session.close()
        assert (group.stats().nbytes, group.stats().sessions) == (0, 0)


def test_idle_sessions_of_the_group_give_way_for_its_quota_and_others_do_not(pool: Pool) -> None:
    with pool.group("a", quota="64KiB") as a, pool.group("b", quota="64KiB") as b:
        first, second = a.session("first"), a.session("second")
        others = [b.session("first"), pool.session("first")]
        for session in (*others, first, second):
            keep(session, 24 * KiB)
        with a.request("r") as request:
            request.empty(32 * KiB, "u1")
        assert (first.evicted, second.closed) == (True, False), "as few as suffice"
        assert [s.closed for s in others] == [False, False]
        assert pool.session_stats().evicted_for_quota == 1
        with a.request("r") as request:
            with pytest.raises(QuotaExceededError, match="larger quota="):
                request.empty(80 * KiB, "u1")  # what can never be
            assert not second.closed, "and none if all of them would not suffice"
            with pytest.raises(QuotaExceededError):
                b.request("x").empty(65 * KiB, "u1")
        assert [s.closed for s in others] == [False, False]
        held = pool.empty(1024 * KiB - 48 * KiB, "u1")
        assert sum(s.evicted for s in (*others, second)) == 1, "a full pool asks all of them"
        del held
        for session in (second, *others):
            session.close()


def test_a_reserve_of_a_request_evicts_sessions_of_its_group(pool: Pool) -> None:
    with pool.group("tenant", quota="64KiB") as group:
        session, other = group.session("chat"), pool.session("chat")
        keep(session, 48 * KiB)
        keep(other, 48 * KiB)
        with group.request("r", reserve="32KiB"):
            assert session.evicted and not other.closed
        other.close()


def test_no_session_gives_way_for_a_quota_when_the_memory_cannot_be_had(pool: Pool) -> None:
    with pool.group("tenant", quota="512KiB") as group:
        session = group.session("chat")
        keep(session, 256 * KiB)
        held = pool.empty(704 * KiB, "u1")  # 64 KiB are free, and 256 KiB can be
        with group.request("r") as request:
            with pytest.raises((QuotaExceededError, PoolExhausted)):
                request.empty(384 * KiB, "u1")
            assert not session.closed
            request.empty(320 * KiB, "u1")
            assert session.evicted, "what makes room for both"
        del held


def test_no_session_gives_way_for_the_memory_when_the_quota_refuses(pool: Pool) -> None:
    with pool.group("tenant", quota="128KiB") as group:
        other = pool.session("chat")
        keep(other, 512 * KiB)
        held = pool.empty(416 * KiB, "u1")
        with group.request("first") as first:
            first.empty(32 * KiB, "u1")
            with pytest.raises(QuotaExceededError, match="tenant"):
                group.request("r", reserve="112KiB")  # 64 KiB are free
            assert not other.closed
        with group.request("r", reserve="112KiB"):
            assert other.evicted
        del held


def test_a_session_that_goes_for_the_memory_makes_room_in_the_quota(pool: Pool) -> None:
    with pool.group("tenant", quota="512KiB") as group:
        small, large = group.session("small"), group.session("large")
        keep(small, 64 * KiB)
        keep(large, 256 * KiB)
        held = pool.empty(704 * KiB, "u1")
        with group.request("r") as request:
            request.empty(256 * KiB, "u1")  # 192 KiB of the quota are left, and no memory
            assert (small.closed, large.evicted) == (False, True)
        del held
        small.close()


def test_keeping_a_tensor_from_outside_of_the_group_asks_its_quota(pool: Pool) -> None:
    with pool.group("tenant", quota="64KiB") as group:
        old, session = group.session("old"), group.session("chat")
        keep(old, 48 * KiB)
        with pool.request("r") as outside:
            session.keep("kv", outside.empty(32 * KiB, "u1"))
            assert old.evicted
            assert group.stats().nbytes == 32 * KiB
            with pytest.raises(
                QuotaExceededError, match="group 'tenant' holds 32 KiB of its quota of 64 KiB"
            ):
                session.keep("more", outside.empty(48 * KiB, "u1"))
            assert list(session) == ["kv"]
            session.keep("kv", outside.empty(64 * KiB, "u1"))  # in place of the old one
            assert group.stats().nbytes == 64 * KiB
        session.close()


def test_a_kept_tensor_grows_within_the_quota(pool: Pool) -> None:
    with pool.group("tenant", quota="64KiB") as group:
        session, idle = group.session("chat"), group.session("idle")
        keep(idle, 16 * KiB)
        with session.request() as turn:
            tensor = turn.growable(0, "u1", limit=1 << 20)
            tensor.extend(16 * KiB)
            session.keep("kv", tensor)
            tensor.extend(40 * KiB)
            assert idle.evicted
            with pytest.raises(QuotaExceededError, match="group 'tenant' holds"):
                tensor.extend(32 * KiB)
        del tensor
        assert group.stats().nbytes == session.nbytes
        session.close()


def test_a_group_has_session_ids_of_its_own(pool: Pool) -> None:
    with pool.group("a") as a, pool.group("b") as b:
        sessions = [opener.session("chat") for opener in (pool, a, b)]
        assert len({id(session) for session in sessions}) == 3
        assert [opener.session("chat") for opener in (pool, a, b)] == sessions
        assert [record.group for record in pool.sessions()] == [None, "a", "b"]
        sessions[0].close()


def test_closing_a_group_ends_its_sessions(pool: Pool) -> None:
    group = pool.group("tenant")
    session, other = group.session("chat"), pool.session("chat")
    keep(session, 4 * KiB)
    turn = session.request(["gpu0"])
    group.close()
    assert session.closed and not other.closed
    with pytest.raises(SessionLostError):
        session.request()
    turn.close()
    assert pool.stats().live == 4 * KiB, "the turn's device may read what it kept"
    turn.ack("gpu0")
    assert pool.stats().live == 0 and pool.groups() == []
    other.close()


def test_turns_have_the_priority_of_the_group(pool: Pool) -> None:
    with pool.group("tenant", priority=5) as group, group.session("chat") as session:
        with session.request() as turn, session.request(timeout=1) as waits, group.request("r") as request:
            assert (turn.priority, waits.priority, request.priority) == (5, 5, 5)
            assert request.child().priority == 5
        with session.request(priority=1) as turn, group.request("r", priority=-1) as request:
            assert (turn.priority, request.priority) == (1, -1)
        with pool.session("chat") as plain, plain.request() as turn:
            assert turn.priority == 0


def test_the_text_of_a_lost_session_names_its_group(pool: Pool) -> None:
    group = pool.group("tenant")
    session = group.session("u")
    turn = session.request()
    session.keep("kv", turn.empty(1000, "u1"))
    session.close()
    text = r"session 'u' of group 'tenant' was closed \d\.\d s ago; its memory returns with the last request "
    with pytest.raises(
        SessionLostError, match=text + r"that uses it\. session\('u'\) of group 'tenant' opens a new one$"
    ):
        session.request()
    assert turn.nbytes == 0 and pool.stats().live == 1024, "the turn goes on"
    session = group.session("u")
    group.close()
    text = r"of group 'tenant' was closed with its group .* pool\.group\('tenant'\) opens a new group$"
    with pytest.raises(SessionLostError, match=text):
        session.request()
    turn.close()
    assert pool.stats().live == 0
