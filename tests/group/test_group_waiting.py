"""Waiting for the quota of a group: who stands in whose way, and what wakes a waiter.

Invariants: nothing of a group overtakes a waiter of its own or a higher priority that the group's quota
blocks; what is not of the group does. Whatever gives bytes back to the group wakes its first waiter once that
many are left.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable

import pytest

from slabpool import Group, Pool, QuotaExceededError, Request, RequestClosedError, SessionLostError
from tests.pool.test_queue import FAR, Thread, run, waits
from tests.waiting import until

KiB = 1 << 10
QUOTA = 256 * KiB


@pytest.fixture
def group(pool: Pool) -> Group:
    return pool.group("tenant", quota=QUOTA)


def blocked(pool: Pool) -> list[tuple[object, int, str]]:
    return [(waiter.request_id, waiter.nbytes, waiter.resource) for waiter in pool.waiters()]


def test_the_group_waits_in_order_and_others_pass(pool: Pool, group: Group) -> None:
    holder, first, second = (group.request(name) for name in ("holder", "first", "second"))
    holder.empty(192 * KiB, "u1")
    waiter = Thread(pool, lambda: first.empty(128 * KiB, "u1", timeout=FAR).nbytes)
    assert blocked(pool) == [("first", 128 * KiB, "quota")]
    with pytest.raises(QuotaExceededError, match=r"(?s)1 waiter ahead: 'first' \(128 KiB"):
        second.empty(4 * KiB, "u1")
    with pytest.raises(QuotaExceededError):
        group.request("r", reserve="4KiB")
    assert second.empty(4 * KiB, "u1", priority=1).nbytes == 4 * KiB, "unless its priority is higher"
    behind = Thread(pool, lambda: second.empty(4 * KiB, "u1", timeout=FAR).nbytes)
    with pool.group("other", quota=QUOTA) as other, other.request("r") as request, pool.request("r") as plain:
        assert request.empty(QUOTA, "u1").nbytes == plain.empty(QUOTA, "u1").nbytes == QUOTA
    with group.request("promised", timeout=0, priority=1, reserve="8KiB") as promised:
        assert promised.empty(8 * KiB, "u1").nbytes == 8 * KiB, "counted when it was promised"
    holder.close()
    assert [w.join().result for w in (waiter, behind)] == [128 * KiB, 4 * KiB]
    for request in (first, second):
        request.close()


def test_a_record_says_whose_quota_it_waits_for(pool: Pool, group: Group) -> None:
    holder, fay = group.request("holder"), group.request("fay")
    bounded = pool.request("bounded", quota="64KiB")
    child = bounded.child()
    holder.empty(192 * KiB, "u1")
    bounded.empty(64 * KiB, "u1")
    wishes: list[tuple[str, int | None, str | None, tuple[str, str, int], str, Callable[[], object]]] = [
        (
            "fay", fay.generation, "tenant", ("group", "tenant", 1),
            f"request 'fay' generation {fay.generation} of group 'tenant' waits for the quota of group "
            "'tenant': 128 KiB, priority 0, for 0.",
            lambda: fay.empty(128 * KiB, "u1", timeout=FAR),
        ),
        (
            "new", None, "tenant", ("group", "tenant", 1),
            "request 'new' of group 'tenant' waits for the quota of group 'tenant': 128 KiB",
            lambda: group.request("new", reserve="128KiB", timeout=FAR).close(),
        ),
        (
            "bounded", bounded.generation, None, ("request", "bounded", bounded.generation),
            f"request 'bounded' generation {bounded.generation} waits for its quota: 4 KiB",
            lambda: bounded.empty(4 * KiB, "u1", timeout=FAR),
        ),
        (
            "bounded", child.generation, None, ("request", "bounded", bounded.generation),
            f"request 'bounded' generation {child.generation} waits for the quota of generation "
            f"{bounded.generation}: 4 KiB",
            lambda: child.empty(4 * KiB, "u1", timeout=FAR),
        ),
    ]  # fmt: skip
    threads = [Thread(pool, wish[-1]) for wish in wishes]
    records = {(record.request_id, record.generation): record for record in pool.waiters()}
    for id, generation, of, quota_of, text, _ in wishes:
        record = records[id, generation]
        assert (record.group, record.quota_of, record.resource) == (of, quota_of, "quota")
        assert str(record).startswith(text), str(record)
        assert f"quota_of={quota_of!r}" in repr(record)
    for request in (holder, bounded, fay):
        request.close()
    for thread in threads:
        thread.join()


def test_a_request_with_a_promise_passes_as_far_as_that_goes(pool: Pool, group: Group) -> None:
    promised, holder, first = group.request("p", reserve="64KiB"), group.request("h"), group.request("f")
    holder.empty(160 * KiB, "u1")
    waiter = Thread(pool, lambda: first.empty(128 * KiB, "u1", timeout=FAR).nbytes)
    assert promised.empty(64 * KiB, "u1").nbytes == 64 * KiB
    with pytest.raises(QuotaExceededError):
        promised.empty(4 * KiB, "u1")
    holder.close()
    assert waiter.join().result == 128 * KiB
    promised.close()
    first.close()


@pytest.mark.parametrize(
    "give_back",
    [
        lambda s: s.request.close(),
        lambda s: s.child.close(),
        lambda s: s.device.ack("gpu0"),
        lambda s: s.promised.close(),
        lambda s: s.tensor.truncate(0, release=True),
        lambda s: s.session.drop("kv"),
        lambda s: s.session.close(),
        lambda s: s.pool.session("outside").keep("kv", s.array),
    ],
    ids=["request", "child", "ack", "promise", "truncate", "drop", "session", "keep"],
)
def test_whatever_comes_back_to_the_group_wakes_its_waiter(
    pool: Pool, group: Group, give_back: Callable[[Scene], object]
) -> None:
    scene = Scene(pool, group)
    assert group.stats().nbytes == 8 * 32 * KiB
    waits_in = group.request("waits")
    waiter = Thread(pool, lambda: waits_in.empty(32 * KiB, "u1", timeout=FAR).nbytes)
    assert blocked(pool) == [("waits", 32 * KiB, "quota")]
    give_back(scene)
    assert waiter.join().result == 32 * KiB
    waits_in.close()
    scene.close()


class Scene:
    """Eight equal holders that use up the quota of a group."""

    def __init__(self, pool: Pool, group: Group) -> None:
        size = 32 * KiB
        self.pool = pool
        self.request = group.request("request")
        self.request.empty(size, "u1")
        self.parent = group.request("parent", quota=QUOTA)
        self.child = self.parent.child(quota=QUOTA)
        self.child.empty(size, "u1")
        self.device = group.request("device", ["gpu0"])
        self.device.empty(size, "u1")
        self.device.close()
        self.promised = group.request("promised", ["gpu0"], reserve=size)
        self.grows = group.request("grows")
        self.tensor = self.grows.growable(0, "u1", limit=QUOTA)
        self.tensor.extend(size)
        self.session = group.session("session")
        self.turn = self.session.request(["gpu0"])  # so that it does not give way
        self.session.keep("kv", self.turn.empty(size, "u1"))
        self.turn.close()
        self.keeps = group.request("keeps")
        self.array = self.keeps.empty(size, "u1")
        self.rest = group.request("rest")
        self.rest.empty(size, "u1")

    def close(self) -> None:
        for request in (self.request, self.parent, self.promised, self.grows, self.keeps, self.rest):
            request.close()
        for device in (self.device, self.promised, self.turn):
            device.ack("gpu0")
        self.session.close()


def test_a_session_of_the_group_that_becomes_idle_gives_way_to_a_waiter(pool: Pool, group: Group) -> None:
    session, other = group.session("chat"), pool.session("chat")
    turns = [one.request(["gpu0"]) for one in (session, other)]
    for one, turn in zip((session, other), turns, strict=True):
        one.keep("kv", turn.empty(192 * KiB, "u1"))
        turn.close()
    request = group.request("r")
    waiter = Thread(pool, lambda: request.empty(128 * KiB, "u1", timeout=FAR).nbytes)
    turns[1].ack("gpu0")
    assert blocked(pool) == [("r", 128 * KiB, "quota")], "that one is not of the group"
    turns[0].ack("gpu0")
    assert waiter.join().result == 128 * KiB
    assert session.evicted and not other.closed
    request.close()
    other.close()


def test_a_waiter_needs_every_quota_around_it(pool: Pool, group: Group) -> None:
    holder = group.request("holder")
    holder.empty(128 * KiB, "u1")
    parent = group.request("parent", quota=128 * KiB)
    sibling, child = parent.child(), parent.child(quota=112 * KiB)
    sibling.empty(96 * KiB, "u1")
    waiter = Thread(pool, lambda: child.empty(112 * KiB, "u1", timeout=FAR).nbytes)
    late = group.request("late")
    with pytest.raises(QuotaExceededError, match="its quota of 112 KiB"):
        child.empty(116 * KiB, "u1", timeout=FAR)  # can never be
    assert late.empty(32 * KiB, "u1").nbytes == 32 * KiB, (
        "the parent's quota blocks the waiter, not the group's"
    )
    sibling.close()

    def is_behind() -> bool:
        with pytest.raises(QuotaExceededError) as caught:
            late.empty(112 * KiB, "u1")  # there is no room for it either way
        return "1 waiter ahead" in str(caught.value)

    until(is_behind)  # now it is the group's
    with pytest.raises(QuotaExceededError, match="1 waiter ahead"):
        late.empty(4 * KiB, "u1")
    holder.close()
    assert waiter.join().result == 112 * KiB
    parent.close()
    late.close()


def test_a_reserve_waits_for_the_quota_and_hears_that_the_group_is_closed(pool: Pool, group: Group) -> None:
    holder = group.request("holder")
    holder.empty(192 * KiB, "u1")
    waiter = Thread(pool, lambda: group.request("waits", reserve=128 * KiB, timeout=FAR))
    assert blocked(pool) == [("waits", 128 * KiB, "quota")]
    holder.close()
    request = waiter.join().result
    assert isinstance(request, Request) and request.group == "tenant"
    waiter = Thread(pool, lambda: group.request("late", reserve=192 * KiB, timeout=FAR))
    group.close()
    error = waiter.join().error
    assert isinstance(error, RequestClosedError) and "group 'tenant' is closed" in str(error)
    request.close()
    with pytest.raises(QuotaExceededError):
        pool.group("small", quota="64KiB").request("r", reserve="128KiB", timeout=FAR)  # can never be


def test_requests_that_hold_what_the_first_needs_pass_it_and_newcomers_do_not(
    pool: Pool, group: Group
) -> None:
    one, two, new = (group.request(name) for name in ("one", "two", "new"))
    one.empty(96 * KiB, "u1")
    two.empty(96 * KiB, "u1")
    first = Thread(pool, lambda: one.empty(128 * KiB, "u1", timeout=FAR).nbytes)
    with pytest.raises(QuotaExceededError):
        new.empty(4 * KiB, "u1", timeout=0.01)
    # The first can have 128 KiB of 256 KiB only once the other request, which holds 96 KiB too, lets go.
    assert two.empty(32 * KiB, "u1", timeout=FAR).nbytes == 32 * KiB
    with pytest.raises(QuotaExceededError):
        new.empty(4 * KiB, "u1", timeout=0.01)
    two.close()
    assert first.join().result == 128 * KiB
    one.close()
    new.close()


def test_the_priority_of_a_group_is_that_of_its_waiters(pool: Pool) -> None:
    with pool.group("low") as low, pool.group("high", priority=2) as high:
        held = pool.empty(1 << 20, "u1")
        requests = [low.request("low"), high.request("high")]
        waiters = [Thread(pool, lambda r=r: r.empty(768 * KiB, "u1", timeout=FAR).nbytes) for r in requests]  # type: ignore[misc]
        opens = Thread(pool, lambda: high.request("opens", reserve=768 * KiB, timeout=FAR))
        assert [(w.request_id, w.priority) for w in pool.waiters()] == [("low", 0), ("high", 2), ("opens", 2)]
        del held
        assert waiters[1].join().result == 768 * KiB
        requests[1].close()
        opened = opens.join().result
        assert isinstance(opened, Request) and opened.priority == 2
        opened.close()
        assert waiters[0].join().result == 768 * KiB
        requests[0].close()


def test_coroutines_wait_for_the_quota(pool: Pool, group: Group) -> None:
    async def main() -> list[int]:
        holder = group.request("holder")
        holder.empty(192 * KiB, "u1")
        request = await group.request_async("r", ["gpu0"])
        tasks = [
            asyncio.create_task(request.empty_async(128 * KiB, "u1")),
            asyncio.create_task(group.request_async("reserves", reserve=64 * KiB)),
        ]
        await waits(pool, 2)
        cancelled = asyncio.create_task(request.empty_async(64 * KiB, "u1"))
        await waits(pool, 3)
        cancelled.cancel()
        await waits(pool, 2)
        holder.close()
        array, reserves = await tasks[0], await tasks[1]
        found = [array.nbytes, group.stats().nbytes]
        reserves.close()
        request.close()
        request.ack("gpu0")
        return found

    assert run(main) == [128 * KiB, 192 * KiB]


def test_no_wake_up_is_lost_among_threads() -> None:
    """No thread holds anything of a quota while it waits, so each is served."""
    pool = Pool("16MiB")
    # A turn that drops a tensor and makes another one holds the reserve, which counts, until it ends.
    groups = [pool.group("a", quota="320KiB", reserve="128KiB"), pool.group("b", quota="192KiB")]
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        group = groups[seed % 2]
        try:
            for _ in range(40):
                nbytes = chance.choice([4, 12, 64, 160]) * KiB
                kind = chance.randrange(4)
                if kind == 0:
                    with group.request("r", reserve=nbytes, timeout=FAR) as request:
                        request.empty(nbytes, "u1", timeout=FAR)
                elif kind == 1:
                    with group.request("r", quota=nbytes) as request, request.child(quota=nbytes) as child:
                        child.empty(nbytes, "u1", timeout=FAR)
                elif kind == 2:
                    with group.request("r") as request:
                        tensor = request.growable(0, "u1", limit=1 << 20)
                        tensor.extend(nbytes, timeout=FAR)
                else:
                    session = group.session(seed)
                    with contextlib.suppress(SessionLostError), session.request() as turn:
                        if "kv" in session:
                            session.drop("kv")
                        session.keep("kv", turn.empty(nbytes, "u1", timeout=FAR))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for group in groups:
        group.close()
    assert pool.groups() == []
    pool.close()
