"""ack: one device's ack from Python, all but the last (which returns the memory).

A device's ack counts once, so a thousand requests of four devices are opened beforehand and the first three
acks of each are timed. Opening, closing and the last ack are not timed.
"""

from __future__ import annotations

import time

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group
from benchmarks.harness.worker import Loop

MANY = Group("3 of 4 devices, 1,000 requests in turn")
ONE = Group("999 of 1,000 devices, one request")
DEVICES = ("gpu0", "gpu1", "gpu2", "gpu3")
REQUESTS = 1000
BY_ID = "slabpool, by id (Pool.ack)"


def by_request() -> Loop:
    import slabpool

    pool = slabpool.Pool("64MiB")
    a, b, c, last = DEVICES

    def run(loops: int) -> float:
        total = 0.0
        for _ in range(loops):
            requests = [pool.request("chat-42", DEVICES) for _ in range(REQUESTS)]
            start = time.perf_counter()
            for req in requests:
                req.ack(a)
                req.ack(b)
                req.ack(c)
            total += time.perf_counter() - start
            for req in requests:
                req.close()
                if req.ack(last) is not slabpool.Ack.RELEASED:
                    raise AssertionError("the last ack did not release")
        return total

    return Loop(run, inner=3 * REQUESTS)


def by_id() -> Loop:
    import slabpool

    pool = slabpool.Pool("64MiB")
    a, b, c, last = DEVICES
    ids = [f"chat-{i}" for i in range(REQUESTS)]

    def run(loops: int) -> float:
        total = 0.0
        ack = pool.ack
        for _ in range(loops):
            requests = [pool.request(i, DEVICES) for i in ids]
            start = time.perf_counter()
            for i in ids:
                ack(i, a)
                ack(i, b)
                ack(i, c)
            total += time.perf_counter() - start
            for req in requests:
                req.close()
                if req.ack(last) is not slabpool.Ack.RELEASED:
                    raise AssertionError("the last ack did not release")
        return total

    return Loop(run, inner=3 * REQUESTS)


def one_request() -> Loop:
    import slabpool

    pool = slabpool.Pool("64MiB")
    *devices, last = [f"gpu{i}" for i in range(1000)]

    def run(loops: int) -> float:
        total = 0.0
        for _ in range(loops):
            req = pool.request("chat-42", (*devices, last))
            start = time.perf_counter()
            for device in devices:
                req.ack(device)
            total += time.perf_counter() - start
            req.close()
            if req.ack(last) is not slabpool.Ack.RELEASED:
                raise AssertionError("the last ack did not release")
        return total

    return Loop(run, inner=len(devices))


def lmcache_count_down() -> Loop:
    import torch
    from lmcache.v1.memory_allocators.tensor_memory_allocator import TensorMemoryAllocator

    allocator = TensorMemoryAllocator(torch.empty(64 << 20, dtype=torch.uint8))
    objects = [allocator.allocate(torch.Size([2048]), torch.float16) for _ in range(REQUESTS)]

    def run(loops: int) -> float:
        total = 0.0
        for _ in range(loops):
            for o in objects:
                for _ in range(3):
                    o.ref_count_up()
            start = time.perf_counter()
            for o in objects:
                o.ref_count_down()
                o.ref_count_down()
                o.ref_count_down()
            total += time.perf_counter() - start
        return total

    return Loop(run, inner=3 * REQUESTS)


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.ack:"
    return [
        Case(MANY, OURS, "timed", here + "by_request"),
        Case(MANY, BY_ID, "timed", here + "by_id"),
        Case(MANY, "LMCache ref_count_down", "timed", here + "lmcache_count_down", peer="lmcache"),
        Case(ONE, OURS, "timed", here + "one_request"),
    ]


def _bars(effort: Effort) -> list[Bar]:
    return [Bar(f"Request.ack, {MANY.label}", value(MANY, scale=1e9), "at most", 60, ".1f", " ns")]


BENCHMARK = Benchmark(
    "ack",
    "One acknowledgement from Python, all but the last",
    _cases,
    _bars,
    (
        "Includes a third of a step of the loop over requests. LMCache's counter does not check which "
        "device calls it.",
    ),
)
