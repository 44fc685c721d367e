"""DLPack: contents of a capsule, lifetimes, and which stream waits for which; read with ctypes, as by C."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import DeviceArray, InvalidArgumentError, Pool
from tests.cuda.standin_build import Standin
from tests.cuda.streams import held, stream

VERSIONED = b"dltensor_versioned"
PLAIN = b"dltensor"


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_uint64), ("type", ctypes.c_int32), ("id", ctypes.c_int32), ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    ]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)), ("flags", ctypes.c_uint64), ("tensor", Tensor),
    ]  # fmt: skip


_api = ctypes.pythonapi
_api.PyCapsule_GetName.restype, _api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
_api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def raw(capsule: object) -> Any:
    """The managed tensor in a capsule, in place: the capsule must stay alive."""
    name = _api.PyCapsule_GetName(capsule)
    kind = {PLAIN: Managed, VERSIONED: ManagedVersioned}[name]
    return kind.from_address(_api.PyCapsule_GetPointer(capsule, name))


def read(capsule: object) -> SimpleNamespace:
    """The contents of a capsule, as plain values."""
    managed = raw(capsule)
    tensor = managed.tensor
    values = {name: getattr(tensor, name) for name, *_ in tensor._fields_}
    for name in ("shape", "strides"):
        values[name] = values[name][: tensor.ndim] if values[name] else None
    if isinstance(managed, ManagedVersioned):
        values |= {"version": (managed.major, managed.minor), "flags": managed.flags}
    return SimpleNamespace(**values)


def take(capsule: object) -> Any:
    """Consume a capsule: the caller then owns the tensor."""
    managed = raw(capsule)
    _api.PyCapsule_SetName(capsule, b"used_" + _api.PyCapsule_GetName(capsule))
    return managed


@pytest.fixture
def pool(cuda: object) -> Iterator[Pool]:
    with Pool("64MiB", memory="cuda:0") as made:
        yield made
        gc.collect()
        assert made.stats().live == 0


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 9), (2, 0)])
def test_what_a_capsule_says(pool: Pool, version: tuple[int, int] | None) -> None:
    x = pool.zeros((4, 6), np.float16)[1:, ::-2]
    tensor = read(x.__dlpack__(max_version=version))
    if version is None or version < (1, 0):
        assert not hasattr(tensor, "version")
    else:
        assert (tensor.version, tensor.flags) == (min(version, (1, 2)), 0)
    assert (tensor.type, tensor.id) == x.__dlpack_device__() == (2, 0)
    assert (tensor.code, tensor.bits, tensor.lanes) == (2, 16, 1)
    assert tensor.data + tensor.byte_offset == x.ptr
    assert (tensor.shape, tensor.strides) == ([3, 3], [6, -2])


@pytest.mark.parametrize(
    ("dtype", "code", "bits"),
    [("i1", 0, 8), ("u8", 1, 64), ("f4", 2, 32), ("c16", 5, 128), ("?", 6, 8)],
)
def test_dtypes(pool: Pool, dtype: str, code: int, bits: int) -> None:
    x = pool.zeros((2, 2), dtype)
    tensor = read(x.__dlpack__())
    assert (tensor.code, tensor.bits) == (code, bits)
    assert np.array_equal(pool.copy(OnlyDLPack(x)).copy_to_host(), np.zeros((2, 2), dtype))


@pytest.mark.parametrize("dtype", ["S3", "M8[s]", ">f4", "V8", [("a", "i4"), ("b", "f4")]])
def test_dtypes_that_it_does_not_know(pool: Pool, dtype: Any) -> None:
    x = pool.zeros(4, dtype)
    with pytest.raises(BufferError, match="no dtype for"):
        x.__dlpack__()
    assert read(x.view("u1").__dlpack__()).bits == 8


def test_strides_are_never_null(pool: Pool) -> None:
    for shape in ((), (3,), (0, 3), (2, 3, 4)):
        capsule = pool.zeros(shape).__dlpack__(max_version=(1, 0))
        assert bool(raw(capsule).tensor.strides)
        assert read(capsule).shape == list(shape)
    odd = pool.zeros((4, 6), "u1")[:, :4].view("f4")
    assert odd.strides == (6, 4)
    with pytest.raises(BufferError, match="6 bytes are no whole number"):
        odd.__dlpack__()
    assert read(odd[:1].__dlpack__()).ndim == 2


# ---- lifetimes


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_keeps_the_block_and_lets_go(pool: Pool, version: tuple[int, int] | None) -> None:
    capsule = pool.zeros(100).__dlpack__(max_version=version)
    gc.collect()
    assert pool.stats().live > 0
    del capsule
    assert pool.stats().live == 0


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_the_consumer_keeps_it_until_the_deleter(pool: Pool, version: tuple[int, int] | None) -> None:
    managed = take(pool.zeros(100)[5:].__dlpack__(max_version=version))
    gc.collect()
    assert pool.stats().live > 0
    managed.deleter(ctypes.addressof(managed))
    assert pool.stats().live == 0


def test_the_deleter_runs_on_any_thread_without_the_gil(pool: Pool) -> None:
    managed = [take(pool.zeros(100).__dlpack__(max_version=(1, 0))) for _ in range(40)]

    # ctypes releases the GIL for the call, and the function calls no Python.
    def consume(mine: list[Any]) -> None:
        for one in mine:
            one.deleter(ctypes.addressof(one))

    threads = [threading.Thread(target=consume, args=(managed[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.stats().live == 0


def test_a_capsule_outlives_request_and_pool(cuda: object) -> None:
    pool = Pool("64MiB", memory="cuda:0")
    with pool.request("r") as req:
        managed = take(req.full(10, 7.0).__dlpack__(max_version=(1, 0)))
    assert pool.stats().retained > 0 and pool.stats().live == 0
    pool.close(force=True)
    del pool, req
    gc.collect()
    managed.deleter(ctypes.addressof(managed))


def test_the_interface_keeps_nothing(pool: Pool) -> None:
    x = pool.zeros((2, 3), "f4")
    interface = x[:, 1:].__cuda_array_interface__
    assert interface == {
        "shape": (2, 2), "typestr": "<f4", "descr": [("", "<f4")], "data": (x.ptr + 4, False),
        "strides": (12, 4), "version": 3, "stream": 1,
    }  # fmt: skip
    assert x.__cuda_array_interface__["strides"] is None
    assert x.on(2).__cuda_array_interface__["stream"] == 2
    assert x.on(0).__cuda_array_interface__["stream"] == 1
    assert pool.empty((0, 3)).__cuda_array_interface__["data"] == (0, False)
    del x
    assert pool.stats().live == 0


# ---- devices, and copies


@pytest.mark.parametrize("where", [(1, 0), (2, 1), (3, 0)])
def test_elsewhere_is_refused(pool: Pool, where: tuple[int, int]) -> None:
    x = pool.zeros(3)
    for copy in (None, False, True):
        with pytest.raises(BufferError, match="copy_to_host"):
            x.__dlpack__(dl_device=where, copy=copy)
    assert read(x.__dlpack__(dl_device=(2, 0))).data == x.ptr


def test_a_copy_that_was_asked_for(pool: Pool) -> None:
    x = pool.copy(np.arange(12.0).reshape(3, 4))
    assert read(x.__dlpack__(copy=False)).data == x.ptr
    capsule = x[:, ::2].__dlpack__(max_version=(1, 0), copy=True)
    tensor = read(capsule)
    assert tensor.flags == 2
    assert tensor.data != x.ptr
    assert tensor.strides == [2, 1]
    x.copy_from_host(np.zeros((3, 4)))
    assert np.array_equal(pool.copy(Consumed(capsule)).copy_to_host(), np.arange(12.0).reshape(3, 4)[:, ::2])


class OnlyDLPack:
    """An array of another library, which has only DLPack."""

    def __init__(self, array: DeviceArray, *, old: bool = False) -> None:
        self.array = array
        self.old = old

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None, **newer: Any) -> Any:
        if self.old and newer:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.array.__dlpack__(stream=stream, **newer)


class Consumed:
    """A producer that returns this capsule."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


@pytest.mark.parametrize("old", [False, True])
def test_copy_takes_a_producers_tensor(pool: Pool, old: bool) -> None:
    host = np.arange(24, dtype=np.int32).reshape(4, 6)
    x = pool.copy(host)
    assert np.array_equal(pool.copy(OnlyDLPack(x[1:, ::-2], old=old)).copy_to_host(), host[1:, ::-2])
    del x
    gc.collect()
    assert pool.stats().live == 0


def test_what_is_no_tensor_to_copy(pool: Pool) -> None:
    used = pool.zeros(3).__dlpack__(max_version=(1, 0))
    managed = take(used)
    for capsule in (used, None, object()):
        with pytest.raises(slabpool.InvalidTypeError, match="unused DLPack capsule"):
            pool.copy(Consumed(capsule))
    managed.deleter(ctypes.addressof(managed))
    bad = pool.zeros(3).__dlpack__(max_version=(1, 0))
    raw(bad).major = 2
    with pytest.raises(InvalidArgumentError, match="version 2"):
        pool.copy(Consumed(bad))
    odd = pool.zeros(3).__dlpack__(max_version=(1, 0))
    raw(odd).tensor.lanes = 4
    with pytest.raises(slabpool.InvalidTypeError, match="4 lanes"):
        pool.copy(Consumed(odd))
    del bad, odd
    assert pool.stats().live == 0


# ---- streams


def test_the_consumers_stream_waits_for_the_arrays(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, stream() as ours, stream() as theirs:
        x, y = pool.zeros(100).on(ours), pool.zeros(100)
        seven = pool.full(100, 7.0)
        out = Pool("64MiB", memory="pinned").zeros(100)
        with held(standin, ours):
            seven.copy_to(x, stream=ours)
            capsule = x.__dlpack__(stream=theirs, max_version=(1, 0))
            x.copy_to_host(out, stream=theirs)  # the consumer's work comes after it
            assert not out.any()
        standin.library.standin_settle()
        assert (out == 7).all()
        del capsule, x, y, seven, out
        assert pool.stats().live == 0


@pytest.mark.parametrize(
    ("own", "consumer", "waits"),
    [(None, None, 0), (None, 1, 0), (None, -1, 0), (None, 2, 1), (2, 2, 0), (2, None, 1), (2, -1, 0)],
)
def test_nothing_is_asked_of_the_driver_that_need_not_be(
    standin: Standin, own: int | None, consumer: int | None, waits: int
) -> None:
    with Pool("64MiB", memory="cuda:0") as pool:
        x = pool.zeros(3).on(own)
        x.__dlpack__(stream=consumer)
        assert standin.calls("cuStreamWaitEvent") == waits
        assert standin.calls("cuEventCreate") == waits
        del x


def test_streams_that_cannot_be(pool: Pool) -> None:
    x = pool.zeros(3)
    with pytest.raises(InvalidArgumentError, match="stream 0 may be"):
        x.__dlpack__(stream=0)
    with pytest.raises(InvalidArgumentError, match="-2"):
        x.__dlpack__(stream=-2)
