"""A request from open to released: ids, generations, acks, and views that outlive it.

Invariant: the memory returns once, when the host and every device have left, whatever acks are repeated, late
or of another generation.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Pool, RequestState

DEVICES = ["gpu0", "gpu1", "gpu2"]


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("16MiB") as pool:
        yield pool
        assert pool._verify() is None


def held(pool: Pool) -> int:
    s = pool.stats()
    return s.live + s.retained + s.in_doubt


# ---- the example of the README


def test_host_first_then_devices(pool: Pool) -> None:
    req = pool.request("chat-42", devices=DEVICES)
    kv = req.zeros((2, 4, 1024), np.float16)
    assert (req.state, req.pending, req.nbytes, req.live_views) == (RequestState.OPEN, {*DEVICES}, 16384, 1)
    del kv
    req.close()
    assert req.state is RequestState.DRAINING
    assert req.ack("gpu0") is Ack.PENDING
    assert req.pending == {"gpu1", "gpu2"}
    assert req.ack("gpu1") is Ack.PENDING
    assert held(pool) == req.nbytes == 16384
    assert req.ack("gpu2") is Ack.RELEASED
    assert (req.state, req.pending, req.nbytes) == (RequestState.RELEASED, frozenset(), 0)
    assert held(pool) == 0
    stats = pool.stats()
    assert (stats.allocations, stats.frees, stats.acks, stats.duplicate_acks, stats.late_acks) == (
        1,
        1,
        3,
        0,
        0,
    )


@pytest.mark.parametrize("order", list(itertools.permutations(["host", *DEVICES])))
def test_any_order(pool: Pool, order: tuple[str, ...]) -> None:
    req = pool.request("r", DEVICES)
    req.empty(1000)
    for number, holder in enumerate(order):
        assert held(pool) == req.nbytes == 8192
        if holder == "host":
            req.close()
            assert req.state is (RequestState.DRAINING if number < 3 else RequestState.RELEASED)
        else:
            assert req.ack(holder) is (Ack.RELEASED if number == 3 else Ack.PENDING)
    assert held(pool) == 0
    assert req.state is RequestState.RELEASED


def test_without_devices_close_releases(pool: Pool) -> None:
    with pool.request("r") as req:
        req.empty(1000)
        assert held(pool) == 8192
    assert held(pool) == 0
    assert req.state is RequestState.RELEASED
    req.close()  # a second call does nothing
    assert pool.stats().frees == 1


def test_with_cancels_after_an_error(pool: Pool) -> None:
    with pytest.raises(KeyError), pool.request("r", ["gpu0"]) as req:
        raise KeyError
    assert req.state is RequestState.DRAINING
    assert req.cancelled
    assert req.ack("gpu0") is Ack.RELEASED


def test_counts_of_requests(pool: Pool) -> None:
    def counts() -> tuple[int, int, int]:
        s = pool.stats()
        return s.requests_open, s.requests_draining, s.requests_in_doubt

    first, second = pool.request("a", ["gpu0"]), pool.request("b", ["gpu0"])
    assert counts() == (2, 0, 0)
    first.close()
    assert counts() == (1, 1, 0)
    second.ack("gpu0")
    assert counts() == (1, 1, 0)
    second.close()
    assert counts() == (0, 1, 0)
    first.ack("gpu0")
    assert counts() == (0, 0, 0)


# ---- what an ack changes


def test_duplicate_and_late_acks_change_nothing(pool: Pool) -> None:
    req = pool.request("r", DEVICES)
    req.empty(1000)
    assert [req.ack("gpu0") for _ in range(3)] == [Ack.PENDING, Ack.DUPLICATE, Ack.DUPLICATE]
    req.close()
    assert [req.ack(device) for device in DEVICES] == [Ack.DUPLICATE, Ack.PENDING, Ack.RELEASED]
    assert [req.ack(device) for device in DEVICES] == [Ack.LATE] * 3
    stats = pool.stats()
    assert (stats.acks, stats.duplicate_acks, stats.late_acks, stats.frees) == (3, 3, 3, 1)


def test_late_ack_does_not_touch_the_next_request_in_the_slot(pool: Pool) -> None:
    old = pool.request("r", ["gpu0"])
    old.close()
    assert old.ack("gpu0") is Ack.RELEASED
    for _ in range(200):  # it may get any slot
        new = pool.request("r", ["gpu0"])
        new.close()
        assert old.ack("gpu0") is Ack.LATE
        assert new.pending == {"gpu0"}
        assert new.ack("gpu0") is Ack.RELEASED


def test_remove_device_is_an_ack_on_its_behalf(pool: Pool) -> None:
    req = pool.request("r", ["gpu0", "gpu1"])
    assert req.remove_device("gpu0") is Ack.PENDING
    assert req.ack("gpu0") is Ack.DUPLICATE
    req.close()
    assert req.remove_device("gpu1") is Ack.RELEASED
    assert pool.stats().acks == 2


def test_added_device_must_acknowledge_too(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    req.ack("gpu0")
    req.add_device("gpu1")
    req.add_device("gpu0")  # the device is a holder again, and must acknowledge again
    assert req.pending == {"gpu0", "gpu1"}
    req.close()
    assert [req.ack("gpu0"), req.ack("gpu1"), req.ack("gpu1")] == [Ack.PENDING, Ack.RELEASED, Ack.LATE]


def test_cancel_still_waits_for_the_devices(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    req.empty(1000)
    assert not req.cancelled
    req.cancel()
    assert req.cancelled
    assert (req.state, held(pool)) == (RequestState.DRAINING, 8192)
    assert req.ack("gpu0") is Ack.RELEASED
    assert req.cancelled  # even after the pool has forgotten it
    closed = pool.request("r")
    closed.close()
    closed.cancel()  # too late to cancel
    assert not closed.cancelled


# ---- ids and generations


@pytest.mark.parametrize(
    "request_id", ["", "chat-42", "añ\U0001f600\0", "\udcff", 0, -1, 1 << 100, b"", b"\0\xff", b"1"]
)
def test_ids_round_trip(pool: Pool, request_id: Any) -> None:
    req = pool.request(request_id, ["gpu0"])
    assert (req.id, type(req.id)) == (request_id, type(request_id))
    (record,) = pool.requests()
    assert (record.request_id, type(record.request_id)) == (request_id, type(request_id))
    req.close()
    assert pool.ack(request_id, "gpu0") is Ack.RELEASED


def test_text_number_and_bytes_are_different_ids(pool: Pool) -> None:
    requests = [pool.request(request_id, ["gpu0"]) for request_id in ("1", 1, b"1")]
    for req in requests:
        req.close()
    assert pool.ack(1, "gpu0") is Ack.RELEASED
    assert [req.state.value for req in requests] == ["draining", "released", "draining"]
    assert pool.ack(b"1", "gpu0") is Ack.RELEASED
    assert pool.ack("1", "gpu0") is Ack.RELEASED


@pytest.mark.parametrize("device", ["", "añ", "\udcff", 0, -7, 1 << 100])
def test_devices_round_trip(pool: Pool, device: Any) -> None:
    req = pool.request("r", [device, "other"])
    assert req.pending == {device, "other"}
    assert {type(d) for d in req.pending} == {type(device), str}
    req.cancel()
    assert [req.ack(device), req.ack("other")] == [Ack.PENDING, Ack.RELEASED]


@pytest.mark.parametrize(
    "devices", [(), [], {"a", "b"}, {"a": 1}.keys(), iter("ab"), frozenset("c"), range(3)]
)
def test_devices_may_be_any_iterable(pool: Pool, devices: Any) -> None:
    kept = list(devices) if not isinstance(devices, Iterator) else ["a", "b"]
    req = pool.request("r", devices)
    assert req.pending == set(kept)
    req.close()
    for device in kept:
        req.ack(device)
    assert req.state is RequestState.RELEASED


def test_same_id_is_a_new_generation_with_memory_of_its_own(pool: Pool) -> None:
    first = pool.request("chat", ["gpu0"])
    a = first.full(100, 1.0)
    second = pool.request("chat", ["gpu0"])
    b = second.full(100, 2.0)
    assert second.generation > first.generation
    assert not np.shares_memory(a, b)
    first.close()
    second.close()
    assert first.ack("gpu0") is Ack.RELEASED
    assert second.state is RequestState.DRAINING
    assert (a == 1).all()
    assert (b == 2).all()
    del a, b
    assert second.ack("gpu0") is Ack.RELEASED


def test_generations_are_never_used_twice(pool: Pool) -> None:
    seen = set()
    for _ in range(1000):
        with pool.request("chat") as req:
            seen.add(req.generation)
    assert len(seen) == 1000


def test_many_requests_of_one_id_end_as_fast_as_of_many() -> None:
    def seconds(ids: list[Any]) -> float:
        with Pool("1MiB") as pool:
            requests = [pool.request(request_id, ["gpu0"]) for request_id in ids]
            start = time.thread_time()  # of this thread, because other processes may have the processor
            for req in requests:  # oldest first, as is usual
                req.close()
                req.ack("gpu0")
            return time.thread_time() - start

    count = 8000
    same = min(seconds(["chat"] * count) for _ in range(3))
    assert same < 5 * min(seconds(list(range(count))) for _ in range(3))


# ---- acks by id


def test_ack_by_id(pool: Pool) -> None:
    req = pool.request("chat", ["gpu0", "gpu1"])
    req.close()
    assert pool.ack("chat", "gpu0") is Ack.PENDING
    assert pool.ack("chat", "gpu0") is Ack.LATE  # no request of that id waits for it
    assert pool.ack("chat", "gpu0", generation=req.generation) is Ack.DUPLICATE
    assert pool.ack("chat", "gpu1") is Ack.RELEASED
    assert pool.ack("chat", "gpu1") is Ack.LATE
    assert pool.ack("chat", "gpu1", generation=req.generation) is Ack.LATE
    assert pool.ack("nobody", "gpu1") is Ack.LATE


def test_ack_by_id_with_several_generations(pool: Pool) -> None:
    old, new = (pool.request("chat", ["gpu0"]) for _ in range(2))
    old.close()
    new.close()
    with pytest.raises(slabpool.AmbiguousRequestError, match=f"{old.generation}, {new.generation}"):
        pool.ack("chat", "gpu0")
    assert pool.ack("chat", "gpu0", generation=np.int64(new.generation)) is Ack.RELEASED
    assert (
        pool.ack("chat", "gpu0", generation=new.generation) is Ack.LATE
    )  # not counted for the old generation
    assert old.state is RequestState.DRAINING
    assert pool.ack("chat", "gpu0") is Ack.RELEASED  # one is left: no longer ambiguous
    assert old.state is RequestState.RELEASED


def test_ack_by_id_is_not_ambiguous_where_only_one_waits_for_the_device(pool: Pool) -> None:
    old, new = pool.request("chat", ["gpu0", "gpu1"]), pool.request("chat", ["gpu0"])
    old.ack("gpu0")
    assert pool.ack("chat", "gpu0") is Ack.PENDING
    assert (old.pending, new.pending) == ({"gpu1"}, frozenset())
    new.close()
    old.close()
    assert pool.ack("chat", "gpu1") is Ack.RELEASED


def test_ack_by_id_before_the_host_closes(pool: Pool) -> None:
    with pool.request("chat", ["gpu0"]) as req:
        assert pool.ack("chat", "gpu0") is Ack.PENDING
        assert req.state is RequestState.OPEN
    assert req.state is RequestState.RELEASED


# ---- views that outlive their request


def test_live_view_of_a_released_request_is_retained(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    kept, gone = req.full(1000, 7.0), req.full(1000, 8.0)
    piece = kept[10:20]
    del kept, gone
    req.close()
    assert req.ack("gpu0") is Ack.RELEASED
    stats = pool.stats()
    assert (stats.live, stats.retained, stats.frees) == (0, 8192, 1)
    assert (req.state, req.nbytes, req.live_views) == (RequestState.RELEASED, 8192, 1)
    (leak,) = pool.leaks()
    assert (leak.request_id, leak.generation, leak.nbytes, leak.live_views) == ("r", req.generation, 8192, 1)
    assert (leak.state, leak.pending) == (RequestState.RELEASED, frozenset())
    other = pool.zeros(1000)  # not from the retained block
    assert (piece == 7).all()
    del other, piece
    assert (pool.stats().retained, pool.leaks(), req.nbytes) == (0, [], 0)
    assert pool.stats().frees == 3


def test_retained_view_does_not_keep_an_id_or_a_slot_from_others(pool: Pool) -> None:
    views = []
    for number in range(300):
        with pool.request("chat", ["gpu0"]) as req:
            views.append(req.full(10, number))
            req.ack("gpu0")
    assert len(pool.leaks()) == 300
    assert pool.ack("chat", "gpu0") is Ack.LATE
    assert all((view == number).all() for number, view in enumerate(views))
    views.clear()
    assert pool.leaks() == []
    assert pool.stats().retained == 0


# ---- waiting


def test_wait(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    assert req.wait(0) is False
    assert req.wait(timeout=0.01) is False
    req.close()
    thread = threading.Thread(target=req.ack, args=("gpu0",))
    thread.start()
    assert req.wait() is True
    thread.join()
    assert req.wait() is True
    assert req.wait(0) is True
