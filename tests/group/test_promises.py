"""What was promised can be drawn: quotas around a reserve, moves between requests, sessions that give way."""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np
import pytest

import slabpool
from slabpool import Pool, QuotaExceededError
from tests.waiting import until

K = 1024


@pytest.fixture
def wide() -> slabpool.Pool:
    return slabpool.Pool("8MiB", name="wide")


@pytest.mark.parametrize("how", ["child", "growable"])
def test_a_promise_that_is_full_again_can_be_drawn(wide: slabpool.Pool, how: str) -> None:
    group = wide.group("g", quota=300 * K)
    request, other = group.request("r", reserve=256 * K), group.request("s")
    if how == "child":
        child = request.child()
        child.empty(256 * K, "u1")
    else:
        tensor = request.growable(256 * K, "u1", limit=256 * K)
    request.empty(40 * K, "u1")
    if how == "child":
        child.close()
    else:
        tensor.truncate(0, release=True)
    assert group.stats().nbytes == 296 * K
    with pytest.raises(QuotaExceededError, match="296 KiB of its quota of 300 KiB"):
        other.empty(40 * K, "u1")
    request.empty(256 * K, "u1")
    for one in (request, other):
        one.close()
    assert group.stats().nbytes == 0


def test_a_move_within_a_group_counts_once(wide: slabpool.Pool) -> None:
    group = wide.group("g", quota=300 * K)
    a, b = group.request("a", reserve=256 * K), group.request("b")
    array = a.empty(200 * K, "u1")
    b.adopt(array)
    assert (group.stats().nbytes, wide.stats().reserved) == (256 * K, 56 * K)
    session = group.session("ann")
    with session.request(reserve=40 * K) as turn:
        session.keep("kv", turn.full(40 * K, 1, "u1"))
    assert group.stats().nbytes == 296 * K


def test_a_move_waits_behind_waiters_of_the_quota(wide: slabpool.Pool) -> None:
    group, outside = wide.group("g", quota="1MiB"), wide.request("o")
    holder, target = group.request("h"), group.request("t")
    holder.empty(512 * K, "u1")
    served: list[int] = []

    def wait() -> None:
        with group.request("w") as waiter:
            served.append(waiter.empty(900 * K, "u1", timeout=30).nbytes)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: wide.stats().waiting == 1)
    array = outside.empty(300 * K, "u1")
    with pytest.raises(QuotaExceededError, match="set aside for callers that wait"):
        target.adopt(array)
    session = group.session("s")
    with pytest.raises(QuotaExceededError, match="set aside for callers that wait"):
        session.keep("kv", array)
    holder.close()
    thread.join()
    assert served == [900 * K]
    target.adopt(array)


def test_adopt_evicts_idle_sessions_of_the_group(wide: slabpool.Pool) -> None:
    group, outside = wide.group("g", quota="1MiB"), wide.request("o")
    session, target = group.session("s"), group.request("t")
    with session.request() as turn:
        session.keep("kv", turn.full(800 * K, 1, "u1"))
    with pytest.raises(QuotaExceededError):
        target.adopt(outside.empty(1200 * K, "u1"))
    assert not session.evicted, "it would not suffice"
    target.adopt(outside.zeros(500 * K, "u1"))
    assert session.evicted


def test_sessions_that_fill_a_reserve_make_no_room_for_memory_from_outside(wide: slabpool.Pool) -> None:
    group = wide.group("g", quota="1MiB", reserve="1MiB")
    session, target, outside = group.session("s"), group.request("t"), wide.request("o")
    with session.request() as turn:
        session.keep("kv", turn.full(800 * K, 1, "u1"))
    with pytest.raises(QuotaExceededError):
        target.adopt(outside.empty(500 * K, "u1"))
    assert not session.evicted
    target.empty(500 * K, "u1")
    assert session.evicted


@pytest.mark.parametrize("quota", [None, 1024, 3072])
@pytest.mark.parametrize("size", [64, 1024])
def test_sessions_in_a_groups_reserve_give_way_to_its_requests(quota: int | None, size: int) -> None:
    pool = slabpool.Pool("4MiB")
    group = pool.group("g", quota=None if quota is None else quota * K, reserve=1024 * K)
    sessions = [group.session(i) for i in range(1024 // size)]
    for session in sessions:
        with session.request() as turn:
            session.keep("kv", turn.empty(size * K, "u1"))
    rest = pool.empty(3072 * K, "u1")
    with group.request("r") as request:
        request.empty(size * K, np.uint8)
        assert [s.evicted for s in sessions].count(True) == 1
        if size == 64:
            request.empty(256 * K, np.uint8)
    del rest
    group.close()
    assert (pool.stats().live, pool.stats().reserved) == (0, 0)
    pool.close()


@pytest.mark.parametrize("reserve", [1, 4096, 8192])
@pytest.mark.parametrize("debug", [0, 1])
def test_a_promise_changes_no_size(reserve: int, debug: Literal[0, 1]) -> None:
    """A block takes what its size class has, whether it is drawn from a promise, beside one, or without."""
    pool = Pool("1MiB", debug=debug)
    for nbytes in (4033, 4096, 4097, 5000, 8192):
        plain = pool.request("plain")
        array = plain.empty(nbytes, "u1")
        promised = pool.request("promised", reserve=reserve)
        other = promised.empty(nbytes, "u1")
        assert promised.nbytes == plain.nbytes
        del array, other
        plain.close()
        promised.close()
    pool.close()
