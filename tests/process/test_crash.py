"""Device processes are killed at random under load, at least two hundred times: nothing is left over."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

import slabpool
from tests.process import devices
from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]

KILLS = 220
NAMES = ["gpu0", "gpu1", "gpu2"]


def work(pipe: Connection, pool: str, name: str) -> None:
    """A device: reads its tensors, writes some of them and acknowledges, until it is killed or asked to
    stop."""
    signal.alarm(5 * devices.PATIENCE)
    with slabpool.attach(pool, device=name, timeout=devices.PATIENCE) as peer:
        pipe.send("ready")
        for ref, fill in iter(pipe.recv, None):
            try:
                view = peer.open(ref, writable=fill % 5 == 0)
            except slabpool.StaleReferenceError:
                continue  # made for the process that was killed
            if view.dtype == np.uint8 and not (view == fill).all():
                os._exit(7)
            if fill % 5 == 0:
                view.fill(fill)
            peer.ack(ref)


class Worker:
    """A device's process and its pipe; `end` may kill it at any point of its work."""

    def __init__(self, pool: str, name: str) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, pool, name), daemon=True)
        self.process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until it is attached."""
        assert self.pipe.poll(devices.PATIENCE)
        assert self.pipe.recv() == "ready"

    def send(self, ref: slabpool.TensorRef | None, fill: int) -> None:
        """Send it a reference; it may be dead."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(None if ref is None else (ref, fill))

    def end(self, how: int) -> None:
        """Wait for its exit, which must have this status."""
        until(lambda: self.process.exitcode is not None)
        assert self.process.exitcode == how, self.process.exitcode
        self.process.join()
        self.process.close()
        self.pipe.close()


def pressure(pool: slabpool.Pool, stop: threading.Event) -> None:
    """Another thread that takes and drops memory, so that two threads collect acks at once."""
    while not stop.is_set():
        array = pool.full(50_000, 1, "u1")
        assert array[-1] == 1


def test_two_hundred_kills_leave_nothing(meeting_place: Path) -> None:
    rng = random.Random(4)
    gc.collect()
    before, maps, threads = devices.descriptors(), devices.shared_maps(), threading.active_count()
    pool = slabpool.Pool("64MiB", memory="shared", name="crash")
    stop = threading.Event()
    other = threading.Thread(target=pressure, args=(pool, stop))
    other.start()
    workers = {name: Worker("crash", name) for name in NAMES}
    for worker in workers.values():
        worker.ready()
    kept: list[np.ndarray] = []  # type: ignore[type-arg]
    kills = opened = served = 0
    try:
        while kills < KILLS:
            opened_before = opened
            for _ in range(rng.randint(1, 12)):
                opened += 1
                fill = opened % 251
                named = rng.sample(NAMES, rng.randint(1, 3))
                with pool.request(opened % 7, devices=named, lease=rng.choice([None, 0.001])) as req:
                    x = req.full(
                        rng.choice([10, 3000, 40_000, 300_000]), fill, "u1", timeout=devices.PATIENCE
                    )
                    step = req.child(devices=named[:1])
                    y = step.full(100, fill, "u1", timeout=devices.PATIENCE)
                    refs = {name: req.ref(x) for name in named}
                    first = step.ref(y)
                    step.close()
                    if rng.random() < 0.1:
                        kept.append(x)
                        del kept[:-5]
                workers[named[0]].send(first, fill)
                for name in named:
                    workers[name].send(refs[name], fill)
                del x, y
            if kills % 4 == 0:  # all of these acknowledge before the next kill
                until(lambda: pool.stats().requests_draining + pool.stats().requests_in_doubt == 0)
                served += opened - opened_before
            victim = rng.choice(NAMES)
            workers[victim].process.kill()
            workers[victim].end(-signal.SIGKILL)
            kills += 1
            workers[victim] = Worker("crash", victim)
            workers[victim].ready()
            assert pool._verify() is None
            stats = pool.stats()
            assert stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached
    finally:
        stop.set()
        other.join()
    for worker in workers.values():
        worker.send(None, 0)
        worker.end(0)
    kept.clear()
    until(lambda: pool.stats().requests_draining == 0)
    stats = pool.stats()
    assert (stats.live, stats.retained, stats.in_doubt) == (0, 0, 0)
    assert stats.allocations == stats.frees
    assert stats.acks >= served >= KILLS // 4  # not all were lost
    assert pool.requests() == []
    assert pool._verify() is None
    pool.close()
    assert list(meeting_place.iterdir()) == []
    pool = req = step = None  # type: ignore[assignment]
    gc.collect()
    # Only new ones count: those of earlier tests may have gone meanwhile.
    assert {fd: what for fd, what in devices.descriptors().items() if before.get(fd) != what} == {}
    assert (devices.shared_maps() <= maps, threading.active_count() <= threads) == (True, True)
