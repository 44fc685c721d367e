"""Running out is an answer: a clear error at once, or a bounded wait. Live memory is never taken."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from slabpool import Layout, Pool, PoolExhausted, TensorTooLargeError
from tests.crew import together
from tests.scene import says
from tests.settled import settled
from tests.waiting import PATIENCE, once, waits

KiB = 1 << 10
MiB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("1MiB", name="small") as pool:
        yield pool
        assert pool._verify() is None


def fill(pool: Pool, size: int = 64 * KiB) -> list[np.ndarray[Any, Any]]:
    """Arrays, each filled with its index, until the pool is exhausted."""
    arrays: list[np.ndarray[Any, Any]] = []
    with pytest.raises(PoolExhausted):
        while True:
            arrays.append(pool.full(size, len(arrays) % 251, "u1"))
    return arrays


def intact(arrays: list[np.ndarray[Any, Any]]) -> bool:
    return all((array == number % 251).all() for number, array in enumerate(arrays))


# ---- how much there is


@pytest.mark.parametrize("size", [64, 1 * KiB, 4 * KiB, 16 * KiB, 64 * KiB, 128 * KiB, 256 * KiB, MiB])
def test_the_whole_capacity_can_be_used(pool: Pool, size: int) -> None:
    arrays = fill(pool, size)
    assert len(arrays) == MiB // size
    stats = pool.stats()
    assert (stats.live, stats.committed, stats.exhaustions) == (MiB, MiB, 1)
    assert intact(arrays)
    del arrays[::2]
    again = [pool.full(size, 255, "u1") for _ in range(MiB // size - len(arrays))]
    assert pool.stats().live == MiB
    del again, arrays
    assert pool.stats().live == 0


def test_exhaustion_takes_no_live_memory(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    kept = req.full(256 * KiB, 7, "u1")
    arrays = fill(pool)
    before = settled(pool)
    failing: list[Callable[[], object]] = [
        lambda: pool.empty(64 * KiB, "u1"), lambda: req.empty(64 * KiB, "u1"), lambda: pool.zeros(9000),
        lambda: pool.copy(np.zeros(100_000)), lambda: pool.request("s", reserve=1),
        lambda: req.allocate(Layout({"a": (64, "u1"), "b": (64 * KiB, "u1")})),
        lambda: req.empty(64 * KiB, "u1", timeout=0), lambda: pool.request("s", reserve=1, timeout=0),
    ]  # fmt: skip
    for call in failing:
        with pytest.raises(PoolExhausted):
            call()
    after = pool.stats()
    assert after == before._replace(exhaustions=before.exhaustions + len(failing), metadata=after.metadata)
    assert intact(arrays)
    assert (kept == 7).all()
    assert req.live_views == 1
    req.close()
    assert [r.request_id for r in pool.requests()] == ["r"]
    del arrays, kept
    req.ack("gpu0")


def test_free_pages_apart_serve_a_large_tensor(pool: Pool) -> None:
    arrays = fill(pool, 16 * KiB)
    kept = arrays[::2]
    del arrays
    for size in (256 * KiB, 128 * KiB, 128 * KiB):
        kept.append(pool.empty(size, "u1"))  # 32 pages are free, but no two are adjacent
    assert pool.stats().live == MiB
    assert pool.stats().committed == MiB


def test_caches_of_other_threads_are_used_before_refusing(pool: Pool) -> None:
    used, end = threading.Event(), threading.Event()

    def use_and_keep() -> None:
        for size in (100, 4 * KiB, 64 * KiB):
            arrays = [pool.empty(size, "u1") for _ in range(4)]
            del arrays
        used.set()
        end.wait()

    threads = [threading.Thread(target=use_and_keep) for _ in range(3)]
    for thread in threads:
        thread.start()
    used.wait()
    for _ in range(3):
        array = pool.empty(MiB, "u1")
        del array
    end.set()
    for thread in threads:
        thread.join()


# ---- the message


def test_message_names_the_holders(pool: Pool) -> None:
    with pool.request("chat-42", ["gpu0", "gpu1"]) as req:
        req.empty(512 * KiB, "u1")
        other = pool.request(7, ["gpu2"])
        other.empty(256 * KiB, "u1")
        other.close()
        view = pool.empty(128 * KiB, "u1")
        with pytest.raises(PoolExhausted) as raised:
            req.empty(256 * KiB, "u1")
        says(
            raised,
            "cannot allocate 256 KiB for request 'chat-42' generation 1: pool 'small' has 1 MiB ... "
            "request 'chat-42' generation 1 (open): 512 KiB for ... gpu0, gpu1 ... opened at"
            f" {__file__} ... request 7 generation 2 (draining): 256 KiB for ... gpu2 ... {__file__}",
        )
        assert not isinstance(raised.value, TensorTooLargeError)
        assert isinstance(raised.value, MemoryError)
        with pytest.raises(PoolExhausted) as raised:
            pool.empty(256 * KiB, "u1")
        says(raised, "cannot allocate 256 KiB: pool 'small'")
        del view, raised
        req.ack("gpu0")
        req.ack("gpu1")
        other.ack("gpu2")


def test_message_names_the_largest_and_counts_the_rest(pool: Pool) -> None:
    requests = [pool.request(f"r{i}") for i in range(15)]
    for number, req in enumerate(requests):
        req.empty((number + 1) * 64, "u1")
    with pytest.raises(PoolExhausted) as raised:
        pool.empty(MiB, "u1")
    says(raised, "'r14' ... 'r13' ... 'r10' ... and 10 more requests")
    assert "'r9'" not in str(raised.value)
    for req in requests:
        req.close()


def test_message_without_any_request(pool: Pool) -> None:
    view = pool.empty(64, "u1")
    with pytest.raises(PoolExhausted, match="no request"):
        pool.empty(MiB, "u1")
    del view


def test_too_many_requests() -> None:
    with Pool("1MiB") as pool:
        requests = []
        with pytest.raises(PoolExhausted, match="as many requests as it can hold"):
            for number in range(100_000):
                requests.append(pool.request(number))
        assert len(requests) == 65536
        with pytest.raises(PoolExhausted, match="as many requests"):
            pool.request("r", timeout=0.01)
        requests.pop().close()
        requests.append(pool.request("r"))
        for req in requests:
            req.close()
        assert pool.stats().requests_open == 0


# ---- waiting


@pytest.mark.parametrize("how", ["pool", "request", "reserve"])
def test_waiting_call_is_served_when_a_device_acknowledges(pool: Pool, how: str) -> None:
    req = pool.request("r", ["gpu0"])
    req.empty(768 * KiB, "u1")
    req.close()
    me = threading.get_ident()
    thread = once(waits(me), lambda: req.ack("gpu0"))
    if how == "pool":
        assert pool.full(512 * KiB, 3, "u1", timeout=2 * PATIENCE).nbytes == 512 * KiB
    elif how == "request":
        with pool.request("s") as other:
            assert not other.zeros(512 * KiB, "u1", timeout=2 * PATIENCE).any()
    else:
        with pool.request("s", reserve="512KiB", timeout=2 * PATIENCE) as other:
            assert pool.stats().reserved == 512 * KiB
    thread.join()
    assert pool.stats().exhaustions == 0


def test_waiting_call_is_served_when_a_view_dies(pool: Pool) -> None:
    box = [pool.empty(768 * KiB, "u1")]
    thread = once(waits(threading.get_ident()), box.clear)
    assert pool.empty(512 * KiB, "u1", timeout=2 * PATIENCE).nbytes == 512 * KiB
    thread.join()


def test_waiting_call_is_served_when_a_device_is_lost(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    req.empty(768 * KiB, "u1")
    req.close()
    thread = once(waits(threading.get_ident()), lambda: pool.device_lost("gpu0"))
    layout = Layout({"a": (512 * KiB, "u1")})
    with pool.request("s") as other:
        assert other.allocate(layout, timeout=2 * PATIENCE).a.nbytes == 512 * KiB
    thread.join()


def test_timeout_ends_the_wait(pool: Pool) -> None:
    view = pool.empty(768 * KiB, "u1")
    calls: list[Callable[[], object]] = [
        lambda: pool.empty(512 * KiB, "u1", timeout=0.05),
        lambda: pool.request("r", reserve="512KiB", timeout=0.05),
    ]
    for call in calls:
        start = time.monotonic()
        with pytest.raises(PoolExhausted, match=r"512 KiB.*within 0.05 s.*768 KiB live"):
            call()
        assert time.monotonic() - start >= 0.05
    assert pool.requests() == []
    del view


def test_call_that_can_be_served_does_not_wait(pool: Pool) -> None:
    def serve() -> None:
        for _ in range(100):
            pool.empty(1000, timeout=36000)
            pool.request("r", timeout=36000).close()

    together(serve)  # fails if it is stuck


def test_all_waiters_are_served_in_the_end(pool: Pool) -> None:
    served = []

    def one() -> None:
        for _ in range(20):
            array = pool.full(512 * KiB, 1, "u1", timeout=PATIENCE)
            served.append(array[0])
            del array

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served) == 160
    assert pool.stats().exhaustions == 0


# ---- when the system refuses memory


def test_the_systems_refusal_is_distinguished_from_exhaustion() -> None:
    code = """
        import resource, slabpool
        pool = slabpool.Pool("512MiB", huge_pages=False)
        view = pool.zeros(1 << 20)
        (used,) = [int(line.split()[1]) << 10 for line in open("/proc/self/status") if "VmData" in line]
        resource.setrlimit(resource.RLIMIT_DATA, (used + (32 << 20), resource.RLIM_INFINITY))
        before = pool.stats()
        for timeout in (None, 60):
            try:
                pool.zeros(256 << 20, "u1", timeout=timeout)
            except slabpool.PoolExhausted as error:
                assert "256 MiB" in str(error) and "the system refuses more memory" in str(error), error
                assert "RLIMIT_DATA is " in str(error), error
            else:
                raise AssertionError("the system served it")
        after = pool.stats()
        same = before._replace(exhaustions=after.exhaustions, metadata=after.metadata)
        assert after == same, (before, after)
        assert pool._verify() is None and not view.any()
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        assert not pool.zeros(256 << 20, "u1")[::4096].any()
        try:
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
            slabpool.Pool("1GiB")
        except slabpool.MemoryLimitError as error:
            assert "'1GiB'" in str(error) and "RLIMIT_AS is 1 GiB, of which " in str(error), error
        else:
            raise AssertionError("there was address space")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
