"""Device memory of a shared pool: another process imports the driver's handle, and acknowledges."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, DeviceArray
from tests.process.devices import Device, ack


@pytest.fixture
def pool(cuda: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[slabpool.Pool]:
    """A shared pool "engine" of 4 MiB of device memory."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if not slabpool.cuda.devices()[0].exportable:
        pytest.skip("this GPU's memory cannot be exported as a file descriptor")
    with slabpool.Pool("4MiB", memory="shared:cuda:0", name="engine") as pool:
        yield pool
    assert pool.stats().committed == pool.capacity  # until the pool object is destroyed


@pytest.fixture
def gpu0(pool: slabpool.Pool) -> Iterator[Device]:
    """A process of its own: a driver does not survive a fork."""
    device = Device(pool.name, "gpu0", "spawn")
    yield device
    if not device.pipe.closed:
        device.stop()


def read(peer: slabpool.Peer, ref: slabpool.TensorRef) -> tuple[Any, ...]:
    """The bytes as a device reads them."""
    array = peer.open(ref)
    assert isinstance(array, DeviceArray)
    return array.copy_to_host(), array.shape, array.device


def write(peer: slabpool.Peer, ref: slabpool.TensorRef, value: float) -> None:
    """Fill a tensor from the host."""
    array = peer.open(ref, writable=True)
    assert isinstance(array, DeviceArray)
    array.copy_from_host(np.full(array.shape, value, array.dtype))


def write_read_only(peer: slabpool.Peer, ref: slabpool.TensorRef) -> str:
    """The message for a device that writes to a tensor it opened for reading."""
    array = peer.open(ref)
    try:
        array.copy_from_host(np.zeros(array.shape, array.dtype))  # type: ignore[union-attr]
    except slabpool.InvalidArgumentError as error:
        return str(error)
    return ""


def test_a_tensor_crosses_without_a_copy(pool: slabpool.Pool, gpu0: Device) -> None:
    req = pool.request("chat-42", devices=["gpu0"])
    x = req.copy(np.arange(12, dtype=np.float32).reshape(3, 4))
    ref = req.ref(x[1:, ::2])
    assert (ref.shape, ref.strides, ref.dtype) == ((2, 2), (16, 8), np.float32)
    seen, shape, device = gpu0.ask(read, ref)
    np.testing.assert_array_equal(seen, [[4, 6], [8, 10]])
    assert (shape, device) == ((2, 2), 0)
    gpu0.ask(write, ref, 7)
    np.testing.assert_array_equal(x.copy_to_host()[1:, ::2], np.full((2, 2), 7))
    assert x.copy_to_host()[0, 1] == 1
    assert "read" in gpu0.ask(write_read_only, ref)
    req.close()
    del x
    assert gpu0.ask(ack, ref) is Ack.RELEASED
    assert pool.stats().live == 0
    with pytest.raises(slabpool.StaleReferenceError):
        gpu0.ask(read, ref)


def test_the_whole_range_is_there_from_the_start(pool: slabpool.Pool, gpu0: Device) -> None:
    """Memory that is allocated after a device attached lies in the memory that it mapped."""
    with pool.request("r", devices=["gpu0"]) as req:
        refs = [req.ref(req.full(900_000, value, "u1")) for value in range(4)]
        for value, ref in enumerate(refs):
            seen, _, _ = gpu0.ask(read, ref)
            assert seen.min() == seen.max() == value
    gpu0.kill()
    assert pool.empty(3_500_000, "u1", timeout=120).nbytes == 3_500_000


def test_references_to_other_memory_are_refused(pool: slabpool.Pool) -> None:
    with pool.request("r", devices=["gpu0"]) as req, pool.request("s") as other:
        for array in (other.zeros(4), pool.zeros(4), np.zeros(4)):
            with pytest.raises(slabpool.InvalidArgumentError):
                req.ref(array)
        assert req.ref(req.empty((0, 3))).nbytes == 0
        req.ack("gpu0")


def test_a_process_that_sees_no_gpu_cannot_attach(cuda: object, pool: slabpool.Pool) -> None:
    if cuda is None:
        pytest.skip("hides the stand-in's devices, and this machine has a GPU")
    program = f"import slabpool; slabpool.attach({pool.name!r}, device='gpu0')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"SLABPOOL_STANDIN_DEVICES": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "AttachError: pool 'engine' cannot be mapped in this process" in done.stderr
    assert "CUDA_ERROR_NO_DEVICE" in done.stderr
    assert pool.stats().requests_open == 0


def test_without_export(cuda: object, standin: Any) -> None:
    standin.set_attribute(0, 103, 0)
    with pytest.raises(slabpool.DeviceUnavailableError, match="shared"):
        slabpool.Pool("4MiB", memory="shared:cuda:0", name=f"engine-{os.getpid()}")
