"""Children: memory that returns before its request, and never later than it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import slabpool
from slabpool import Ack, Pool, RequestState


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("1MiB") as pool:
        yield pool
        assert pool._verify() is None


def test_child_returns_before_its_parent(pool: Pool) -> None:
    parent = pool.request("chat", ["gpu0", "gpu1"])
    parent.empty(512)
    with parent.child(["gpu1"]) as step:
        step.empty(1024)
    assert (step.id, step.parent, parent.parent) == ("chat", parent.generation, None)
    assert step.generation > parent.generation
    assert pool.stats().live == 4096 + 8192
    assert step.ack("gpu1") is Ack.RELEASED
    assert pool.stats().live == 4096
    assert (parent.state, parent.pending) == (RequestState.OPEN, {"gpu0", "gpu1"})
    parent.close()
    assert [parent.ack("gpu0"), parent.ack("gpu1")] == [Ack.PENDING, Ack.RELEASED]


def test_many_steps_use_the_same_memory(pool: Pool) -> None:
    with pool.request("chat", ["gpu0"]) as parent:
        peak = 0
        for _ in range(2000):
            with parent.child(["gpu0"]) as step:
                step.empty(8192)
            assert step.ack("gpu0") is Ack.RELEASED
            peak = max(peak, pool.stats().committed)
        assert peak <= 1 << 18
        parent.ack("gpu0")
    assert pool.stats().allocations == pool.stats().frees == 2000


def test_ack_of_the_parent_acks_all_descendants(pool: Pool) -> None:
    parent = pool.request("chat", ["gpu0", "gpu1"])
    child = parent.child(["gpu0", "gpu1"])
    grandchild = child.child(["gpu0"])
    for req in (parent, child, grandchild):
        req.empty(64)
    assert parent.ack("gpu0") is Ack.PENDING
    assert (child.pending, grandchild.pending) == ({"gpu1"}, frozenset())
    assert child.ack("gpu0") is Ack.DUPLICATE
    assert pool.stats().live == 3 * 512
    grandchild.close()
    assert pool.stats().live == 2 * 512
    parent.close()
    assert child.state is RequestState.DRAINING
    assert parent.ack("gpu1") is Ack.RELEASED
    assert child.state is RequestState.RELEASED
    assert pool.stats().live == 0
    assert child.ack("gpu1") is Ack.LATE


def test_close_of_the_parent_closes_all_descendants(pool: Pool) -> None:
    parent = pool.request("chat", ["gpu0"])
    child = parent.child(["gpu0"])
    grandchild = child.child()
    parent.cancel()
    assert [child.cancelled, grandchild.state] == [True, RequestState.RELEASED]
    for req in (parent, child, grandchild):
        with pytest.raises(slabpool.RequestClosedError):
            req.empty(1)
    assert child.ack("gpu0") is Ack.RELEASED
    assert parent.ack("gpu0") is Ack.RELEASED


def test_child_without_devices_returns_at_close(pool: Pool) -> None:
    with pool.request("chat", ["gpu0"]) as parent:
        with parent.child() as scratch:
            scratch.empty(1024)
        assert pool.stats().live == 0
        parent.ack("gpu0")


def test_end_of_the_parent_ends_all_descendants(pool: Pool) -> None:
    parent = pool.request("chat", ["gpu0", "gpu1"])
    children = [parent.child(["gpu0"]) for _ in range(10)] + [parent.child(["gpu1"]) for _ in range(10)]
    views = [child.full(64, 7.0) for child in children]
    parent.close()
    parent.ack("gpu1")
    assert parent.ack("gpu0") is Ack.RELEASED
    assert {child.state for child in children} == {RequestState.RELEASED}
    assert pool.stats().retained == 20 * 512
    assert all((view == 7).all() for view in views)
    views.clear()
    assert pool.stats().retained == 0


def test_lost_device_is_lost_to_children_too(pool: Pool) -> None:
    parent = pool.request("chat", ["gpu0"])
    child = parent.child(["gpu0"])
    other = pool.request("other", ["gpu0", "gpu1"])
    for req in (parent, child, other):
        req.empty(64)
    parent.close()
    other.close()
    assert pool.device_lost("gpu0") == 3
    assert pool.device_lost("gpu0") == 0
    assert (parent.state, child.state) == (RequestState.RELEASED, RequestState.RELEASED)
    assert other.pending == {"gpu1"}
    assert other.ack("gpu0") is Ack.DUPLICATE
    assert other.ack("gpu1") is Ack.RELEASED


def test_children_do_not_answer_to_the_id(pool: Pool) -> None:
    parent = pool.request("chat", ["gpu0"])
    child = parent.child(["gpu0"])
    parent.close()
    assert pool.ack("chat", "gpu0", generation=child.generation) is Ack.RELEASED
    assert pool.ack("chat", "gpu0") is Ack.RELEASED  # the parent; its child does not make the id ambiguous
    assert pool.ack("chat", "gpu0", generation=child.generation) is Ack.LATE


def test_children_are_reported_with_their_parent(pool: Pool) -> None:
    with pool.request("chat", ["gpu0"]) as parent, parent.child(["gpu0"]) as child:
        records = pool.requests()
        assert [(r.generation, r.parent) for r in records] == [
            (parent.generation, None),
            (child.generation, parent.generation),
        ]
        parent.ack("gpu0")


def test_child_may_only_name_devices_its_parent_waits_for(pool: Pool) -> None:
    with pool.request("chat", ["gpu0", "gpu1"]) as parent:
        parent.ack("gpu0")
        with pytest.raises(slabpool.UnknownDeviceError, match="'gpu0'"):
            parent.child(["gpu0"])
        with parent.child(["gpu1"]) as child:
            pass
        assert child.pending == {"gpu1"}
        parent.ack("gpu1")


def test_deep_families(pool: Pool) -> None:
    line = [pool.request("chat", ["gpu0"])]
    for _ in range(200):
        line.append(line[-1].child(["gpu0"]))
        line[-1].empty(8)
    line[0].close()
    assert line[0].ack("gpu0") is Ack.RELEASED
    assert {req.state for req in line} == {RequestState.RELEASED}
    assert pool.stats().live == 0
    assert pool.stats().frees == 200
