"""Quota and reserve: the limit of a request, and the bytes promised to it.

Invariants: reserved bytes are there when the request asks for them, whatever other requests do; a reserve
that is refused leaves nothing behind; both count whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import slabpool
from slabpool import Pool, PoolExhausted, QuotaExceededError
from tests.settled import settled

MiB = 1 << 20
KiB = 1 << 10
PAGE = 4 * KiB


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("1MiB") as pool:
        yield pool
        assert pool._verify() is None
        assert pool.stats().reserved == 0


# ---- quota


def test_quota_bounds_whole_blocks(pool: Pool) -> None:
    with pool.request("r", quota=8 * KiB) as req:
        assert req.quota == 8 * KiB
        req.empty(4 * KiB, "u1")
        req.empty(4000, "u1")  # also a block of 4 KiB
        with pytest.raises(QuotaExceededError, match="8 KiB"):
            req.empty(1, "u1")
        assert req.nbytes == 8 * KiB
        assert pool.stats().exhaustions == 0
        pool.empty(1, "u1")  # the quota does not bind other callers
    with pool.request("r", quota="8KiB") as req:  # the bytes of the last request do not count
        req.empty(8 * KiB, "u1")


def test_quota_covers_children_until_they_return(pool: Pool) -> None:
    with pool.request("r", ["gpu0"], quota=8 * KiB) as req:
        step = req.child(["gpu0"])
        assert step.quota == 8 * KiB
        step.empty(4 * KiB, "u1")
        deeper = step.child()
        deeper.empty(4 * KiB, "u1")
        for each in (req, step, deeper):
            with pytest.raises(QuotaExceededError):
                each.empty(1, "u1")
        deeper.close()
        req.empty(4 * KiB, "u1")
        step.close()
        with pytest.raises(QuotaExceededError):
            req.empty(1, "u1")  # a device still holds the step
        step.ack("gpu0")
        req.empty(4 * KiB, "u1")
        with pytest.raises(QuotaExceededError):
            req.empty(1, "u1")
        req.ack("gpu0")


def test_quota_counts_a_layout_as_one(pool: Pool) -> None:
    layout = slabpool.Layout(dict.fromkeys("abcd", (1024, "u1")))
    with pool.request("r", quota=4 * KiB) as req:
        assert req.allocate(layout)["d"].nbytes == 1024
        with pytest.raises(QuotaExceededError):
            req.allocate(layout)


def test_failed_allocation_is_not_charged(pool: Pool) -> None:
    with pool.request("r", quota="1MiB") as req:
        rest = pool.empty(512 * KiB, "u1")
        for _ in range(100):
            with pytest.raises(PoolExhausted):
                req.empty(768 * KiB, "u1")
        del rest
        req.empty(768 * KiB, "u1")


# ---- reserve


def serve(req: slabpool.Request, size: int) -> bool:
    try:
        req.empty(size, "u1")
    except PoolExhausted:
        return False
    return True


def sizes_within(budget: int, largest: int, rng: np.random.Generator) -> list[int]:
    """Sizes from 64 bytes to 2**largest, even on a log scale, whose blocks take exactly the budget."""
    sizes: list[int] = []
    with Pool(4 * budget) as pool, pool.request("measure") as req:
        while True:
            size = int(2 ** rng.uniform(6, largest))
            req.empty(size, "u1")
            if req.nbytes > budget:
                return sizes
            sizes.append(size)


# Sizes whose blocks fill pages exactly, so that the last byte of a reserve can be used.
@pytest.mark.parametrize("size", [64, 1024, 4096, 16384, 65536, 131_072, 524_288])
def test_two_reserves_of_half_are_both_fully_served(size: int) -> None:
    with Pool("1MiB") as pool:
        first, second = pool.request("a", reserve="512KiB"), pool.request("b", reserve="512KiB")
        assert pool.stats().reserved == MiB
        with pytest.raises(PoolExhausted):
            pool.empty(64, "u1")
        with pytest.raises(PoolExhausted):
            pool.request("c", reserve=1)
        for _ in range(512 * KiB // size):  # in turns, so that neither has slabs to itself by chance
            first.empty(size, "u1")
            second.empty(size, "u1")
        assert first.nbytes == second.nbytes == 512 * KiB
        stats = pool.stats()
        assert (stats.live, stats.committed, stats.reserved) == (MiB, MiB, 0)
        assert pool._verify() is None
        first.close()
        second.close()
        assert (pool.stats().reserved, pool.stats().live) == (0, 0)
        assert pool.empty(MiB, "u1").nbytes == MiB


@pytest.mark.parametrize("size", [100, 1000, 1500, 5000, 20_000, 40_000, 100_000, 140_000])
def test_reserves_of_other_sizes_are_served_to_the_last_block(size: int) -> None:
    with Pool("4MiB") as pool:
        requests = [pool.request(number, reserve="1MiB") for number in range(4)]
        with Pool("1MiB") as other, other.request("one") as one:
            one.empty(size, "u1")
            block = one.nbytes
        active = list(requests)
        while active:
            active = [req for req in active if serve(req, size)]
        assert [req.nbytes for req in requests] == [MiB // block * block] * 4
        for req in requests:
            req.close()


@pytest.mark.parametrize("largest", [12, 15, 17, 19])
@pytest.mark.parametrize("seed", range(5))
def test_reserves_of_mixed_sizes_are_served_to_the_last_byte(largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with Pool("4MiB") as pool:
        requests = [pool.request(number, reserve="1MiB") for number in range(4)]
        planned = {req: sizes_within(MiB, largest, rng) for req in requests}
        while any(planned.values()):  # in turns; no other memory is free
            for req, sizes in planned.items():
                if sizes:
                    req.empty(sizes.pop(), "u1")
        for req in requests:
            req.close()


@pytest.mark.parametrize("seed", range(5))
def test_steps_of_a_request_draw_on_its_reserve_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    with Pool("4MiB") as pool:
        req = pool.request("chat", reserve="1MiB")
        other = pool.request("other", reserve="3MiB")
        req.empty(1000, "u1")
        for _ in range(200):
            with req.child() as step:
                for size in sizes_within(MiB - PAGE, 18, rng):
                    step.empty(size, "u1")
        assert pool.stats().reserved == 4 * MiB - PAGE
        req.close()
        other.close()


def test_refused_reserve_leaves_nothing(pool: Pool) -> None:
    keep = pool.empty(512 * KiB, "u1")
    before = settled(pool)
    with pytest.raises(PoolExhausted, match="768 KiB"):
        pool.request("r", ["gpu0"], reserve="768KiB")
    after = pool.stats()
    assert after == before._replace(exhaustions=before.exhaustions + 1, metadata=after.metadata)
    assert pool.requests() == []
    with pool.request("r", reserve="512KiB"):
        assert pool.stats().reserved == 512 * KiB
    del keep


def test_reserve_takes_room_from_others_and_returns_it(pool: Pool) -> None:
    with pool.request("r", reserve="768KiB") as req:
        others = pool.empty(256 * KiB, "u1")
        with pytest.raises(PoolExhausted, match="768 KiB reserved"):
            pool.empty(16 * KiB, "u1")
        own = req.empty(256 * KiB, "u1")
        assert pool.stats().reserved == 512 * KiB
        del others
        assert pool.empty(256 * KiB, "u1").nbytes == 256 * KiB
        del own
        assert pool.stats().reserved == 512 * KiB  # the request keeps its block
    assert pool.stats().reserved == 0
    assert pool.empty(1 * MiB, "u1").nbytes == MiB


def test_request_may_have_more_than_its_reserve(pool: Pool) -> None:
    with pool.request("r", reserve="256KiB") as req:
        req.empty(512 * KiB, "u1")
        assert pool.stats().reserved == 0
        req.empty(512 * KiB, "u1")
        with pytest.raises(PoolExhausted):
            req.empty(1, "u1")


def test_children_draw_on_the_reserve_and_return_it(pool: Pool) -> None:
    with pool.request("r", ["gpu0"], reserve="512KiB") as req:
        for _ in range(50):
            with req.child(["gpu0"]) as step:
                step.empty(256 * KiB, "u1")
                assert pool.stats().reserved == 256 * KiB
                with pytest.raises(PoolExhausted):
                    pool.empty(768 * KiB, "u1")
            step.ack("gpu0")
            assert pool.stats().reserved == 512 * KiB
        req.empty(512 * KiB, "u1")
        req.ack("gpu0")


def test_reserve_is_held_until_the_last_device_leaves(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"], reserve="768KiB")
    req.empty(256 * KiB, "u1")
    req.close()
    req.ack("gpu0")
    assert pool.stats().reserved == 0
    assert pool.empty(1 * MiB, "u1").nbytes == MiB


def test_reserve_evicts_the_caches_of_others(pool: Pool) -> None:
    arrays = [pool.empty(size, "u1") for size in (100, 5000, 70_000, 200_000) for _ in range(2)]
    arrays.clear()
    assert pool.stats().cached > 0
    with pool.request("r", reserve="1MiB") as req:
        req.empty(1 * MiB, "u1")


def test_released_view_does_not_count_against_a_new_reserve_twice(pool: Pool) -> None:
    req = pool.request("r", reserve="512KiB")
    kept = req.full(512 * KiB, 7, "u1")
    req.close()
    assert (pool.stats().retained, pool.stats().reserved) == (512 * KiB, 0)
    with pool.request("s", reserve="512KiB") as other:
        with pytest.raises(PoolExhausted):
            pool.request("t", reserve=1)
        other.empty(512 * KiB, "u1")
    assert (kept == 7).all()
    del kept
