"""The queue of waiters: threads and coroutines are served by priority and arrival, whatever they wait for.

Invariants: what does not wait overtakes no waiter of its own or a higher priority; a waiter that gives up, is
cancelled, or depends on something that was closed leaves at once, and the next one is looked at; one waiter
is woken for each that is served.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

import slabpool
from slabpool import Pool, WaiterRecord
from tests.waiting import until

T = TypeVar("T")
CAPACITY = 1 << 20
FAR = 60.0  # seconds; no wait here takes a hundredth of it


@pytest.fixture
def pool() -> Pool:
    return Pool(CAPACITY)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(main(), FAR))


async def waits(pool: Pool, count: int) -> None:
    """Returns once so many callers wait."""
    while pool.stats().waiting != count:
        await asyncio.sleep(0)


class Thread:
    """A thread that calls something that waits; it stands in the queue when this has been made."""

    def __init__(self, pool: Pool, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        before = pool.stats().waiting

        def work() -> None:
            try:
                self.result = call()
            except BaseException as error:
                self.error = error
            self.ended_at = time.monotonic()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        until(lambda: pool.stats().waiting > before or not self._thread.is_alive())

    def join(self) -> Thread:
        self._thread.join(FAR)
        assert not self._thread.is_alive(), "it still waits"
        return self


def test_threads_are_served_by_priority_and_then_in_order_of_arrival(pool: Pool) -> None:
    everything = [pool.empty(CAPACITY, "u1")]
    order: list[str] = []

    def take(name: str, priority: int) -> None:
        array = pool.empty(CAPACITY, "u1", timeout=FAR, priority=priority)
        order.append(name)
        del array

    wishes = [("a", 0), ("b", 0), ("urgent", 5), ("later", -1), ("c", 0), ("urgent too", 5)]
    threads = [Thread(pool, lambda name=name, p=p: take(name, p)) for name, p in wishes]  # type: ignore[misc]
    assert [(w.nbytes, w.priority) for w in pool.waiters()] == [(CAPACITY, p) for _, p in wishes]
    everything.clear()
    for thread in threads:
        assert thread.join().error is None
    assert order == ["urgent", "urgent too", "a", "b", "c", "later"]
    assert pool.waiters() == []


def test_threads_and_coroutines_stand_in_one_queue(pool: Pool) -> None:
    order: list[int] = []

    async def main() -> None:
        everything = pool.empty(CAPACITY, "u1")

        async def take(k: int) -> None:
            array = await pool.zeros_async(CAPACITY, "u1")
            order.append(k)
            del array

        def take_here(k: int) -> None:
            array = pool.empty(CAPACITY, "u1", timeout=FAR)
            order.append(k)
            del array

        tasks: list[asyncio.Future[None]] = []
        for k in range(6):
            tasks.append(
                asyncio.ensure_future(take(k) if k % 2 else asyncio.to_thread(take_here, k))  # type: ignore[arg-type]
            )
            await waits(pool, k + 1)
        del everything
        await asyncio.gather(*tasks)

    run(main)
    assert order == list(range(6))


def test_what_does_not_wait_overtakes_no_waiter(pool: Pool) -> None:
    blocker = pool.empty(CAPACITY // 2, "u1")
    waiter = Thread(pool, lambda: pool.empty(CAPACITY, "u1", timeout=FAR).nbytes)
    refused = pytest.raises(
        slabpool.PoolExhausted, match=r"1 waiter ahead: no request \(1 MiB, priority 0, since"
    )
    with refused:
        pool.empty(16, "u1")
    with refused:
        pool.request("r", reserve=16)
    with pool.request("no memory") as request:
        with refused:
            request.zeros(16, "u1")
        with refused:
            request.growable(4, "u1", limit=100)
        assert request.zeros(16, "u1", priority=1).sum() == 0, "a higher priority passes"
    with pool.request("urgent", priority=2) as urgent:
        assert urgent.priority == 2
        with urgent.child() as child:
            assert child.priority == 2
            assert child.empty(16, "u1").nbytes == 16, "a request's priority is that of what it allocates"
        with pytest.raises(slabpool.PoolExhausted):
            urgent.empty(16, "u1", priority=-1)
    del blocker
    assert waiter.join().result == CAPACITY


def test_what_was_reserved_needs_no_turn(pool: Pool) -> None:
    with pool.request("r", reserve=CAPACITY // 2) as request:
        waiter = Thread(pool, lambda: pool.empty(CAPACITY, "u1", timeout=FAR).nbytes)
        for _ in range(8):
            request.empty(CAPACITY // 16, "u1")
        with pytest.raises(slabpool.PoolExhausted, match="1 waiter ahead"):
            request.empty(CAPACITY // 16, "u1")
        assert pool.stats().waiting == 1
    assert waiter.join().result == CAPACITY


def test_a_quota_is_waited_for(pool: Pool) -> None:
    tenant = pool.request("tenant", devices=["d"], quota=CAPACITY // 2)
    first, second = tenant.child(["d"]), tenant.child(["d"])
    first.empty(400_000, "u1")
    first.close()
    with pytest.raises(slabpool.QuotaExceededError):
        second.empty(400_000, "u1", timeout=0)
    waiter = Thread(pool, lambda: second.empty(400_000, "u1", timeout=FAR).nbytes)
    assert [(w.request_id, w.resource) for w in pool.waiters()] == [("tenant", "quota")]
    with pytest.raises(slabpool.QuotaExceededError, match=r"1 waiter ahead: 'tenant' \(390.6 KiB"):
        second.empty(1000, "u1")
    assert pool.empty(1000, "u1").nbytes == 1000, "the memory is not what they wait for"
    first.ack("d")
    assert waiter.join().result == 400_000
    began = time.monotonic()
    with pytest.raises(slabpool.QuotaExceededError):
        second.empty(CAPACITY // 2 + 1, "u1", timeout=FAR)
    assert time.monotonic() - began < FAR / 2, "more than the quota: there is nothing to wait for"
    tenant.close()
    tenant.ack("d")


def test_a_waiter_that_holds_what_the_first_of_a_quota_needs_passes_it(pool: Pool) -> None:
    part = CAPACITY // 16
    with pool.request("tenant", quota=CAPACITY) as tenant:
        first, little, much, other = (tenant.child() for _ in range(4))
        held = [much.empty(10 * part, "u1"), other.empty(4 * part, "u1"), little.empty(2 * part, "u1")]
        waiters = [
            Thread(pool, lambda r=r, n=n: r.empty(n, "u1", timeout=FAR).nbytes)  # type: ignore[misc]
            for r, n in ((first, 10 * part), (little, part), (much, part))
        ]
        assert [w.resource for w in pool.waiters()] == ["quota"] * 3
        del held[1]
        other.close()
        assert waiters[2].join().result == part, "behind one that may not pass"
        assert pool.stats().waiting == 2
        held.clear()
        much.close()
        assert [w.join().result for w in waiters[:2]] == [10 * part, part]


def test_what_is_left_of_a_quota_serves_all_that_may_pass(pool: Pool) -> None:
    part = CAPACITY // 16
    with pool.request("tenant", quota=CAPACITY) as tenant:
        first, much, other = (tenant.child() for _ in range(3))
        held = [much.empty(10 * part, "u1"), other.empty(6 * part, "u1")]
        waiters = [
            Thread(pool, lambda r=r, n=n: r.empty(n, "u1", timeout=FAR).nbytes)  # type: ignore[misc]
            for r, n in ((first, 10 * part), (much, part), (much, 2 * part), (much, 3 * part))
        ]
        del held[1]
        other.close()
        assert [w.join().result for w in waiters[1:]] == [part, 2 * part, 3 * part]
        held.clear()
        much.close()
        assert waiters[0].join().result == 10 * part


def test_addresses_are_waited_for(pool: Pool) -> None:
    most = pool.stats().address_space // 4
    held = []
    with pytest.raises(slabpool.PoolExhausted, match="addresses"):
        while True:
            request = pool.request(len(held))
            held.append((request, request.growable(0, "u1", limit=most)))
    request.close()
    late = pool.request("late")
    waiter = Thread(pool, lambda: late.growable(16, "u1", limit=most, timeout=FAR).nbytes)
    (record,) = pool.waiters()
    assert (record.request_id, record.resource) == ("late", "addresses")
    assert record.where.startswith(__file__)
    with pytest.raises(slabpool.PoolExhausted, match="1 waiter ahead"):
        late.growable(0, "u1", limit=most)
    began = time.monotonic()
    with pytest.raises(slabpool.PoolExhausted):
        late.growable(0, "u1", limit=8 * most, timeout=FAR)
    assert time.monotonic() - began < FAR / 2, "more than there are: there is nothing to wait for"
    request, tensor = held.pop()
    del tensor
    request.close()
    assert waiter.join().error is None
    late.close()
    for request, _ in held:
        request.close()


def test_a_growing_tensor_waits_for_memory_and_for_its_quota(pool: Pool) -> None:
    with pool.request("r", quota=CAPACITY // 2) as request, request.child() as other:
        tensor = request.growable(0, "u1", limit=CAPACITY)
        blocker = pool.empty(CAPACITY * 3 // 4, "u1")
        waiter = Thread(pool, lambda: tensor.extend(CAPACITY // 2, timeout=FAR).nbytes)
        assert pool.waiters()[0].resource == "memory"
        del blocker
        assert waiter.join().result == CAPACITY // 2
        tensor = other.growable(0, "u1", limit=CAPACITY)
        with pytest.raises(slabpool.QuotaExceededError, match=r"within 0\.01 s"):
            tensor.extend(1000, timeout=0.01)


def test_a_request_slot_is_waited_for() -> None:
    pool = Pool("16MiB")
    requests = []
    with pytest.raises(slabpool.PoolExhausted, match="as many requests as it can hold"):
        while True:
            requests.append(pool.request(len(requests)))
    waiter = Thread(pool, lambda: pool.request("late", timeout=FAR).close())
    assert [(w.request_id, w.resource) for w in pool.waiters()] == [("late", "requests")]
    assert pool.empty(16, "u1").nbytes == 16
    with pytest.raises(slabpool.PoolExhausted, match=r"1 waiter ahead: 'late' \(0 bytes"):
        pool.request("another")
    requests.pop().close()
    assert waiter.join().error is None
    for request in requests:
        request.close()


def test_a_coroutine_that_becomes_the_first_looks_for_sessions_that_give_way() -> None:
    pool = Pool("16MiB")
    session = pool.session("idle")
    with session.request() as turn:
        session.keep("kv", turn.empty(16, "u1"))
    session.pin()
    requests = []
    with pytest.raises(slabpool.PoolExhausted):
        while True:
            requests.append(pool.request(len(requests)))

    async def main() -> None:
        first = asyncio.create_task(pool.request_async("first"))
        await waits(pool, 1)
        second = asyncio.create_task(pool.request_async("second"))
        await waits(pool, 2)
        first.cancel()
        await waits(pool, 1)
        session.unpin()
        (await second).close()

    run(main)
    assert pool.session_stats().evicted_for_slots == 1


def test_a_timeout_names_what_was_ahead(pool: Pool) -> None:
    blocker = pool.empty(CAPACITY // 2, "u1")
    threads = [
        Thread(pool, lambda k=k: pool.request(f"big-{k}", reserve=CAPACITY, timeout=FAR).close())
        for k in range(5)
    ]  # type: ignore[misc]
    with pytest.raises(slabpool.PoolExhausted) as caught:
        pool.request("small", reserve=1, timeout=0.02)
    assert "for request 'small' within 0.02 s" in str(caught.value)
    assert "5 waiters ahead: 'big-0' (1 MiB, priority 0, since " in str(caught.value)
    assert " and 2 more." in str(caught.value)
    assert "Deadlock" not in str(caught.value)
    with pytest.raises(slabpool.PoolExhausted, match="5 waiters ahead"):
        run(lambda: pool.request_async("small", reserve=1, timeout=0.02))
    assert pool.stats().waiting == 5
    del blocker
    for thread in threads:
        assert thread.join().error is None


def test_requests_that_hold_and_wait_for_each_other_are_reported(pool: Pool) -> None:
    requests = [pool.request(k) for k in range(4)]
    for request in requests:
        request.empty(CAPACITY // 4, "u1")
    threads = [Thread(pool, lambda r=r: r.empty(1000, "u1", timeout=FAR)) for r in requests[:3]]  # type: ignore[misc]
    assert not any(waiter.deadlock for waiter in pool.waiters()), "one of the holders does not wait"
    seen: list[WaiterRecord] = []
    with pytest.raises(slabpool.PoolExhausted, match="Deadlock: the requests that wait for memory hold"):
        watcher = threading.Thread(
            target=lambda: (until(lambda: pool.stats().waiting == 4), seen.extend(pool.waiters()))
        )
        watcher.start()
        requests[3].empty(1000, "u1", timeout=1.0)
    watcher.join(FAR)
    assert len(seen) == 4
    assert all(waiter.deadlock for waiter in seen)
    requests[3].close()  # it gives in
    for thread in threads:
        assert thread.join().error is None
    for request in requests:
        request.close()


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_waiter_hears_that_its_request_or_its_parent_was_closed(pool: Pool, how: str) -> None:
    everything = pool.empty(CAPACITY, "u1")
    parent = pool.request("parent")
    child = parent.child()
    waiters = [
        Thread(pool, lambda: child.empty(16, "u1", timeout=FAR)),
        Thread(pool, lambda: parent.growable(16, "u1", limit=100, timeout=FAR)),
    ]
    getattr(parent, how)()
    closed_at = time.monotonic()
    for waiter in waiters:
        assert isinstance(waiter.join().error, slabpool.RequestClosedError)
        assert waiter.ended_at - closed_at < FAR / 4
    del everything


def test_waiters_hear_that_the_pool_was_closed(pool: Pool) -> None:
    everything = pool.empty(CAPACITY, "u1")
    waiter = Thread(pool, lambda: pool.empty(16, "u1", timeout=FAR))

    async def main() -> None:
        tasks = [
            asyncio.create_task(pool.empty_async(16, "u1")),
            asyncio.create_task(pool.request_async("r", reserve=1)),
        ]
        await waits(pool, 3)
        pool.close(force=True)
        for task in tasks:
            with pytest.raises(slabpool.PoolClosedError):
                await task

    run(main)
    assert isinstance(waiter.join().error, slabpool.PoolClosedError)
    del everything


def test_a_turn_that_waits_hears_that_its_session_was_closed(pool: Pool) -> None:
    everything = pool.empty(CAPACITY, "u1")
    session = pool.session("chat-42")
    other = pool.session("another")
    waiter = Thread(pool, lambda: session.request(reserve=1000, timeout=FAR))
    unharmed = Thread(pool, lambda: other.request(reserve=1000, timeout=FAR).close())
    session.close()
    assert isinstance(waiter.join().error, slabpool.SessionLostError)

    async def main() -> None:
        session = pool.session("chat-43")
        turn = asyncio.create_task(session.request_async(reserve=1000))
        await waits(pool, 2)
        session.close()
        with pytest.raises(slabpool.SessionLostError):
            await turn
        assert pool.stats().waiting == 1

    run(main)
    del everything
    assert unharmed.join().error is None
    assert (pool.stats().requests_open, pool.stats().reserved) == (0, 0)


def test_a_session_that_becomes_idle_gives_way_to_the_first_waiter(pool: Pool) -> None:
    session = pool.session("kept")
    turn = session.request(devices=["d"])
    session.keep("kv", turn.zeros(CAPACITY, "u1"))
    turn.close()

    async def main() -> None:
        task = asyncio.create_task(pool.request_async("late", reserve=CAPACITY))
        await waits(pool, 1)
        turn.ack("d")  # returns no memory: the session keeps it
        (await task).close()

    run(main)
    assert session.evicted


# ---- asyncio


def test_awaiting_memory(pool: Pool) -> None:
    async def main() -> None:
        with pool.request("r") as request:
            tensor = request.growable(0, "u1", limit=CAPACITY)
            layout = slabpool.Layout({"k": (1000, "u1"), "v": (1000, "u1")})
            everything = pool.empty(CAPACITY, "u1")
            tasks: list[asyncio.Task[Any]] = [
                asyncio.create_task(call)
                for call in (
                    request.empty_async((10, 10), "u1"),
                    request.zeros_async(100, "u1", align=4096),
                    request.allocate_async(layout, zero=True),
                    tensor.extend_async(100),
                    pool.empty_async(100, "u1", priority=1),
                    pool.zeros_async(100),
                )
            ]
            await waits(pool, len(tasks))
            del everything
            empty, zeros, tensors, extended, first, last = await asyncio.gather(*tasks)
            assert empty.shape == (10, 10)
            assert zeros.ctypes.data % 4096 == 0
            assert zeros.sum() == tensors.k.sum() == last.sum() == 0
            assert extended.shape == (100,)
            assert first.nbytes == 100
            with pytest.raises(slabpool.TensorTooLargeError):
                await request.empty_async(CAPACITY + 1, "u1")
            with pytest.raises(slabpool.InvalidTypeError, match="timeout"):
                await pool.empty_async(1, timeout="soon")  # type: ignore[call-overload]
        with pytest.raises(slabpool.RequestClosedError):
            await request.zeros_async(1)

    run(main)


def test_a_cancelled_coroutine_leaves_nothing_behind_and_the_next_is_looked_at(pool: Pool) -> None:
    async def main() -> None:
        with pool.request("r") as request:
            blocker = pool.empty(CAPACITY // 2, "u1")
            large = asyncio.create_task(request.empty_async(CAPACITY, "u1"))
            await waits(pool, 1)
            small = asyncio.create_task(request.empty_async(1000, "u1"))
            await waits(pool, 2)
            large.cancel()
            assert (await small).nbytes == 1000
            with pytest.raises(asyncio.CancelledError):
                await large
            assert pool.stats().waiting == 0
            # Served and cancelled at once: the block is free, unless the coroutine has it.
            for _ in range(50):
                before = pool.stats().live
                task = asyncio.create_task(pool.empty_async(CAPACITY * 3 // 4, "u1"))
                await waits(pool, 1)
                other, blocker = blocker, None  # type: ignore[assignment]
                del other
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                del task
                blocker = pool.empty(CAPACITY // 2, "u1")
                assert pool.stats().live == before
                assert pool.stats().waiting == 0

    run(main)


def test_one_wake_up_for_each_waiter_that_is_served(pool: Pool) -> None:
    count = 1000

    async def main() -> None:
        everything: list[Any] = [pool.empty(CAPACITY, "u1")]
        order: list[int] = []

        async def take(k: int) -> None:
            array = await pool.empty_async(CAPACITY, "u1")
            order.append(k)
            del array

        tasks = []
        for k in range(count):
            tasks.append(asyncio.create_task(take(k)))
        await waits(pool, count)
        before = pool._wakeup_count()
        everything.clear()
        await asyncio.gather(*tasks)
        assert order == list(range(count))
        assert pool._wakeup_count() - before <= count + 10

    run(main)


def test_two_loops_share_the_queue(pool: Pool) -> None:
    order: list[int] = []
    everything = [pool.empty(CAPACITY, "u1")]

    async def take(k: int) -> None:
        array = await pool.empty_async(CAPACITY, "u1", timeout=FAR)
        order.append(k)
        del array

    threads = [Thread(pool, lambda k=k: asyncio.run(take(k))) for k in range(4)]  # type: ignore[misc]
    everything.clear()
    for thread in threads:
        assert thread.join().error is None
    assert order == list(range(4))


# ---- what a user may pass


@pytest.mark.parametrize("priority", [1.5, "high", 1 << 40])
def test_bad_priorities(pool: Pool, priority: Any) -> None:
    for call in (
        lambda: pool.empty(1, priority=priority),
        lambda: pool.request("r", priority=priority),
        lambda: pool.request_async("r", priority=priority),
        lambda: pool.session("s").request(priority=priority),
    ):
        with pytest.raises(
            (slabpool.InvalidTypeError, slabpool.InvalidArgumentError), match="priority must be"
        ):
            call()
    assert pool.stats().requests_open == 0


def test_ctrl_c_ends_a_wait(pool: Pool) -> None:
    everything = pool.empty(CAPACITY, "u1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    thread = threading.Thread(
        target=lambda: (until(lambda: pool.stats().waiting == 1), os.kill(os.getpid(), signal.SIGINT))
    )
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.empty(16, "u1", timeout=FAR)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join(FAR)
    assert pool.stats().waiting == 0
    del everything


def test_records_of_waiters(pool: Pool) -> None:
    everything = pool.empty(CAPACITY, "u1")
    waiter = Thread(pool, lambda: pool.request(b"raw", reserve=1000, timeout=FAR, priority=7).close())
    (record,) = pool.waiters()
    assert (record.request_id, record.nbytes, record.priority, record.resource) == (b"raw", 1000, 7, "memory")
    assert record.waited >= 0
    assert record.where.startswith(f"{__file__}:")
    assert str(record).startswith("request b'raw' waits for memory: 1000 bytes, priority 7, for 0.")
    assert repr(record).startswith("WaiterRecord(request_id=b'raw', nbytes=1000, priority=7, waited=")
    del everything
    assert waiter.join().error is None
