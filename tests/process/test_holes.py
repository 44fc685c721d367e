"""A device that touches memory outside of what it was given makes the kernel allocate pages in the file.

`stats().file_bytes` shows them, and `trim()` and `close()` give them back, without a change to anything that
is held.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

import slabpool
from tests.process.devices import Device, attached, total
from tests.process.test_hostile import Raw

MiB = 1 << 20


def touch_holes(_: None, name: str, device: str, begin: int, nbytes: int, write: bool) -> None:
    """As a device of the pool, write or read the shared file's bytes from `begin` on."""
    raw = Raw(name, device)
    fd = raw.writable_data() if write else raw.data
    access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
    data = np.frombuffer(mmap.mmap(fd, nbytes, access=access, offset=begin), "u1")
    if write:
        data[:] = 7  # type: ignore[index]
    else:
        assert not data.any()
    del raw  # attached until its process ends


def consistent(pool: slabpool.Pool) -> slabpool.Stats:
    s = pool.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached
    assert pool._verify() is None
    return s


@pytest.mark.parametrize("write", [True, False], ids=["written", "read"])
def test_pages_of_a_dead_device_go_back_with_trim(shared_pool: slabpool.Pool, write: bool) -> None:
    with attached(shared_pool, "good") as (good,):
        mine = shared_pool.empty(3 * MiB, "u1")
        mine[:] = 5
        request = shared_pool.request("r", devices=["good"])
        theirs = request.empty(MiB, "u1")
        theirs[:] = 3
        ref = request.ref(theirs)
        del theirs
        request.close()
        shared_pool.trim()
        assert consistent(shared_pool).file_bytes == shared_pool.stats().committed
        # More than the pool's capacity, and all of it outside of what is committed.
        dead = Device("engine", None)
        dead.ask(touch_holes, "engine", "dead", 1 << 30, 20 * MiB, write)
        dead.kill()
        assert consistent(shared_pool).file_bytes == shared_pool.stats().committed + 20 * MiB
        assert shared_pool.trim() == 20 * MiB
        s = consistent(shared_pool)
        assert s.file_bytes == s.committed >= 4 * MiB
        assert (mine == 5).all()
        assert good.ask(total, ref) == 3 * MiB
        assert shared_pool.trim() == 0


def test_bytes_in_the_hole_of_a_freed_tensor(shared_pool: slabpool.Pool) -> None:
    keep = shared_pool.empty(MiB, "u1")
    keep[:] = 5
    array = shared_pool.empty(4 * MiB, "u1")
    begin = array.__array_interface__["data"][0] - keep.__array_interface__["data"][0]
    del array
    shared_pool.trim()
    dead = Device("engine", None)
    dead.ask(touch_holes, "engine", "dead", begin, 4 * MiB, True)
    dead.kill()
    assert consistent(shared_pool).file_bytes >= 5 * MiB
    assert shared_pool.trim() == 4 * MiB
    # The same addresses, which the device wrote to.
    assert not shared_pool.zeros(4 * MiB, "u1").any()
    assert (keep == 5).all()


def test_close_gives_them_back(shared_pool: slabpool.Pool) -> None:
    x = shared_pool.empty(MiB, "u1")
    dead = Device("engine", None)
    dead.ask(touch_holes, "engine", "dead", 1 << 30, 4 * MiB, True)
    dead.kill()
    fd = _data_file()
    assert os.fstat(fd).st_blocks * 512 >= 5 * MiB
    del x
    shared_pool.close()
    assert os.fstat(fd).st_blocks == 0
    assert shared_pool.stats().file_bytes == 0


def _data_file() -> int:
    """The descriptor of the largest shared file of this process: the pool's data."""
    files: dict[int, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if "memfd:slabpool" in os.readlink(f"/proc/self/fd/{name}"):
                files[int(name)] = os.fstat(int(name)).st_size
        except FileNotFoundError:
            continue
    return max(files, key=lambda fd: files[fd])


def test_a_private_pool_has_no_file() -> None:
    with slabpool.Pool("1MiB") as pool:
        pool.empty(4096, "u1")[:] = 1
        assert pool.stats().committed > 0
        assert pool.stats().file_bytes == 0
