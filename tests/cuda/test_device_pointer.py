"""device_pointer: the device's addresses of numpy arrays in pinned and managed memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import DeviceArray, InvalidArgumentError, InvalidTypeError, Pool
from tests.cuda.standin_build import Standin
from tests.cuda.test_dlpack import read
from tests.scene import says

PLACES = {"pinned": (3, 0), "pinned:1": (3, 1), "managed:0": (13, 0), "managed:1": (13, 1)}


@pytest.fixture(params=PLACES)
def pool(request: pytest.FixtureRequest, cuda: object) -> Iterator[Pool]:
    with Pool("64MiB", memory=request.param) as made:
        yield made
        gc.collect()
        assert made.stats().live == 0


def test_the_same_elements_without_a_copy(pool: Pool) -> None:
    host = pool.zeros((4, 6), np.float32)
    whole, part = slabpool.device_pointer(host), slabpool.device_pointer(host[1:, ::-2].T)
    assert isinstance(whole, DeviceArray)
    assert (whole.shape, whole.strides, whole.dtype) == (host.shape, host.strides, host.dtype)
    # With unified addressing, as in the stand-in, a device uses the host's addresses of host memory.
    assert whole.ptr == host.ctypes.data
    assert part.ptr == host[1:, ::-2].ctypes.data
    assert part.strides == (-8, 24)
    host[2, 5] = 7
    assert part.copy_to_host()[0, 1] == 7
    slabpool.device_pointer(host[0]).copy_from_host(np.ones(6, "f4"))
    assert (host[0] == 1).all()
    assert repr(whole).startswith("<DevicePointer (4, 6) float32 on")


def test_it_stands_for_its_address(pool: Pool) -> None:
    host = pool.zeros(10)
    pointer = slabpool.device_pointer(host)
    assert int(pointer) == pointer.ptr == pointer.__index__()
    assert hex(pointer) == hex(pointer.ptr)
    assert int(pointer[3:]) == pointer.ptr + 24
    assert int(slabpool.device_pointer(pointer[3:])) == pointer.ptr + 24


def test_interfaces(pool: Pool) -> None:
    host = pool.zeros((2, 3), np.int16)
    pointer = slabpool.device_pointer(host)
    assert pointer.__dlpack_device__() == PLACES[pool.memory]
    assert pointer.__cuda_array_interface__["data"] == (host.ctypes.data, False)
    tensor = read(pointer.__dlpack__(max_version=(1, 0)))
    assert (tensor.type, tensor.id) == PLACES[pool.memory]
    assert tensor.data == host.ctypes.data
    copied = pointer.__dlpack__(max_version=(1, 0), copy=True)
    assert read(copied).flags == 2
    assert read(copied).data != host.ctypes.data


def test_read_only_arrays_stay_so(pool: Pool) -> None:
    host = pool.zeros(3)
    host.flags.writeable = False
    pointer = slabpool.device_pointer(host)
    assert pointer.__cuda_array_interface__["data"] == (host.ctypes.data, True)
    assert read(pointer[1:].__dlpack__(max_version=(1, 0))).flags == 1
    with pytest.raises(BufferError, match="read-only"):
        pointer.__dlpack__()
    with pytest.raises(InvalidArgumentError, match="read-only"):
        pointer.copy_from_host(np.ones(3))
    assert not host.any()


def test_it_keeps_the_block(pool: Pool) -> None:
    pointer = slabpool.device_pointer(pool.full(10, 7.0)[2:])
    capsule = pointer[1:].__dlpack__()
    gc.collect()
    assert (pointer.copy_to_host() == 7).all()
    del pointer
    gc.collect()
    assert pool.stats().live > 0
    del capsule
    assert pool.stats().live == 0


def test_in_a_request(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    pointer = slabpool.device_pointer(req.zeros(4))
    assert f"generation {req.generation}" in repr(pointer)
    req.close()
    req.ack("gpu0")
    assert pool.stats().retained > 0 and pool.stats().live == 0
    del pointer
    assert pool.stats().retained == 0


def test_of_device_arrays(cuda: object) -> None:
    with Pool("64MiB", memory="cuda:0") as pool:
        x = pool.zeros((2, 3)).on(2)
        pointer = slabpool.device_pointer(x)
        assert int(pointer) == x.ptr and pointer.shape == x.shape and pointer.stream == 2
        assert pointer.__dlpack_device__() == (2, 0)
        with pytest.raises(TypeError):
            int(x)  # type: ignore[call-overload]
        del x
        assert pool.stats().live > 0
        del pointer


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (
            np.zeros((2, 3), "f4"),
            InvalidArgumentError,
            "(2, 3) ... float32 ... no pool of pinned or managed memory",
        ),
        (Pool("1MiB").zeros(3), InvalidArgumentError, "pool.copy(array)"),
        (np.zeros(0), InvalidArgumentError, "(0,)"),
        ([1, 2], InvalidTypeError, "got list"),
        (None, InvalidTypeError, "got NoneType"),
        (7, InvalidTypeError, "got int"),
    ],
)
def test_what_no_device_reaches(cuda: object, array: Any, error: type[Exception], text: str) -> None:
    others = [Pool("64MiB", memory=memory) for memory in PLACES]
    with pytest.raises(error) as raised:
        slabpool.device_pointer(array)
    says(raised, text)
    for other in others:
        other.close()


def test_a_driver_that_refuses(standin: Standin) -> None:
    with Pool("64MiB", memory="pinned") as pool:
        host = pool.zeros(3)
        standin.fail("cuMemHostGetDevicePointer", result=1)
        with pytest.raises(slabpool.SlabpoolError) as raised:
            slabpool.device_pointer(host)
        says(raised, "device's address ... CUDA_ERROR_INVALID_VALUE")
        del raised
        standin.clear_faults()
        assert slabpool.device_pointer(host).ptr == host.ctypes.data
        assert standin.calls("cuMemHostGetDevicePointer") == 2
        del host
