"""What a pool reports: bytes that add up, peaks, counts; and what trimming and closing return.

The figures are compared with what the test itself holds, not with each other: a pool could make any figures
add up. Sizes here are whole blocks (powers of two), so that rounding does not matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Pool, PoolExhausted, Stats
from tests.waiting import until

KiB = 1 << 10
MiB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("64MiB") as pool:
        yield pool
        assert pool._verify() is None


def check(pool: Pool, live: int, retained: int = 0, in_doubt: int = 0) -> Stats:
    s = pool.stats()
    assert (s.live, s.retained, s.in_doubt) == (live, retained, in_doubt)
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached
    assert s.cached >= 0
    assert s.committed <= s.peak_committed <= s.capacity
    assert live + retained + in_doubt <= s.peak_live <= s.capacity
    assert s.address_space >= s.capacity
    assert s.allocations - s.frees >= 0
    return s


# ---- bytes


def test_bytes_at_each_step(pool: Pool) -> None:
    check(pool, 0)
    a = pool.empty(4 * KiB, "u1")
    check(pool, 4 * KiB)
    b = pool.empty(MiB, "u1")
    check(pool, 4 * KiB + MiB)
    req = pool.request("r", ["gpu0"], lease=3600)
    check(pool, 4 * KiB + MiB)
    c = req.empty(256 * KiB, "u1")
    req.empty(64, "u1")
    check(pool, 4 * KiB + MiB + 256 * KiB + 64)
    del a
    check(pool, MiB + 256 * KiB + 64)
    req.close()
    check(pool, MiB + 256 * KiB + 64)
    req.ack("gpu0")
    check(pool, MiB, 256 * KiB)
    piece = c[5:6]
    del c
    check(pool, MiB, 256 * KiB)
    del piece
    check(pool, MiB)
    del b
    last = check(pool, 0)
    assert last.peak_live == 4 * KiB + MiB + 256 * KiB + 64
    assert (last.allocations, last.frees) == (4, 4)
    assert last.cached == last.committed > 0
    pool.trim()
    assert check(pool, 0).committed == 0


def test_bytes_in_doubt_at_each_step(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"], lease=0.01)
    array = req.empty(4 * KiB, "u1")
    req.close()
    until(lambda: pool.stats().requests_in_doubt == 1)
    check(pool, 0, 0, 4 * KiB)
    own = pool.empty(8 * KiB, "u1")
    check(pool, 8 * KiB, 0, 4 * KiB)
    req.ack("gpu0")
    check(pool, 8 * KiB, 4 * KiB)
    del array
    check(pool, 8 * KiB)
    del own
    check(pool, 0)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1000, 1024])
def test_small_blocks_are_multiples_of_64(pool: Pool, nbytes: int) -> None:
    array = pool.empty(nbytes, "u1")
    check(pool, max(64, -(-nbytes // 64) * 64))
    del array


def test_rounding_wastes_an_eighth_at_most_above_1_kib(pool: Pool) -> None:
    rng = np.random.default_rng(3)
    for nbytes in [1025, 2049, 16385, 131_073, 1_000_001, *(2 ** rng.uniform(10.1, 24.5, 300)).astype(int)]:
        array = pool.empty(int(nbytes), "u1")
        live = pool.stats().live
        assert nbytes <= live <= nbytes * 1.125, nbytes
        del array
        assert pool.stats().live == 0


@pytest.mark.parametrize("align", [128, 4096, 1 << 15, 2 * MiB])
def test_alignment_costs_address_space_not_memory(pool: Pool, align: int) -> None:
    arrays = [pool.empty(100, "u1", align=align) for _ in range(8)]
    assert pool.stats().live <= 8 * max(min(align, 16 * KiB), 128)
    del arrays


def test_peaks_stay_when_bytes_return(pool: Pool) -> None:
    arrays = [pool.empty(MiB, "u1") for _ in range(10)]
    assert check(pool, 10 * MiB).peak_live == 10 * MiB
    arrays.clear()
    s = check(pool, 0)
    assert (s.peak_live, s.peak_committed >= 10 * MiB) == (10 * MiB, True)
    pool.trim()
    small = pool.empty(MiB, "u1")
    s = check(pool, MiB)
    assert (s.peak_live, s.peak_committed >= 10 * MiB) == (10 * MiB, True)
    del small


def test_retained_and_doubtful_bytes_count_for_the_peak(pool: Pool) -> None:
    with pool.request("r") as req:
        kept = req.empty(4 * MiB, "u1")
    own = pool.empty(4 * MiB, "u1")
    assert check(pool, 4 * MiB, 4 * MiB).peak_live == 8 * MiB
    del kept, own


def test_other_threads_memory_counts_too(pool: Pool) -> None:
    kept: list[Any] = []
    threads = [threading.Thread(target=lambda: kept.append(pool.empty(MiB, "u1"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    s = check(pool, 4 * MiB)
    assert s.allocations == 4
    kept.clear()  # the blocks are freed by this thread
    s = check(pool, 0)
    assert s.frees == 4
    assert 4 * MiB <= s.peak_live <= 4 * MiB + 4 * MiB


def test_exhaustions_are_counted_and_change_nothing_else() -> None:
    with Pool("1MiB") as pool:
        held = pool.empty(768 * KiB, "u1")
        before = pool.stats()
        for call in (
            lambda: pool.empty(512 * KiB, "u1"),
            lambda: pool.zeros(512 * KiB, "u1", timeout=0.01),
            lambda: pool.request("r", reserve="512KiB"),
        ):
            with pytest.raises(PoolExhausted):
                call()
        after = pool.stats()
        assert after.exhaustions == before.exhaustions + 3
        assert (after.live, after.allocations, after.requests_open) == (before.live, before.allocations, 0)
        with pytest.raises(slabpool.TensorTooLargeError):
            pool.empty(2 * MiB, "u1")
        del held


def test_stats_are_a_frozen_record(pool: Pool) -> None:
    s = pool.stats()
    with pytest.raises(AttributeError):
        s.live = 3  # type: ignore[misc]
    assert s == pool.stats()
    array = pool.empty(64, "u1")
    assert s.live == 0
    assert s != pool.stats()
    assert "64 live" in repr(pool)
    assert repr(pool).startswith(f"<Pool {pool.name!r}")
    del array


# ---- trim and close


def resident() -> int:
    """Bytes of this process in physical memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("huge_pages", [False, True])
@pytest.mark.parametrize("size", [4 * KiB, 64 * KiB, 4 * MiB])
def test_trim_gives_resident_memory_back(size: int, huge_pages: bool) -> None:
    with Pool("128MiB", huge_pages=huge_pages) as pool:
        before = resident()
        arrays = [pool.full(size, 7, "u1") for _ in range(64 * MiB // size)]
        assert resident() - before >= 60 * MiB
        arrays.clear()
        freed = pool.trim()
        s = check(pool, 0)
        assert (s.committed, s.cached) == (0, 0)
        assert freed >= 60 * MiB
        assert resident() - before < 12 * MiB  # Python keeps some memory of 16,384 array objects
        assert pool.trim() == 0


def test_trim_leaves_what_is_in_use(pool: Pool) -> None:
    kept = [pool.full(size, 7, "u1") for size in (100, 10_000, 100_000, 3 * MiB)]
    gone = [pool.full(size, 8, "u1") for size in (100, 10_000, 100_000, 3 * MiB)]
    gone.clear()
    live = pool.stats().live
    assert pool.trim() >= 3 * MiB
    check(pool, live)
    assert all((array == 7).all() for array in kept)
    del kept


def test_close_returns_all_memory_to_the_system() -> None:
    pool = Pool("64MiB")
    array = pool.full(32 * MiB, 1, "u1")
    del array
    pool.close()
    s = pool.stats()
    assert (s.committed, s.live, s.cached) == (0, 0, 0)


# ---- a separate process


def test_pool_alive_at_exit_is_no_trouble() -> None:
    code = """
        import slabpool, threading
        pool = slabpool.Pool("64MiB", debug=2, events=10)
        req = pool.request("r", ["gpu0"])
        kept = [req.full(1000, 1.0), pool.full(1 << 20, 1.0)]
        t = req.allocate(slabpool.Layout({"a": (3, "f4")}))
        thread = threading.Thread(target=lambda: kept.append(pool.zeros(5)))
        thread.start(); thread.join()
        req.close()
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
