"""Acks behind the work of a stream: when they count, which stream objects are accepted, and the errors."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

import slabpool
from slabpool import Ack
from slabpool._core.cuda import handle_of
from tests.cuda.gpu_work import Work
from tests.cuda.standin_build import Standin
from tests.waiting import PATIENCE, once, waits

MIB = 1 << 20


# Pools of each kind that a GPU uses; host memory as a staging area. The tests create them, because pytest
# would keep a fixture's pool until after the stand-in checks for leaks.
each_kind = pytest.mark.parametrize("memory", ["cuda:0", "pinned:0", "host"])


def new_pool(memory: str) -> slabpool.Pool:
    """A pool of 16 MiB."""
    return slabpool.Pool("16MiB", memory=memory)


def busy(work: Work) -> int:
    """A stream that is held, with work on it."""
    stream = work.stream()
    work.hold(stream)
    array = slabpool.Pool("2MiB", memory="cuda:0").empty(16, "u1")
    work.fill(array.ptr, 1, 16, stream)
    work.kept.append(array)
    return stream


@each_kind
def test_it_counts_once_the_work_is_done(memory: str, work: Work) -> None:
    pool = new_pool(memory)
    stream = busy(work)
    req = pool.request("chat", devices=["gpu0"])
    array = req.empty(MIB, "u1")
    req.close()
    del array
    assert req.ack("gpu0", stream=stream) is Ack.PENDING
    assert req.pending == {"gpu0"}
    assert pool.stats().live == MIB
    assert req.ack("gpu0", stream=stream) is Ack.DUPLICATE
    work.let_go(stream)
    assert req.state is slabpool.RequestState.RELEASED
    assert pool.stats().live == 0
    assert req.ack("gpu0", stream=stream) is Ack.LATE


def test_reports_tell_a_stream_from_a_device(work: Work) -> None:
    """The report of a leak shows that gpu0 has acknowledged, and that work on its stream is not finished."""
    pool = new_pool("host")
    stream = busy(work)
    req = pool.request("chat", devices=["gpu0", "gpu1"])
    kept = req.child(["gpu1"])
    array = req.full(MIB, 7, "u1")
    req.close()
    assert pool.stats().stream_acks == 0
    req.ack("gpu0", stream=stream)
    assert pool.stats().stream_acks == 1
    leak = {record.generation: record for record in pool.leaks()}[req.generation]
    assert (leak.pending, leak.behind_stream) == ({"gpu0", "gpu1"}, {"gpu0"})
    assert "waits for gpu0 (its stream's work), gpu1" in str(leak)
    assert "waits for gpu0 (its stream's work), gpu1" in repr(req)
    with pytest.raises(slabpool.PoolBusyError, match=r"waits for gpu0 \(its stream's work\), gpu1"):
        pool.close()
    work.let_go(stream)
    leak = {record.generation: record for record in pool.leaks()}[req.generation]
    assert (leak.pending, leak.behind_stream) == ({"gpu1"}, frozenset())
    assert pool.stats().stream_acks == 0
    assert req.ack("gpu1") is Ack.RELEASED
    assert kept.released and (array == 7).all()


@each_kind
def test_memory_in_use_is_not_handed_out(memory: str, work: Work) -> None:
    pool = new_pool(memory)
    stream = busy(work)
    req = pool.request("chat", devices=["gpu0"])
    del_me = req.empty(12 * MIB, "u1")
    del del_me
    req.close()
    req.ack("gpu0", stream=stream)
    with pytest.raises(slabpool.PoolExhausted):
        pool.empty(12 * MIB, "u1")
    work.let_go(stream)
    assert pool.empty(12 * MIB, "u1").shape == (12 * MIB,)


@each_kind
def test_of_work_that_is_done_it_is_what_an_ack_is(memory: str, work: Work, standin: Standin) -> None:
    pool = new_pool(memory)
    stream = work.stream()
    req = pool.request("chat", devices=["gpu0"])
    req.close()
    answer = req.ack("gpu0", stream=stream)
    standin.library.standin_settle()
    assert answer in (Ack.PENDING, Ack.RELEASED)  # the stand-in's stream may not have reached the event
    assert req.state is slabpool.RequestState.RELEASED


@each_kind
def test_by_id(memory: str, work: Work) -> None:
    pool = new_pool(memory)
    stream = busy(work)
    first = pool.request("chat", devices=["gpu0"])
    first.close()
    assert pool.ack("chat", "gpu0", stream=stream) is Ack.PENDING
    second = pool.request("chat", devices=["gpu0"])
    second.close()
    # One of the two has been acknowledged, so the id is not ambiguous.
    assert pool.ack("chat", "gpu0", stream=stream) is Ack.PENDING
    work.let_go(stream)
    assert {first.state, second.state} == {slabpool.RequestState.RELEASED}
    assert pool.ack("chat", "gpu0", stream=stream) is Ack.LATE


@each_kind
def test_waiting(memory: str, work: Work) -> None:
    pool = new_pool(memory)
    stream = busy(work)
    req = pool.request("chat", devices=["gpu0"])
    req.close()
    req.ack("gpu0", stream=stream)
    assert not req.wait(0.01)
    thread = once(waits(threading.main_thread().ident or 0), lambda: work.let_go(stream))
    assert req.wait(2 * PATIENCE)
    thread.join()


@each_kind
def test_waiting_in_an_event_loop(memory: str, work: Work) -> None:
    pool = new_pool(memory)
    stream = busy(work)

    async def main() -> None:
        req = pool.request("chat", devices=["gpu0"])
        req.close()
        waiting = asyncio.create_task(req.released())
        await asyncio.sleep(0)  # it waits before the ack is made, and is woken to poll
        req.ack("gpu0", stream=stream)
        done, _ = await asyncio.wait([waiting], timeout=0.01)
        assert not done
        work.let_go(stream)
        await asyncio.wait_for(waiting, PATIENCE)
        assert req.state is slabpool.RequestState.RELEASED

    asyncio.run(main())


class Cuda:
    """A stream like cuda.core's."""

    def __init__(self, handle: int, version: int = 0) -> None:
        self._told = (version, handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        return self._told


class Named:
    """A stream like those of torch, CuPy and Numba: attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Bound:
    """A stream like that of the driver's Python binding: convertible to int."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __int__(self) -> int:
        return self._handle


@pytest.mark.parametrize(
    ("stream", "handle", "device"),
    [
        (None, 1, -1),
        (0, 1, -1),
        (1, 1, -1),
        (2, 2, -1),
        (0x1234, 0x1234, -1),
        (2**64 - 1, 2**64 - 1, -1),
        (Cuda(0x55), 0x55, -1),
        (Cuda(0), 1, -1),
        (Named(cuda_stream=7, device_index=1), 7, 1),
        (Named(cuda_stream=0, device=Named(index=3)), 1, 3),
        (Named(ptr=9, device_id=2), 9, 2),
        (Named(ptr=0, device_id=-1), 1, -1),
        (Named(handle=11), 11, -1),
        (Named(handle=ctypes.c_void_p(12)), 12, -1),
        (Named(handle=ctypes.c_void_p(None)), 1, -1),
        (Named(handle=Bound(13), device=Named(device_id=4)), 13, 4),
    ],
)
def test_which_stream_is_meant(stream: object, handle: int, device: int) -> None:
    assert handle_of(stream) == (handle, device)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (True, slabpool.InvalidTypeError),
        ("0", slabpool.InvalidTypeError),
        (1.0, slabpool.InvalidTypeError),
        (object(), slabpool.InvalidTypeError),
        (Cuda(5, version=1), slabpool.InvalidTypeError),
        (Named(__cuda_stream__=3), slabpool.InvalidTypeError),
        (Named(ptr="x"), slabpool.InvalidTypeError),
        (-1, slabpool.InvalidArgumentError),
        (2**64, slabpool.InvalidArgumentError),
        (Cuda(-5), slabpool.InvalidArgumentError),
    ],
)
def test_what_is_no_stream(stream: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="stream"):
        handle_of(stream)
    pool = slabpool.Pool("1MiB")
    req = pool.request("chat", devices=["gpu0"])
    with pytest.raises(error, match="stream"):
        req.ack("gpu0", stream=stream)
    assert req.pending == {"gpu0"}
    req.cancel()
    req.ack("gpu0")


def test_the_default_stream_is_the_pools_devices(standin: Standin) -> None:
    work = Work(standin, device=1)
    pool = slabpool.Pool("4MiB", memory="cuda:1")
    array = pool.empty(16, "u1")
    work.hold(0)
    work.fill(array.ptr, 1, 16, 0)
    req = pool.request("chat", devices=["gpu1"])
    req.close()
    assert req.ack("gpu1", stream=0) is Ack.PENDING
    standin.library.standin_settle()
    assert req.pending == {"gpu1"}
    work.let_go(0)
    assert req.state is slabpool.RequestState.RELEASED


@each_kind
def test_what_needs_no_stream_is_said_first(memory: str, work: Work) -> None:
    pool = new_pool(memory)
    req = pool.request("chat", devices=["gpu0"])
    with pytest.raises(slabpool.UnknownDeviceError):
        req.ack("gpu1", stream=work.stream())
    pool.request("other", devices=["gpu1"]).cancel()
    with pytest.raises(slabpool.UnknownDeviceError):
        req.ack("gpu1", stream=work.stream())
    req.cancel()
    assert req.ack("gpu0") is Ack.RELEASED
    with pytest.raises(slabpool.UnknownDeviceError):
        req.ack("gpu1", stream=work.stream())


@each_kind
def test_a_stream_that_the_driver_refuses(memory: str, work: Work, standin: Standin) -> None:
    pool = new_pool(memory)
    req = pool.request("chat", devices=["gpu0"])
    with pytest.raises(slabpool.InvalidArgumentError, match="cuStreamGetCtx: CUDA_ERROR_INVALID_HANDLE"):
        req.ack("gpu0", stream=0x1230)
    standin.clear_complaints()
    stream = work.stream()
    work.capture(stream, True)
    with pytest.raises(slabpool.InvalidArgumentError, match="capturing"):
        pool.ack("chat", "gpu0", stream=stream)
    work.capture(stream, False)
    assert req.pending == {"gpu0"}
    req.cancel()
    req.ack("gpu0")


def test_a_gpu_that_is_lost(work: Work, standin: Standin) -> None:
    pool = slabpool.Pool("8MiB", memory="cuda:0", events=32)
    stream = busy(work)
    first, second = (pool.request(name, devices=["gpu0"]) for name in "ab")
    for req in (first, second):
        req.empty(MIB, "u1")
        req.close()
    first.ack("gpu0", stream=stream)
    standin.lose_device(0)
    assert first.state is slabpool.RequestState.RELEASED
    assert [event.device for event in pool.events() if event.kind == "lost"] == ["gpu0"]
    with pytest.raises(slabpool.DeviceLostError, match="device_lost"):
        second.ack("gpu0", stream=stream)
    assert second.pending == {"gpu0"}
    with pytest.raises(slabpool.DeviceLostError):
        pool.empty(16, "u1")
    assert pool.device_lost("gpu0") == 1
    assert second.state is slabpool.RequestState.RELEASED
    standin.lose_device(0, 0)


def test_without_a_driver() -> None:
    code = """if True:
        import slabpool
        pool = slabpool.Pool("1MiB")
        req = pool.request("chat", devices=["gpu0"])
        try:
            req.ack("gpu0", stream=1)
        except slabpool.DeviceUnavailableError as error:
            print(error)
        print(req.pending)
        req.cancel()
        print(req.ack("gpu0"))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SLABPOOL_CUDA_DRIVER": "/nonexistent/libcuda.so"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    message, pending, last = done.stdout.splitlines()
    assert "/nonexistent/libcuda.so" in message
    assert "nothing was acknowledged" in message
    assert (pending, last) == ("frozenset({'gpu0'})", "Ack.RELEASED")


def test_on_a_gpu(gpu: None) -> None:
    """The memory is handed out again only after a GPU's writes before the ack are finished."""
    work = Work()
    pool = slabpool.Pool("64MiB", memory="cuda:0")
    stream = work.stream()
    for _ in range(50):
        req = pool.request("chat", devices=["gpu0"])
        array = req.empty(32 * MIB, "u1")
        work.fill(array.ptr, 7, array.nbytes, stream)
        del array
        req.close()
        assert req.ack("gpu0", stream=stream) in (Ack.PENDING, Ack.RELEASED)
        assert req.wait(PATIENCE)
    work.synchronize(stream)
    work.close()
    assert pool.stats().live == 0
