"""CuPy on a GPU, with pools under its device memory and its pinned memory."""

from __future__ import annotations

import asyncio
import gc

import cupy
import numpy as np
import pytest

import slabpool
import slabpool.cupy
from slabpool.libraries import stream_heaps as _stream_heaps

MIB = 1 << 20
POOL = slabpool.Pool("256MiB", memory="cuda:0", name="cupy")


def _empty() -> None:
    gc.collect()
    cupy.cuda.Device(0).synchronize()
    _stream_heaps.heap_of(POOL).wait()
    stats = POOL.stats()
    assert stats.live == stats.retained == 0, stats


def scene_arrays_are_the_pools_memory() -> None:
    with slabpool.cupy.install(POOL) as installed:
        assert slabpool.cupy.installed() is installed
        x = cupy.arange(MIB, dtype=cupy.float32)
        assert POOL.stats().live >= 4 * MIB
        assert (cupy.asnumpy(x * 2 + 1) == np.arange(MIB, dtype=np.float32) * 2 + 1).all()
        assert cupy.empty(0).size == 0
    assert slabpool.cupy.installed() is None
    y = cupy.ones(MIB)
    assert POOL.stats().live < 8 * MIB  # CuPy allocates from its own pool again
    assert float(x[7]) == 7  # and older arrays stay valid
    del x, y
    _empty()


def scene_running_out_is_cupys_own_error() -> None:
    with slabpool.cupy.install(POOL):
        kept = cupy.empty(200 * MIB, cupy.uint8)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError) as caught:
            cupy.empty(200 * MIB, cupy.uint8)
        assert "limit set to: 268,435,456 bytes" in str(caught.value)
        del kept
    _empty()


def scene_each_stream_has_its_own_order() -> None:
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    with slabpool.cupy.install(POOL):
        for value in range(40):
            with streams[0]:
                x = cupy.full(8 * MIB, value, cupy.int32)
                total = x.sum(dtype=cupy.int64)
                del x
            with streams[1]:
                y = cupy.full(8 * MIB, -1, cupy.int32)
                del y
            streams[0].synchronize()
            assert int(total) == value * 8 * MIB
        del total
    _empty()


def scene_memory_is_flat_over_many_steps() -> None:
    seen = []
    with slabpool.cupy.install(POOL):
        for step in range(300):
            x = cupy.random.rand(256, 200 + step % 17)
            float((x @ x.T).sum())
            del x
            seen.append(POOL.stats().committed)
    assert max(seen[30:]) == max(seen[:30])
    _empty()


def scene_allocations_belong_to_the_active_request() -> None:
    async def task(req: slabpool.Request, mib: int) -> cupy.ndarray:
        with req.activate():
            await asyncio.sleep(0)
            x = cupy.zeros(mib * MIB, cupy.uint8)
            await asyncio.sleep(0)
            return x

    async def main() -> None:
        with POOL.request("a") as a, POOL.request("b") as b:
            kept = await asyncio.gather(task(a, 3), task(b, 5))
            assert 3 * MIB <= a.nbytes < 4 * MIB and 5 * MIB <= b.nbytes < 6 * MIB
            del kept

    with slabpool.cupy.install(POOL):
        asyncio.run(main())
    _empty()


def scene_pinned_memory() -> None:
    pinned = slabpool.Pool("64MiB", memory="pinned")
    with slabpool.cupy.install(pinned=pinned):
        memory = cupy.cuda.alloc_pinned_memory(4 * MIB)
        assert pinned.stats().live >= 4 * MIB
        host = np.frombuffer(memory, np.uint8, 4 * MIB)
        host[:] = 7
        x = cupy.empty(4 * MIB, cupy.uint8)
        x.set(host)
        assert int(x.sum()) == 28 * MIB
        del host, memory, x
        gc.collect()
        assert pinned.stats().live == 0


def scene_a_second_install_is_refused() -> None:
    with slabpool.cupy.install(POOL):
        with pytest.raises(slabpool.SlabpoolError) as caught:
            slabpool.cupy.install(POOL)
        assert "installed already" in str(caught.value)
    slabpool.cupy.uninstall()
