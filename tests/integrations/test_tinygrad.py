"""slabpool.tinygrad with the real library: same results, memory counted to requests, buffers of a TinyJit."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import slabpool


@pytest.fixture(scope="module")
def tg(require_module: Callable[[str], ModuleType], require_program: Callable[..., str]) -> ModuleType:
    if sys.version_info < (3, 11):
        pytest.skip("tinygrad 0.14 needs Python 3.11")
    require_program("clang")  # tinygrad's CPU device compiles with it
    return require_module("tinygrad")


@pytest.fixture
def pool(tg: ModuleType) -> Iterator[slabpool.Pool]:
    """A pool under tinygrad's CPU device; at the end it must be empty."""
    pool = slabpool.Pool("64MiB")
    with slabpool.tinygrad.install(pool):
        yield pool
    assert slabpool.tinygrad.installed() is None
    gc.collect()
    stats = pool.stats()
    assert (stats.live, stats.retained) == (0, 0)
    assert pool._verify() is None
    pool.close()


def values(tg: ModuleType, seed: int, shape: tuple[int, ...] = (8, 64)) -> Any:
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return tg.Tensor(data, device="CPU").realize()


def nbytes(pool: slabpool.Pool, *requests: slabpool.Request) -> list[int]:
    """The bytes of each request, its children included: every buffer is a child."""
    return [
        sum(r.nbytes for r in pool.requests() if req.generation in (r.generation, r.parent))
        for req in requests
    ]


def make_model(tg: ModuleType) -> Callable[[Any], Any]:
    first, second = values(tg, 1, (64, 96)), values(tg, 2, (96, 64))
    return lambda x: ((x @ first).relu() @ second).softmax().realize()


def test_a_jitted_model_gives_the_same(tg: ModuleType, pool: slabpool.Pool) -> None:
    """With and without the pool; before, during and after the capture of the jit."""
    slabpool.tinygrad.uninstall()
    model = make_model(tg)
    inputs = [values(tg, 10 + i) for i in range(6)]
    plain = tg.TinyJit(model)
    expected = [plain(x).numpy() for x in inputs]
    with slabpool.tinygrad.install(pool), pool.request("r", ["gpu0"]) as req:
        with req.activate():
            jitted = tg.TinyJit(model)
            for x, want in zip(inputs, expected, strict=True):
                np.testing.assert_array_equal(jitted(values_like(tg, x)).numpy(), want)
        assert nbytes(pool, req)[0] > 0
        del jitted
    req.ack("gpu0")


def values_like(tg: ModuleType, x: Any) -> Any:
    return tg.Tensor(x.numpy(), device="CPU").realize()


def test_memory_counts_to_the_active_request(tg: ModuleType, pool: slabpool.Pool) -> None:
    outer, inner = pool.request("outer"), pool.request("inner")
    with outer.activate():
        x = values(tg, 0, (1000,))
        with inner.activate():
            y = values(tg, 1, (3000,))
        z = values(tg, 2, (1000,))
    assert nbytes(pool, outer, inner) == [8192, 12288]
    w = values(tg, 3, (1000,))
    assert pool.stats().live == 8192 + 12288 + 4096
    del w
    assert pool.stats().live == 8192 + 12288
    np.testing.assert_array_equal((x + z).numpy(), x.numpy() + z.numpy())
    del x, y, z
    gc.collect()
    for req in (outer, inner):
        req.close()


def test_buffers_of_a_jit_are_retained_and_reported(tg: ModuleType, pool: slabpool.Pool) -> None:
    """They survive the ack, the jit keeps giving right results, and they return when the jit dies."""
    model = make_model(tg)
    req = pool.request("chat-42", ["gpu0"])

    def step(x: Any) -> Any:
        return model(x)

    jitted = tg.TinyJit(step)
    with req.activate():
        for i in range(4):
            jitted(values(tg, i)).numpy()
    want = model(values(tg, 99)).numpy()
    req.close()
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    gc.collect()
    kept = pool.stats().retained
    assert kept > 0
    records = pool.requests()
    assert {(r.request_id, r.parent, r.state.value) for r in records} == {
        ("chat-42", req.generation, "released")
    }
    assert sum(r.nbytes for r in records) == kept
    reported = slabpool.tinygrad.retained(pool)
    assert {(t.request_id, t.generation) for t in reported} == {("chat-42", req.generation)}
    assert {t.keeper.rsplit(".", 1)[-1] for t in reported} == {"step"}
    assert all(t.keeper.startswith("TinyJit ") for t in reported)
    assert sum(t.buffers for t in reported) == len(records)
    assert 0 < sum(t.nbytes for t in reported) <= kept
    # Another request fills all that the pool hands out: nothing of the jit's is among it.
    with pool.request("neighbour") as other:
        other.full((1 << 20,), 7.0, "f4")
        np.testing.assert_array_equal(jitted(values(tg, 99)).numpy(), want)
    jitted.reset()
    gc.collect()
    assert pool.stats().retained == 0
    assert slabpool.tinygrad.retained(pool) == []


def test_a_closed_request_waits_for_its_devices(tg: ModuleType, pool: slabpool.Pool) -> None:
    """Live until its devices have acknowledged; then retained if tinygrad still has a buffer, else free."""
    req = pool.request("r", ["gpu0", "gpu1"])
    with req.activate():
        x, y = values(tg, 0, (1000,)), values(tg, 1, (1000,))
    assert req.ack("gpu1") is slabpool.Ack.PENDING
    with req.activate():
        z = values(tg, 2, (1000,))  # for gpu0 alone
    req.close()
    del y
    assert (pool.stats().live, pool.stats().retained) == (8192, 0)
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    assert (pool.stats().live, pool.stats().retained) == (0, 8192)
    np.testing.assert_array_equal((x + z).numpy(), x.numpy() + z.numpy())


def test_views_keep_their_base(tg: ModuleType, pool: slabpool.Pool) -> None:
    with pool.request("r") as req, req.activate():
        x = values(tg, 0, (1024,))
        want = x.numpy()[256:512].copy()
        view = x.shrink(((256, 512),))
    del x
    gc.collect()
    assert pool.stats().retained == 4096
    (kept,) = slabpool.tinygrad.retained(pool)
    assert kept == ("r", req.generation, 4096, 1, "Tensor")
    np.testing.assert_array_equal(view.numpy(), want)
    buffer = view.uop.base.realized
    del view
    gc.collect()
    (kept,) = slabpool.tinygrad.retained(pool)
    assert kept.keeper == "Buffer"
    del buffer


def test_freed_memory_is_reused_and_given_back(tg: ModuleType, pool: slabpool.Pool) -> None:
    """The same request reuses it at once, in the block; after the block any request can."""
    with pool.request("r") as req:
        with req.activate():
            for i in range(50):
                values(tg, i, (5000,))
            assert nbytes(pool, req)[0] <= 4 * 20480
            assert pool.stats().allocations <= 4
        assert nbytes(pool, req) == [0]
        with req.activate():
            x = values(tg, 1, (5000,))
        assert nbytes(pool, req) == [20480]
        del x  # outside of any block it returns at once
        assert nbytes(pool, req) == [0]


def test_running_out_first_frees_parked_buffers(tg: ModuleType) -> None:
    pool = slabpool.Pool("1MiB", name="small")
    with slabpool.tinygrad.install(pool):
        with pool.request("r") as req, req.activate():
            for n in range(100_000, 200_000, 10_000):  # all sizes differ: all are parked, and exceed the pool
                values(tg, n, (n,))
            with pytest.raises(slabpool.PoolExhausted, match="small"):
                values(tg, 0, (300_000,))
            np.testing.assert_array_equal(values(tg, 1, (10,)).numpy(), values(tg, 1, (10,)).numpy())
        with req.activate(), pytest.raises(slabpool.RequestClosedError):
            values(tg, 0, (10,))
    gc.collect()
    assert pool.stats().live == 0


def test_nothing_is_written_after_memory_went_back(tg: ModuleType, pool: slabpool.Pool) -> None:
    """Kernels run on tinygrad's thread. They have ended before their block is handed out again."""
    a, b = values(tg, 0, (512, 512)), values(tg, 1, (512, 512))
    for _ in range(20):
        with pool.request("r") as req:
            with req.activate():
                product = (a @ b).realize()  # queued, not finished
                del product
            mine = pool.full((512, 512), 7.0, "f4")
            assert (mine == 7.0).all()
            del mine
    gc.collect()


def test_threads_have_requests_of_their_own(tg: ModuleType, pool: slabpool.Pool) -> None:
    requests = [pool.request(f"r{i}") for i in range(2)]
    kept: list[Any] = [None, None]
    turn = threading.Lock()  # tinygrad itself allows one thread at a time

    def work(i: int) -> None:
        with requests[i].activate(), turn:
            kept[i] = values(tg, i, ((i + 1) * 1024,))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nbytes(pool, *requests) == [4096, 8192]
    kept.clear()
    gc.collect()
    for req in requests:
        req.close()


def test_an_activation_ends_in_tasks_too(tg: ModuleType, pool: slabpool.Pool) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def task() -> tuple[Any, Any]:
            inside = slabpool.active_request()
            await go.wait()
            values(tg, 0, (10,))  # belongs to no request, so it is not parked
            return inside, slabpool.active_request()

        with pool.request("r") as req:
            with req.activate():
                work = asyncio.ensure_future(task())
                await asyncio.sleep(0)
            go.set()
            assert await work == (req, None)
            assert nbytes(pool, req) == [0]

    asyncio.run(main())


def test_install_and_uninstall(tg: ModuleType) -> None:
    original = tg.Device["CPU"].allocator
    pool, other = slabpool.Pool("16MiB", name="first"), slabpool.Pool("16MiB")
    before = values(tg, 0, (1000,))
    here = slabpool.tinygrad.install(pool)
    assert slabpool.tinygrad.installed() is here
    with pytest.raises(slabpool.SlabpoolError, match=r"pool 'first' is installed on tinygrad's device CPU"):
        slabpool.tinygrad.install(other)
    with pytest.raises(slabpool.InvalidArgumentError, match="must be a CPU device of tinygrad, got 'PYTHON'"):
        slabpool.tinygrad.install(other, "PYTHON")
    ours = values(tg, 1, (1000,))
    assert pool.stats().live == 4096
    slabpool.tinygrad.uninstall()
    slabpool.tinygrad.uninstall()
    assert slabpool.tinygrad.installed() is None
    assert tg.Device["CPU"].allocator is original
    after = values(tg, 2, (1000,))
    assert pool.stats().live == 4096  # the pool keeps it as long as tinygrad does
    total = before.numpy() + ours.numpy() + after.numpy()
    np.testing.assert_array_equal((before + ours + after).numpy(), total)
    del ours
    gc.collect()
    assert pool.stats().live == 0


def test_without_tinygrad_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['tinygrad'] = None\n"
        "import slabpool\n"
        "try: slabpool.tinygrad\n"
        "except ImportError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'tinygrad==0.14.0'" in said
