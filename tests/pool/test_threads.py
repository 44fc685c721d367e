"""A pool used from many threads: memory returns from each, and no thread is held up.

Invariants: a block may be freed by any thread; a thread that ends leaves no memory behind that other threads
cannot use; the GIL is released where C++ waits or does bulk work, so that the rest of the program runs.
"""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import slabpool
from slabpool import Ack, Pool
from tests.crew import TIMEOUT, together
from tests.waiting import PATIENCE, until

CAPACITY = 16 << 20
Array = npt.NDArray[Any]


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool without holders at the end."""
    made = Pool(CAPACITY)
    yield made
    s = made.stats()
    assert (s.live, s.retained, s.reserved, s.requests_open, s.requests_draining) == (0, 0, 0, 0, 0)
    assert s.allocations == s.frees
    assert made._verify() is None
    whole = made.empty(CAPACITY, "u1")  # the cache of no thread keeps a block
    del whole
    made.close()


@pytest.mark.parametrize("nbytes", [100, 4096, 200_000, 1 << 20])
def test_allocate_here_free_there(pool: Pool, nbytes: int) -> None:
    """A stream of arrays from one thread to another keeps reusing the same few blocks."""
    in_flight = 8
    count = 3000 if nbytes < 100_000 else 300
    passing: queue.Queue[tuple[int, Array] | None] = queue.Queue(in_flight)

    def produce() -> None:
        for number in range(count):
            passing.put((number % 251, pool.full(nbytes, number % 251, "u1")), timeout=TIMEOUT)
        passing.put(None, timeout=TIMEOUT)

    def consume() -> None:
        while (item := passing.get(timeout=TIMEOUT)) is not None:
            number, array = item
            assert (array == number).all()
            del array, item

    together(produce, consume)
    s = pool.stats()
    assert s.allocations == s.frees == count
    block = -(-nbytes // 64) * 64
    # The arrays in the queue, one in each thread, and room for about one slab.
    assert s.peak_committed <= (in_flight + 3) * block * 9 // 8 + CAPACITY // 16


def test_requests_opened_here_acked_there(pool: Pool) -> None:
    count, devices = 500, ["gpu0", "gpu1", "gpu2"]
    inboxes: dict[str, queue.Queue[tuple[slabpool.Request, Array, int] | None]] = {
        d: queue.Queue(16) for d in devices
    }
    answers: dict[str, list[Ack]] = {device: [] for device in devices}

    def host() -> None:
        for number in range(count):
            with pool.request("same", devices) as request:
                array = request.full(50_000, number % 251, "u1")
                for inbox in inboxes.values():
                    inbox.put((request, array, number % 251), timeout=TIMEOUT)
            del array
        for inbox in inboxes.values():
            inbox.put(None, timeout=TIMEOUT)

    def device(name: str) -> None:
        while (item := inboxes[name].get(timeout=TIMEOUT)) is not None:
            request, array, number = item
            assert (array == number).all()
            del array, item
            answers[name].append(request.ack(name))

    together(host, *(lambda name=name: device(name) for name in devices))  # type: ignore[misc]
    said = [answer for some in answers.values() for answer in some]
    assert len(said) == 3 * count and set(said) <= {Ack.PENDING, Ack.RELEASED}
    assert said.count(Ack.RELEASED) <= count, "the host may have been the last holder"
    assert pool.stats().acks == 3 * count


def test_memory_of_threads_that_ended_is_not_lost(pool: Pool) -> None:
    """Each thread leaves its cache full when it ends; two hundred of them would fill the pool many times."""

    def work() -> None:
        some = [pool.full(n, 1, "u1") for n in (64, 5000, 100_000, 300_000, CAPACITY // 4) for _ in range(2)]
        del some

    for _ in range(200):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(TIMEOUT)
    s = pool.stats()
    assert s.allocations == s.frees == 2000
    assert s.peak_committed <= CAPACITY
    whole = pool.zeros(CAPACITY, "u1")
    assert not whole.any()


def test_arrays_outlive_the_thread_that_made_them(pool: Pool) -> None:
    kept: list[Array] = []

    def make() -> None:
        cached = pool.empty(CAPACITY // 16, "u1")
        kept.extend(pool.full(n, n % 251, "u1") for n in (64, 5000, 100_000, 300_000))
        del cached

    for _ in range(20):
        together(make)
    assert all((array == array.nbytes % 251).all() for array in kept)
    live = pool.stats().live
    assert live >= sum(array.nbytes for array in kept)
    together(*[kept.clear])  # freed by a third thread, which ends too
    assert pool.stats().live == 0


def test_a_pool_goes_before_threads_that_used_it() -> None:
    """A thread that has cached blocks of a pool ends after that pool, without harm."""
    go, ready = threading.Event(), threading.Barrier(4)
    other = Pool("1MiB")
    pools = [Pool("1MiB")]

    def work() -> None:
        for pool in pools:
            for _ in range(10):
                pool.full(1000, 1, "u1")
        del pool
        ready.wait(TIMEOUT)
        assert go.wait(TIMEOUT)
        other.full(1000, 1, "u1")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(TIMEOUT)
    pools.clear()
    go.set()
    for thread in threads:
        thread.join(TIMEOUT)
    assert other.stats().frees == 3
    other.close()


# ---- waiting


def waiting(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that makes a call which has to wait, and the list that gets its answer."""
    answers: list[object] = []
    entered = threading.Event()

    def run() -> None:
        entered.set()
        answers.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(TIMEOUT)
    return thread, answers


CALLS: dict[str, Callable[[Pool, slabpool.Request], object]] = {
    "pool.empty": lambda pool, held: pool.empty(CAPACITY, "u1", timeout=TIMEOUT).nbytes,
    "pool.zeros": lambda pool, held: pool.zeros(CAPACITY, "u1", timeout=TIMEOUT).nbytes,
    "pool.full": lambda pool, held: pool.full(CAPACITY, 1, "u1", timeout=TIMEOUT).nbytes,
    "pool.copy": lambda pool, held: pool.copy(np.zeros(CAPACITY, "u1"), timeout=TIMEOUT).nbytes,
    "pool.request": lambda pool, held: pool.request("w", reserve=CAPACITY, timeout=TIMEOUT).close(),
    "request.wait": lambda pool, held: held.wait(TIMEOUT),
    "request.wait for ever": lambda pool, held: held.wait(),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_gil_is_released_while_waiting(pool: Pool, name: str) -> None:
    """If the GIL were held, this thread could not release what the other waits for."""
    held = pool.request("held", ["d"])
    view: Array | None = held.full(1000, 5, "u1")
    thread, answers = waiting(lambda: CALLS[name](pool, held))
    held.close()
    assert not answers
    assert held.ack("d") is Ack.RELEASED
    if "wait" not in name:
        assert not answers, "the view still keeps it"
    assert view is not None and (view == 5).all()
    view = None
    thread.join(TIMEOUT)
    assert answers in ([CAPACITY], [True], [None])


def test_waits_end_in_time(pool: Pool) -> None:
    held = pool.request("held", ["d"])
    view = held.empty(1000, "u1")
    for call in (
        lambda: pool.empty(CAPACITY, "u1", timeout=0.02),
        lambda: held.empty(CAPACITY, "u1", timeout=0.02),
        lambda: pool.request("w", reserve=CAPACITY, timeout=0.02),
    ):
        with pytest.raises(slabpool.PoolExhausted, match=r"0\.02 s"):
            call()
    assert pool.stats().exhaustions == 3
    assert held.wait(0.02) is False
    assert held.wait(0) is False
    del view
    held.cancel()
    assert held.ack("d") is Ack.RELEASED
    assert held.wait(0) is True
    # A wait on a request that the host cancels ends with its own error, not with a timeout.
    other = pool.request("other")
    view = pool.empty(1, "u1")
    thread, answers = waiting(
        lambda: pytest.raises(slabpool.RequestClosedError, other.empty, CAPACITY, "u1", timeout=TIMEOUT)
    )
    other.close()
    thread.join(TIMEOUT)
    assert len(answers) == 1
    del view, answers


def test_returned_memory_does_not_prolong_a_wait(pool: Pool) -> None:
    """Memory that keeps coming back but is never enough does not extend a wait beyond its timeout."""
    blocker = pool.empty(CAPACITY // 2, "u1")
    held = pool.request("held", ["d"])
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            for _ in range(100):
                pool.empty(1000, "u1", priority=1)
                pool.request("small").close()

    def wait() -> None:
        try:
            for call in (
                lambda: pool.empty(CAPACITY, "u1", timeout=0.1),
                lambda: pool.request("large", reserve=CAPACITY, timeout=0.1),
            ):
                began = time.monotonic()
                with pytest.raises(slabpool.PoolExhausted):
                    call()
                waited.append(time.monotonic() - began)
            began = time.monotonic()
            assert held.wait(0.1) is False
            waited.append(time.monotonic() - began)
        finally:
            over.set()

    waited: list[float] = []
    together(wait, churn, churn)  # memory comes back until the waits are over; fails if they never are
    assert len(waited) == 3 and min(waited) >= 0.1, waited
    held.cancel()
    held.ack("d")
    del blocker


def test_every_waiter_is_woken(pool: Pool) -> None:
    """Half wait for the end of a request, half for memory that is enough for one at a time."""
    held = pool.request("held", ["d"])
    view: Array | None = held.empty(CAPACITY, "u1")
    served: list[int] = []

    def take() -> None:
        array = pool.empty(CAPACITY, "u1", timeout=TIMEOUT)
        array[::4096] = 1
        served.append(array.nbytes)
        del array

    def let_go() -> None:
        nonlocal view
        held.close()
        held.ack("d")
        view = None

    together(*[lambda: held.wait(TIMEOUT) and served.append(1)] * 8, *[take] * 8, let_go)
    assert sorted(served) == [1] * 8 + [CAPACITY] * 8


# ---- bulk work


def others_run_during(call: Callable[[], object], attempts: int | None = None) -> bool:
    """Whether another thread that is ready to run gets to run while this one is in `call`.

    Python's switch interval is set very long, so only `call` can let the other thread run. On a busy machine
    the system may not have a processor for it at that moment. Attempts are therefore made until one succeeds
    or TIMEOUT has passed. Where none should succeed, give their number. `call` must leave nothing behind,
    because it is made many times.
    """
    deadline = time.monotonic() + TIMEOUT
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for attempt in itertools.count():
            if attempt == attempts or time.monotonic() > deadline:
                break
            gate, ran, done = threading.Lock(), threading.Event(), threading.Event()
            gate.acquire()

            def other(gate: Any = gate, ran: threading.Event = ran, done: threading.Event = done) -> None:
                with gate:
                    ran.set()
                done.set()

            thread = threading.Thread(target=other)
            thread.start()
            gate.release()  # from here on it needs only the GIL
            call()
            succeeded = ran.is_set()
            assert done.wait(TIMEOUT)
            thread.join(TIMEOUT)
            if succeeded:
                return True
        return False
    finally:
        sys.setswitchinterval(before)


def test_the_gil_is_released_for_big_fills() -> None:
    big = 64 << 20
    pool = Pool(2 * big, huge_pages=False)
    pool.full(big, 1, "u1")  # so the memory is no longer known to be zero
    assert others_run_during(lambda: pool.zeros(big, "u1"))

    def in_a_request(make: str) -> None:
        with pool.request("r") as request:  # its memory returns when the request is released
            getattr(request, make)(big, "u1")

    assert others_run_during(lambda: in_a_request("zeros")), "in a request"
    source = np.ones(big, "u1")
    assert others_run_during(lambda: pool.copy(source)), "numpy's own copy"
    # A short call keeps the GIL, because releasing it would cost more. This also shows that the check can
    # fail.
    assert not others_run_during(lambda: pool.empty(big, "u1"), 30)
    assert not others_run_during(lambda: in_a_request("empty"), 30)
    assert not others_run_during(lambda: pool.zeros(1000, "u1"), 30)
    assert pool.stats().live == 0


@pytest.mark.parametrize("options", [{"scrub": "release"}, {"debug": 1}], ids=["scrub", "debug"])
def test_the_gil_is_released_for_big_cleaning(options: dict[str, Any]) -> None:
    """Whichever holder leaves last, and however: a large block is scrubbed or poisoned without the GIL."""
    big = 64 << 20
    pool = Pool(4 * big, huge_pages=False, **options)

    def serve(last: Callable[[slabpool.Request], object]) -> None:
        request = pool.request("r", ["d"])
        request.empty(big, "u1")
        last(request)
        assert request.state is slabpool.RequestState.RELEASED

    ways: dict[str, Callable[[], object]] = {
        "view": lambda: pool.empty(big, "u1"),
        "ack": lambda: serve(lambda r: (r.close(), r.ack("d"))),
        "ack by id": lambda: serve(lambda r: (r.close(), pool.ack("r", "d"))),
        "close": lambda: serve(lambda r: (r.ack("d"), r.close())),
        "cancel": lambda: serve(lambda r: (r.ack("d"), r.cancel())),
        "device_lost": lambda: serve(lambda r: (r.close(), pool.device_lost("d"))),
    }
    assert [name for name, way in ways.items() if not others_run_during(way)] == []
    assert pool.stats().live == 0


def test_threads_that_are_idle_keep_no_memory() -> None:
    """What caches keep is bounded by what was in use a short while ago, not by how many threads there are."""
    pool, threads = Pool("256MiB"), 64
    ready, end = threading.Barrier(threads + 1), threading.Event()

    def allocate_once() -> None:
        for nbytes in (4 << 10, 64 << 10, 1 << 20):
            pool.empty(nbytes, "u1").fill(1)
        ready.wait(PATIENCE)
        end.wait(PATIENCE)

    running = [threading.Thread(target=allocate_once, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    ready.wait(PATIENCE)
    # A pool has no thread of its own: a call that looks at it gives back what the idle threads have.
    until(lambda: pool.stats().committed <= 1 << 20)
    end.set()
    for thread in running:
        thread.join(PATIENCE)
    pool.close()
