"""The laws under races of threads: every holder of a request leaves at once, in every way.

Each test lets real threads race over a few requests, for many rounds. Invariants of each round: exactly one
answer is RELEASED; no array's bytes change while it is held (each is filled with its owner's number); at the
end every byte is back and every count adds up.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import pytest

import slabpool
from slabpool import Ack, Layout, Pool, Request
from tests.crew import TIMEOUT, switching_often, together
from tests.waiting import until

CAPACITY = 8 << 20
SIZES = [64, 1000, 5000, 40_000, 150_000, 400_000]
DEVICES = [f"gpu{n}" for n in range(6)]


@pytest.fixture(params=[{}, {"scrub": "release"}, {"debug": 2}], ids=["plain", "scrub", "debug"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool that is empty and whole again at the end."""
    made = Pool(CAPACITY, **request.param)
    with switching_often():
        yield made
    s = made.stats()
    assert (s.live, s.retained, s.in_doubt, s.reserved) == (0, 0, 0, 0)
    assert (s.requests_open, s.requests_draining, s.requests_in_doubt) == (0, 0, 0)
    assert s.allocations == s.frees > 0
    assert made.requests() == []
    assert made.corruptions() == []
    assert made._verify() is None
    whole = made.zeros(CAPACITY - 64, "u1")  # 64 for the guard of the debug mode
    assert not whole.any()
    del whole
    made.close()
    assert made.stats().committed == 0


def quietly(call: Callable[[], object], *allowed: type[Exception]) -> object:
    """The answer of a call that may come too late, or the error that says so."""
    try:
        return call()
    except allowed as error:
        return error.with_traceback(None)  # the traceback would keep the arrays of its frames


def held(maker: Request | Pool, number: int, nbytes: int) -> npt.NDArray[Any] | None:
    """A new array full of a number; None if there is no room or the request is closed."""
    try:
        return maker.full(nbytes, number % 256, "u1")
    except (slabpool.RequestClosedError, slabpool.PoolExhausted):
        return None


def test_one_ack_of_each_device_counts(pool: Pool) -> None:
    """Three threads ack each device, by handle, by id, and by id and generation, while the host closes."""
    for round_ in range(400):
        request = pool.request("same", DEVICES)
        array = request.full(SIZES[round_ % len(SIZES)], round_ % 256, "u1")
        answers: list[object] = []

        def ack(seed: int, request: Request = request, answers: list[object] = answers) -> None:
            order = random.Random(seed).sample(DEVICES, len(DEVICES))
            for device in order:
                match seed % 3:
                    case 0:
                        answers.append(request.ack(device))
                    case 1:
                        answers.append(pool.ack("same", device))
                    case 2:
                        answers.append(pool.ack("same", device, generation=request.generation))

        works = [lambda seed=round_ * 3 + n: ack(seed) for n in range(3)]
        if round_ % 2:
            request.close()
            together(*works)
        else:
            together(*works, request.close)
        counts = Counter(answers)
        assert counts[Ack.PENDING] + counts[Ack.RELEASED] == len(DEVICES)
        assert counts[Ack.RELEASED] <= 1 if round_ % 2 == 0 else counts[Ack.RELEASED] == 1
        assert sum(counts.values()) == 3 * len(DEVICES)
        assert request.state is slabpool.RequestState.RELEASED
        assert (array == round_ % 256).all()
        assert pool.stats().retained >= array.nbytes
        del array
    s = pool.stats()
    assert s.acks == 400 * len(DEVICES)
    assert s.acks + s.duplicate_acks + s.late_acks == 3 * s.acks


def test_every_way_out_at_once(pool: Pool) -> None:
    """Allocations, children, new devices, acks, a lost device and the host's end, all on one request."""
    kept: list[tuple[int, npt.NDArray[Any]]] = []
    for round_ in range(150):
        request = pool.request("same", DEVICES[:4])
        lock = threading.Lock()

        def allocate(number: int, request: Request = request) -> None:
            for size in SIZES:
                array = held(request, number, size)
                other = held(pool, number + 1, size)
                if array is not None:
                    assert (array == number % 256).all()
                    if size == 5000:
                        with lock:
                            kept.append((number % 256, array))
                assert other is None or (other == (number + 1) % 256).all()

        def open_children(number: int, request: Request = request) -> None:
            for n in range(6):
                devices = [d for d in DEVICES[:4] if hash((number, n, d)) % 2]
                child = quietly(
                    lambda: request.child(devices), slabpool.RequestClosedError, slabpool.UnknownDeviceError
                )
                if isinstance(child, Request):
                    array = held(child, n, SIZES[n])
                    child.close()
                    for device in devices[:1]:
                        child.ack(device)
                    assert array is None or (array == n).all()

        def add_devices(request: Request = request) -> None:
            for device in DEVICES[4:]:
                quietly(lambda: request.add_device(device), slabpool.RequestClosedError)
                quietly(lambda: request.ack(device), slabpool.UnknownDeviceError)

        def ack(request: Request = request) -> None:
            for device in DEVICES[:3]:
                assert request.ack(device) in set(Ack)

        def end(request: Request = request, round_: int = round_) -> None:
            request.nbytes, request.pending, request.state
            request.cancel() if round_ % 2 else request.close()

        together(
            lambda: allocate(2 * round_),
            lambda: open_children(round_),
            add_devices,
            ack,
            lambda: pool.device_lost(DEVICES[3]),
            end,
        )
        for device in DEVICES:
            quietly(
                lambda: pool.device_lost(device), slabpool.UnknownDeviceError
            )  # add_device may have come after the end
        assert request.state is slabpool.RequestState.RELEASED
        assert all((array == number).all() for number, array in kept)
        assert pool.stats().retained >= sum(array.nbytes for _, array in kept)
        del kept[: len(kept) // 2]
    kept.clear()


def test_views_made_as_the_last_holder_leaves(pool: Pool) -> None:
    """Either the view is made and its memory is kept, or the request was over."""
    layout = Layout({"a": (1000, "u1"), "b": (100, "u8")})
    cut_short = 0
    for _ in range(10):
        requests = [pool.request("same", ["gpu0"]) for _ in range(3000)]
        many = [request.allocate(layout) for request in requests]
        for number, (request, tensors) in enumerate(zip(requests, many, strict=True)):
            tensors.a[...] = number % 256
            tensors.b[...] = number
            request.close()
        kept: list[tuple[int, npt.NDArray[Any]]] = []
        seen = threading.Event()

        def look(many: list[slabpool.Tensors] = many, kept: list[tuple[int, npt.NDArray[Any]]] = kept,
                 seen: threading.Event = seen) -> None:  # fmt: skip
            """Stays with each request until it is over, and so follows closely behind the thread that ends
            them."""
            nonlocal cut_short
            for number, tensors in enumerate(many):
                looks = 0
                try:
                    while True:
                        view = tensors["a"]
                        seen.set()
                        looks += 1
                        assert view[0] == view[-1] == number % 256
                        if number % 7 == 0 and looks == 3:
                            kept.append((number % 256, view))
                            kept.append((number, tensors["b"]))
                        del view
                except slabpool.RequestClosedError:
                    cut_short += looks > 0

        def end(seen: threading.Event = seen) -> None:
            assert seen.wait(TIMEOUT)
            assert pool.device_lost("gpu0") == 3000  # releases the GIL, so both threads run at once

        together(look, end)
        noise = [pool.full(layout.nbytes, 255, "u1") for _ in range(20)]
        assert all((array == number).all() for number, array in kept)
        assert (pool.stats().retained > 0) == bool(kept)
        del kept[:], noise
        s = pool.stats()
        assert (s.retained, s.live, s.allocations) == (0, 0, s.frees)
        assert pool.requests() == []
    assert cut_short > 0, "no view was refused"


def test_devices_lost_at_once(pool: Pool) -> None:
    """More devices than one word of bits holds, lost from several threads. Each is counted once."""
    devices = [f"gpu{n}" for n in range(90)]
    for _ in range(40):
        requests = [pool.request("same", devices[n:]) for n in range(0, 90, 6)]
        arrays = [request.full(5000, n, "u1") for n, request in enumerate(requests)]
        children = [request.child(request.pending) for request in requests]
        lost: list[int] = []

        def lose(part: int, lost: list[int] = lost) -> None:
            lost.append(sum(pool.device_lost(device) for device in devices[part::4]))

        def close(requests: list[Request] = requests) -> None:
            for request in requests:
                request.close()

        together(*(lambda part=part: lose(part) for part in range(4)), close)
        assert sum(lost) == 2 * sum(range(6, 91, 6))
        assert all(request.wait(0) for request in requests + children)
        assert all((array == n).all() for n, array in enumerate(arrays))
        assert pool.stats().retained >= 15 * 5000
        del arrays
        assert pool.stats().retained == 0


def test_the_same_id_from_many_threads(pool: Pool) -> None:
    """Every thread opens, fills and ends requests of one id. No thread's ack takes another's memory."""

    def serve(me: int) -> None:
        rng = random.Random(me)
        for number in range(150):
            with pool.request("same", DEVICES[:2]) as request:
                array = request.full(rng.choice(SIZES[:4]), (me * 150 + number) % 256, "u1")
            answer = quietly(lambda: pool.ack("same", DEVICES[0]), slabpool.AmbiguousRequestError)
            if isinstance(answer, slabpool.AmbiguousRequestError):
                # Another thread's ack by id alone may have counted for this request; that thread's own then
                # stays.
                pool.ack("same", DEVICES[0], generation=request.generation)
            pool.ack("same", DEVICES[1], generation=request.generation)
            assert (array == (me * 150 + number) % 256).all()
            del array
            if number % 10 == 0:
                pool.stats(), pool.requests(), pool.leaks(), pool.trim()

    together(*(lambda me=me: serve(me) for me in range(4)))
    for record in pool.requests():
        assert record.pending == {DEVICES[0]}
        assert pool.ack("same", DEVICES[0], generation=record.generation) is Ack.RELEASED
    assert pool.stats().acks == 4 * 150 * 2


def test_budgets_survive_requests_that_end_mid_allocation(pool: Pool) -> None:
    """An allocation that fails while its request ends must not be charged to the next request in its slot."""
    quota, reserve = 1 << 20, 256 << 10
    blocker = pool.empty(CAPACITY - quota - (128 << 10), "u1")
    for _ in range(150):
        request = pool.request("budget", ["gpu0"], quota=4 * quota, reserve=reserve)
        failures = pool.stats().exhaustions

        def allocate(request: Request = request) -> None:
            try:
                while True:
                    # With a timeout the GIL is released. Most of these find no room.
                    for nbytes in (700_000, 5000, 800_000, 20_000):
                        quietly(
                            lambda nbytes=nbytes: request.empty(nbytes, "u1", timeout=0),  # type: ignore[misc]
                            slabpool.PoolExhausted,
                        )
            except slabpool.RequestClosedError:
                pass

        def end_and_next(request: Request = request, failures: int = failures) -> None:
            try:
                until(lambda: pool.stats().exhaustions > failures + 1)
            finally:
                request.close()
            assert pool.device_lost("gpu0") == 1
            # Most likely in the same slot. Its budget is its own.
            with pool.request("next", quota=quota, reserve=reserve, timeout=TIMEOUT) as following:
                array = following.full(900_000, 7, "u1", timeout=TIMEOUT)
                with pytest.raises(slabpool.QuotaExceededError):
                    following.empty(200_000, "u1")
                # A failing allocation of the other threads may hold reserved bytes for a moment longer.
                small = following.full(30_000, 8, "u1", timeout=TIMEOUT)
                assert (array == 7).all() and (small == 8).all()

        together(allocate, allocate, end_and_next)
        s = pool.stats()
        assert (s.reserved, s.requests_open, s.requests_draining) == (0, 0, 0)
    del blocker


def test_no_waiter_waits_for_free_memory(pool: Pool) -> None:
    """No wake-up is lost: threads that wait for the whole pool get it, one after the other."""

    def take(me: int) -> None:
        for number in range(60):
            if me % 2:
                array = pool.full(CAPACITY - (1 << 20), me, "u1", timeout=TIMEOUT)
            else:
                with pool.request(me, ["d"], reserve=CAPACITY // 2, timeout=TIMEOUT) as request:
                    array = request.full(CAPACITY - (1 << 20), me, "u1", timeout=TIMEOUT)
                assert request.ack("d") in (Ack.RELEASED, Ack.PENDING)
            assert array[number] == me and array[-1] == me
            del array

    # Two of a kind, and no reserve against a full pool: two requests that each wait for more than their
    # reserve would be a deadlock of the callers, not of the pool.
    together(*(lambda me=me: take(me) for me in (1, 3, 5)))
    together(*(lambda me=me: take(me) for me in (0, 1)))
    assert pool.stats().exhaustions == 0


def test_figures_add_up_at_every_instant(pool: Pool) -> None:
    """At any moment, the bytes that stats() reports add up and stay within the capacity."""
    stop = threading.Event()

    def work(me: int) -> None:
        rng = random.Random(me)
        for number in range(400):
            with pool.request(me, ["d"], lease=1e-9 if number % 5 == 0 else None) as request:
                arrays = [held(request if n % 2 else pool, me, rng.choice(SIZES)) for n in range(4)]
            request.ack("d")
            assert all(array is None or (array == me).all() for array in arrays)
            if number % 20 == 0:
                pool.trim()

    def look() -> None:
        before = pool.stats()
        while not stop.is_set():
            s = pool.stats()
            assert s.committed == s.live + s.retained + s.in_doubt + s.cached
            assert s.committed <= s.peak_committed <= s.capacity
            assert min(s.live, s.retained, s.in_doubt, s.cached, s.reserved) >= 0
            for name in ("allocations", "frees", "acks", "peak_committed"):
                assert getattr(s, name) >= getattr(before, name), name
            # The peak may read too high for a moment, by up to this much per thread, and is then corrected.
            assert s.live + s.retained + s.in_doubt <= s.peak_live
            assert s.peak_live >= before.peak_live - 4 * CAPACITY // 64
            assert pool._verify() is None
            for record in pool.requests():
                assert 0 <= record.nbytes <= CAPACITY
            before = s

    def work_then_stop() -> None:
        try:
            together(*(lambda me=me: work(me) for me in range(3)))
        finally:
            stop.set()

    together(work_then_stop, look)
