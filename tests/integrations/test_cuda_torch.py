"""A pool under torch's CUDA allocations: torch itself on a GPU (cuda_torch_scenes.py,
cuda_torch_mem_pool_scenes.py); without a GPU, the exported functions, called by ctypes as torch calls them,
on the stand-in driver."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import slabpool
from slabpool.libraries import stream_heaps as _stream_heaps
from tests.cuda.standin_build import Standin
from tests.integrations import scenes

MIB = 1 << 20
GLOBAL, IN_BLOCK = "cuda_torch_scenes", "cuda_torch_mem_pool_scenes"


# ---- torch itself


@pytest.fixture(scope="module")
def torch(require_module: Callable[[str], ModuleType], cuda: Standin | None) -> Any:
    torch = require_module("torch")
    if cuda is not None:
        pytest.skip("needs a GPU: the stand-in driver is not enough for torch")
    if not torch.cuda.is_available():
        pytest.skip(f"needs a torch built with CUDA; this is {torch.__version__}")
    return torch


@pytest.fixture(scope="module")
def outcomes(torch: Any) -> dict[str, Any]:
    return {
        f"{source}:{name}": said for source in (GLOBAL, IN_BLOCK) for name, said in scenes.run(source).items()
    }


@pytest.mark.parametrize("scene", [f"{s}:{name}" for s in (GLOBAL, IN_BLOCK) for name in scenes.names(s)])
def test_torch(outcomes: dict[str, Any], scene: str) -> None:
    assert outcomes[scene] is None, outcomes[scene]


def test_a_torch_without_cuda_is_refused(require_module: Callable[[str], ModuleType]) -> None:
    torch = require_module("torch")
    if hasattr(torch._C, "_cuda_customAllocator"):
        pytest.skip("this torch is built with CUDA")
    import slabpool.torch

    with pytest.raises(slabpool.DeviceUnavailableError, match="built without CUDA"):
        slabpool.torch.use_cuda()
    with (
        pytest.raises(slabpool.DeviceUnavailableError, match="built without CUDA"),
        slabpool.Pool("1MiB") as pool,
        slabpool.torch.mem_pool(pool),
    ):
        pass


# ---- the functions that torch calls, called as by torch's CUDAPluggableAllocator


class AsTorch:
    """Does what torch/csrc/cuda/CUDAPluggableAllocator.cpp does: remembers the size, device and stream of
    each address."""

    def __init__(self, pool: slabpool.Pool) -> None:
        self.pool = pool
        library = ctypes.CDLL(str(next(Path(slabpool.get_lib()).glob("libslabpool.so"))))
        self._allocate = library.slabpool_stream_alloc
        self._allocate.restype = ctypes.c_void_p
        self._allocate.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        self._free = library.slabpool_stream_free
        self._free.restype = None
        self._free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        self._record = library.slabpool_stream_record
        self._record.restype = None
        self._record.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._known: dict[int, tuple[int, int, int]] = {}

    def malloc(self, size: int, device: int = 0, stream: int = 0) -> int:
        address = self._allocate(size, device, stream) or 0
        if address:
            self._known[address] = (size, device, stream)
        return int(address)

    def delete(self, address: int) -> None:
        self._free(address, *self._known.pop(address))

    def record_stream(self, address: int, stream: int) -> None:
        self._record(address, stream)


@pytest.fixture
def torch_side(standin: Standin) -> Iterator[AsTorch]:
    pool = slabpool.Pool("64MiB", memory="cuda:0", name="under-torch")
    _stream_heaps.serve((pool,), "the test")
    torch = AsTorch(pool)
    try:
        yield torch
    finally:
        _stream_heaps.heap_of(pool).wait()
        _stream_heaps.stop_serving(0)
        pool.close()
        del torch.pool  # pytest keeps the values of fixtures until the stand-in has checked for leaks


def everything_back(pool: slabpool.Pool) -> None:
    _stream_heaps.heap_of(pool).wait()
    stats = pool.stats()
    assert stats.live == stats.retained == 0, stats


def test_symbols_serve_and_take_back(torch_side: AsTorch) -> None:
    torch = torch_side
    pool = torch.pool
    address = torch.malloc(3 * MIB)
    assert address % 512 == 0
    assert pool.stats().live >= 3 * MIB
    torch.delete(address)
    assert torch.malloc(3 * MIB) == address  # on the same stream it is reused at once
    torch.delete(address)
    everything_back(pool)


def test_symbols_serve_size_zero(torch_side: AsTorch) -> None:
    torch = torch_side
    addresses = {torch.malloc(0) for _ in range(3)}
    assert len(addresses) == 3 and 0 not in addresses
    for address in addresses:
        torch.delete(address)


def test_symbols_return_null_when_there_is_no_room(torch_side: AsTorch) -> None:
    torch = torch_side
    kept = torch.malloc(40 * MIB)
    assert torch.malloc(40 * MIB) == 0
    assert torch.malloc(1 << 50) == 0
    torch.delete(kept)
    again = torch.malloc(60 * MIB)
    assert again
    torch.delete(again)


def test_symbols_return_null_for_a_device_without_a_pool(torch_side: AsTorch) -> None:
    torch = torch_side
    assert torch.malloc(1000, device=1) == 0
    assert torch.malloc(1000, device=-1) == 0
    assert torch.malloc(1000, device=1000) == 0


def test_symbols_count_to_the_active_request_of_the_thread(torch_side: AsTorch) -> None:
    torch = torch_side
    pool = torch.pool
    elsewhere: list[int] = []
    with pool.request("outer") as outer, pool.request("inner", devices=["gpu0"]) as inner:
        with outer.activate():
            a = torch.malloc(1000)
            with inner.activate():
                b = torch.malloc(2000)
                thread = threading.Thread(target=lambda: elsewhere.append(torch.malloc(4 * MIB)))
                thread.start()
                thread.join()
            c = torch.malloc(3000)
        d = torch.malloc(5 * MIB)
        assert 4000 <= outer.nbytes < MIB and 2000 <= inner.nbytes < MIB
    assert inner.ack("gpu0") is slabpool.Ack.RELEASED
    assert pool.stats().retained >= 6000  # torch still has a, b and c
    for address in (a, b, c, d, *elsewhere):
        torch.delete(address)
    everything_back(pool)


def test_a_request_of_another_pool_does_not_count(torch_side: AsTorch) -> None:
    torch = torch_side
    pool = torch.pool
    other = slabpool.Pool("1MiB")
    with other.request("elsewhere") as req, req.activate():
        address = torch.malloc(1000)
        assert address and req.nbytes == 0
    torch.delete(address)
    assert pool.stats().retained == 0


def test_a_request_that_is_over_does_not_make_torch_fail(torch_side: AsTorch) -> None:
    torch = torch_side
    pool = torch.pool
    req = pool.request("chat-42")
    with req.activate():
        req.close()
        address = torch.malloc(1000)
        assert address
    torch.delete(address)


def test_one_pool_per_device(torch_side: AsTorch) -> None:
    pool = torch_side.pool
    _stream_heaps.serve((pool,), "again")
    with slabpool.Pool("1MiB", memory="cuda:0", name="second") as second:
        with pytest.raises(slabpool.SlabpoolError, match="'under-torch' is under torch on device 0"):
            _stream_heaps.serve((second,), "use_cuda")
        with pytest.raises(slabpool.InvalidArgumentError, match="both of device 0"):
            _stream_heaps.serve((second, pool), "use_cuda")
    with pytest.raises(slabpool.InvalidArgumentError, match="got none"):
        _stream_heaps.serve((), "use_cuda")
    with pytest.raises(slabpool.InvalidArgumentError, match="memory='host'"):
        _stream_heaps.serve((slabpool.Pool("1MiB"),), "use_cuda")
    with pytest.raises(slabpool.InvalidTypeError, match="needs a Pool"):
        _stream_heaps.serve((3,), "use_cuda")  # type: ignore[arg-type]
