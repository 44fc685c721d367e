"""slabpool.cuda: drivers and devices, and the messages if there are none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import slabpool
from slabpool.cuda import Device
from tests.cuda.standin_build import OUT_OF_MEMORY, UNKNOWN_ATTRIBUTE, Standin

NUMA, PCI_BUS, VIRTUAL_MEMORY, POSIX_FD, CONCURRENT_MANAGED = 134, 33, 102, 103, 89

#: What a process finds that starts with the given environment.
REPORT = """
import slabpool
print(slabpool.cuda.is_available())
print(slabpool.cuda.why_unavailable())
try:
    print(slabpool.cuda.driver_version(), [device.number for device in slabpool.cuda.devices()])
except slabpool.DeviceUnavailableError as error:
    print("DeviceUnavailableError:", error)
"""


def report(**environment: str) -> list[str]:
    """The lines that REPORT prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def is_missing(lines: list[str], reason: str) -> None:
    """A process without a driver reports the same reason everywhere."""
    assert lines[0] == "False"
    assert re.search(reason, lines[1]), lines
    assert lines[2] == f"DeviceUnavailableError: {lines[1]}"


def test_a_library_that_is_not_there() -> None:
    is_missing(
        report(SLABPOOL_CUDA_DRIVER="/nowhere/libcuda.so.1"),
        r"no CUDA driver: /nowhere/libcuda.so.1: .*No such file.* \(named by SLABPOOL_CUDA_DRIVER\)",
    )


def test_a_library_that_is_no_driver() -> None:
    is_missing(report(SLABPOOL_CUDA_DRIVER="libm.so.6"), "libm.so.6 has no cuGetProcAddress")


def test_an_empty_variable_is_no_name() -> None:
    lines = report(SLABPOOL_CUDA_DRIVER="")
    if lines[0] == "False":
        is_missing(lines, r"libcuda\.so\.1")


def test_no_device(standin: Standin) -> None:
    is_missing(report(SLABPOOL_STANDIN_DEVICES="0"), r"does not start: CUDA_ERROR_NO_DEVICE 100")


def test_a_driver_that_is_too_old(standin: Standin) -> None:
    is_missing(report(SLABPOOL_STANDIN_VERSION="9000"), "has no cu[A-Za-z]+ of version [0-9]+")


@pytest.mark.parametrize("name", ["cuMemAlloc", "cuEventQuery", "cuStreamGetCtx"])
def test_a_function_that_is_needed(standin: Standin, name: str) -> None:
    is_missing(report(SLABPOOL_STANDIN_HIDE=name), f"has no {name} of version")


def test_functions_that_are_not_needed(standin: Standin) -> None:
    found = report(SLABPOOL_STANDIN_HIDE="cuMemMap,cuMemCreate,cuMemExportToShareableHandle")
    assert found == ["True", "None", "(12, 4) [0, 1]"]


def test_what_the_driver_says(standin: Standin) -> None:
    standin.set_attribute(0, NUMA, 0)
    standin.set_attribute(1, CONCURRENT_MANAGED, 0)
    standin.set_attribute(1, POSIX_FD, 0)
    standin.set_memory(1, 3 << 30)
    assert slabpool.cuda.is_available()
    assert slabpool.cuda.why_unavailable() is None
    assert slabpool.cuda.driver_version() == (12, 4)
    first, second = slabpool.cuda.devices()
    assert first == Device(0, "slabpool stand-in 0", 1 << 30, "0000:10:00.0", 0, True, True, True)
    assert second == Device(1, "slabpool stand-in 1", 3 << 30, "0000:11:00.0", None, True, False, False)
    assert str(second) == "cuda:1 slabpool stand-in 1, 3 GiB, 0000:11:00.0"
    # Listing devices creates no context, and leaves none current.
    assert standin.calls("cuDevicePrimaryCtxRetain") == 0
    assert standin.calls("cuCtxPushCurrent") == 0


def test_an_old_driver_and_the_nearest_node(standin: Standin) -> None:
    standin.set_attribute(0, NUMA, UNKNOWN_ATTRIBUTE)
    standin.set_attribute(0, VIRTUAL_MEMORY, UNKNOWN_ATTRIBUTE)
    device = slabpool.cuda.devices()[0]
    assert (device.virtual_memory, device.exportable) == (False, False)
    slots = [path for path in Path("/sys/bus/pci/devices").glob("0000:*:00.0") if path.is_dir()]
    for slot in slots[:8]:
        standin.set_attribute(0, PCI_BUS, int(slot.name.split(":")[1], 16))
        node = int((slot / "numa_node").read_text())
        device = slabpool.cuda.devices()[0]
        assert device.pci == slot.name
        assert device.numa_node == (None if node < 0 else node)


def test_free_bytes(standin: Standin) -> None:
    standin.set_memory(1, 123 << 20)
    assert slabpool.cuda.free_bytes(1) == 123 << 20
    assert slabpool.cuda.free_bytes() == 1 << 30
    assert standin.context_depth() == 0
    for number in (-1, 2):
        with pytest.raises(slabpool.InvalidArgumentError, match=f"device must be from 0 to 1, not {number}"):
            slabpool.cuda.free_bytes(number)
    standin.fail("cuMemGetInfo", result=OUT_OF_MEMORY, times=1)
    with pytest.raises(slabpool.DeviceUnavailableError, match="device 1: CUDA_ERROR_OUT_OF_MEMORY 2"):
        slabpool.cuda.free_bytes(1)


@pytest.mark.parametrize("name", ["cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem"])
def test_a_device_that_does_not_answer(standin: Standin, name: str) -> None:
    standin.fail(name, nth=2, result=999, times=1)
    with pytest.raises(slabpool.DeviceUnavailableError, match=f"{name} of CUDA device 1: CUDA_ERROR_UNKNOWN"):
        slabpool.cuda.devices()
    assert len(slabpool.cuda.devices()) == 2


def test_a_forks_child_has_no_driver(standin: Standin) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no code of pytest may run here
        try:
            message = f"{slabpool.cuda.why_unavailable()} {standin.calls_after_fork()}"
            os.write(writer, message.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert re.fullmatch(r"CUDA was used before this process was forked, .* 0", message)


def test_a_gpu(gpu: None) -> None:
    devices = slabpool.cuda.devices()
    assert devices
    assert slabpool.cuda.driver_version() >= (11, 3)
    for number, device in enumerate(devices):
        assert device.number == number
        assert 0 < slabpool.cuda.free_bytes(number) <= device.total_bytes
