"""`memory=`: its grammar, pools of each kind, and the errors."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import DeviceArray, DeviceUnavailableError, InvalidArgumentError, Layout, Pool
from slabpool.arguments.memory_kinds import Memory, parse_memory
from tests.cuda.standin_build import OUT_OF_MEMORY, Standin
from tests.scene import says
from tests.settled import settled

MIB = 1 << 20


# ---- the grammar


@pytest.mark.parametrize(
    ("text", "meaning", "name"),
    [
        ("host", Memory("host", -1, False), "host"),
        ("shared", Memory("host", -1, True), "shared"),
        ("cuda", Memory("device", 0, False), "cuda:0"),
        ("cuda:0", Memory("device", 0, False), "cuda:0"),
        ("cuda:12", Memory("device", 12, False), "cuda:12"),
        ("shared:cuda:1", Memory("device", 1, True), "shared:cuda:1"),
        ("pinned", Memory("pinned", -1, False), "pinned"),
        ("pinned:3", Memory("pinned", 3, False), "pinned:3"),
        ("managed:0", Memory("managed", 0, False), "managed:0"),
    ],
)
def test_kinds(text: str, meaning: Memory, name: str) -> None:
    assert parse_memory(text) == meaning
    assert str(meaning) == name
    assert parse_memory(name) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "", "cuda:", "cuda:-1", "cuda:01", "cuda:1000", "cuda:x", "CUDA:0", "cuda:0 ", "cuda:\u0661", "gpu:0",
        "managed", "shared:pinned", "shared:managed:0", "shared:host", "pinned:", "host:0", "x" * 1000, None,
        0, b"cuda:0", ("cuda", 0),
    ],
)  # fmt: skip
def test_what_is_no_kind(text: Any) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Pool("1MiB", memory=text)
    says(raised, f"memory must be 'host', 'shared', 'cuda:N' ... got {text!r:.45}")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("memory", "options", "text"),
    [
        ("cuda:0", {"huge_pages": True}, "memory='host' ... 'cuda:0' ... not host memory"),
        ("cuda:0", {"numa_node": 0}, "memory='host' ... 'cuda:0' ... not host memory"),
        ("pinned:0", {"numa_node": 0}, "memory='host' ... 'pinned:0' ... near its device"),
        ("managed:0", {"huge_pages": True}, "memory='host' ... 'managed:0' ... the CUDA driver"),
        ("shared", {"huge_pages": True}, "memory='host' ... 'shared' ... page by page"),
        ("cuda:0", {"debug": 1}, "debug must be 0 ... 'cuda:0', got 1 ... the host"),
        ("shared:cuda:0", {"debug": 2}, "debug must be 0 ... 'shared:cuda:0', got 2"),
        ("cuda:0", {"debug": 7}, "0, 1 or 2, got 7"),
    ],
)
def test_options_that_do_not_go_with_it(memory: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Pool("1MiB", memory=memory, **options)
    says(raised, text)


# ---- without a driver

WITHOUT = """
import sys
import slabpool
for memory in ("cuda:0", "pinned", "managed:0"):
    try:
        slabpool.Pool("1MiB", memory=memory)
    except slabpool.DeviceUnavailableError as error:
        print(error)
    else:
        sys.exit(f"a pool of {memory}")
assert slabpool.Pool("1MiB").empty(3).nbytes == 24
"""


def test_without_a_driver_it_says_what_was_looked_for() -> None:
    environment = {**os.environ, "SLABPOOL_CUDA_DRIVER": "/nowhere/libcuda.so.1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, memory in zip(lines, ("cuda:0", "pinned", "managed:0"), strict=True):
        assert line.startswith(f"cannot make a pool of '1MiB' with memory='{memory}': ")
        assert "/nowhere/libcuda.so.1" in line and "SLABPOOL_CUDA_DRIVER" in line


# ---- with a driver


@pytest.mark.parametrize("memory", ["pinned", "pinned:0", "managed:0"])
def test_numpy_arrays_where_the_host_reaches_the_memory(cuda: object, memory: str) -> None:
    with Pool("64MiB", memory=memory) as pool:
        assert pool.memory == memory
        array = pool.full((3, 4), 7, np.int32)
        assert type(array) is np.ndarray and (array == 7).all()
        assert pool.zeros(1000).sum() == 0
        with pool.request("r", ["gpu0"]) as req:
            tensors = req.allocate(Layout({"k": (8, "f4")}), zero=True)
            assert type(tensors.k) is np.ndarray
            growing = req.growable((0, 4), "f4", limit=1000)
            assert type(growing.extend(10)) is np.ndarray
            req.ack("gpu0")
            del tensors, growing
        del array
        assert pool.stats().live == 0


def test_device_arrays_where_it_does_not(cuda: object) -> None:
    with Pool("64MiB", memory="cuda") as pool:
        assert pool.memory == "cuda:0"
        with pool.request("r", ["gpu0"]) as req:
            for source in (pool, req):
                for array in (
                    source.empty(3),
                    source.zeros(3),
                    source.full(3, 1.5),
                    source.copy([1.0, 2.0, 3.0]),
                ):
                    assert type(array) is DeviceArray
                    assert (array.shape, array.dtype, array.device) == ((3,), np.float64, 0)
                del array
            tensors = req.allocate(Layout({"k": (8, "f4"), "v": ((2, 2), "f2")}), zero=True)
            assert type(tensors["v"]) is DeviceArray
            assert (tensors.k.copy_to_host() == 0).all()
            assert tensors.v.ptr - tensors.k.ptr == 64
            req.ack("gpu0")
            del tensors
        assert pool.stats().live == 0


def test_scrubbing_works_on_the_device(cuda: object) -> None:
    with Pool("64MiB", memory="cuda:0", scrub="release") as pool:
        array = pool.full(1000, 7, np.uint8)
        address = array.ptr
        del array
        again = pool.empty(1000, np.uint8)
        assert again.ptr == address
        assert not again.copy_to_host().any()
        del again


def test_what_needs_the_hosts_memory_is_refused(cuda: object) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, pool.request("r") as req:
        before = settled(pool)
        for call in (
            lambda: pool.session("chat"),
            lambda: req.growable(3, limit=10),
            lambda: slabpool.numpy_handler(pool).__enter__(),
        ):
            with pytest.raises(InvalidArgumentError) as raised:
                call()
            says(
                raised,
                "needs memory that the host can access ... device memory ... 'host', 'pinned' or 'managed:N'",
            )
        assert pool.stats() == before
        assert pool.sessions() == []


def test_a_device_that_is_not_there(cuda: object) -> None:
    for memory in ("cuda:99", "pinned:99", "managed:99"):
        with pytest.raises(DeviceUnavailableError) as raised:
            Pool("64MiB", memory=memory)
        says(raised, f"memory={memory!r} ... 99")


def test_more_than_the_device_has(standin: Standin) -> None:
    standin.set_memory(0, 64 * MIB)
    with pytest.raises(DeviceUnavailableError) as raised:
        Pool("128MiB", memory="managed:0")
    says(raised, "'128MiB' with memory='managed:0' ... MiB")
    standin.fail("cuMemAddressReserve", result=OUT_OF_MEMORY)
    with pytest.raises(DeviceUnavailableError) as raised:
        Pool("64MiB", memory="cuda:0")
    says(raised, "memory='cuda:0' ... cuMemAddressReserve ... CUDA_ERROR_OUT_OF_MEMORY")
    standin.clear_faults()
    Pool("64MiB", memory="cuda:0").close()


def test_a_full_device_is_an_answer(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool:
        standin.set_memory(0, 4 * MIB)
        with pytest.raises(slabpool.PoolExhausted):
            pool.empty(16 * MIB, np.uint8)
        assert pool.stats().live == 0
        standin.set_memory(0, 128 * MIB)
        assert pool.empty(16 * MIB, np.uint8).nbytes == 16 * MIB


def test_a_lost_device_is_an_answer(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool:
        array = pool.zeros(1000)
        standin.lose_device(0)
        for call in (lambda: pool.zeros(1000), lambda: pool.full(1000, 1.5), array.copy_to_host):
            with pytest.raises(slabpool.DeviceLostError) as raised:
                call()
            says(raised, "process")
            del raised
        live = pool.stats().live
        del array, call
        assert live > 0 and pool.stats().live == 0
        standin.lose_device(0, 0)
