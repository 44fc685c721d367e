"""Tensors that grow: one address, no copies, only the bytes of the current length, and an ordinary return."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import slabpool
from slabpool import Pool

PAGE = 4 << 10


@pytest.fixture
def pool():
    pool = Pool("16MiB")
    yield pool
    gc.collect()  # tracebacks of expected errors keep tensors alive
    pool.close()
    assert pool._verify() is None


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_it_grows_along_any_axis_and_old_views_stay(pool, axis):
    rng = np.random.default_rng(7)
    shape = [3, 4, 5]
    shape[axis] = 2
    with pool.request("r") as req:
        tensor = req.growable(tuple(shape), np.float32, axis=axis, limit=400)
        expected = rng.standard_normal(shape).astype(np.float32)
        views = [tensor.array]
        views[0][...] = expected
        for n in (1, 0, 7, 80):
            shape[axis] = n
            new = rng.standard_normal(shape).astype(np.float32)
            array = tensor.extend(n)
            assert type(array) is np.ndarray and array.flags.writeable
            at = [slice(None)] * 3
            at[axis] = slice(array.shape[axis] - n, None)
            array[tuple(at)] = new
            expected = np.concatenate([expected, new], axis)
            views.append(array)
            assert array.shape == expected.shape == tensor.shape
            assert np.array_equal(array, expected)
        for view in views:
            assert view.ctypes.data == views[0].ctypes.data
            at[axis] = slice(view.shape[axis])
            assert np.array_equal(view, expected[tuple(at)])
        # The growing axis is outermost in memory; the others follow in C order.
        assert np.moveaxis(array, axis, 0).flags.c_contiguous
        assert (tensor.length, len(tensor), tensor.limit, tensor.axis) == (90, 90, 400, axis % 3)


def test_only_what_is_committed_counts(pool):
    with pool.request("r") as req:
        tensor = req.growable((0, 1024), "u1", limit=1 << 20)  # 1 GiB of addresses in a pool of 16 MiB
        assert (pool.stats().live, tensor.nbytes, req.nbytes) == (0, 0, 0)
        for n in range(1, 12_000, 611):
            tensor.extend(n - tensor.length)
            assert n << 10 <= tensor.nbytes <= (n << 10) * 9 / 8 + PAGE
            assert pool.stats().live == req.nbytes == tensor.nbytes
        assert req.live_views == 1
        view = tensor.array
        del tensor
        req.close()
        assert pool.stats().retained == req.nbytes > 0
        view[...] = 3
        del view
        assert pool.stats().retained == 0


def test_running_out_is_an_error_and_changes_nothing(pool):
    with pool.request("r") as req:
        tensor = req.growable((1 << 20,), "u1", limit=1 << 30)
        other = pool.empty(12 << 20, "u1")
        before, length, nbytes = pool.stats(), tensor.length, tensor.nbytes
        with pytest.raises(
            slabpool.PoolExhausted, match=r"request 'r' generation 1.*12 MiB|Held by"
        ) as caught:
            tensor.extend(8 << 20)
        assert "request 'r' generation 1" in str(caught.value)
        with pytest.raises(slabpool.PoolExhausted, match=r"within 0\.01 s"):
            tensor.extend(8 << 20, timeout=0.01)
        assert (tensor.length, tensor.nbytes) == (length, nbytes)
        assert pool.stats().live == before.live
        with pytest.raises(slabpool.TensorTooLargeError, match="capacity"):
            tensor.extend(100 << 20)
        with pytest.raises(
            slabpool.TensorTooLargeError, match=r"has 1048576 of at most 1073741824 along axis 0"
        ):
            tensor.extend(1 << 30)
        with pytest.raises(slabpool.PoolExhausted, match="addresses"):
            req.growable((0, 1 << 20), "u1", limit=1 << 30)
        kept = [other]
        del other
        giver = threading.Timer(0.05, kept.clear)
        giver.start()
        assert tensor.extend(8 << 20, timeout=60).size == 9 << 20
        giver.join()


def test_a_first_length_that_does_not_fit_leaves_nothing(pool):
    with pool.request("r") as req:
        other = pool.empty(12 << 20, "u1")
        before = pool.stats()
        for _ in range(100):  # would use up the pool's addresses if each left some behind
            with pytest.raises(slabpool.PoolExhausted, match="Held by"):
                req.growable(8 << 20, "u1", limit=4 << 30)
        after = pool.stats()
        assert (after.live, after.committed, req.live_views) == (before.live, before.committed, 0)
        assert after.allocations - after.frees == before.allocations - before.frees
        del other


def test_truncate_keeps_the_memory_for_the_next_extend(pool):
    with pool.request("r") as req:
        tensor = req.growable((0, 4), np.int64, limit=10_000)
        array = tensor.extend(5000)
        array[...] = 1
        nbytes = tensor.nbytes
        assert tensor.truncate(10).shape == tensor.array.shape == (10, 4)
        longer = tensor.extend(2)
        longer[10:] = 2
        assert tensor.nbytes == nbytes
        assert array[:13].sum() == 4 * (10 + 2 * 2 + 1), "one memory"
        with pytest.raises(slabpool.InvalidArgumentError, match="has 12 along axis 0"):
            tensor.truncate(13)


def test_it_needs_its_request_open(pool):
    req = pool.request("r", devices=["gpu0"])
    tensor = req.growable((4,), limit=1 << 20)
    assert tensor.request is req
    view = tensor.array
    req.close()
    for n in (0, 1, 1 << 18):
        with pytest.raises(slabpool.RequestClosedError, match="request 'r' generation 1"):
            tensor.extend(n)
    with pytest.raises(slabpool.RequestClosedError):
        req.growable((4,), limit=8)
    assert tensor.array.shape == (4,)
    view[...] = 5
    del view, tensor
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    assert pool.stats().live == 0


def test_it_counts_in_the_requests_quota_and_reserve(pool):
    with pool.request("r", reserve="4MiB", quota="6MiB") as req:
        tensor = req.growable((0,), "u1", limit=1 << 30)
        full = pool.empty(12 << 20, "u1")
        tensor.extend(4 << 20)  # reserved, so others could not take it
        assert pool.stats().reserved == 0
        with pytest.raises(slabpool.PoolExhausted):
            tensor.extend(1)
        del full
        tensor.extend(2 << 20)
        with pytest.raises(slabpool.QuotaExceededError, match="6 MiB"):
            tensor.extend(1)
        assert tensor.length == 6 << 20


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda r: r.growable((2,), limit=1), slabpool.InvalidArgumentError, "limit is 1 and shape"),
        (lambda r: r.growable((2,), limit=-1), slabpool.InvalidArgumentError, "limit must be 0 or more"),
        (lambda r: r.growable((2,), limit="3"), slabpool.InvalidTypeError, "limit must be an int, got '3'"),
        (lambda r: r.growable((2,), limit=9, axis=1), slabpool.InvalidArgumentError, "axis must be from"),
        (lambda r: r.growable((2,), limit=9, axis=0.5), slabpool.InvalidTypeError, "axis must be an int"),
        (lambda r: r.growable((), limit=9), slabpool.InvalidArgumentError, "without axes"),
        (lambda r: r.growable((-1,), limit=9), slabpool.InvalidArgumentError, "negative"),
        (lambda r: r.growable((0, 1 << 40), limit=1 << 40), slabpool.InvalidArgumentError, "too large"),
        (lambda r: r.growable((2,), object, limit=9), slabpool.InvalidTypeError, "Python objects"),
        (lambda r: r.growable((2,), limit=9).extend(-1), slabpool.InvalidArgumentError, "n must be 0"),
        (lambda r: r.growable((2,), limit=9).extend(1.5), slabpool.InvalidTypeError, "n must be an int"),
        (lambda r: r.growable((0, 4096), limit=9).extend(9, timeout=-1), ValueError, "seconds from 0"),
        (lambda r: r.growable((2,), limit=9).truncate(-1), slabpool.InvalidArgumentError, "length must be 0"),
        (lambda _: slabpool.GrowableTensor(), slabpool.InvalidTypeError, "Request.growable"),
    ],
)  # fmt: skip
def test_bad_input_says_what_is_wrong(pool, call, error, words):
    with pool.request("r") as req:
        before = pool.stats()._replace(allocations=0, frees=0)
        with pytest.raises(error, match=words) as caught:
            call(req)
        del caught
        gc.collect()
        live = pool.stats()
        assert live.committed <= PAGE + before.committed and req.live_views == 0


def test_a_tensor_without_bytes(pool):
    with pool.request("r") as req:
        tensor = req.growable((3, 0, 0), limit=1 << 40, axis=1)
        assert tensor.extend(1 << 30).shape == (3, 1 << 30, 0)
        assert req.growable(0, limit=0).extend(0).shape == (0,)
        assert pool.stats().live == 0


def test_two_threads_extend_one_tensor(pool):
    with pool.request("r") as req:
        tensor = req.growable((0, 16), np.int32, limit=1 << 20)
        seen: list[int] = []
        start = threading.Barrier(2)

        def work() -> None:
            start.wait()
            for _ in range(3000):
                seen.append(tensor.extend(1, timeout=10).shape[0])

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(1, 6001)), "each step once"


@pytest.mark.parametrize("options", [{"scrub": "release"}, {"debug": 2}, {"memory": "shared"}])
def test_every_kind_of_pool(options):
    with Pool("4MiB", **options) as pool:
        for _ in range(3):
            with pool.request("r") as req:
                tensor = req.growable((0, 1000), np.float32, limit=10_000)
                for n in (10, 100, 300):
                    array = tensor.extend(n)
                    assert options.get("scrub") is None or not array[-n:].any(), "scrubbed, or fresh"
                    array[...] = 7
                if pool_is_shared := options.get("memory") == "shared":
                    assert req.ref(array).shape == array.shape
                assert pool_is_shared or pool.corruptions() == []
                del tensor, array
        assert pool.stats().live == 0
        assert pool.trim() > 0 or pool.stats().committed == 0
        assert pool._verify() is None
    assert pool.stats().committed == 0
