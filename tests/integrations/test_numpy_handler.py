"""Arrays that numpy makes are the pool's while `numpy_handler` is in force, and only then.

test_numpy_suite.py checks that numpy's own tests have the same outcomes under the handler.
"""

from __future__ import annotations

import gc
import os
import tracemalloc
import weakref

import numpy as np
import pytest

import slabpool
from slabpool import numpy_handler, numpy_usage
from tests.integrations.numpy_pool import DEFAULT, numpys_pool, ours  # noqa: F401
from tests.integrations.numpy_suite import handler_name
from tests.process.test_fork import in_child

# ---- arrays


def test_arrays_come_from_the_pool_and_return_when_they_die(pool: slabpool.Pool) -> None:
    with numpy_handler(pool):
        a = np.arange(1000.0)
        b = a * 2 + np.ones(1000)
        view = b[::2]
    assert ours(a) and ours(b)
    assert pool.stats().live == 2 * 8192  # the temporaries are back
    assert numpy_usage(pool) == (2, 2 * 8192)
    assert (b == np.arange(1000) * 2 + 1).all()
    del a, b
    assert pool.stats().live == 8192  # the view keeps its array
    assert view[1] == 5
    del view
    assert numpy_usage(pool) == (0, 0)


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 1025, 128 << 10, (128 << 10) + 1, 3 << 20])
def test_every_size_is_aligned_and_zeroed_where_required(pool: slabpool.Pool, nbytes: int) -> None:
    with numpy_handler(pool):
        for _ in range(3):  # from the second time on, used memory
            array = np.zeros(nbytes, np.uint8)
            assert not array.any()
            assert array.ctypes.data % 64 == 0
            assert ours(array)
            array.fill(255)
            del array


def test_resizing_keeps_the_contents(pool: slabpool.Pool) -> None:
    with numpy_handler(pool):
        array = np.arange(100)
        for length in (101, 120, 5_000, 200_000, 300_000, 4_000, 3_999, 10, 1, 0, 50):
            kept = min(len(array), length)
            before = array[:kept].tolist()
            array.resize(length, refcheck=False)
            assert array[:kept].tolist() == before
            assert not array[kept:].any()  # numpy promises zeros
            assert ours(array)
        # The pool keeps at most twice what is needed.
        assert pool.stats().live <= 1024
        grown = np.fromiter((i * i for i in range(10_000)), np.int64)
    assert (grown == np.arange(10_000) ** 2).all()


def test_an_array_outlives_block_handler_and_pool_object() -> None:
    pool = slabpool.Pool("1MiB", name="np")
    gone = weakref.ref(pool)
    with numpy_handler(pool):
        array = np.full(1000, 7)
    del pool
    assert gone() is None
    assert (array == 7).all()
    array.resize(2000, refcheck=False)  # by its own handler, which gives ordinary memory after its block
    assert (array[:1000] == 7).all()


def test_objects_and_structures_are_held_and_released(pool: slabpool.Pool) -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    with numpy_handler(pool):
        array = np.array([thing, None, [thing]], dtype=object)
        text = np.array(["a" * 100, "b"])
        table = np.zeros(10, [("a", "i4"), ("b", object)])
    del thing
    assert gone() is not None
    assert text[0] == "a" * 100 and table["b"][3] == 0
    del array, text, table
    assert gone() is None


def test_memory_of_requests_is_counted_apart(pool: slabpool.Pool) -> None:
    with pool.request("r", devices=["gpu0"]) as req, numpy_handler(pool):
        kv = req.zeros((4, 256), np.float32)
        own = pool.empty(100)
        doubled = kv * 2
    assert numpy_usage(pool) == (1, doubled.nbytes)
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    assert pool.stats().retained == kv.nbytes
    del kv, own, doubled


# ---- running out, closed, forked


def test_running_out_is_a_memory_error_and_changes_nothing(pool: slabpool.Pool) -> None:
    with numpy_handler(pool):
        array = np.ones(1 << 20)
        before = pool.stats()
        with pytest.raises(MemoryError):
            np.ones(1 << 20) + array
        with pytest.raises(MemoryError):
            np.zeros(1 << 40, np.uint8)
        with pytest.raises(MemoryError):
            array.resize(3 << 20, refcheck=False)
    after = pool.stats()
    assert (after.live, array.sum()) == (before.live, 1 << 20)
    assert after.exhaustions > before.exhaustions


def test_messages_say_what_numpy_holds(pool: slabpool.Pool) -> None:
    with numpy_handler(pool):
        arrays = [np.ones(1 << 17) for _ in range(8)]
    with pytest.raises(slabpool.PoolExhausted, match="8 arrays that numpy made under numpy_handler: 8 MiB"):
        pool.empty(9 << 20, np.uint8)
    with pytest.raises(slabpool.PoolBusyError, match="8 arrays that numpy made under numpy_handler"):
        pool.close()
    del arrays
    assert "numpy_handler" not in str(pytest.raises(slabpool.PoolExhausted, pool.empty, 1 << 40).value)


def test_tracemalloc_knows_where_arrays_were_made(pool: slabpool.Pool) -> None:
    tracemalloc.start(2)  # np.ones is a Python function around the one that allocates
    try:
        with numpy_handler(pool):
            array = np.ones(100_000)
        traced = tracemalloc.get_object_traceback(array)
        by_line = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, __file__, all_frames=True)]
        )
        assert traced is not None
        assert sum(statistic.size for statistic in by_line.statistics("lineno")) >= array.nbytes
    finally:
        tracemalloc.stop()


def test_a_closed_pool_serves_nothing() -> None:
    pool = slabpool.Pool("1MiB", name="np")
    with numpy_handler(pool):
        array = np.ones(1000)
        pool.close(force=True)
        with pytest.raises(MemoryError):
            np.ones(1000)
        assert memoryview(array)[999] == 1
    with pytest.raises(slabpool.PoolClosedError, match="'np' is closed"):
        numpy_handler(pool).__enter__()
    assert handler_name() == DEFAULT
    assert np.ones(1000).sum() == array.sum()
    del array
    assert pool.stats().committed == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_reads_arrays_and_makes_ordinary_ones(pool: slabpool.Pool) -> None:
    with numpy_handler(pool):
        array = np.arange(1000)

        def child() -> list[object]:
            said: list[object] = [int(array.sum()), handler_name()]
            new = np.arange(1000) * 2  # served, although the pool belongs to the parent
            new.resize(5000, refcheck=False)
            moved = array[:10].copy()
            array.resize(2000, refcheck=False)  # moves to the child's own memory
            said += [int(new.sum()), int(moved.sum()), int(array.sum())]
            try:
                numpy_handler(pool).__enter__()
            except slabpool.ForkedPoolError:
                said.append("forked")
            return said

        pool.trim()  # so that nothing goes back by itself meanwhile
        before = pool.stats()
        total = 999 * 500
        assert in_child(child) == [total, "slabpool np", 2 * total, 45, total, "forked"]
        assert in_child(gc.collect) is not None
        assert pool.stats()[:8] == before[:8]
        assert array.sum() == total
    array = np.empty(0)


@pytest.mark.parametrize("debug", [1, 2])
def test_debug_and_scrub_find_no_corruption(debug: int) -> None:
    with slabpool.Pool("8MiB", debug=debug, scrub="release", events=64) as pool:
        with numpy_handler(pool):
            for length in (1, 100, 5000):
                array = np.arange(length)
                array.resize(length + 1, refcheck=False)
                array.resize(max(length - 1, 1), refcheck=False)
                array.fill(1)
                del array
        assert pool.corruptions() == []
        assert pool.stats().live == 0
