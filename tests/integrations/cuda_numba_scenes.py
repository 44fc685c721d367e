"""Numba's device arrays over a pool, through its plugin interface: on a GPU, or on the stand-in driver."""

from __future__ import annotations

import gc
import os

import pytest
from numba import cuda

import slabpool
import slabpool.numba
from slabpool.libraries import stream_heaps as _stream_heaps

MIB = 1 << 20
POOL = slabpool.Pool("64MiB", memory="cuda:0", name="numba")
slabpool.numba.use_cuda(POOL)


def _empty() -> None:
    gc.collect()
    cuda.synchronize()
    _stream_heaps.heap_of(POOL).wait()
    stats = POOL.stats()
    assert stats.live == stats.retained == 0, stats


def scene_arrays_are_the_pools_memory() -> None:
    array = cuda.device_array(MIB, "u1")
    assert isinstance(cuda.current_context().memory_manager, slabpool.numba.MemoryManager)
    assert POOL.stats().live >= MIB
    assert array.__cuda_array_interface__["data"][0] % 64 == 0
    view = array[100:]
    del array
    gc.collect()
    assert POOL.stats().live >= MIB  # the view keeps it
    del view
    _empty()


def scene_memory_info_is_the_pools() -> None:
    before = cuda.current_context().get_memory_info()
    array = cuda.device_array(MIB, "u1")
    during = cuda.current_context().get_memory_info()
    assert during.total == before.total == 64 * MIB
    assert before.free - during.free >= MIB
    del array
    _empty()


def scene_running_out_is_numbas_own_error() -> None:
    kept = [cuda.device_array(20 * MIB, "u1") for _ in range(3)]
    with pytest.raises(cuda.cudadrv.driver.CudaAPIError) as caught:
        cuda.device_array(20 * MIB, "u1")
    assert int(caught.value.code) == 2 and "'numba' has no room" in str(caught.value)
    del kept
    _empty()


def scene_freed_memory_waits_for_the_device() -> None:
    # Of two arrays, the second may reuse the first's memory only after the device has reached that point.
    for _ in range(20):
        array = cuda.device_array(40 * MIB, "u1")
        del array
        gc.collect()
        cuda.synchronize()
    _empty()


def scene_reset_before_initialize() -> None:
    manager = slabpool.numba.MemoryManager(context=cuda.current_context())
    manager.reset()
    manager.initialize()
    with manager.defer_cleanup():
        pass
    assert manager.interface_version == 1


def scene_allocations_belong_to_the_active_request() -> None:
    with POOL.request("chat-42") as req:
        with req.activate():
            array = cuda.device_array(2 * MIB, "u1")
        assert 2 * MIB <= req.nbytes < 3 * MIB
    assert POOL.stats().retained >= 2 * MIB
    del array
    _empty()


def scene_ipc_handle_or_why_there_is_none() -> None:
    array = cuda.device_array(3 * MIB, "u1")
    manager = cuda.current_context().memory_manager
    # With this set, the stand-in claims to support handles for any memory.
    if os.environ.get("STANDIN_IPC") or not slabpool.cuda.devices()[0].virtual_memory:
        handle = manager.get_ipc_handle(array.gpu_data)
        assert handle.size == 3 * MIB
        assert handle.offset == array.gpu_data.device_pointer_value % (2 * MIB)
        del handle
    else:
        with pytest.raises(NotImplementedError, match="cuMemMap") as caught:
            manager.get_ipc_handle(array.gpu_data)
        assert "slabpool.attach" in str(caught.value)
        del caught  # its traceback keeps the array
    del array
    _empty()


def scene_kernels_run_on_it() -> str | None:
    if "stand-in" in slabpool.cuda.devices()[0].name:
        return "skip: needs a GPU: the stand-in driver runs no kernels"

    import numpy as np

    @cuda.jit  # type: ignore[untyped-decorator]
    def add(x, y, out):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i < out.size:
            out[i] = x[i] + y[i]

    host = np.arange(1 << 16, dtype=np.float32)
    for _ in range(50):
        x, y = cuda.to_device(host), cuda.to_device(2 * host)
        out = cuda.device_array_like(x)
        add[256, 256](x, y, out)
        assert (out.copy_to_host() == 3 * host).all()
    del x, y, out
    _empty()
    return None
