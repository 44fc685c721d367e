"""`Pool.on_pressure`: who is called, when, and on which thread.

Invariants: no call is made inside an allocation; every change is told once; the last state is told, also if
nothing happens after it; a watch, its pool and its callback are garbage together, and leave no descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Pool, Pressure, PressureWatch
from tests.process.test_fork import in_child
from tests.waiting import PATIENCE, until, waits

CAPACITY = 1 << 20
KIB = 1 << 10


@pytest.fixture
def pool() -> Pool:
    return Pool(CAPACITY)


class Heard:
    """A callback: what it was told, and on which threads."""

    def __init__(self) -> None:
        self.told: list[Pressure] = []
        self.threads: set[int] = set()

    def __call__(self, now: Pressure) -> None:
        self.told.append(now)
        self.threads.add(threading.get_ident())

    @property
    def high(self) -> list[bool]:
        return [now.high for now in self.told]


def started(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


# ---- when


def test_up_and_down_with_hysteresis(pool: Pool) -> None:
    heard = Heard()
    watch = pool.on_pressure(0.5, heard, hysteresis=0.25)
    assert (watch.fraction, watch.hysteresis, watch.high, watch.closed) == (0.5, 0.25, False, False)
    parts = [pool.empty(128 * KIB, "u1") for _ in range(3)]
    assert (watch.check(), watch.high) == (0, False)
    parts.append(pool.empty(128 * KIB, "u1"))  # half
    assert (watch.check(), watch.high) == (1, True)
    for _ in range(2):  # between the bounds nothing is told
        parts.pop()
        assert watch.check() == 0
    parts.append(pool.empty(128 * KIB, "u1"))
    assert watch.check() == 0
    del parts[1:]
    assert (watch.check(), watch.high) == (1, False)
    assert heard.told == [Pressure(True, 0.5, 0.5), Pressure(False, 0.125, 0.5)]


def test_use_that_was_high_before_is_told_first(pool: Pool) -> None:
    array = pool.empty(CAPACITY, "u1")
    heard = Heard()
    with pool.on_pressure(1, heard) as watch:
        assert watch.wait()
        del array
        assert watch.wait()
    assert heard.told == [Pressure(True, 1.0, 1.0), Pressure(False, 0.0, 1.0)]


def test_a_peak_that_nobody_saw_is_told(pool: Pool) -> None:
    heard = Heard()
    watch = pool.on_pressure(0.5, heard)
    for _ in range(3):
        array = pool.empty(768 * KIB, "u1")
        del array
    assert watch.check() == 2
    assert heard.told == [Pressure(True, 0.75, 0.5), Pressure(False, 0.0, 0.5)]


def test_what_counts_as_used(pool: Pool) -> None:
    heard = Heard()
    watch = pool.on_pressure(0.5, heard)
    request = pool.request("r", ["gpu0"], reserve=CAPACITY // 2)
    assert watch.check() == 1  # promised
    view = request.empty(CAPACITY // 2, "u1")
    request.close()
    assert watch.check() == 0  # live
    request.ack("gpu0")
    assert (pool.stats().retained, watch.check()) == (CAPACITY // 2, 0)
    del view
    assert watch.check() == 1
    session = pool.session("s")
    with session.request() as turn:
        session.keep("kv", turn.empty(CAPACITY // 2, "u1"))
    assert watch.check() == 1
    session.close()
    assert watch.check() == 1
    assert heard.high == [True, False, True, False]


def test_several_watches_at_several_fractions(pool: Pool) -> None:
    heard = [Heard() for _ in range(3)]
    watches = [
        pool.on_pressure(part, h, hysteresis=0) for part, h in zip((0.25, 0.5, 0.75), heard, strict=True)
    ]
    arrays = []
    for part in range(1, 5):
        arrays.append(pool.empty(CAPACITY // 4, "u1"))
        assert [w.check() for w in watches] == [int(i == part - 1) for i in range(3)]
    watches[1].close()
    del arrays
    assert [w.check() for w in (watches[0], watches[2])] == [1, 1]
    assert [h.high for h in heard] == [[True, False], [True], [True, False]]


def test_threads_that_allocate_call_nobody(pool: Pool) -> None:
    heard = Heard()
    watch = pool.on_pressure(0.5, heard)
    array = pool.empty(CAPACITY, "u1")
    del array
    assert heard.told == []
    assert watch.check() == 2


# ---- on which thread


def test_a_thread_that_waits(pool: Pool) -> None:
    heard = Heard()
    watch = pool.on_pressure(0.5, heard)
    assert not watch.wait(0)
    thread = started(watch.serve)
    assert thread.ident is not None
    until(waits(thread.ident))
    for count in range(1, 21):
        array = pool.empty(CAPACITY, "u1")
        until(lambda: len(heard.told) == 2 * count - 1)
        del array
        until(lambda: len(heard.told) == 2 * count)
    watch.close()
    joined(thread)
    assert heard.high == [True, False] * 20
    assert heard.threads == {thread.ident}


def test_an_executor(pool: Pool) -> None:
    heard = Heard()
    with ThreadPoolExecutor(1) as executor, pool.on_pressure(0.5, heard) as watch:
        job = executor.submit(watch.serve)
        array = pool.empty(CAPACITY, "u1")
        until(lambda: heard.high == [True])
        del array
        until(lambda: heard.high == [True, False])
        watch.close()
        job.result(PATIENCE)
    assert threading.get_ident() not in heard.threads


def test_an_event_loop(pool: Pool) -> None:
    files = descriptors()

    async def main() -> Heard:
        heard = Heard()
        changed = asyncio.Event()

        def callback(now: Pressure) -> None:
            heard(now)
            changed.set()

        watch = pool.on_pressure(0.5, callback, loop=asyncio.get_running_loop())
        for high in (True, False) * 10:
            if high:  # on another thread
                kept: list[Any] = []
                joined(started(lambda: kept.append(pool.empty(CAPACITY, "u1"))))
            else:
                kept.clear()
            await changed.wait()
            changed.clear()
            assert watch.high is high
        watch.close()
        kept.append(pool.empty(CAPACITY, "u1"))
        await asyncio.sleep(0)
        return heard

    heard = asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert heard.high == [True, False] * 10
    assert heard.threads == {threading.get_ident()}
    assert descriptors() == files


def test_a_loop_in_another_thread(pool: Pool) -> None:
    heard = Heard()
    loop = asyncio.new_event_loop()
    thread = started(loop.run_forever)
    pool.on_pressure(0.5, heard, loop=loop)  # kept by the pool
    gc.collect()
    array = pool.empty(CAPACITY, "u1")
    until(lambda: heard.high == [True])
    del array
    until(lambda: heard.high == [True, False])
    assert heard.threads == {thread.ident}
    pool.close()
    loop.call_soon_threadsafe(loop.stop)
    joined(thread)
    loop.close()


def test_another_devices_ack_is_noticed() -> None:
    heard = Heard()
    with Pool(CAPACITY, memory="shared") as pool, slabpool.attach(pool.name, device="gpu0") as peer:
        request = pool.request("r", ["gpu0"])
        ref = request.ref(request.empty(CAPACITY, "u1"))
        request.close()
        with pool.on_pressure(0.5, heard) as watch:
            assert watch.wait()
            thread = started(watch.serve)
            assert thread.ident is not None
            until(waits(thread.ident))
            peer.ack(ref)
            until(lambda: heard.high == [True, False])
            watch.close()
            joined(thread)

        async def main() -> None:
            heard.told.clear()
            other = pool.request("s", ["gpu0"])
            ref = other.ref(other.empty(CAPACITY, "u1"))
            other.close()
            pool.on_pressure(0.5, heard, loop=asyncio.get_running_loop())
            while heard.high != [True]:
                await asyncio.sleep(0)
            peer.ack(ref)
            while heard.high != [True, False]:
                await asyncio.sleep(0.001)

        asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_many_threads_allocate_and_one_hears(pool: Pool) -> None:
    heard = Heard()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            arrays = []
            for _ in range(40):
                try:
                    arrays.append(pool.empty(8 * KIB, "u1"))
                except slabpool.PoolExhausted:
                    break

    with pool.on_pressure(0.6, heard, hysteresis=0.3) as watch:
        server = started(watch.serve)
        threads = [started(work) for _ in range(4)]
        until(lambda: len(heard.told) >= 10)
        stop.set()
        for thread in threads:
            joined(thread)
        # All has come back, and nobody looks but the thread that hears.
        until(lambda: heard.high[-1:] == [False])
        watch.close()
        joined(server)
    count = len(heard.told)
    assert heard.high[:count] == ([True, False] * count)[:count]
    assert all(now.usage >= 0.6 if now.high else now.usage < 0.31 for now in heard.told)


# ---- errors


def test_an_exception_of_the_callback_is_reported(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[str, object]] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda hook: reported.append((str(hook.exc_value), hook.object))
    )

    def callback(now: Pressure) -> None:
        raise ValueError(f"high: {now.high}")

    watch = pool.on_pressure(0.5, callback)
    pool.empty(CAPACITY, "u1")
    assert watch.check() == 2
    assert reported == [("high: True", callback), ("high: False", callback)]


def test_what_is_no_exception_is_raised(pool: Pool) -> None:
    def callback(now: Pressure) -> None:
        raise KeyboardInterrupt

    watch = pool.on_pressure(0.5, callback)
    array = pool.empty(CAPACITY, "u1")
    with pytest.raises(KeyboardInterrupt):
        watch.check()
    del array
    with pytest.raises(KeyboardInterrupt):
        watch.wait()


def test_a_callback_may_use_the_pool_and_close_the_watch(pool: Pool) -> None:
    held = [pool.empty(128 * KIB, "u1") for _ in range(6)]

    def callback(now: Pressure) -> None:
        if now.high:
            held.clear()
            pool.empty(KIB, "u1")
            assert watch.check() == 1
        else:
            watch.close()

    watch = pool.on_pressure(0.5, callback)
    assert watch.check() == 1
    assert watch.closed


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        ((0, print), {}, slabpool.InvalidArgumentError, "fraction must be above 0 and at most 1, got 0"),
        (
            (1.01, print),
            {},
            slabpool.InvalidArgumentError,
            "fraction must be above 0 and at most 1, got 1.01",
        ),
        ((float("nan"), print), {}, slabpool.InvalidArgumentError, "got nan"),
        (("much", print), {}, slabpool.InvalidTypeError, "fraction must be a number, got 'much'"),
        (("0.5", print), {}, slabpool.InvalidTypeError, "fraction must be a number, got '0.5' of type str"),
        ((True, print), {}, slabpool.InvalidTypeError, "fraction must be a number, got True of type bool"),
        ((None, print), {}, slabpool.InvalidTypeError, "fraction must be a number, got None"),
        ((0.5, 3), {}, slabpool.InvalidTypeError, "callback must be a callable, got 3"),
        (
            (0.5, print),
            {"hysteresis": 0.5},
            slabpool.InvalidArgumentError,
            r"less than the fraction \(0.5\), got 0.5",
        ),
        ((0.5, print), {"hysteresis": -0.1}, slabpool.InvalidArgumentError, "got -0.1"),
        ((0.5, print), {"hysteresis": float("nan")}, slabpool.InvalidArgumentError, "got nan"),
        ((0.5, print), {"hysteresis": []}, slabpool.InvalidTypeError, "hysteresis must be a number"),
        (
            (0.5, print),
            {"loop": 3},
            slabpool.InvalidTypeError,
            "loop must be an asyncio event loop or None, got 3",
        ),
    ],
)
def test_bad_arguments(pool: Pool, args: Any, kwargs: Any, error: type[Exception], text: str) -> None:
    files = descriptors()
    with pytest.raises(error, match=text):
        pool.on_pressure(*args, **kwargs)
    assert descriptors() == files


def test_a_coroutine_function_is_refused(pool: Pool) -> None:
    async def callback(now: Pressure) -> None: ...

    with pytest.raises(slabpool.InvalidTypeError, match="its coroutine would not run"):
        pool.on_pressure(0.5, callback)


def test_a_watch_is_not_made_by_calling_the_type() -> None:
    with pytest.raises(slabpool.InvalidTypeError, match=r"made by pool\.on_pressure"):
        PressureWatch()


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan")])
def test_bad_timeouts(pool: Pool, timeout: Any) -> None:
    with pytest.raises((slabpool.InvalidArgumentError, slabpool.InvalidTypeError), match="timeout must be"):
        pool.on_pressure(0.5, print).wait(timeout)


# ---- ends


def test_closing_the_watch_or_the_pool_ends_waits(pool: Pool) -> None:
    watches = [pool.on_pressure(0.5, print) for _ in range(2)]
    results: list[object] = []
    threads = [started(lambda w=w: results.append(w.wait())) for w in watches]
    for thread in threads:
        assert thread.ident is not None
        until(waits(thread.ident))
    watches[0].close()
    joined(threads[0])
    pool.close()
    joined(threads[1])
    assert results == [False, False]
    assert [w.closed for w in watches] == [True, True]
    assert (watches[0].check(), watches[0].wait()) == (0, False)
    for watch in watches:
        watch.close()
    assert repr(watches[0]) == "<PressureWatch: 0.5 of 1048576 bytes, closed>"
    with pytest.raises(slabpool.PoolClosedError):
        pool.on_pressure(0.5, print)


def test_closing_the_pool_ends_what_a_loop_does() -> None:
    files = descriptors()

    async def main() -> None:
        pool = Pool(CAPACITY)
        heard = Heard()
        watch = pool.on_pressure(0.5, heard, loop=asyncio.get_running_loop())
        await asyncio.sleep(0)
        pool.empty(CAPACITY, "u1")
        pool.close()
        while pool.__dict__["_pressure"]:
            await asyncio.sleep(0)
        assert watch.closed
        assert heard.high == [True, False]  # what was untold is told

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert descriptors() == files


def test_a_pool_that_is_dropped_ends_waits() -> None:
    pool = Pool(CAPACITY)
    watch = pool.on_pressure(0.5, print)
    thread = started(watch.serve)
    assert thread.ident is not None
    until(waits(thread.ident))
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    joined(thread)
    assert watch.closed


@pytest.mark.parametrize("in_loop", [False, True])
def test_a_callback_that_refers_to_the_pool_keeps_nothing(in_loop: bool) -> None:
    files = descriptors()
    loop = asyncio.new_event_loop() if in_loop else None
    before = descriptors()
    pool = Pool(CAPACITY)
    heard = Heard()
    heard.pool = pool  # type: ignore[attr-defined]
    watch = pool.on_pressure(0.5, heard, loop=loop)
    if loop is not None:
        loop.run_until_complete(asyncio.sleep(0))
    gone = [weakref.ref(pool), weakref.ref(watch)]
    del pool, watch, heard
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    if loop is not None:
        loop.run_until_complete(asyncio.sleep(0))
        assert descriptors() == before
        loop.close()
    assert descriptors() == files


def test_a_loop_that_is_closed_first(pool: Pool) -> None:
    files = descriptors()
    loop = asyncio.new_event_loop()
    watch = pool.on_pressure(0.5, print, loop=loop)
    loop.close()
    pool.empty(CAPACITY, "u1")
    watch.close()
    assert descriptors() == files
    with pytest.raises(RuntimeError, match="closed"):
        pool.on_pressure(0.5, print, loop=loop)
    gc.collect()
    assert descriptors() == files


def test_a_forked_child_watches_nothing(pool: Pool) -> None:
    heard = Heard()
    watch = pool.on_pressure(0.5, heard)
    array = pool.empty(CAPACITY, "u1")

    def child() -> object:
        answers = []
        for call in (watch.check, watch.wait, lambda: pool.on_pressure(0.5, print)):
            try:
                call()
            except slabpool.ForkedPoolError:
                answers.append("forked")
        watch.close()
        return answers, watch.closed

    assert in_child(child) == (["forked"] * 3, True)
    assert watch.check() == 1
    np.testing.assert_array_equal(array.shape, (CAPACITY,))


# ---- several threads, loops that end, and callbacks that end otherwise


def test_calls_of_several_threads_are_in_order(pool: Pool) -> None:
    heard: list[bool] = []
    inside = threading.Lock()

    def hear(now: Pressure) -> None:
        assert inside.acquire(blocking=False), "one thread calls back at a time"
        heard.append(now.high)
        inside.release()

    watch = pool.on_pressure(0.5, hear)
    threads = [started(watch.serve) for _ in range(3)]
    for _ in range(300):
        array = pool.empty(600 * KIB, "u1")
        del array
    until(lambda: not watch._core.pending)
    watch.close()
    for thread in threads:
        joined(thread)
    assert heard == [index % 2 == 0 for index in range(len(heard))]
    assert heard[-1] is False
    assert not watch.high


def test_a_thread_that_waits_for_its_turn_heeds_its_timeout(pool: Pool) -> None:
    entered, leave = threading.Event(), threading.Event()
    watch = pool.on_pressure(0.5, lambda now: (entered.set(), leave.wait(PATIENCE)))
    thread = started(watch.serve)
    array = pool.empty(600 * KIB, "u1")
    assert entered.wait(PATIENCE)
    assert watch.wait(0.01) is False
    leave.set()
    del array
    watch.close()
    joined(thread)


def test_a_callback_may_check(pool: Pool) -> None:
    heard: list[bool] = []

    def hear(now: Pressure) -> None:
        heard.append(now.high)
        watch.check()

    watch = pool.on_pressure(0.5, hear)
    array = pool.empty(600 * KIB, "u1")
    del array
    assert watch.wait(PATIENCE)
    assert heard == [True, False]


def test_a_loop_goes_on_after_a_callback_was_cancelled(pool: Pool) -> None:
    heard: list[bool] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        both = asyncio.Event()

        def hear(now: Pressure) -> None:
            heard.append(now.high)
            if now.high:
                raise asyncio.CancelledError
            both.set()

        with pool.on_pressure(0.5, hear, loop=loop):
            await asyncio.sleep(0)
            array = pool.empty(600 * KIB, "u1")
            del array  # both are pending before the loop looks
            await asyncio.wait_for(both.wait(), PATIENCE)

    asyncio.run(main())
    assert heard == [True, False]


def test_no_descriptor_outlives_its_loop_and_its_watch(pool: Pool) -> None:
    async def watched(close: bool) -> None:
        watch = pool.on_pressure(0.5, print, loop=asyncio.get_running_loop())
        await asyncio.sleep(0)
        if close:
            watch.close()

    before = descriptors()
    for _ in range(20):
        loop = asyncio.new_event_loop()
        watch = pool.on_pressure(0.5, print, loop=loop)
        loop.run_until_complete(asyncio.sleep(0))
        watch.close()
        loop.close()  # what close() has left to the loop never runs
        loop = asyncio.new_event_loop()
        loop.run_until_complete(watched(close=True))
        loop.close()
    del watch, loop
    assert descriptors() == before
    for _ in range(20):
        asyncio.run(watched(close=False))
        assert descriptors() <= before + 1, "a watch of a closed loop goes when another is made"
    pool.close()
    assert descriptors() <= before, "a shared pool closes its own too"


@pytest.mark.parametrize(
    "missing", ["add_reader", "remove_reader", "call_soon_threadsafe", "call_later", "is_closed"]
)
def test_what_is_no_loop_is_refused_whole(pool: Pool, missing: str) -> None:
    names = {"add_reader", "remove_reader", "call_soon_threadsafe", "call_later", "is_closed"} - {missing}
    almost = type("Almost", (), dict.fromkeys(names, lambda *a: None))()
    before = descriptors()
    with pytest.raises(slabpool.InvalidTypeError, match="loop must be an asyncio event loop"):
        pool.on_pressure(0.5, print, loop=almost)
    assert descriptors() == before


def test_a_refused_descriptor_is_the_systems(pool: Pool) -> None:
    loop = asyncio.new_event_loop()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(slabpool.SystemRefusedError, match="RLIMIT_NOFILE") as caught:
            pool.on_pressure(0.5, print, loop=loop)
        assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        loop.close()


def test_the_least_fraction_is_not_reached_by_an_empty_pool(pool: Pool) -> None:
    heard: list[bool] = []
    watch = pool.on_pressure(1e-12, lambda now: heard.append(now.high), hysteresis=0)
    assert watch.check() == 0
    array = pool.empty(1, "u1")
    assert watch.check() == 1
    del array
    assert watch.check() == 1
    assert heard == [True, False]
