"""A process without a free memory mapping: the kernel changes a part of a range and then refuses.

Every tensor that is handed out can be written, figures add up, and all of the pool can be used again once
there are mappings (vm.max_map_count).
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import _missing

LIMIT = Path("/proc/sys/vm/max_map_count")
MOST = 200_000  # mappings that a test may make

SCENE = """
import ctypes, random, sys
import slabpool
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

memory, most, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
MiB = 1 << 20
SIZES = [100_000, 200_000, 400_000, MiB, 2 * MiB]
rng = random.Random(seed)
pool = slabpool.Pool("32MiB", memory=memory)
held = []
outcomes = {"served": 0, "refused": 0, "quarantined": 0}

def check():
    s = pool.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached <= s.capacity, s
    assert s.quarantined <= s.cached, s
    assert pool._verify() is None, pool._verify()
    outcomes["quarantined"] = max(outcomes["quarantined"], s.quarantined)

def take():
    try:
        x = pool.empty(rng.choice(SIZES), "u1", align=rng.choice([64, 64, MiB]))
    except slabpool.PoolExhausted:
        outcomes["refused"] += 1
        return
    mark = rng.randrange(1, 256)
    x[:] = mark
    held.append((x, mark))
    outcomes["served"] += 1

def drop():
    x, mark = held.pop(rng.randrange(len(held)))
    assert x.min() == mark == x.max()  # without a temporary array, for which there may be no mapping

for _ in range(40):
    take()
for _ in range(15):
    drop()
low = libc.mmap(None, 2 * most * 4096, 0, 0x4022, -1, 0)
assert low != ctypes.c_void_p(-1).value
i = 0
while libc.mprotect(low + i * 8192, 4096, 1) == 0:  # until there are no mappings left
    i += 1
for step in range(400):
    rng.choice([take, take, drop, pool.trim])() if held else take()
    check()
    if step % 40 == 39:  # a few mappings for a while
        for _ in range(3):
            i -= 1
            libc.mprotect(low + i * 8192, 4096, 0)
    elif step % 40 == 19:
        while libc.mprotect(low + i * 8192, 4096, 1) == 0:
            i += 1
libc.munmap(low, 2 * most * 4096)
while held:
    drop()
pool.trim()
s = pool.stats()
assert s.committed == 0 and s.quarantined == 0 and s.file_bytes == 0, s
pool.empty(32 * MiB, "u1")[:] = 1
check()
assert outcomes["served"] > 50 and outcomes["refused"] > 0, outcomes
print(outcomes)
"""


@pytest.mark.parametrize("memory", ["host", "shared"])
@pytest.mark.parametrize("seed", range(3))
def test_tensors_can_be_written_without_free_mappings(tmp_path: Path, memory: str, seed: int) -> None:
    limit = int(LIMIT.read_text())
    if limit > MOST:
        _missing(f"needs vm.max_map_count of at most {MOST} (it is {limit})")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCENE), memory, str(limit), str(seed)],
        capture_output=True,
        text=True,
        timeout=400,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
