"""Hundreds of thousands of requests with one id: memory and latency stay flat after the first tenth.

A service depends on this. The process may not grow by a page without an explanation, the pool may not commit
more, every count must be exact, and no request may become slower because of those before it.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from slabpool import Ack, Layout, Pool, Request, Stats
from tests.crew import TIMEOUT, together

STATM = Path("/proc/self/statm")
DEVICES = ["gpu0", "gpu1", "gpu2"]
LAYOUT = Layout({"k": ((2, 64, 64), "f2"), "v": ((2, 64, 64), "f2")})

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm"),
]


def resident() -> int:
    """Bytes of this process in physical memory."""
    return int(STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")


class Watch:
    """Figures of a run in tenths, in arrays made beforehand, so that recording allocates nothing."""

    def __init__(self, pool: Pool, requests: int) -> None:
        self.pool = pool
        self.tenth = requests // 10
        self.took: npt.NDArray[np.int64] = np.zeros(requests, np.int64)  # ns per request
        self.took.fill(1)  # touches its pages now
        self.resident: list[int] = [0] * 10
        self.stats: list[Stats | None] = [None] * 10

    def after(self, done: int) -> None:
        """Call this when `done` requests are over; records figures at the end of each tenth."""
        if done % self.tenth == 0:
            gc.collect()
            self.resident[done // self.tenth - 1] = resident()
            self.stats[done // self.tenth - 1] = self.pool.stats()

    def check(self, report: Callable[[str, object], None]) -> None:
        first, last = self.took[: self.tenth], self.took[-self.tenth :]
        after_first, end = self.stats[0], self.stats[-1]
        assert after_first is not None
        assert end is not None
        grown = [r - self.resident[0] for r in self.resident[1:]]
        report("median_us_first_tenth", float(np.median(first)) / 1000)
        report("median_us_last_tenth", float(np.median(last)) / 1000)
        report("resident_bytes_grown_after_first_tenth", grown[-1])
        report("committed_bytes", end.committed)
        # A few pages are allowed for things that belong to no request: a thread's stack that grows once, the
        # figures kept here. One byte left behind by each request would be more.
        assert grown[-1] <= min(64 << 10, self.took.size - self.tenth), f"the process has grown: {grown}"
        assert end.committed <= end.peak_committed == after_first.peak_committed
        assert end.peak_live == after_first.peak_live
        assert (end.live, end.retained, end.requests_open, end.requests_draining) == (0, 0, 0, 0)
        assert self.pool.requests() == []
        assert self.pool._verify() is None
        # The fastest hundredth, because other processes on the machine slow the rest down. A search over all
        # requests since the start would make those of the last tenth six times as slow as in the second.
        fastest = [float(np.percentile(tenth, 1)) for tenth in np.array_split(self.took, 10)]
        assert fastest[-1] < 3 * fastest[1], f"requests have become slower: {fastest}"


def serve(pool: Pool, number: int) -> Request:
    """The host's part: a request that has computed something and is closed."""
    request = pool.request("chat-42", DEVICES)
    tensors = request.allocate(LAYOUT)
    tensors.k[0, 0] = number % 100
    hidden = request.empty((1, 512), np.float32)
    hidden[0, 0] = number
    with request.child(DEVICES[1:2]) as step:
        step.empty(1000, np.uint8)[:8] = 1
    request.close()
    return request


def test_devices_in_turn(record_property: Callable[[str, object], None]) -> None:
    """300,000 requests. The devices ack in every order, sometimes twice or too late."""
    requests = 300_000
    pool = Pool("64MiB")
    watch = Watch(pool, requests)
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)]
    names = [tuple(DEVICES[n] for n in order) for order in orders]
    before = serve(pool, 0)
    for device in DEVICES:
        before.ack(device)
    clock, took = time.perf_counter_ns, watch.took
    for number in range(requests):
        began = clock()
        request = serve(pool, number)
        one, two, three = names[number % 6]
        answers = request.ack(one), request.ack(two), request.ack(three)
        took[number] = clock() - began
        assert answers == (Ack.PENDING, Ack.PENDING, Ack.RELEASED)
        if number % 10 == 0:
            assert before.ack(one) is Ack.LATE
            assert pool.ack("chat-42", two) is Ack.LATE
        before = request
        watch.after(number + 1)
    watch.check(record_property)
    s = pool.stats()
    assert s.acks == 3 * (requests + 1)
    assert s.late_acks == requests // 5
    assert s.allocations == s.frees == 3 * (requests + 1)


def test_devices_in_threads(record_property: Callable[[str, object], None]) -> None:
    """60,000 requests, one after the other, each acknowledged by threads of its three devices."""
    requests = 60_000
    pool = Pool("64MiB")
    watch = Watch(pool, requests)
    inboxes: list[queue.SimpleQueue[Request | None]] = [queue.SimpleQueue() for _ in DEVICES]
    released = threading.Semaphore(0)

    def device(number: int) -> None:
        name, inbox = DEVICES[number], inboxes[number]
        while (request := inbox.get(timeout=TIMEOUT)) is not None:
            if request.ack(name) is Ack.RELEASED:
                del request
                released.release()

    def host() -> None:
        clock, took = time.perf_counter_ns, watch.took
        for number in range(requests):
            began = clock()
            request = serve(pool, number)
            for inbox in inboxes:
                inbox.put(request)
            del request
            assert released.acquire(timeout=TIMEOUT), "no ack released the request"
            took[number] = clock() - began
            watch.after(number + 1)
        for inbox in inboxes:
            inbox.put(None)

    together(host, *(lambda n=n: device(n) for n in range(3)))  # type: ignore[misc]
    watch.check(record_property)
    assert pool.stats().acks == 3 * requests
    assert pool.stats().duplicate_acks == pool.stats().late_acks == 0
