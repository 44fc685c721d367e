"""hand_over: a tensor goes to another process, which acknowledges it; and the ack alone.

Every contender does the same work in a round: get memory for a tensor, write its first and last byte, hand it
over, have the other process read both bytes, receive the ack, and have the memory back. The tensor is filled
or copied only where the way of handing over requires it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.harness.figures import value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics

SIZES = (4 << 10, 256 << 10, 16 << 20)
THERE_AND_BACK = {nbytes: Group("hand over and acknowledge", nbytes) for nbytes in SIZES}
ALONE = Group("an ack on the device's side, 1,000 requests in turn")
ROUNDS = 600  # only the last five sixths count
ACKS = 1000


def _name() -> str:
    return f"bench-{os.getpid()}"


def _timed(round_trip: Callable[[int], None], scale: int = 1) -> Metrics:
    """Medians of batches of round trips."""
    rounds = max(60, ROUNDS // scale)
    taken = []
    for i in range(rounds):
        start = time.perf_counter()
        round_trip(i % 251)
        taken.append(time.perf_counter() - start)
    taken = taken[rounds // 6 :]
    batch = len(taken) // 5
    return {
        "time": Metric("s", [statistics.median(taken[i : i + batch]) for i in range(0, 5 * batch, batch)])
    }


def _start(work: Callable[..., None], *args: Any) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *args), daemon=True)
    process.start()
    if here.recv() != "ready":
        raise AssertionError("the other process is not ready")
    return process, here


def _end(process: multiprocessing.process.BaseProcess) -> None:
    process.join(30)
    if process.exitcode != 0:
        raise AssertionError(f"the other process ended with {process.exitcode}: it read wrong bytes")


def _check(array: Any, first: int) -> None:
    if array[0] != first or array[-1] != first + 1:
        raise AssertionError("the other process read wrong bytes")


# ---- ours


def _device(pipe: Connection, name: str) -> None:
    import slabpool

    with slabpool.attach(name, device="gpu0", timeout=30) as peer:
        pipe.send("ready")
        first = 0
        while raw := pipe.recv_bytes():
            ref = slabpool.TensorRef.from_bytes(raw)
            _check(peer.open(ref), first % 251)
            peer.ack(ref)
            first += 1


def slabpool_ref(nbytes: int) -> Metrics:
    import slabpool

    pool = slabpool.Pool("256MiB", memory="shared", name=_name())
    process, pipe = _start(_device, pool.name)

    def round_trip(first: int) -> None:
        req = pool.request("chat-42", devices=("gpu0",))
        x = req.empty(nbytes, np.uint8)
        x[0], x[-1] = first, first + 1
        ref = req.ref(x)
        del x
        req.close()
        pipe.send_bytes(ref.to_bytes())
        req.wait()  # until the ack has come and the memory is back

    metrics = _timed(round_trip)
    pipe.send_bytes(b"")
    _end(process)
    if pool.stats().live:
        raise AssertionError("memory did not come back")
    pool.close()
    return metrics


def _acker(pipe: Connection, name: str, rounds: int) -> None:
    import slabpool

    with slabpool.attach(name, device="gpu0", timeout=30) as peer:
        pipe.send("ready")
        ack = peer.ack
        for _ in range(rounds):
            refs = pipe.recv()
            start = time.perf_counter()
            for ref in refs:
                ack(ref)
            pipe.send(time.perf_counter() - start)


def slabpool_ack(rounds: int) -> Metrics:
    import slabpool

    pool = slabpool.Pool("256MiB", memory="shared", name=_name())
    process, pipe = _start(_acker, pool.name, rounds)
    times = []
    for _ in range(rounds):
        refs = []
        for i in range(ACKS):
            with pool.request(i, devices=("gpu0",)) as req:
                refs.append(req.ref(req.empty(4096, np.uint8)))
        pipe.send(refs)
        times.append(pipe.recv() / ACKS)
        if pool.stats().live:
            raise AssertionError("memory did not come back")
    _end(process)
    pool.close()
    return {"time": Metric("s", times[1:])}  # without the first, which touches every slot for the first time


# ---- multiprocessing.shared_memory


def _attach_each(pipe: Connection, inbox: Any, outbox: Any) -> None:
    from multiprocessing.shared_memory import SharedMemory

    pipe.send("ready")
    while (message := inbox.get()) is not None:
        name, nbytes, first = message
        memory = SharedMemory(name)
        array = np.ndarray(nbytes, np.uint8, memory.buf)
        _check(array, first)
        del array
        memory.close()
        outbox.put(first)


def shared_memory_each(nbytes: int) -> Metrics:
    from multiprocessing.shared_memory import SharedMemory

    context = multiprocessing.get_context("spawn")
    there, back = context.SimpleQueue(), context.SimpleQueue()
    process, _ = _start(_attach_each, there, back)

    def round_trip(first: int) -> None:
        memory = SharedMemory(create=True, size=nbytes)
        array = np.ndarray(nbytes, np.uint8, memory.buf)
        array[0], array[-1] = first, first + 1
        there.put((memory.name, nbytes, first))
        if back.get() != first:
            raise AssertionError("an answer to another message")
        del array
        memory.close()
        memory.unlink()

    metrics = _timed(round_trip)
    there.put(None)
    _end(process)
    return metrics


def _attach_once(pipe: Connection, inbox: Any, outbox: Any, name: str, nbytes: int) -> None:
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(name)
    array = np.ndarray(nbytes, np.uint8, memory.buf)
    pipe.send("ready")
    while (first := inbox.get()) is not None:
        _check(array, first)
        outbox.put(first)
    del array
    memory.close()


def shared_memory_kept(nbytes: int) -> Metrics:
    from multiprocessing.shared_memory import SharedMemory

    context = multiprocessing.get_context("spawn")
    there, back = context.SimpleQueue(), context.SimpleQueue()
    memory = SharedMemory(create=True, size=nbytes)
    process, _ = _start(_attach_once, there, back, memory.name, nbytes)

    def round_trip(first: int) -> None:
        array = np.ndarray(nbytes, np.uint8, memory.buf)
        array[0], array[-1] = first, first + 1
        there.put(first)
        if back.get() != first:
            raise AssertionError("an answer to another message")

    metrics = _timed(round_trip)
    there.put(None)
    _end(process)
    memory.close()
    memory.unlink()
    return metrics


# ---- pickle through a pipe


def _unpickle(pipe: Connection) -> None:
    pipe.send("ready")
    while (message := pipe.recv()) is not None:
        first, array = message
        _check(array, first)
        pipe.send(first)


def pickle_pipe(nbytes: int) -> Metrics:
    process, pipe = _start(_unpickle)

    def round_trip(first: int) -> None:
        array = np.empty(nbytes, np.uint8)
        array[0], array[-1] = first, first + 1
        pipe.send((first, array))
        if pipe.recv() != first:
            raise AssertionError("an answer to another message")

    metrics = _timed(round_trip, scale=5 if nbytes > 1 << 20 else 1)
    pipe.send(None)
    _end(process)
    return metrics


# ---- Ray


def ray_put_get(nbytes: int) -> Metrics:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, object_store_memory=256 << 20)

    @ray.remote
    class Device:
        def read(self, boxed: list[Any], first: int) -> int:
            _check(ray.get(boxed[0]), first)
            return first

    device: Any = Device.remote()  # type: ignore[attr-defined]

    def round_trip(first: int) -> None:
        array = np.empty(nbytes, np.uint8)
        array[0], array[-1] = first, first + 1
        if ray.get(device.read.remote([ray.put(array)], first)) != first:
            raise AssertionError("an answer to another message")

    metrics = _timed(round_trip, scale=5)
    ray.shutdown()
    return metrics


_CONTENDERS = (
    (OURS, "slabpool_ref", None),
    ("shared_memory kept + queue", "shared_memory_kept", None),
    ("shared_memory for each + queue", "shared_memory_each", None),
    ("pickle through a pipe", "pickle_pipe", None),
    ("Ray put/get", "ray_put_get", "ray"),
)


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.hand_over:"
    cases = [
        Case(group, contender, "measured", here + function, {"nbytes": nbytes}, peer=peer)
        for nbytes, group in THERE_AND_BACK.items()
        for contender, function, peer in _CONTENDERS
    ]
    rounds = 5 if effort.quick else 20
    cases.append(Case(ALONE, OURS, "measured", here + "slabpool_ack", {"rounds": rounds}))
    return cases


def _growth(result: Any) -> list[float] | None:
    small, large = (value(THERE_AND_BACK[nbytes])(result) for nbytes in (SIZES[0], SIZES[-1]))
    if small is None or large is None:
        return None
    return [b / a for a, b in zip(small, large, strict=True)]


def _bars(effort: Effort) -> list[Bar]:
    large = THERE_AND_BACK[SIZES[-1]]
    return [
        Bar(f"{large.label}", value(large, scale=1e6), "at most", 30, ".1f", " us"),
        Bar("16 MiB over 4 KiB", _growth, "at most", 1.25),
        Bar(f"Peer.ack: {ALONE.label}", value(ALONE, scale=1e9), "at most", 200, ".0f", " ns"),
    ]


BENCHMARK = Benchmark(
    "hand_over",
    "A tensor to another process and its acknowledgement back",
    _cases,
    _bars,
    (
        "Every contender wakes a process twice. On idle virtual machines, waking the other core was seen to "
        "cost up to 50 us each time, in some processes of any case and not in others: compare the rounds.",
        "A round: memory for a tensor, first and last byte written, handed over (slabpool: a 100-byte "
        "reference through a pipe), both read there, acknowledged, memory back. Medians of round trips.",
        "`shared_memory kept` reuses one block, attached beforehand: it manages no memory, and is the floor "
        "of a queue in each direction. `for each` makes, attaches and unlinks one per tensor.",
    ),
)
