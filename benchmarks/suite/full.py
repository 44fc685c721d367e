"""full: a pool whose memory is full.

What is served, what stays committed, how waiters fare, and what a refusal costs. The notes of the benchmark
give the figures of the same work from before.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import per_round, value
from benchmarks.harness.model import (
    OURS,
    Bar,
    Benchmark,
    Case,
    Effort,
    Figure,
    Group,
    Metric,
    Metrics,
    Result,
)

KIB, MIB, PAGE = 1 << 10, 1 << 20, 4 << 10
#: Sizes of the tensors that fill the pool, and of those that are asked for next, in KiB.
SMALL = (4, 12, 16, 20, 32, 48, 64, 80, 96, 128)
LARGE = (192, 1024)
QUARTER = {large: Group(f"64 MiB of tensors, a random quarter kept, then {large} KiB") for large in LARGE}
EVERY_OTHER = Group("64 MiB of tensors, every other one kept, then 192 KiB")
DRIFT = Group("100 MiB live of 256 MiB, sizes drift between 3 and 768 KiB")
BURST = Group("a burst of 200 MiB ends, 20 MiB stay live")
OPEN = {n: Group(f"a refusal, {n:,} open requests") for n in (0, 100, 10_000)}
AMONG = Group("half of the pool, among ten threads of an eighth each")
THOUSAND = Group("1,000 coroutines wait for the whole pool")
HOLES = {n: Group(f"page heap, {n:,} holes: a span taken and given back") for n in (10, 1000, 65_536)}
#: The longest that one case waits for what is to come, in seconds.
PATIENCE = 10.0


# ---- stranded bytes


def _refused(call: Callable[[], Any]) -> list[Any]:
    """What `call` returned until the pool refused it."""
    import slabpool

    served = []
    try:
        while True:
            served.append(call())
    except slabpool.PoolExhausted:
        return served


def _served_after(small: int, large: int, keep: Callable[[list[Any]], list[Any]]) -> tuple[float, float]:
    """Part of the free whole pages that `large` tensors get, and committed over live bytes afterwards."""
    import slabpool

    pool = slabpool.Pool(64 * MIB)
    kept = keep(_refused(lambda: pool.empty(small, "u1")))
    used = {
        page
        for tensor in kept
        for page in range(tensor.ctypes.data // PAGE, (tensor.ctypes.data + small - 1) // PAGE + 1)
    }
    free = pool.capacity - len(used) * PAGE
    served = _refused(lambda: pool.empty(large, "u1"))
    stats = pool.stats()
    return len(served) * large / (free // large * large), stats.committed / stats.live


def _random_quarter(tensors: list[Any]) -> list[Any]:
    random.Random(len(tensors)).shuffle(tensors)
    return tensors[: len(tensors) // 4]


def quarter(large: int) -> Metrics:
    metrics = {}
    ratios = []
    for small in SMALL:
        part, over = _served_after(small * KIB, large * KIB, _random_quarter)
        metrics[f"served after {small} KiB"] = Metric("", [part])
        ratios.append(over)
    return {**metrics, "least served": _least(metrics), "most committed/live": Metric("", [max(ratios)])}


def every_other() -> Metrics:
    metrics = {}
    for small in (16, 64, 128):
        part, _ = _served_after(small * KIB, 192 * KIB, lambda tensors: tensors[::2])
        metrics[f"served after {small} KiB"] = Metric("", [part])
    return {**metrics, "least served": _least(metrics)}


def _least(metrics: dict[str, Metric]) -> Metric:
    return Metric("", [min(metric.values[0] for metric in metrics.values())])


# ---- committed over live


def drift(allocations: int, period: int) -> Metrics:
    """The mean size goes up and down once in `period` allocations. The first period warms up."""
    import slabpool

    bound = 100 * MIB
    pool, rng = slabpool.Pool("256MiB"), random.Random(7)
    live: list[Any] = []
    nbytes, refused, ratios, start = 0, 0, [], time.process_time()
    for n in range(1, allocations + 1):
        mean = 15.5 + 4 * math.sin(n / period * 2 * math.pi)  # the logarithm of the size
        size = int(2 ** min(22, max(10, rng.gauss(mean, 1.2))))
        while nbytes + size > bound:
            i = rng.randrange(len(live))
            live[i], live[-1] = live[-1], live[i]
            nbytes -= live.pop().nbytes
        try:
            live.append(pool.empty(size, "u1"))
            nbytes += size
        except slabpool.PoolExhausted:
            refused += 1
        if n % 200 == 0 and n > period:
            stats = pool.stats()
            if stats.live > 0.8 * bound:
                ratios.append(stats.committed / stats.live)
    seconds = time.process_time() - start
    return {
        "worst committed/live": Metric("", [max(ratios)]),
        "operation": Metric("s", [seconds / allocations]),
        "allocations per processor second": Metric("", [allocations / seconds]),
        "refused": Metric("", [refused]),
    }


def burst() -> Metrics:
    """Seconds from the end of a burst until committed / live is 1.05. Traffic goes on without trim()."""
    import slabpool

    pool, rng = slabpool.Pool("256MiB"), random.Random(11)
    tensors: list[Any] = []
    nbytes = 0

    def drop_to(bound: int) -> None:
        nonlocal nbytes
        while nbytes > bound:
            i = rng.randrange(len(tensors))
            tensors[i], tensors[-1] = tensors[-1], tensors[i]
            nbytes -= tensors.pop().nbytes

    def add() -> None:
        nonlocal nbytes
        tensors.append(pool.empty(int(2 ** rng.uniform(10, 20)), "u1"))
        nbytes += tensors[-1].nbytes

    while nbytes < 200 * MIB:
        add()
    drop_to(20 * MIB)
    ended, at_once = time.monotonic(), pool.stats()
    while True:
        stats, seconds = pool.stats(), time.monotonic() - ended
        if stats.committed <= 1.05 * stats.live or seconds > PATIENCE:
            break
        for _ in range(20):
            add()
            drop_to(20 * MIB)
        time.sleep(0.001)
    return {
        "committed/live at the end": Metric("", [at_once.committed / at_once.live]),
        "until 1.05": Metric("s", [seconds]),
        "committed/live then": Metric("", [stats.committed / stats.live]),
    }


# ---- a refusal


def _each(call: Callable[[], None], times: int) -> list[float]:
    """Processor seconds of one call, five times."""
    values = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            call()
        values.append((time.process_time() - start) / times)
    return values


def refusal(open_requests: int, times: int) -> Metrics:
    import slabpool

    pool = slabpool.Pool("256MiB")
    requests = [pool.request(i, devices=["g"]) for i in range(open_requests)]
    for request in requests:
        request.empty(2048, "u1")
    hog = pool.empty(pool.capacity - pool.stats().committed - 2 * MIB, "u1")

    def raised() -> None:
        try:
            raise slabpool.PoolExhausted.later(repr, hog)
        except slabpool.PoolExhausted:
            pass

    def tensor() -> None:
        try:
            pool.empty(32 * MIB, "u1")
        except slabpool.PoolExhausted:
            return
        raise AssertionError("the tensor was served")

    def request_of_bytes() -> None:
        try:
            pool.request("new", reserve=32 * MIB)
        except slabpool.PoolExhausted:
            return
        raise AssertionError("the request was served")

    return {
        "raise and catch": Metric("s", _each(raised, times)),
        "whole call, empty": Metric("s", _each(tensor, times)),
        "whole call, request with reserve": Metric("s", _each(request_of_bytes, times)),
    }


# ---- waiting


def among_small(traffic: float) -> Metrics:
    """Ten threads turn the pool over a hundred times a second, of which each waits for its part."""
    import slabpool

    pool, stop, served = slabpool.Pool("8MiB"), threading.Event(), [0] * 10

    def small(k: int) -> None:
        while not stop.is_set():
            with pool.request(k, devices=["g"], reserve=MIB, timeout=2 * PATIENCE) as request:
                stop.wait(0.01)  # the work of a request
            request.ack("g")
            served[k] += 1

    threads = [threading.Thread(target=small, args=(k,)) for k in range(10)]
    for thread in threads:
        thread.start()
    stop.wait(traffic)
    before, start = sum(served), time.monotonic()
    try:
        pool.request("large", reserve=4 * MIB, timeout=PATIENCE).close()
        in_time = 1
    except slabpool.PoolExhausted:
        in_time = 0
    seconds, after = time.monotonic() - start, sum(served)
    stop.set()
    for thread in threads:
        thread.join()
    return {
        "served after": Metric("s", [seconds]),
        "served": Metric("", [in_time]),
        "small ones meanwhile": Metric("", [after - before]),
    }


def thousand(count: int) -> Metrics:
    import slabpool

    pool = slabpool.Pool("1MiB")
    order: list[int] = []

    async def take(k: int) -> None:
        tensor = await pool.empty_async(pool.capacity, "u1")
        order.append(k)
        del tensor

    async def main() -> tuple[int, float]:
        everything = [pool.empty(pool.capacity, "u1")]
        tasks = [asyncio.create_task(take(k)) for k in range(count)]
        while pool.stats().waiting != count:
            await asyncio.sleep(0)
        before, start = pool._wakeup_count(), time.perf_counter()
        everything.clear()
        await asyncio.gather(*tasks)
        return pool._wakeup_count() - before, time.perf_counter() - start

    wakeups, seconds = asyncio.run(main())
    overtaken = sum(a > b for a, b in itertools.pairwise(order))
    return {
        "wake-ups per served waiter": Metric("", [wakeups / count]),
        "from one served to the next": Metric("s", [seconds / count]),
        "served out of order": Metric("", [overtaken]),
    }


# ---- the table


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.full:"
    period = 4_000 if effort.quick else 30_000
    times = 20 if effort.quick else 1000

    def case(group: Group, target: str, **args: Any) -> Case:
        return Case(group, OURS, "measured", here + target, args)

    return [
        *(case(group, "quarter", large=large) for large, group in QUARTER.items()),
        case(EVERY_OTHER, "every_other"),
        case(DRIFT, "drift", allocations=3 * period, period=period),
        case(BURST, "burst"),
        *(case(group, "refusal", open_requests=n, times=times) for n, group in OPEN.items()),
        case(AMONG, "among_small", traffic=0.1 if effort.quick else 0.3),
        case(THOUSAND, "thousand", count=1000),
        *(
            Case(group, OURS, "native", "holes", {"count": n}, heap="none", program="holes")
            for n, group in HOLES.items()
        ),
    ]


def _over_ten_holes(holes: int) -> Figure:
    def figure(result: Result) -> list[float] | None:
        few, many = (result.outcome(HOLES[n], OURS) for n in (10, holes))
        if few is None or many is None:
            return None
        return [a / b for a, b in zip(per_round(many, "time"), per_round(few, "time"), strict=True)]

    return figure


def _bars(effort: Effort) -> list[Bar]:
    raised, many = "raise and catch", OPEN[10_000]
    return [
        *(
            Bar(
                f"{group.condition}: least part of the free pages",
                value(group, "least served"),
                "at least",
                0.95,
            )
            for group in (*QUARTER.values(), EVERY_OTHER)
        ),
        *(
            Bar(f"{group.condition}: committed / live", value(group, "most committed/live"), "at most", 1.05)
            for group in QUARTER.values()
        ),
        Bar("drift: worst committed / live", value(DRIFT, "worst committed/live"), "at most", 1.15),
        Bar("burst: until committed / live is 1.05", value(BURST, "until 1.05"), "at most", 1, unit=" s"),
        Bar(f"{many.condition}: {raised}", value(many, raised, scale=1e6), "at most", 3, unit=" us"),
        Bar("half of the pool among small ones", value(AMONG, "served after"), "at most", 2, unit=" s"),
        Bar("1,000 waiters: wake-ups", value(THOUSAND, "wake-ups per served waiter"), "at most", 1.01, ".3f"),
        Bar(
            "1,000 waiters: served out of order", value(THOUSAND, "served out of order"), "at most", 0, ".0f"
        ),
        *(Bar(f"{n:,} holes over 10", _over_ten_holes(n), "at most", 1.3) for n in (1000, 65_536)),
    ]


BENCHMARK = Benchmark(
    "full",
    "A pool whose memory is full",
    _cases,
    _bars,
    (
        'Before (measured for the issue "The full pool", on a machine with 2 virtual cores): after a random '
        "three quarters were freed, 8 to 77 % of the free pages were served (4 KiB 30, 16 KiB 8, 32 KiB 42, "
        "64 KiB 38, 96 KiB 52, 128 KiB 75 %), and none after every other tensor of 16, 64 or 128 KiB was "
        "freed. Sizes that drifted for 13 minutes: committed / live 1.96. A refusal took 8.6 ms with 100 "
        "open requests and 354 ms with 10,000. A waiter of half of the pool was refused after 10 s, while "
        "6,998 small ones were served.",
        "`served` counts whole pages of 4 KiB on which no tensor lies. `raise and catch` is the exception "
        "alone, with its text unread; the whole calls include it. Both are processor time. `until 1.05` "
        "includes the traffic that goes on, and ends after 10 s at the latest. A pool with a few MiB live "
        "keeps some MiB committed for the next allocations, so its ratio is higher.",
        "Each hole of the page heap has an odd number of pages, and each span an even one, so every "
        "operation splits a hole and merges it again. The page heap is compiled from the sources of the "
        "clone, because the library does not export it.",
    ),
)
