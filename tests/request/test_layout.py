"""Layouts: many tensors in one block, and views that are made on demand."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Layout, Pool, RequestClosedError

FIELDS: dict[str, Any] = {
    "k": ((2, 8, 4), np.float16),
    "v": ([2, 8, 4], "f2"),
    "odd": (7, "u1"),
    "scalar": ((), ">f8"),
    "nothing": ((0, 3), np.int32),
    "pairs": (np.int64(5), [("a", "i4"), ("b", "S3")]),
    "grid": (3, np.dtype(("f4", (2, 2)))),
    "text": (4, "U7"),
}
LAYOUT = Layout(FIELDS)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("16MiB") as pool:
        yield pool
        assert pool._verify() is None


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


# ---- the layout itself


def test_layout_is_a_description() -> None:
    assert LAYOUT.names == tuple(FIELDS)
    assert list(LAYOUT) == list(FIELDS)
    assert len(LAYOUT) == len(FIELDS)
    assert "k" in LAYOUT
    assert "x" not in LAYOUT
    assert LAYOUT["k"] == ((2, 8, 4), np.dtype("f2"))
    assert LAYOUT["pairs"] == ((5,), np.dtype([("a", "i4"), ("b", "S3")]))
    assert LAYOUT["scalar"] == ((), np.dtype(">f8"))
    with pytest.raises(KeyError, match="x"):
        LAYOUT["x"]
    with pytest.raises(AttributeError):
        LAYOUT.nbytes = 3  # type: ignore[misc]


def test_nbytes_is_each_tensor_rounded_up_to_64() -> None:
    sizes = [128, 128, 7, 8, 0, 35, 48, 112]
    assert LAYOUT.nbytes == sum(-(-size // 64) * 64 for size in sizes)
    assert Layout({"a": (1, "u1")}).nbytes == 64
    assert Layout({"a": (64, "u1"), "b": (65, "u1")}).nbytes == 64 + 128
    assert Layout({"a": (0, "u1")}).nbytes == 0


@pytest.mark.parametrize("mapping", [OrderedDict, MappingProxyType])
def test_any_mapping_works(mapping: Any) -> None:
    assert repr(Layout(mapping(FIELDS))) == repr(LAYOUT)


def test_repr_pickle_and_copy() -> None:
    assert repr(Layout({"a": ((2, 3), "f4")})) == "Layout({'a': ((2, 3), dtype('float32'))})"
    for twin in (pickle.loads(pickle.dumps(LAYOUT)), copy.copy(LAYOUT), copy.deepcopy(LAYOUT)):
        assert repr(twin) == repr(LAYOUT)
        assert twin.nbytes == LAYOUT.nbytes


def test_layout_does_not_follow_later_changes_of_its_source() -> None:
    fields = dict(FIELDS)
    layout = Layout(fields)
    fields.clear()
    assert layout.names == LAYOUT.names


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({}, slabpool.InvalidArgumentError, "at least one tensor"),
        ([("a", (1, "f4"))], slabpool.InvalidTypeError, "list"),
        (None, slabpool.InvalidTypeError, "NoneType"),
        ({1: (1, "f4")}, slabpool.InvalidTypeError, "name must be a str, got 1"),
        ({"a": 3}, slabpool.InvalidTypeError, r"'a' must be given as \(shape, dtype\), got 3"),
        ({"a": (3,)}, slabpool.InvalidTypeError, r"'a'.*\(3,\)"),
        ({"a": (3, "f4", "C")}, slabpool.InvalidTypeError, "'a'.*'C'"),
        ({"a": "34"}, slabpool.InvalidTypeError, "'a'.*'34'"),
    ],
)
def test_bad_layouts(fields: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Layout(fields)


# ---- tensors of a request


def test_tensors_match_the_layout(pool: Pool) -> None:
    with pool.request("r") as req:
        t = req.allocate(LAYOUT)
        assert t.layout is LAYOUT
        assert list(t) == list(t.keys()) == list(FIELDS)
        assert len(t) == len(FIELDS)
        assert "k" in t
        assert "x" not in t
        for name, (shape, dtype) in FIELDS.items():
            view, like = t[name], np.empty(shape, dtype)
            assert type(view) is np.ndarray
            assert (view.shape, view.dtype) == (like.shape, like.dtype)
            assert view.strides == like.strides or view.size == 0
            assert view.flags.c_contiguous
            assert view.flags.writeable
            assert address(view) % 64 == 0
        assert repr(t).startswith("<Tensors k, v, odd")
        del view
        assert req.live_views == 0


def test_tensors_do_not_overlap(pool: Pool) -> None:
    with pool.request("r") as req:
        t = req.allocate(LAYOUT)
        other = req.allocate(LAYOUT)
        for number, view in enumerate([*t.values(), *other.values()]):
            view.reshape(-1).view("u1")[...] = number + 1
        for number, view in enumerate([*t.values(), *other.values()]):
            assert (view.reshape(-1).view("u1") == number + 1).all()
        del view


def test_item_and_attribute_are_views_of_the_same_bytes(pool: Pool) -> None:
    with pool.request("r") as req:
        t = req.allocate(LAYOUT, zero=True)
        t.k[1, 2] = 3
        assert t["k"].sum() == 12
        assert t.k is not t["k"]
        assert np.shares_memory(t.k, t["k"])
        assert [(name, address(view)) for name, view in t.items()] == [(name, address(t[name])) for name in t]
        with pytest.raises(KeyError, match="x"):
            t["x"]
        with pytest.raises(AttributeError, match=r"no tensor 'x'.*k, v, odd"):
            t.x
        with pytest.raises(AttributeError):
            t.k = 3


def test_names_that_are_methods_are_reached_as_items(pool: Pool) -> None:
    with pool.request("r") as req:
        t = req.allocate(Layout({"keys": (3, "u1"), "layout": (4, "u1"), "a b": (5, "u1")}))
        assert callable(t.keys)
        assert (t["keys"].size, t["layout"].size, t["a b"].size) == (3, 4, 5)


def test_zero_after_reuse(pool: Pool) -> None:
    layout = Layout({"a": (1000, "u1"), "b": (100_000, "u1")})
    places = set()
    for _ in range(3):
        with pool.request("r") as req:
            t = req.allocate(layout, zero=True)
            assert not t.a.any()
            assert not t.b.any()
            places.add(address(t.a))
            t.a[...] = t.b[...] = 255
    assert len(places) < 3, "no block was reused, so this test proves nothing"


def test_it_is_one_block(pool: Pool) -> None:
    layout = Layout({f"t{i}": (256, "f4") for i in range(64)})
    with pool.request("r", ["gpu0"]) as req:
        t = req.allocate(layout)
        stats = pool.stats()
        assert (stats.allocations, stats.live, req.nbytes, req.live_views) == (1, 65536, 65536, 0)
        views = t.values()
        assert (req.live_views, pool.stats().allocations) == (64, 1)
        del views
    assert req.ack("gpu0") is Ack.RELEASED
    assert pool.stats().frees == 1


# ---- what keeps the block


def test_tensors_do_not_keep_the_block(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    t = req.allocate(LAYOUT)
    req.close()
    t.k[...] = 1  # devices still hold it: views may be made until the last one leaves
    assert req.ack("gpu0") is Ack.RELEASED
    assert pool.stats().frees == 1
    for look in (lambda: t.k, lambda: t["k"], t.values, t.items):
        with pytest.raises(RequestClosedError, match=f"generation {req.generation} is released"):
            look()
    assert pool.stats().retained == 0
    assert list(t.keys()) == list(FIELDS)  # the names need no memory


def test_tensors_of_a_block_that_was_reused(pool: Pool) -> None:
    with pool.request("old") as req:
        stale = req.allocate(LAYOUT)
        place = address(stale.k)
    with pool.request("new") as req:
        fresh = req.allocate(LAYOUT)
        assert address(fresh.k) == place
        with pytest.raises(RequestClosedError):
            stale.k
        assert req.live_views == 0


def test_a_view_keeps_the_whole_layout(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    t = req.allocate(LAYOUT)
    kept = t.odd
    kept[...] = 7
    req.close()
    assert req.ack("gpu0") is Ack.RELEASED
    assert pool.stats().retained == req.nbytes == LAYOUT.nbytes == 640
    with pytest.raises(RequestClosedError):
        t.k  # refused even while a view retains the block
    junk = pool.full(LAYOUT.nbytes, 255, "u1")
    assert (kept == 7).all()
    del kept, junk
    assert pool.stats().retained == 0


def test_views_outlive_tensors_request_and_pool() -> None:
    pool = Pool("1MiB")
    with pool.request("r") as req:
        view = req.allocate(LAYOUT, zero=True).k
    view += 1
    del pool, req
    gc.collect()
    assert view.sum() == 64


def test_tensors_outlive_their_pool() -> None:
    with Pool("1MiB") as pool, pool.request("r") as req:
        t = req.allocate(LAYOUT)
    del pool, req
    gc.collect()
    with pytest.raises(RequestClosedError):
        t.k


def test_views_are_made_while_the_last_device_is_lost(pool: Pool) -> None:
    # device_lost() runs without the GIL, so a view may be requested at the very moment of the release. Either
    # it is made, and then counts as retained until it dies, or it is refused.
    layout = Layout({"a": (1000, "u1")})
    rounds = 300
    box: list[slabpool.Tensors] = []
    ready, looked, done = threading.Barrier(2), threading.Event(), threading.Barrier(2)
    wrong = []

    def look() -> None:
        for _ in range(rounds):
            ready.wait()
            try:
                while True:
                    if not (box[-1].a == 7).all():
                        wrong.append(box[-1])
                    looked.set()
            except RequestClosedError:
                done.wait()

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(rounds):
        req = pool.request("r", ["gpu0"])
        box.append(req.allocate(layout))
        box[-1].a[...] = 7
        req.close()
        looked.clear()
        ready.wait()
        looked.wait()
        pool.device_lost("gpu0")
        done.wait()
        assert (pool.stats().live, pool.stats().retained, pool.leaks()) == (0, 0, [])
    thread.join()
    assert not wrong
    assert pool.stats().allocations == pool.stats().frees == rounds
