"""A forked child may read the views it inherited, and nothing it does reaches the parent's pool.

Its calls on the inherited pool raise ForkedPoolError and never hang, whatever the parent's other threads were
doing at the fork. Its exit and its garbage collection change nothing in the parent, and a pool that it makes
itself works. An alarm kills a child that hangs, which fails the test.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import slabpool
from slabpool import Layout, Pool, Request, Tensors
from tests.settled import settled

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]

ALARM = 120  # seconds after which a child counts as hung
LAYOUT = Layout({"k": ((16, 64), "f4"), "v": ((16, 64), "f4")})


def in_child(body: Callable[[], Any]) -> Any:
    """The result of `body` in a fork of this process; fails if it raises, dies or hangs there."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(ALARM)
            try:
                answer = (True, body())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status), f"the child was killed by signal {os.WTERMSIG(status)}"
    worked, answer = pickle.loads(said)
    assert worked, f"in the child:\n{answer}"
    return answer


@dataclass
class Family:
    """A pool in use, and what is in it."""

    pool: Pool
    request: Request
    closed: Request
    tensors: Tensors
    views: dict[str, npt.NDArray[np.generic]]

    def check_views(self) -> int:
        """Checks that each view is full of its own number; returns the number of views."""
        for number, view in enumerate(self.views.values(), 1):
            assert (view == number).all()
        return len(self.views)


@pytest.fixture(params=[{}, {"scrub": "release", "debug": 2, "events": 64}], ids=["plain", "debug"])
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    pool = Pool("32MiB", **request.param)
    open_one = pool.request("open", ["gpu0", "gpu1"], lease=1e6)
    closed = pool.request("closed", ["gpu0"])
    tensors = open_one.allocate(LAYOUT)
    views: dict[str, npt.NDArray[np.generic]] = {
        "plain": pool.full(1000, 1, "u1"),
        "large": pool.full(1_000_000, 2, "u2"),
        "request": open_one.full((3, 5), 3, "f8"),
        "closed": closed.full(100, 4, "i4"),
        "layout": tensors["k"],
    }
    views["layout"][...] = 5
    closed.close()
    # Blocks in this thread's cache, which the child must not hand out.
    del_me = [pool.empty(n, "u1") for n in (64, 1000, 4096, 300_000) for _ in range(4)]
    del_me.clear()
    made = Family(pool, open_one, closed, tensors, views)
    yield made
    views.clear()
    open_one.close()
    pool.device_lost("gpu0")
    pool.device_lost("gpu1")
    stats = pool.stats()
    assert (stats.live, stats.retained, stats.requests_open, stats.requests_draining) == (0, 0, 0, 0)
    assert pool._verify() is None
    pool.close()


def test_inherited_views_are_read(family: Family) -> None:
    before = settled(family.pool)
    assert in_child(family.check_views) == 5
    assert in_child(lambda: float(family.views["layout"][2:4].sum())) == 5.0 * 2 * 64
    assert family.pool.stats() == before


async def _await(awaitable: Any) -> Any:
    return await awaitable


# Every call that reaches the pool. What Python remembers by itself (ids, names, capacity) may be read.
CALLS: dict[str, Callable[[Family], object]] = {
    "pool.empty": lambda f: f.pool.empty(1000, "u1"),
    "pool.empty large": lambda f: f.pool.empty(1_000_000, "u1"),
    "pool.empty timeout": lambda f: f.pool.empty(1000, "u1", timeout=0.01),
    "pool.zeros": lambda f: f.pool.zeros(64, "u1"),
    "pool.zeros large": lambda f: f.pool.zeros(300_000, "u1"),
    "pool.full": lambda f: f.pool.full(64, 1, "u1"),
    "pool.copy": lambda f: f.pool.copy(np.arange(3)),
    "pool.request": lambda f: f.pool.request("open", ["gpu0"]),
    "pool.request reserve": lambda f: f.pool.request("r", reserve=1 << 20, timeout=0.01),
    "pool.request new device": lambda f: f.pool.request("r", ["gpu77"]),
    "pool.request_async": lambda f: asyncio.run(_await(f.pool.request_async("r"))),
    "pool.ack": lambda f: f.pool.ack("open", "gpu0"),
    "pool.ack generation": lambda f: f.pool.ack("open", "gpu0", generation=1),
    "pool.device_lost": lambda f: f.pool.device_lost("gpu0"),
    "pool.heartbeat": lambda f: f.pool.heartbeat("gpu0"),
    "pool.stats": lambda f: f.pool.stats(),
    "pool.requests": lambda f: f.pool.requests(),
    "pool.leaks": lambda f: f.pool.leaks(),
    "pool.events": lambda f: f.pool.events(),
    "pool.corruptions": lambda f: f.pool.corruptions(),
    "pool.trim": lambda f: f.pool.trim(),
    "pool.close": lambda f: f.pool.close(),
    "pool.close force": lambda f: f.pool.close(force=True),
    "request.empty": lambda f: f.request.empty(1000, "u1"),
    "request.zeros": lambda f: f.request.zeros(300_000, "u1"),
    "request.full": lambda f: f.request.full(10, 1),
    "request.copy": lambda f: f.request.copy(np.arange(3)),
    "request.allocate": lambda f: f.request.allocate(LAYOUT),
    "request.child": lambda f: f.request.child(["gpu0"]),
    "request.ack": lambda f: f.request.ack("gpu0"),
    "request.ack last": lambda f: f.closed.ack("gpu0"),
    "request.ack unknown": lambda f: f.request.ack("gpu77"),
    "request.remove_device": lambda f: f.request.remove_device("gpu1"),
    "request.add_device": lambda f: f.request.add_device("gpu0"),
    "request.add_device new": lambda f: f.request.add_device("gpu77"),
    "request.close": lambda f: f.request.close(),
    "request.cancel": lambda f: f.request.cancel(),
    "request.pending": lambda f: f.request.pending,
    "request.state": lambda f: f.request.state,
    "request.nbytes": lambda f: f.request.nbytes,
    "request.live_views": lambda f: f.request.live_views,
    "request.cancelled": lambda f: f.request.cancelled,
    "request.wait": lambda f: f.request.wait(0),
    "request.released": lambda f: asyncio.run(_await(f.request.released())),
    "tensors[]": lambda f: f.tensors["v"],
    "tensors.attribute": lambda f: f.tensors.v,
}


def test_every_call_is_refused_with_a_clear_error(family: Family) -> None:
    """Each in its own child, so that no call profits from what another left behind; and all in one child."""
    before = settled(family.pool)

    def refused(call: Callable[[Family], object]) -> str:
        try:
            answer = call(family)
        except slabpool.ForkedPoolError as error:
            return str(error)
        except BaseException as error:
            return f"not refused: {error!r}"
        return f"not refused: {answer!r}"

    messages = in_child(lambda: {name: refused(call) for name, call in CALLS.items()})
    for name, call in CALLS.items():
        alone = in_child(lambda call=call: refused(call))
        for message in (messages[name], alone):
            assert "fork" in message and "not refused" not in message, (name, message)
    assert family.pool.stats() == before
    assert family.check_views() == 5


def test_an_ack_of_a_device_that_gave_up_its_number_does_not_open_the_way_to_others() -> None:
    with slabpool.Pool("1MiB") as pool:
        request = pool.request("r", ["gone", "stays"])
        request.ack("gone")
        filler = pool.request("filler", [f"name-{i}" for i in range(4095)])  # takes the number of "gone"

        def child() -> list[str]:
            texts = []
            for device in ("gone", "stays"):
                try:
                    texts.append(f"not refused: {request.ack(device)}")
                except slabpool.ForkedPoolError as error:
                    texts.append(str(error))
            return texts

        assert ["not refused" in text for text in in_child(child)] == [False, False]
        assert request.pending == {"stays"}
        request.close()
        assert request.ack("stays") is slabpool.Ack.RELEASED
        filler.cancel()
        pool.close(force=True)


def test_leaving_blocks_and_printing_in_the_child(family: Family) -> None:
    """Unwinding through `with` and printing do not use the pool: no error, and no change."""

    def leave_blocks() -> tuple[str, str]:
        with family.pool, family.request:
            pass
        return repr(family.pool), repr(family.request)

    before = settled(family.pool)
    for text in in_child(leave_blocks):
        assert "fork" in text
    assert family.pool.stats() == before
    assert not family.pool.closed
    assert family.request.state is slabpool.RequestState.OPEN


def test_dropping_everything_in_the_child_changes_nothing(family: Family) -> None:
    before = settled(family.pool)
    records = [(r.generation, r.nbytes, r.live_views, r.pending) for r in family.pool.requests()]

    def drop() -> None:
        slices = [view[:1] for view in family.views.values()]
        family.views.clear()
        del slices[:]
        # The last references: the request is dropped while open, and the pool goes with its memory.
        family.request = family.closed = family.tensors = None  # type: ignore[assignment]
        family.pool = None  # type: ignore[assignment]
        gc.collect()

    def drop_in_threads() -> None:
        names = list(family.views)
        threads = [threading.Thread(target=family.views.pop, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        drop()

    in_child(drop)
    in_child(drop_in_threads)
    assert family.pool.stats() == before
    assert [(r.generation, r.nbytes, r.live_views, r.pending) for r in family.pool.requests()] == records
    assert family.check_views() == 5
    assert family.pool.zeros(300_000, "u1").sum() == 0


def use_own_pool() -> int:
    """A pool made here and used from several threads; returns the number of blocks handed out."""
    pool = Pool("8MiB")
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(50):
                with pool.request("own", ["d"]) as request:
                    array = request.full(1000 + 100 * round_, number, "u1")
                    other = pool.zeros(200_000, "u1")
                    assert (array == number).all() and not other.any()
                assert pool.ack("own", "d", generation=request.generation) is slabpool.Ack.RELEASED
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    assert pool._verify() is None
    allocations = pool.stats().allocations
    assert pool.trim() > 0  # empties the cache of every thread
    pool.close()
    return allocations


def test_a_child_makes_a_pool_of_its_own(family: Family) -> None:
    before = settled(family.pool)
    assert in_child(use_own_pool) == 300
    # So does the child's own child, which inherits two pools.
    assert in_child(lambda: (use_own_pool(), in_child(use_own_pool), family.check_views())) == (300, 300, 5)
    assert family.pool.stats() == before


def test_fork_while_threads_are_at_work() -> None:
    """Whatever lock another thread held at the fork, the child neither hangs nor disturbs the parent."""
    pool = Pool("16MiB", events=64)
    kept = [pool.full(100_000, 7, "u1")]
    stop = threading.Event()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            made = 0
            while not stop.is_set():
                made += 1
                request = pool.request(
                    f"busy-{number}", [f"d{number}", f"fresh{number}-{made % 500}"], reserve=64 << 10
                )
                array = request.full(20_000, number, "u1")
                other = pool.zeros(400_000, "u1", timeout=ALARM)  # releases the GIL inside the pool
                request.close()
                pool.stats(), pool.requests()
                pool.ack(request.id, f"d{number}", generation=request.generation)
                pool.device_lost(f"fresh{number}-{made % 500}")
                assert (array == number).all() and not other.any()
                if made % 10 == 0:
                    pool.trim()
        except BaseException as error:
            failed.append(error)
            raise

    def child() -> int:
        assert (kept[0] == 7).all()
        for call in (lambda: pool.empty(20_000, "u1"), pool.stats, pool.trim, pool.requests,
                     lambda: pool.request("x", ["new-name"]), lambda: pool.device_lost("d0")):  # fmt: skip
            with pytest.raises(slabpool.ForkedPoolError):
                call()
        own = Pool("1MiB")
        with own.request("mine", ["d0"]) as request:
            array = request.zeros(50_000, "u1")
            assert not array.any()
        return int(request.ack("d0") is slabpool.Ack.RELEASED)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            assert in_child(child) == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not failed
    assert (kept[0] == 7).all()
    kept.clear()
    stats = pool.stats()
    assert stats.allocations == stats.frees > 100
    assert (stats.live, stats.retained, stats.reserved, stats.requests_open, stats.requests_draining) == (
        0,
    ) * 5
    assert pool._verify() is None
    pool.close()


def _worker(view: npt.NDArray[np.generic], pool: Pool, answers: Any) -> None:
    try:
        pool.empty(10)
    except slabpool.ForkedPoolError:
        answers.send((int(view.sum()), use_own_pool()))


def test_multiprocessing_with_the_fork_method(family: Family) -> None:
    context = multiprocessing.get_context("fork")
    view = family.pool.full(1000, 3, "u1")
    before = settled(family.pool)
    here, there = context.Pipe()
    workers = [context.Process(target=_worker, args=(view, family.pool, there)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(ALARM)
        assert worker.exitcode == 0
    assert [here.recv() for _ in workers] == [(3000, 300)] * 3
    here.close()
    there.close()
    assert family.pool.stats() == before


SCRIPT = """
import gc, os, sys
import numpy as np, slabpool
pool = slabpool.Pool("4MiB")
request = pool.request("r", ["gpu0"])
view = request.full(1000, 5, "u1")
plain = pool.full(300_000, 6, "u1")
loop = [pool, request, view]; loop.append(loop)     # for the garbage collector that runs at exit
pool.trim()
before = pool.stats()
with pool, request:
    pid = os.fork()
    if pid == 0:
        assert int(view.sum()) == 5000
        sys.exit(3)                                 # leaves both blocks, runs atexit and the last collection
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3, status
    assert pool.stats() == before
    assert request.state is slabpool.RequestState.OPEN
    assert int(view.sum()) == 5000 and int(plain.sum()) == 1_800_000
    del view, plain, loop
    gc.collect()
    request.close()
    assert request.ack("gpu0") is slabpool.Ack.RELEASED
print("done")
"""


def test_a_child_that_exits_normally() -> None:
    """Not by _exit: the interpreter shuts down with everything that was inherited, without output."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=ALARM,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")
