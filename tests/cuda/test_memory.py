"""Pools of CUDA memory in Python: memory taken from the device and returned to it, and messages."""

from __future__ import annotations

import gc
import re
import subprocess
import sys

import numpy as np
import pytest

import slabpool
from tests.cuda.standin_build import LAUNCH_FAILED, Standin

MIB = 1 << 20
VIRTUAL_MEMORY, CONCURRENT_MANAGED = 102, 89


def adds_up(pool: slabpool.Pool) -> None:
    """Check law 6."""
    s = pool.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached
    assert s.committed <= s.capacity


def address(array: object) -> int:
    """The device's address of the array."""
    return int(slabpool.device_pointer(array))


def test_device_memory_comes_and_goes(standin: Standin) -> None:
    with slabpool.Pool("64MiB", memory="cuda:1") as pool:
        assert (standin.used(0), standin.used(1)) == (0, 0)
        kv = pool.zeros((4, MIB), np.float32)
        assert standin.used(1) == pool.stats().committed == 16 * MIB
        assert standin.peek(address(kv) + kv.nbytes - 8, 8) == bytes(8)
        small = [pool.empty(1000, np.uint8) for _ in range(10)]
        adds_up(pool)
        del kv
        assert pool.trim() == 16 * MIB
        assert standin.used(1) == pool.stats().committed == 2 * MIB
        adds_up(pool)
        del small
    del pool
    gc.collect()
    assert standin.used(1) == 0


def test_the_whole_capacity_can_be_used(standin: Standin) -> None:
    with slabpool.Pool("32MiB", memory="cuda:0") as pool:
        for nbytes in (1000, 100_000, 3 * MIB, 32 * MIB, 700_000):
            arrays = []
            with pytest.raises(slabpool.PoolExhausted):
                while True:
                    arrays.append(pool.empty(nbytes, np.uint8))
            assert sum(array.nbytes for array in arrays) > 0.85 * 32 * MIB
            assert standin.used() <= 32 * MIB
            adds_up(pool)
            del arrays


def test_a_device_that_is_full(standin: Standin) -> None:
    standin.set_memory(0, 32 * MIB)
    with slabpool.Pool("32MiB", memory="cuda:0") as other, slabpool.Pool("32MiB", memory="cuda:0") as pool:
        theirs = other.empty(20 * MIB, np.uint8)
        ours = pool.empty(8 * MIB, np.uint8)
        before = pool.stats()
        with pytest.raises(slabpool.PoolExhausted) as caught:
            pool.empty(8 * MIB, np.uint8)
        assert (
            "cannot allocate 8 MiB: cuMemCreate of 8 MiB on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY 2 "
            "(out of memory); 4 MiB of its 32 MiB are free. Other pools, libraries or processes hold the "
            "rest: close or trim those, or ask for less; pool "
        ) in str(caught.value)
        after = pool.stats()
        assert (after.committed, after.live) == (before.committed, before.live)
        del theirs
        other.trim()
        assert pool.empty(8 * MIB, np.uint8).nbytes == ours.nbytes
        del ours


def test_without_virtual_memory_management(standin: Standin) -> None:
    standin.set_attribute(0, VIRTUAL_MEMORY, 0)
    with slabpool.Pool("10MiB", memory="cuda:0") as pool:
        assert pool.stats().committed == 10 * MIB
        assert standin.calls("cuMemAlloc") == 1
        # Small ones first: afterwards the capacity is still one piece.
        del [pool.empty(100_000, np.uint8) for _ in range(50)][:]
        assert pool.trim() == 0
        array = pool.zeros(10 * MIB, np.uint8)
        assert standin.peek(address(array) + 10 * MIB - 1, 1) == b"\0"
        adds_up(pool)
        del array


def test_pinned_memory_comes_and_goes(standin: Standin) -> None:
    with slabpool.Pool("128MiB", memory="pinned:1") as pool:
        assert standin.calls("cuMemHostRegister") == 0
        array = pool.full((3, 1000), 7, np.int32)
        assert isinstance(array, np.ndarray)
        assert array.sum() == 21000
        assert standin.calls("cuMemHostRegister") == 1
        assert pool.stats().committed == 32 * MIB
        adds_up(pool)
        del array
        assert pool.trim() == 32 * MIB
        assert standin.calls("cuMemHostUnregister") == 1
        standin.fail("cuMemHostRegister")
        with pytest.raises(slabpool.PoolExhausted, match="cuMemHostRegister of 32 MiB on CUDA device 1: "):
            pool.empty(10)
        standin.clear_faults()
        assert pool.zeros(10).sum() == 0


def test_managed_memory(standin: Standin) -> None:
    standin.set_memory(0, 64 * MIB)
    with slabpool.Pool("64MiB", memory="managed:0") as pool:
        array = pool.zeros(8 * MIB, np.float64)
        assert array.sum() == 0
        adds_up(pool)
        del array
    with pytest.raises(slabpool.DeviceUnavailableError, match="does not fit on CUDA device 0"):
        slabpool.Pool("65MiB", memory="managed:0")
    standin.set_attribute(0, CONCURRENT_MANAGED, 0)
    with pytest.raises(slabpool.DeviceUnavailableError, match="Use pinned memory"):
        slabpool.Pool("1MiB", memory="managed:0")


@pytest.mark.parametrize("memory", ["cuda:0", "managed:0", "shared:cuda:0"])
def test_a_creation_that_fails_leaves_nothing(standin: Standin, memory: str) -> None:
    failures = []
    for nth in range(1, 100):
        standin.fail("*", nth=nth, times=1)
        pool = None
        try:
            pool = slabpool.Pool("4MiB", memory=memory)
        except slabpool.DeviceUnavailableError as error:
            failures.append(str(error))
        done = standin.faults_left() == 1
        standin.clear_faults()
        assert standin.complaints() == ""
        if pool is None:
            gc.collect()
            assert standin.leaks() == ""
        del pool
        if done:
            break
    else:
        pytest.fail("never without a fault")
    assert failures
    assert all(re.search(r"CUDA device 0\b", text) for text in failures), failures


def test_a_lost_device(standin: Standin) -> None:
    pool = slabpool.Pool("8MiB", memory="cuda:0")
    array = pool.empty(1000, np.uint8)
    standin.lose_device(0, LAUNCH_FAILED)
    with pytest.raises((slabpool.DeviceLostError, slabpool.PoolExhausted), match="fail"):
        pool.empty(8 * MIB - 4 * 65536, np.uint8)
    with pytest.raises(slabpool.DeviceUnavailableError, match="CUDA_ERROR_LAUNCH_FAILED 719"):
        slabpool.Pool("8MiB", memory="cuda:0")
    adds_up(pool)
    assert slabpool.Pool("8MiB", memory="cuda:1").empty(8, np.uint8).nbytes == 8
    del array
    pool.close()
    del pool
    gc.collect()
    standin.lose_device(0, 0)
    standin.reset()


def test_a_pool_at_exit(standin: Standin) -> None:
    """Objects that live until the interpreter ends do no harm."""
    code = "import slabpool; p = slabpool.Pool('4MiB', memory='cuda:0'); a = p.zeros(10); print(a.shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(10,)\n", "")
