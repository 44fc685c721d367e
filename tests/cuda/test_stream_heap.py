"""The stream-ordered heap as the drop-ins use it, and as libraries call it through its C functions."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest

import slabpool
from slabpool._core import heaps
from slabpool._core.heaps import StreamHeap
from tests.cuda.gpu_work import Work
from tests.cuda.standin_build import Standin

MIB = 1 << 20


def new_heap() -> tuple[slabpool.Pool, StreamHeap]:
    """A heap over a pool of 16 MiB of device memory. Not a fixture: pytest would keep it for too long."""
    pool = slabpool.Pool("16MiB", memory="cuda:0")
    return pool, StreamHeap(pool)


def test_a_stream_has_again_at_once_what_it_freed(work: Work, standin: Standin) -> None:
    _, heap = new_heap()
    stream = work.stream()
    work.hold(stream)
    first = heap.allocate(MIB, stream)
    work.fill(first, 1, MIB, stream)
    assert heap.release(first, stream)
    calls = standin.calls("*")
    assert heap.allocate(MIB, stream) == first
    assert standin.calls("*") == calls
    work.let_go(stream)
    assert heap.release(first, stream)


def test_another_stream_waits(work: Work, standin: Standin) -> None:
    _, heap = new_heap()
    one, other = work.stream(), work.stream()
    first = heap.allocate(10 * MIB, one)
    work.hold(one)
    work.fill(first, 0x11, 10 * MIB, one)
    heap.release(first, one)
    assert heap.allocate(10 * MIB, other) == 0
    work.let_go(one)
    second = heap.allocate(10 * MIB, other)
    assert second
    assert standin.peek(second, 1) == b"\x11" or second != first
    heap.release(second, other)


def test_requests_have_what_is_allocated_for_them(work: Work) -> None:
    pool, heap = new_heap()
    stream = work.stream()
    req = pool.request("chat", devices=["gpu0"])
    heap.set_request(req)
    address = heap.allocate(MIB, stream)
    heap.set_request(None)
    assert (req.nbytes, req.live_views) == (MIB, 1)
    work.hold(stream)
    work.fill(address, 1, MIB, stream)
    assert heap.release(address, stream)
    heap.end_request(req)
    req.close()
    assert req.ack("gpu0", stream=stream) is slabpool.Ack.PENDING
    assert pool.stats().live == MIB
    work.let_go(stream)
    assert req.state is slabpool.RequestState.RELEASED
    heap.trim()
    assert pool.stats().live + pool.stats().retained == 0


def test_two_heaps_do_not_take_each_others_request(work: Work) -> None:
    pool, heap = new_heap()
    others = StreamHeap(slabpool.Pool("4MiB", memory="cuda:0"))
    req = pool.request("chat")
    heap.set_request(req)
    others.set_request(req)  # a request of another pool has no blocks here
    address = others.allocate(4096, 0)
    mine = heap.allocate(4096, 0)
    assert req.live_views == 1
    heap.set_request(None)
    assert heap.release(mine) and others.release(address)
    assert not heap.release(mine)
    heap.end_request(req)
    req.close()


def test_a_heap_keeps_its_pool(work: Work) -> None:
    heap = new_heap()[1]
    gc.collect()
    address = heap.allocate(4096, 0)
    assert address
    assert heap.release(address)


def test_as_torch_calls_it(work: Work) -> None:
    _, heap = new_heap()
    library = ctypes.CDLL(str(next(Path(slabpool.get_lib()).glob("libslabpool.*"))))
    alloc, free = library.slabpool_stream_alloc, library.slabpool_stream_free
    alloc.restype, alloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    free.restype, free.argtypes = (
        None,
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p],
    )
    stream = work.stream()
    assert alloc(4096, 0, stream) is None
    heaps.put_in_force(heap, 0)
    try:
        address = alloc(0, 0, stream)
        assert address
        assert alloc(64 * MIB, 0, stream) is None
        free(address, 0, 0, stream)
        assert alloc(0, 0, stream) == address
        free(address, 0, 0, stream)
    finally:
        heaps.put_in_force(None, 0)
    assert alloc(4096, 0, stream) is None


def test_as_cupy_calls_it(work: Work) -> None:
    _, heap = new_heap()
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)(
        heaps.CUPY_MALLOC
    )
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)(heaps.CUPY_FREE)
    stream = work.stream()
    heaps.set_stream(stream)
    address = malloc(heap.address, 4096, 0)
    heaps.set_stream(0)
    free(heap.address, address, 0)
    assert malloc(heap.address, 4096, 0) != address
    assert heap.allocate(4096, stream) == address


def test_no_driver_no_heap() -> None:
    pool = slabpool.Pool("1MiB")
    if slabpool.cuda.is_available():
        heap = StreamHeap(pool)  # pageable memory, ordered by device 0's streams
        assert heap.device == 0
        return
    with pytest.raises(slabpool.DeviceUnavailableError):
        StreamHeap(pool)


def test_on_a_gpu(gpu: None) -> None:
    """The same with streams of a GPU: no block has two owners."""
    work = Work()
    pool = slabpool.Pool("64MiB", memory="cuda:0")
    heap = StreamHeap(pool)
    streams = [work.stream() for _ in range(3)]
    for turn in range(200):
        stream = streams[turn % 3]
        address = heap.allocate(16 * MIB, stream)
        assert address
        work.fill(address, turn, 16 * MIB, stream)
        assert heap.release(address, stream)
    for stream in streams:
        work.synchronize(stream)
    heap.trim()
    assert pool.stats().live == 0
    work.close()
