"""CuPy's memory in pools: CuPy itself on a GPU (cuda_cupy_scenes.py).

Without a GPU, what CuPy shows where it can be imported: which allocators are installed and restored; and the
exported functions, called as CuPy calls them.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool._core import heaps
from slabpool.libraries import stream_heaps as _stream_heaps
from tests.cuda.standin_build import Standin
from tests.integrations import scenes

MIB = 1 << 20
SOURCE = "cuda_cupy_scenes"


@pytest.fixture(scope="module")
def outcomes(require_module: Callable[[str], ModuleType], cuda: Standin | None) -> dict[str, Any]:
    require_module("cupy")
    if cuda is not None:
        pytest.skip("needs a GPU: the stand-in driver is not enough for CuPy")
    return scenes.run(SOURCE)


@pytest.mark.parametrize("scene", scenes.names(SOURCE))
def test_cupy(outcomes: dict[str, Any], scene: str) -> None:
    assert outcomes[scene] is None, outcomes[scene]


# ---- without a GPU


@pytest.fixture
def cupy(require_module: Callable[[str], ModuleType], standin: Standin) -> Any:
    return require_module("cupy")


def test_install_sets_the_allocator_and_uninstall_restores_it(cupy: Any) -> None:
    import slabpool.cupy

    def before(size: int) -> Any:
        raise AssertionError("not asked")

    pool = slabpool.Pool("8MiB", memory="cuda:0")
    default = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(before)
    try:
        with slabpool.cupy.install(pool) as installed:
            assert cupy.cuda.get_allocator() == installed._malloc
            with pytest.raises(slabpool.SlabpoolError, match="installed already"):
                slabpool.cupy.install(pool)
        assert cupy.cuda.get_allocator() is before
        installed.uninstall()  # a second call does nothing
    finally:
        cupy.cuda.set_allocator(default)
    _stream_heaps.forget(pool)


def test_devices_without_a_pool_keep_cupys_allocator(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import slabpool.cupy

    pool = slabpool.Pool("8MiB", memory="cuda:0")
    default, asked = cupy.cuda.get_allocator(), []
    cupy.cuda.set_allocator(asked.append)
    monkeypatch.setattr(slabpool.cupy.cupy.cuda.runtime, "getDevice", lambda: 1)
    try:
        with slabpool.cupy.install(pool) as installed:
            installed._malloc(123)
        assert asked == [123]
    finally:
        cupy.cuda.set_allocator(default)
    _stream_heaps.forget(pool)


def test_pinned_memory_comes_from_the_pinned_pool(cupy: Any) -> None:
    import slabpool.cupy

    pinned = slabpool.Pool("8MiB", memory="pinned")
    with slabpool.cupy.install(pinned=pinned) as installed:
        memory = installed._malloc_pinned(MIB)
        host = np.frombuffer(memory, np.uint8)
        host[:] = 3
        assert memory.size() == MIB and pinned.stats().live >= MIB
        part = memory + 100
        del memory, host
        gc.collect()
        assert pinned.stats().live >= MIB and np.frombuffer(part, np.uint8)[0] == 3
        del part
        gc.collect()
        assert pinned.stats().live == 0
        with pytest.raises(MemoryError, match="pinned memory"):
            installed._malloc_pinned(100 * MIB)


def test_wrong_pools_are_refused(cupy: Any) -> None:
    import slabpool.cupy

    with slabpool.Pool("1MiB") as host, slabpool.Pool("8MiB", memory="cuda:0") as device:
        for call, error, message in (
            (lambda: slabpool.cupy.install(), slabpool.InvalidArgumentError, "needs a pool"),
            (lambda: slabpool.cupy.install(host), slabpool.InvalidArgumentError, "memory='host'"),
            (lambda: slabpool.cupy.install("pool"), slabpool.InvalidTypeError, "needs a Pool"),
            (lambda: slabpool.cupy.install(pinned=device), slabpool.InvalidArgumentError, "memory='cuda:0'"),
            (lambda: slabpool.cupy.install(pinned=3), slabpool.InvalidTypeError, "pinned must be a Pool"),
            (lambda: slabpool.cupy.install(device, device), slabpool.InvalidArgumentError, "of device 0"),
        ):
            with pytest.raises(error, match=message):
                call()
        assert slabpool.cupy.installed() is None


def test_symbols_called_as_by_cupys_CFunctionAllocator(standin: Standin) -> None:
    pool = slabpool.Pool("8MiB", memory="cuda:0")
    heap = _stream_heaps.heap_of(pool)
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)(
        heaps.CUPY_MALLOC
    )
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)(heaps.CUPY_FREE)
    heaps.set_stream(0)
    address = malloc(heap.address, MIB, 0)
    assert address and address % 512 == 0 and pool.stats().live >= MIB
    assert not malloc(
        heap.address, 64 * MIB, 0
    )  # no room: the answer is null, and slabpool.cupy raises CuPy's error
    free(heap.address, address, 0)
    assert malloc(heap.address, MIB, 0) == address
    free(heap.address, address, 0)
    del heap
    _stream_heaps.forget(pool)
    pool.close()
