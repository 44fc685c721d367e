"""Tensors that give a part back: whole pages at once, never those that an array or a device can access."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import slabpool
from slabpool import GrowableTensor, Pool
from tests.crew import switching_often, together

with slabpool.Pool("1MiB") as _pool, _pool.request("page") as _request:
    PAGE = _request.growable(1, "u1", limit=1).nbytes
KiB = 1 << 10
MiB = 1 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool("16MiB")
    yield pool
    gc.collect()  # tracebacks of expected errors keep tensors alive
    pool.close()
    assert pool._verify() is None


def least(first: int, stop: int, row: int) -> int:
    """Bytes of the pages that these rows lie in."""
    return -(-stop * row // PAGE) * PAGE - first * row // PAGE * PAGE


def figures(pool: Pool, tensor: GrowableTensor) -> None:
    s = pool.stats()
    assert s.committed == s.live + s.cached and s.live == tensor.nbytes
    assert tensor.request is not None and tensor.request.nbytes == tensor.nbytes
    assert pool._verify() is None


def test_truncate_with_release_returns_whole_pages(pool: Pool) -> None:
    with pool.request("r") as req:
        tensor = req.growable((3000, 1024), "u1", limit=1 << 20)
        tensor.array[:] = 7
        before = pool.stats()
        kept = tensor.truncate(10, release=True)
        assert kept.shape == (10, 1024) and (kept == 7).all()
        assert tensor.nbytes == least(0, 10, KiB)
        figures(pool, tensor)
        assert pool.stats().committed == before.committed - before.live + tensor.nbytes, "at once"
        longer = tensor.extend(3000)
        longer[10:] = 8
        assert (longer[:10] == 7).all() and kept.ctypes.data == longer.ctypes.data
        assert tensor.truncate(0, release=True).shape == (0, 1024)
        assert tensor.nbytes > 0, "`longer` lives"
        del longer, kept
        assert tensor.nbytes == 0
        figures(pool, tensor)
        assert pool.stats().committed == pool.stats().cached


def test_a_window_slides_through_more_than_the_capacity(pool: Pool) -> None:
    with pool.request("r", quota="3MiB") as req:
        tensor = req.growable((0, 4, KiB), "u1", limit=1 << 20)
        for step in range(0, 20_000, 250):
            window = tensor.extend(250)
            window[-250:] = step // 250
            if tensor.length > 500:
                window = tensor.drop_front(tensor.length - 500)
                assert window.shape == (500, 4, KiB)
                assert (window[0] == step // 250 - 1).all() and (window[-1] == step // 250).all()
            assert tensor.first == max(step - 250, 0)
            del window
            figures(pool, tensor)
            assert pool.stats().committed <= 4 * MiB
        assert 80 * MiB > 4 * pool.capacity, "more than there ever was"


def test_the_other_rows_keep_their_addresses(pool: Pool) -> None:
    with pool.request("r") as req:
        tensor = req.growable((2, 0, 64), np.float32, axis=1, limit=10_000)
        array = tensor.extend(1000)
        array[...] = np.arange(1000, dtype=np.float32)[:, None]
        address = array[:, 900:].ctypes.data
        del array
        window = tensor.drop_front(900)
        assert window.ctypes.data == address
        assert tensor.shape == window.shape == tensor.array.shape == (2, 100, 64)
        assert np.array_equal(window[1, :, 3], np.arange(900, 1000))
        assert (tensor.first, tensor.length, len(tensor)) == (900, 100, 100)
        with pytest.raises(slabpool.InvalidArgumentError, match="cannot drop 101: the tensor has 100"):
            tensor.drop_front(101)
        with pytest.raises(slabpool.InvalidArgumentError, match="n must be 0 or more"):
            tensor.drop_front(-1)
        with pytest.raises(slabpool.InvalidTypeError, match="n must be an int"):
            tensor.drop_front("1")  # type: ignore[arg-type]
        with pytest.raises(slabpool.TensorTooLargeError, match="1000, 900 of them dropped, of at most 10000"):
            tensor.extend(9001)
        assert tensor.extend(9000).shape == (2, 9100, 64)


def test_pages_stay_while_an_array_of_them_lives(pool: Pool) -> None:
    with pool.request("r") as req:
        tensor = req.growable((0, KiB), "u1", limit=100_000)
        tensor.extend(1000)[:] = 1
        old = tensor.array[100:110]  # keeps the array that it is a slice of
        whole = tensor.nbytes
        tensor.drop_front(500)
        tensor.truncate(200, release=True)
        assert tensor.nbytes == whole and (old == 1).all()
        later = tensor.array
        old[:] = 2  # no page of it has gone
        window = memoryview(tensor.drop_front(50))  # type: ignore[arg-type]
        del old
        assert tensor.nbytes == least(500, 700, KiB), "`later` has these rows"
        del later
        assert tensor.nbytes == least(550, 700, KiB)
        figures(pool, tensor)
        tensor.drop_front(tensor.length)
        assert tensor.nbytes == least(550, 700, KiB)
        assert bytes(window)[:KiB] == b"\1" * KiB
        del window
        assert tensor.nbytes <= PAGE, "of the end, where the next row begins"


def test_an_array_that_toggles_writeable_keeps_no_more_than_its_rows(pool: Pool) -> None:
    with pool.request("r") as req:
        tensor = req.growable((1000, KiB), "u1", limit=100_000)
        window = tensor.drop_front(900)
        window.flags.writeable = False
        window.flags.writeable = True
        window[:] = 3
        assert tensor.nbytes <= least(900, 1000, KiB) + 9 * PAGE
        exported = memoryview(window.base)  # type: ignore[arg-type]
        assert exported.nbytes == 100 * KiB and exported[0] == 3
        del window
        tensor.drop_front(100)
        assert exported[-1] == 3
        del exported
        assert tensor.nbytes <= 9 * PAGE


def test_quota_and_reserve_get_them_back(pool: Pool) -> None:
    with pool.request("r", reserve="2MiB", quota="4MiB") as req:
        tensor = req.growable((4096, KiB), "u1", limit=100_000)
        with pytest.raises(slabpool.QuotaExceededError):
            req.empty(1, "u1")
        assert pool.requests()[0].reserved == pool.stats().reserved == 0
        tensor.drop_front(3072)
        assert pool.requests()[0].reserved == pool.stats().reserved == 2 * MiB
        assert req.empty(3 * MiB, "u1").nbytes == 3 * MiB


def test_nothing_goes_while_a_device_holds(pool: Pool) -> None:
    with pool.request("r", devices=["gpu0"]) as req:
        tensor = req.growable((1000, KiB), "u1", limit=100_000)
        whole = tensor.nbytes
        tensor.drop_front(500)
        tensor.truncate(100, release=True)
        assert tensor.nbytes == whole
        req.ack("gpu0")
        tensor.drop_front(0)
        assert tensor.nbytes == least(500, 600, KiB)
        req.add_device("gpu1")
        tensor.drop_front(100)
        assert tensor.nbytes == least(500, 600, KiB)
        pool.device_lost("gpu1")
        tensor.extend(1000)
        assert tensor.nbytes <= (least(600, 1600, KiB)) * 9 / 8
        figures(pool, tensor)


def test_a_closed_request_gives_nothing_back(pool: Pool) -> None:
    req = pool.request("r", devices=["gpu0"])
    tensor = req.growable((1000, KiB), "u1", limit=100_000)
    whole = tensor.nbytes
    req.close()
    assert tensor.drop_front(500).shape == (500, KiB)
    assert tensor.truncate(10, release=True).shape == (10, KiB)
    assert req.nbytes == tensor.nbytes == whole
    req.ack("gpu0")
    assert pool.stats().retained == whole
    del tensor
    assert pool.stats().retained == 0


def test_a_session_keeps_a_window(pool: Pool) -> None:
    session = pool.session("chat", budget="1MiB")
    with session.request() as turn:
        window = turn.growable((0, KiB), "u1", limit=100_000)
        session.keep("window", window)
        del window
    for number in range(20):
        with session.request(devices=["gpu0"] if number % 2 else []) as turn:
            window = session["window"]
            assert window.length == min(number * 300, 300)
            window.extend(300)[-300:] = number
            array = window.drop_front(window.length - 300)
            assert (array == number).all()
            del array, window
            if number % 2:
                turn.ack("gpu0")
        assert session.nbytes == pool.stats().live <= MiB
    session["window"].drop_front(300)
    assert session.nbytes == session["window"].nbytes <= 5 * PAGE


def test_a_name_for_rows_that_were_dropped(pool: Pool) -> None:
    session = pool.session("chat")
    with session.request() as turn:
        window = turn.growable((1000, KiB), "u1", limit=100_000)
        window.array[:] = 5
        session.keep("window", window)
        session.keep("head", window.array[:100])
        head = session["head"]
        window.drop_front(500)
        assert (head == 5).all() and window.nbytes >= 1000 * KiB, "`head` lives"
        del head
        window.drop_front(0)
        assert window.nbytes < 600 * KiB
        with pytest.raises(slabpool.InvalidArgumentError, match="dropped"):
            session["head"]
        session.keep("tail", window.array[-1])
        window.drop_front(10)
        assert (session["tail"] == 5).all(), "where it was"
        session.drop("head")
        del window


def test_threads_that_grow_and_drop(pool: Pool) -> None:
    with pool.request("r") as req, switching_often():
        tensor = req.growable((0, 3, KiB), "u1", limit=1 << 20)

        grown: list[int] = []

        def grow() -> None:
            for _ in range(400):
                tensor.extend(5, timeout=60)[-1:] = 1
            grown.append(1)

        def until_grown(shorten: Callable[[], object]) -> None:
            while len(grown) < 2:
                with suppress(slabpool.InvalidArgumentError):  # another thread made it shorter in between
                    shorten()

        def drop() -> None:
            tensor.drop_front(min(tensor.length, 7))[:] = 1

        def cut() -> None:
            tensor.truncate(min(tensor.length, 50), release=True)

        together(grow, grow, lambda: until_grown(drop), lambda: until_grown(cut))
        tensor.drop_front(0)
        figures(pool, tensor)


@pytest.mark.parametrize("options", [{"scrub": "release"}, {"debug": 2}, {"memory": "shared"}])
def test_every_kind_of_pool(options: Any) -> None:
    with Pool("4MiB", **options) as pool:
        with pool.request("r") as req:
            tensor = req.growable((0, KiB), "u1", limit=100_000)
            for _ in range(20):
                tensor.extend(1000)[:] = 1
                tensor.drop_front(500)
                tensor.truncate(400, release=True)
                assert tensor.nbytes <= least(0, 400, KiB) + PAGE
            assert (tensor.array == 1).all()
            del tensor
        assert pool.stats().live == 0
        assert options.get("memory") == "shared" or pool.corruptions() == []
        pool.trim()
        assert pool.stats().committed == 0 and pool._verify() is None


# ---- at random, against numpy


class Windows(RuleBasedStateMachine):
    """One growable tensor, arrays of it, and a numpy array with all rows that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool("4MiB")
        self.req = self.pool.request("r")
        self.row = 0

    def teardown(self) -> None:
        if self.row:
            self.views.clear()
            del self.tensor
        self.req.close()
        assert self.pool.stats().live == 0 and self.pool._verify() is None
        self.pool.close()

    @precondition(lambda self: not self.row)
    @rule(row=st.sampled_from([1, 100, 5000, 20_000]), axis=st.integers(0, 1))
    def make(self, row: int, axis: int) -> None:
        self.row, self.axis = row, axis
        shape = (0, row) if axis == 0 else (row, 0)
        self.limit = 40 * MiB // row
        self.tensor = self.req.growable(shape, "u1", axis=axis, limit=self.limit)
        self.model: npt.NDArray[np.uint8] = np.zeros(self.limit, "u1")  # all bytes of a row are equal
        self.first = self.stop = 0
        self.wanted = 0
        self.released = True  # whether pages behind the tensor went back at the last change
        self.next = 1
        self.views: list[tuple[npt.NDArray[Any], int, int]] = []  # with the rows that they are of

    def rows(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.moveaxis(array, self.axis, 0)

    def check(self, array: npt.NDArray[Any], first: int, stop: int) -> None:
        rows = self.rows(array)
        assert rows.shape == (stop - first, self.row)
        assert np.array_equal(rows[:, 0], self.model[first:stop])
        assert np.array_equal(rows[:, -1], self.model[first:stop])

    def took(self, array: npt.NDArray[Any], keep: bool) -> None:
        self.check(array, self.first, self.stop)
        if keep:
            self.views.append((array, self.first, self.stop))

    @precondition(lambda self: self.row)
    @rule(nbytes=st.integers(0, 700_000), keep=st.booleans())
    def extend(self, nbytes: int, keep: bool) -> None:
        n = min(nbytes // self.row, self.limit - self.stop)
        try:
            array = self.tensor.extend(n)
        except slabpool.PoolExhausted:
            assert self.tensor.nbytes + nbytes + 2 * PAGE > self.pool.capacity
            return
        self.stop += n
        self.model[self.stop - n : self.stop] = self.next
        self.rows(array)[len(self.rows(array)) - n :] = self.next
        self.next = self.next % 250 + 1
        self.took(array, keep)

    @precondition(lambda self: self.row)
    @rule(part=st.integers(0, 8), keep=st.booleans())
    def drop_front(self, part: int, keep: bool) -> None:
        n = (self.stop - self.first) * part // 8
        array = self.tensor.drop_front(n)
        self.first += n
        self.took(array, keep)

    @precondition(lambda self: self.row)
    @rule(part=st.integers(0, 8), release=st.booleans(), keep=st.booleans())
    def truncate(self, part: int, release: bool, keep: bool) -> None:
        length = (self.stop - self.first) * part // 8
        array = self.tensor.truncate(length, release=release)
        self.stop = self.first + length
        self.took(array, keep)
        if release and not keep and not self.views:
            del array
            assert self.tensor.nbytes == least(self.first, self.stop, self.row)

    @precondition(lambda self: self.row and self.views)
    @rule(pick=st.integers(0, 100), part=st.integers(0, 8))
    def slice_view(self, pick: int, part: int) -> None:
        array, first, stop = self.views[pick % len(self.views)]
        at = (stop - first) * part // 8
        cut = array[at:] if self.axis == 0 else array[:, at:]
        self.views.append((cut, first + at, stop))

    @precondition(lambda self: self.row and self.views)
    @rule(pick=st.integers(0, 100))
    def drop_view(self, pick: int) -> None:
        del self.views[pick % len(self.views)]

    @invariant()
    def holds(self) -> None:
        if not self.row:
            return
        assert (self.tensor.first, self.tensor.length) == (self.first, self.stop - self.first)
        low = min([self.first, *(first for _, first, _ in self.views)])
        high = max([self.stop, *(stop for _, _, stop in self.views)])
        assert self.tensor.nbytes >= least(low, high, self.row)
        if not self.views:
            front = self.first * self.row // PAGE * PAGE
            s = self.pool.stats()
            assert s.live == self.tensor.nbytes == self.req.nbytes
            assert self.tensor.nbytes <= self.limit * self.row - front + PAGE
        for array, first, stop in self.views:
            # Rows behind a truncated end are written again; those before it are not.
            stop = min(stop, max(self.stop, first))
            self.check(array[: stop - first] if self.axis == 0 else array[:, : stop - first], first, stop)


TestWindows = Windows.TestCase
TestWindows.settings = settings(max_examples=60, stateful_step_count=40)
