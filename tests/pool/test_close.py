"""Closing a pool: refused while anything is held, unless forced. A live view stays valid in every case."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Layout, Pool, PoolBusyError, PoolClosedError, RequestState
from tests.scene import says
from tests.settled import settled
from tests.waiting import PATIENCE, until, waits

KiB = 1 << 10
MiB = 1 << 20


def test_close_is_final_and_may_be_repeated() -> None:
    pool = Pool("1MiB", name="p")
    assert not pool.closed
    pool.close()
    assert pool.closed
    pool.close()
    pool.close(force=True)
    with pytest.raises(PoolClosedError, match="'p'"):
        pool.empty(1)
    assert repr(pool).startswith("<Pool 'p': closed")


def test_context_manager_closes() -> None:
    with Pool("1MiB") as pool:
        assert not pool.closed
        pool.zeros(1000)
    assert pool.closed


HOLDS: dict[str, tuple[Callable[[Pool], Any], str]] = {
    "a view": (
        lambda pool: pool.empty(4 * KiB, "u1"),
        "4 KiB live ... no request; views that belong to none",
    ),
    "a slice": (lambda pool: pool.empty(4 * KiB, "u1")[3:4], "4 KiB live"),
    "an open request": (
        lambda pool: pool.request("chat", ["gpu0"]),
        "'chat' ... (open): 0 bytes ... gpu0",
    ),
    "a draining request": (
        lambda pool: draining(pool),
        "'chat' ... (draining): 4 KiB for ... gpu0",
    ),
    "a retained view": (
        lambda pool: retained(pool),
        "4 KiB retained ... (released) ... 1 live views",
    ),
    "a reserve": (lambda pool: pool.request("chat", reserve="64KiB"), "64 KiB reserved ... 'chat'"),
}


def draining(pool: Pool) -> slabpool.Request:
    req = pool.request("chat", ["gpu0"])
    req.empty(4 * KiB, "u1")
    req.close()
    return req


def retained(pool: Pool) -> np.ndarray[Any, Any]:
    with pool.request("chat") as req:
        return req.empty(4 * KiB, "u1")


@pytest.mark.parametrize("what", HOLDS)
def test_close_refuses_and_names_the_holders(what: str) -> None:
    make, text = HOLDS[what]
    pool = Pool("1MiB", name="busy")
    held = make(pool)
    before = settled(pool)
    with pytest.raises(PoolBusyError) as raised:
        pool.close()
    says(raised, f"pool 'busy' cannot be closed ... {text} ... force=True")
    if "request" in what or "retained" in what:
        says(raised, f"opened at {__file__}:")
    assert not pool.closed
    assert pool.stats() == before
    other = pool.zeros(100)  # the pool still works
    del other
    if isinstance(held, slabpool.Request):
        held.cancel()
        if held.pending:
            held.ack("gpu0")
    del held
    pool.close()
    assert pool.closed


def test_error_in_the_block_is_not_hidden_by_the_busy_error() -> None:
    with pytest.raises(KeyError), Pool("1MiB") as pool:
        view = pool.full(1000, 7.0)
        req = pool.request("r", ["gpu0"])
        raise KeyError
    assert pool.closed
    assert req.state is RequestState.RELEASED
    assert (view == 7).all()


def test_leaving_the_block_with_something_held_is_an_error() -> None:
    with pytest.raises(PoolBusyError), Pool("1MiB") as pool:
        view = pool.full(1000, 7.0)
    assert not pool.closed
    del view
    pool.close()


# ---- by force


def test_force_ends_requests_but_never_a_view() -> None:
    pool = Pool("16MiB")
    req = pool.request("chat", ["gpu0", "gpu1"], reserve="1MiB")
    child = req.child(["gpu0"])
    late = draining(pool)
    views = [req.full(1000, 1.0), child.full(100_000, 2.0), pool.full(3 * MiB, 3, "u1"), pool.full((), 4.0)]
    lazy = req.allocate(Layout({"a": (3, "f4")}))
    part = lazy.a
    part[...] = 5
    pool.close(force=True)
    assert pool.closed
    assert [r.state for r in (req, child, late)] == [RequestState.RELEASED] * 3
    assert [req.ack("gpu0"), child.ack("gpu0"), late.ack("gpu0")] == [Ack.LATE] * 3
    assert req.wait(0)
    assert [float(view.min()) for view in [*views, part]] == [1, 2, 3, 4, 5]
    for view in views:
        view += 1
    assert [float(view.max()) for view in views] == [2, 3, 4, 5]
    with pytest.raises(slabpool.RequestClosedError):
        lazy["a"]
    stats = pool.stats()
    assert (stats.requests_open, stats.requests_draining, stats.reserved) == (0, 0, 0)
    assert stats.live == 3 * MiB + 64
    assert stats.retained == sum(record.nbytes for record in pool.leaks()) > 0
    assert {record.request_id for record in pool.leaks()} == {"chat"}
    del part, view
    views.clear()
    stats = pool.stats()
    assert (stats.live, stats.retained, stats.allocations - stats.frees) == (0, 0, 0)


def test_memory_of_a_closed_pool_goes_back_to_the_system_with_its_last_view() -> None:
    pool = Pool("16MiB")
    views = [pool.full(3 * MiB, 1, "u1"), pool.full(100, 2, "u1")]
    pool.close(force=True)
    assert pool.stats().committed >= 3 * MiB
    views.pop(0)
    assert pool.stats().committed <= 1 * MiB
    assert (views[0] == 2).all()
    views.pop()
    stats = pool.stats()
    assert (stats.committed, stats.cached) == (0, 0)


def test_view_of_a_closed_and_forgotten_pool() -> None:
    pool = Pool("16MiB")
    views = [pool.full(MiB, 7, "u1"), pool.request("r").full(10, 8.0)]
    pool.close(force=True)
    del pool
    gc.collect()
    assert [int(view.min()) for view in views] == [7, 8]
    views[0][...] = 9
    assert views[0].sum(dtype=np.int64) == 9 * MiB


def test_force_ends_all_waiting() -> None:
    pool = Pool("1MiB")
    held = pool.empty(MiB, "u1")
    req = pool.request("r", ["gpu0"])
    answers: list[Any] = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            answers.append(call())
        except slabpool.SlabpoolError as error:
            answers.append(type(error))

    calls: list[Callable[[], object]] = [
        lambda: pool.empty(64, timeout=PATIENCE), lambda: pool.request("s", reserve=64, timeout=PATIENCE),
        lambda: req.empty(64, timeout=PATIENCE), lambda: req.wait(), lambda: req.wait(PATIENCE),
    ]  # fmt: skip
    threads = [threading.Thread(target=attempt, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    looks = [waits(thread.ident or 0) for thread in threads]
    until(lambda: all(look() for look in looks))
    pool.close(force=True)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(map(str, answers)).count("True") == 2
    errors = [answer for answer in answers if answer is not True]
    assert len(errors) == 3
    assert set(errors) <= {PoolClosedError, slabpool.RequestClosedError}
    del held


def test_close_races_with_allocation() -> None:
    # A thread that is served has a view that stays valid. A thread that is refused learns that the pool is
    # closed.
    views: list[np.ndarray[Any, Any]] = []
    errors: list[BaseException] = []

    def take(pool: Pool, start: threading.Barrier) -> None:
        start.wait()
        try:
            for number in range(50):
                views.append(pool.full(1000, number, "u2"))
        except PoolClosedError:
            return
        except BaseException as error:
            errors.append(error)

    for _ in range(30):
        pool, start = Pool("1MiB"), threading.Barrier(4)
        threads = [threading.Thread(target=take, args=(pool, start)) for _ in range(3)]
        for thread in threads:
            thread.start()
        start.wait()
        pool.close(force=True)
        for thread in threads:
            thread.join()
        assert not errors
        assert all((view == view[0]).all() for view in views)
        views.clear()
        assert pool.stats().live == 0
