"""cuda.core over a pool of device memory: the real library, on a GPU or on the stand-in driver."""

from __future__ import annotations

import gc

import pytest
from cuda.core import Buffer, Device

import slabpool
from slabpool.cuda_core import PoolMemoryResource
from slabpool.libraries import stream_heaps as _stream_heaps

MIB = 1 << 20


def _begin(capacity: str = "64MiB") -> tuple[Device, slabpool.Pool, PoolMemoryResource]:
    device = Device(0)
    device.set_current()
    pool = slabpool.Pool(capacity, memory="cuda:0")
    return device, pool, PoolMemoryResource(pool)


def _empty(pool: slabpool.Pool) -> None:
    gc.collect()
    _stream_heaps.heap_of(pool).wait()
    stats = pool.stats()
    assert stats.live == stats.retained == 0, stats


def scene_a_buffer_is_the_pools_memory() -> None:
    device, pool, resource = _begin()
    stream = device.create_stream()
    buffer = resource.allocate(3 * MIB, stream=stream)
    assert isinstance(buffer, Buffer) and buffer.size == 3 * MIB
    assert buffer.memory_resource is resource
    assert (buffer.is_device_accessible, buffer.is_host_accessible, buffer.device_id) == (True, False, 0)
    assert buffer.__dlpack_device__() == (2, 0)
    assert pool.stats().live >= 3 * MIB
    buffer.close(stream)
    stream.sync()
    _empty(pool)


def scene_dropping_the_last_reference_gives_it_back() -> None:
    device, pool, resource = _begin()
    stream = device.create_stream()
    buffer = resource.allocate(MIB, stream=stream)
    del buffer, resource
    stream.sync()
    _empty(pool)


def scene_freed_memory_is_given_out_again_on_its_stream() -> None:
    device, pool, resource = _begin()
    stream = device.create_stream()
    buffer = resource.allocate(MIB, stream=stream)
    first = int(buffer.handle)
    buffer.close(stream)
    again = resource.allocate(MIB, stream=stream)
    assert int(again.handle) == first
    again.close(stream)
    stream.sync()
    _empty(pool)


def scene_size_zero_has_memory_too() -> None:
    device, pool, resource = _begin()
    buffer = resource.allocate(0, stream=device.default_stream)
    assert buffer.size == 0
    buffer.close()
    device.default_stream.sync()
    _empty(pool)


def scene_running_out_is_an_error_that_says_so() -> None:
    device, pool, resource = _begin("8MiB")
    stream = device.create_stream()
    kept = resource.allocate(6 * MIB, stream=stream)
    with pytest.raises(slabpool.PoolExhausted) as caught:
        resource.allocate(6 * MIB, stream=stream)
    assert isinstance(caught.value, MemoryError) and f"{6 * MIB} bytes" in str(caught.value)
    kept.close(stream)
    resource.allocate(6 * MIB, stream=stream).close(stream)
    stream.sync()
    _empty(pool)


def scene_a_failure_of_cuda_core_gives_the_memory_back_once() -> None:
    device, pool, resource = _begin()
    stream = device.create_stream()
    made = Buffer.from_handle

    def fails(*args: object, **kwargs: object) -> Buffer:
        buffer = made(*args, **kwargs)
        del buffer  # as when cuda.core fails after it took over the memory
        raise RuntimeError("no buffer")

    from slabpool import cuda_core

    class Broken:
        from_handle = staticmethod(fails)

    real, cuda_core.core = cuda_core.core, type("core", (), {"Buffer": Broken})
    try:
        with pytest.raises(RuntimeError, match="no buffer"):
            resource.allocate(MIB, stream=stream)
    finally:
        cuda_core.core = real
    stream.sync()
    _empty(pool)


def scene_allocations_belong_to_the_active_request() -> None:
    device, pool, resource = _begin()
    stream = device.create_stream()
    with pool.request("chat-42", devices=["gpu0"]) as req:
        with req.activate():
            buffer = resource.allocate(2 * MIB, stream=stream)
        other = resource.allocate(MIB, stream=stream)
        assert 2 * MIB <= req.nbytes < 3 * MIB
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    assert pool.stats().retained >= 2 * MIB  # the buffer keeps it
    buffer.close(stream)
    other.close(stream)
    stream.sync()
    _empty(pool)


def scene_other_kinds_of_memory_are_refused() -> None:
    with pytest.raises(slabpool.InvalidArgumentError) as caught:
        PoolMemoryResource(slabpool.Pool("1MiB"))
    assert "memory='cuda:0'" in str(caught.value)
