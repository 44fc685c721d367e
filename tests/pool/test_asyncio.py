"""Waiting for a pool inside asyncio: the loop keeps running, every waiter is served, and nothing is left
over.

Invariants: a waiting coroutine costs no thread, and one file descriptor per loop and pool while there are
waiters; a coroutine that is cancelled or times out has opened nothing.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

import slabpool
from slabpool import Ack, Pool
from tests.waiting import PATIENCE

T = TypeVar("T")
CAPACITY = 1 << 20


def open_files() -> int:
    """Descriptors this process has open."""
    gc.collect()  # pools of earlier tests may have some still
    return len(os.listdir("/dev/fd"))


async def turns(count: int) -> None:
    """Lets the loop go around `count` times, so that everything that is ready has run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def pool() -> Pool:
    return Pool(CAPACITY)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


def check_nothing_left(pool: Pool) -> None:
    s = pool.stats()
    assert (s.live, s.reserved, s.requests_open, s.requests_draining) == (0, 0, 0, 0)
    assert pool.requests() == []


def test_room_is_given_at_once(pool: Pool) -> None:
    async def main() -> None:
        files = open_files()
        with await pool.request_async("r", ["d"], reserve="512KiB", quota="768KiB", lease=5) as request:
            line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
            assert open_files() == files, "a descriptor without a waiter"
            assert (request.id, request.pending, request.quota) == ("r", {"d"}, 768 << 10)
            assert pool.requests()[0].opened_at == f"{__file__}:{line}"
            assert pool.stats().reserved == 512 << 10
        assert request.ack("d") is Ack.RELEASED
        await request.released()

    run(main)
    check_nothing_left(pool)


@pytest.mark.parametrize("by", ["close", "ack", "device_lost", "cancel", "view", "thread"])
def test_waits_for_the_reserve_while_the_loop_runs(pool: Pool, by: str) -> None:
    async def main() -> None:
        first = pool.request(
            "first", ["d"] if by in ("ack", "device_lost", "thread") else [], reserve=CAPACITY
        )
        view = first.empty(CAPACITY // 2 + 1, "u1") if by == "view" else None
        if by == "view":
            first.close()
        second = asyncio.create_task(pool.request_async("second", reserve=CAPACITY // 2))
        await turns(100)
        assert not second.done()
        match by:
            case "close":
                first.close()
            case "cancel":
                first.cancel()
            case "ack":
                first.close()
                first.ack("d")
            case "device_lost":
                first.close()
                assert pool.device_lost("d") == 1
            case "view":
                del view
            case "thread":
                first.close()
                thread = threading.Thread(target=first.ack, args=("d",))
                thread.start()
                thread.join()
        request = await second
        assert pool.stats().reserved >= CAPACITY // 2
        request.close()

    run(main)
    check_nothing_left(pool)


def test_timeout(pool: Pool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        files = open_files()
        with pool.request("first", reserve=CAPACITY):
            began = loop.time()
            with pytest.raises(slabpool.PoolExhausted, match="cannot reserve"):
                await pool.request_async("second", reserve=1, timeout=0.05)
            assert loop.time() - began >= 0.05
            with pytest.raises(slabpool.PoolExhausted):
                await pool.request_async("second", reserve=1, timeout=0)
        assert open_files() == files
        with await pool.request_async("second", reserve=CAPACITY, timeout=0):
            pass  # there is room, so a timeout of 0 is enough
        # Memory that comes back in between but is not enough does not prolong the wait.
        with pool.request("first", reserve=CAPACITY - 200_000):
            waiting = asyncio.create_task(pool.request_async("second", reserve=400_000, timeout=0.2))
            while not waiting.done():
                pool.request("small", reserve=1000, priority=1).close()
                await turns(1)
            with pytest.raises(slabpool.PoolExhausted):
                await waiting

    run(main)
    check_nothing_left(pool)


def test_errors_do_not_wait(pool: Pool) -> None:
    async def main() -> None:
        with pool.request("first", reserve=CAPACITY):
            with pytest.raises(slabpool.TensorTooLargeError):
                await pool.request_async("r", reserve=CAPACITY + 1)
            with pytest.raises(slabpool.DuplicateDeviceError):
                await pool.request_async("r", ["d", "d"])
            with pytest.raises(slabpool.InvalidArgumentError):
                await pool.request_async("r", reserve=2, quota=1)
            with pytest.raises(slabpool.InvalidTypeError):
                await pool.request_async(1.5)  # type: ignore[arg-type]
            for timeout in (-1, float("nan")):
                with pytest.raises(slabpool.InvalidArgumentError, match="timeout"):
                    await pool.request_async("r", timeout=timeout)
            with pytest.raises(slabpool.InvalidTypeError, match="timeout"):
                await pool.request_async("r", timeout="soon")  # type: ignore[arg-type]

    run(main)
    check_nothing_left(pool)


def test_cancelled_coroutines_leave_nothing(pool: Pool) -> None:
    async def main() -> None:
        files = open_files()
        first = pool.request("first", reserve=CAPACITY)
        for when in ("before it ran", "while it waits", "as its turn comes", "by a timeout around it"):
            task = asyncio.create_task(pool.request_async("second", reserve=CAPACITY))
            if when == "by a timeout around it":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(task, 0.01)
                continue
            if when != "before it ran":
                await turns(10)
            if when == "as its turn comes":
                # Memory is freed and the loop is notified, but the coroutine is cancelled before it runs.
                first.close()
                await turns(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert open_files() == files
            if when == "as its turn comes":
                check_nothing_left(pool)
                first = pool.request("first", reserve=CAPACITY)
        assert [r.request_id for r in pool.requests()] == ["first"]
        assert pool.stats().reserved == CAPACITY
        # A cancelled coroutine takes nothing from one that still waits.
        given_up = [asyncio.create_task(pool.request_async("no", reserve=CAPACITY)) for _ in range(5)]
        served = asyncio.create_task(pool.request_async("yes", reserve=CAPACITY))
        await turns(10)
        first.close()
        for task in given_up:
            task.cancel()
        request = await served
        assert [r.request_id for r in pool.requests()] == ["yes"]
        request.close()

    run(main)
    check_nothing_left(pool)


def test_a_cancelled_wait_for_release(pool: Pool) -> None:
    async def main() -> None:
        files = open_files()
        request = pool.request("r", ["d"])
        tasks = [asyncio.ensure_future(request.released()) for _ in range(3)]
        await turns(5)
        tasks[0].cancel()
        await turns(5)
        assert [task.done() for task in tasks] == [True, False, False]
        assert open_files() == files + 1
        request.close()
        request.ack("d")
        await asyncio.gather(*tasks[1:])
        assert open_files() == files

    run(main)


def test_many_coroutines_await_one_release(pool: Pool) -> None:
    async def main() -> None:
        files = open_files()
        request = pool.request("r", ["a", "b"])
        other = pool.request("other")
        tasks = [asyncio.ensure_future(request.released()) for _ in range(300)]
        await turns(5)
        assert open_files() == files + 1, "one descriptor for all of them"
        request.close()
        request.ack("a")
        other.close()  # wakes them although their request is not over
        await turns(20)
        assert not any(task.done() for task in tasks)
        threading.Thread(target=request.ack, args=("b",)).start()
        await asyncio.gather(*tasks)
        assert request.state is slabpool.RequestState.RELEASED
        assert open_files() == files
        await request.released()  # returns at once
        assert open_files() == files

    run(main)
    check_nothing_left(pool)


def test_waiters_for_the_whole_pool_take_turns(pool: Pool) -> None:
    inside = most = 0

    async def one(number: int) -> None:
        nonlocal inside, most
        with await pool.request_async(number, reserve=CAPACITY) as request:
            inside += 1
            most = max(most, inside)
            array = request.full(CAPACITY // 2, number % 256, "u1")
            await turns(number % 3)
            assert (array == number % 256).all()
            inside -= 1
            del array

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(100)))

    run(main)
    assert most == 1
    check_nothing_left(pool)


def test_two_loops_in_two_threads(pool: Pool) -> None:
    """Each serves what the other waits for, a hundred times."""
    rounds = 100
    ready: list[asyncio.Queue[slabpool.Request]] = []
    loops: list[asyncio.AbstractEventLoop] = []
    started = threading.Barrier(2)
    failed: list[BaseException] = []

    async def side(me: int) -> None:
        loops.append(asyncio.get_running_loop())
        ready.append(asyncio.Queue())
        mine, my_queue = len(loops) - 1, ready[-1]
        await asyncio.get_running_loop().run_in_executor(None, started.wait, PATIENCE)
        theirs = 1 - mine

        async def open_and_wait() -> None:
            for number in range(rounds):
                request = await pool.request_async(number, ["peer"], reserve=CAPACITY // 2 + 1)
                request.close()
                loops[theirs].call_soon_threadsafe(ready[theirs].put_nowait, request)
                await request.released()

        async def ack_for_the_other() -> None:
            for _ in range(rounds):
                request = await my_queue.get()
                assert request.ack("peer") is Ack.RELEASED

        await asyncio.gather(open_and_wait(), ack_for_the_other())

    def work(me: int) -> None:
        try:
            run(lambda: side(me))
        except BaseException as error:
            failed.append(error)
            raise

    files = open_files()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert open_files() == files
    assert pool.stats().acks == 2 * rounds
    check_nothing_left(pool)


def test_closing_a_pool_ends_all_waits(pool: Pool) -> None:
    async def main() -> None:
        first = pool.request("first", ["d"], reserve=CAPACITY)
        second = asyncio.create_task(pool.request_async("second", reserve=CAPACITY))
        over = asyncio.ensure_future(first.released())
        await turns(5)
        pool.close(force=True)
        await over
        with pytest.raises(slabpool.PoolClosedError):
            await second

    run(main)
    check_nothing_left(pool)


def test_nothing_of_a_loop_is_kept(pool: Pool) -> None:
    """A program that runs many loops on one pool leaves neither loops nor descriptors behind."""
    gc.collect()
    files = open_files()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        with pool.request("first", reserve=CAPACITY) as first:
            task = asyncio.create_task(pool.request_async("second", reserve=CAPACITY))
            await turns(3)
            first.close()
            with await task, pytest.raises(slabpool.PoolExhausted):
                await pool.request_async("third", reserve=CAPACITY, timeout=0.001)

    for _ in range(20):
        run(main)
    check_nothing_left(pool)
    gc.collect()
    assert open_files() == files
    assert [loop() for loop in loops] == [None] * 20


def test_a_pool_goes_with_its_last_reference(pool: Pool) -> None:
    """A pool that was waited on is still freed with its last reference, without the garbage collector."""

    async def main(pool: Pool) -> None:
        first = pool.request("first", reserve=CAPACITY)
        task = asyncio.create_task(pool.request_async("second", reserve=CAPACITY))
        await turns(3)
        with pytest.raises(slabpool.PoolExhausted):
            await pool.request_async("third", reserve=CAPACITY, timeout=0.001)
        first.close()
        (await task).close()

    made = Pool(CAPACITY)
    gone = weakref.ref(made)
    gc.collect()
    gc.disable()
    try:
        asyncio.run(main(made))
        del made
        assert gone() is None
    finally:
        gc.enable()
