"""Arrays from a pool and from a request are plain numpy arrays: shape, dtype, order, alignment, contents.

Every test here runs on both sources. Invariants: no two live arrays share a byte; `zeros` is zero, whatever
the memory held before; any view of an array keeps its memory.
"""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import slabpool

MiB = 1 << 20

# One size of each regime of the allocator: small steps, classes, the largest of slabs, spans, beyond the
# caches.
SIZES = [1, 64, 100, 1024, 1025, 5_000, 70_000, 128 << 10, (128 << 10) + 1, 300_000, 5 * MiB]

DTYPES = [
    "?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16",
    ">i4", "<u2", ">f8", ">c8", "S5", "U7", ">U3", "V10", "M8[ns]", "m8[s]", "M8[D]",
    [("a", "i4"), ("b", "f8")],
    [("name", "U4"), ("box", "f4", (2, 2)), ("inner", [("x", ">i2"), ("y", "S3")])],
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    {"names": ["a", "b"], "formats": ["u1", "u1"], "offsets": [0, 7], "itemsize": 16},
]  # fmt: skip


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    with slabpool.Pool("64MiB") as pool:
        yield pool
        assert pool._verify() is None


@pytest.fixture(params=["pool", "request"])
def source(request: pytest.FixtureRequest, pool: slabpool.Pool) -> Iterator[Any]:
    """An object with empty, zeros, full and copy."""
    if request.param == "pool":
        yield pool
    else:
        with pool.request("r") as req:
            yield req


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


# ---- form


@pytest.mark.parametrize(
    "shape", [5, (5,), [2, 3], (2, 3, 4), (1,) * 32, (np.int8(2), np.uint64(3)), np.int64(7)]
)
@pytest.mark.parametrize("method", ["empty", "zeros"])
def test_form(source: Any, method: str, shape: Any) -> None:
    array = getattr(source, method)(shape, np.float16)
    like = np.empty(shape, np.float16)
    assert type(array) is np.ndarray
    assert (array.shape, array.strides, array.dtype) == (like.shape, like.strides, like.dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    assert not array.flags.owndata
    array[...] = 3
    assert (array == 3).all()


def test_default_dtype_is_float64(source: Any) -> None:
    for array in (source.empty(2), source.zeros(2), source.empty(2, None), source.empty(2, float)):
        assert array.dtype == np.float64
    assert source.empty(2, int).dtype == np.dtype(int)
    # The same dtype name repeatedly, then another: the cached answer must not stick.
    assert [source.empty(1, d).dtype.char for d in ("f4", "f4", "f2", "f4", np.int8, np.int8, "f2")] == list(
        "ffefbbe"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_hold_what_numpy_holds(source: Any, dtype: Any) -> None:
    original = np.zeros((3, 4), dtype)
    raw = np.random.default_rng(7).integers(1, 100, original.nbytes, np.uint8)
    if original.dtype.kind in "iufcmMVS" and original.dtype.names is None:
        original = raw.view(dtype).reshape(3, 4)
    elif original.dtype.kind == "U":
        original[...] = [["añ", "\U0001f600", "", "z"]] * 3
    elif original.dtype.names:
        original[original.dtype.names[0]] = 1
    array = source.empty((3, 4), dtype)
    array[...] = original
    assert array.dtype == np.dtype(dtype)
    assert array.tobytes() == original.tobytes() or (array == original).all()
    assert not source.zeros((3, 4), dtype).tobytes().strip(b"\0")
    copied = source.copy(original)
    assert copied.dtype == original.dtype
    assert (copied == original).all() or copied.tobytes() == original.tobytes()


def test_subarray_dtype_adds_its_dimensions(source: Any) -> None:
    dtype = np.dtype(("f4", (2, 3)))
    array = source.zeros((5,), dtype)
    assert (array.shape, array.dtype) == ((5, 2, 3), np.dtype("f4"))
    array[...] = 1
    assert array.sum() == 30


@pytest.mark.parametrize("dtype", ["S", "U", "V0", "S0", np.dtype([]), np.str_, np.bytes_], ids=str)
def test_dtype_without_a_size_is_as_in_numpy(source: Any, dtype: Any) -> None:
    array, like = source.empty(3, dtype), np.empty(3, dtype)
    assert (array.shape, array.dtype, array.itemsize) == (like.shape, like.dtype, like.itemsize)


@pytest.mark.parametrize("shape", [(), 0, (0,), (3, 0, 2), (0, 1 << 40)])
def test_zero_dimensions_and_zero_sizes(source: Any, pool: slabpool.Pool, shape: Any) -> None:
    array = source.zeros(shape, "f4")
    assert array.shape == np.empty(shape, "f4").shape
    assert array.sum() == 0
    assert address(array) % 64 == 0
    array[...] = 1
    assert array.sum() == array.size
    other = source.copy(array)
    assert address(other) != address(array)
    assert pool.stats().live > 0  # it has its own block, which returns like any other


# ---- addresses


@pytest.mark.parametrize("size", SIZES)
def test_alignment_is_64_by_default(source: Any, size: int) -> None:
    arrays = [source.empty(size, "u1") for _ in range(3)]
    assert [address(a) % 64 for a in arrays] == [0, 0, 0]


@pytest.mark.parametrize("align", [1, 2, 64, 128, 4096, 1 << 14, 1 << 15, 1 << 18, 2 * MiB])
def test_alignment_as_requested(source: Any, align: int) -> None:
    arrays = [
        source.zeros(size, "u1", align=align) for size in (0, 1, 100, 3000, 70_000, 300_000) for _ in "ab"
    ]
    arrays.append(source.full(10, 1.5, align=align))
    arrays.append(source.copy(range(1000), align=np.int32(align)))
    for number, array in enumerate(arrays):
        assert address(array) % align == 0, (array.nbytes, align)
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


def test_live_arrays_share_no_byte(source: Any) -> None:
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.integers(1, 3000, 300), rng.integers(3000, 200_000, 60)])
    rng.shuffle(sizes)
    arrays = []
    for number, size in enumerate(sizes):
        array = source.empty(int(size), "u1")
        array[...] = number % 251
        arrays.append(array)
    for number, array in enumerate(arrays):
        assert (array == number % 251).all()
    spans = sorted((address(a), address(a) + a.nbytes) for a in arrays)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_sizes_beyond_the_caches() -> None:
    with slabpool.Pool("1GiB", huge_pages=False) as pool:
        array = pool.empty(600 * MiB, "u1")  # only the pages touched below use memory
        array[0] = array[-1] = 7
        assert pool.stats().live == 600 * MiB
        del array
        again = pool.zeros(600 * MiB // 4096, "u1")
        assert not again.any()
        del again


# ---- contents


@pytest.mark.parametrize("size", SIZES)
def test_zeros_is_zero_after_reuse(size: int) -> None:
    # Without debug, which would overwrite the old contents. The pool has room for two at once.
    with slabpool.Pool("16MiB") as pool:
        reused = 0
        seen: set[int] = set()
        for _ in range(4):
            array = pool.zeros(size, "u1")
            assert not array.any()
            reused += address(array) in seen
            seen.add(address(array))
            array[...] = 0xFF
            del array
            with pool.request("r") as req:
                dirty = req.empty(size, "u1")
                reused += address(dirty) in seen
                dirty[...] = 0xFF
                del dirty
                array = req.zeros(size, "u1")
                assert not array.any()
                del array
        assert reused > 0, "no block was reused, so this test proves nothing"


def test_zeros_is_zero_after_trim(source: Any, pool: slabpool.Pool) -> None:
    array = pool.full(3 * MiB, 0xAB, "u1")
    del array
    assert pool.trim() >= 3 * MiB
    assert not source.zeros(3 * MiB, "u1").any()


@pytest.mark.parametrize(
    ("shape", "value", "dtype"),
    [
        (3, 1.5, None), (3, 7, None), ((2, 2), True, None), (3, 1 + 2j, None), (2, "añ", None),
        (2, b"xyz", None), (3, np.float16(2), None), ((2, 3), [1, 2, 3], None), (3, 1.9, "i4"),
        (3, np.datetime64("2026-11-22"), None), ((), 5, "u1"),
        (0, 5, "u1"), (2, (1, 2.5), [("a", "i4"), ("b", "f4")]), (3, 258, "f2"),
    ],
)  # fmt: skip
def test_full_is_as_numpy(source: Any, shape: Any, value: Any, dtype: Any) -> None:
    array, like = source.full(shape, value, dtype), np.full(shape, value, dtype)
    assert (array.shape, array.dtype) == (like.shape, like.dtype)
    assert array.tobytes() == like.tobytes()


@pytest.mark.parametrize(
    "original",
    [
        np.arange(24.0).reshape(2, 3, 4), np.arange(24).reshape(4, 6).T, np.arange(20)[::-3], np.float32(3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)), [[1, 2], [3, 4]], 7, "text",
        np.arange(4, dtype=">i4"), np.broadcast_to(np.arange(3), (4, 3)), np.rec.array([(1, 2.0)]),
        np.zeros((3, 0)), np.bool_(True), np.arange(6).reshape(2, 3).astype("M8[D]"),
    ],
    ids=repr,
)  # fmt: skip
def test_copy_is_a_copy_in_c_order(source: Any, original: Any) -> None:
    array, like = source.copy(original), np.array(np.asarray(original), order="C")
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.tobytes()) == (like.shape, like.dtype, like.tobytes())
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not np.shares_memory(array, np.asarray(original))


# ---- what keeps a block


def test_array_returns_its_block_once(source: Any, pool: slabpool.Pool) -> None:
    array = source.empty(4096, "u1")
    assert pool.stats().live == 4096
    del array
    assert pool.stats().live == (0 if source is pool else 4096)  # a block of a request stays with the request
    assert pool.stats().frees == (1 if source is pool else 0)


@pytest.mark.parametrize(
    "look",
    [
        lambda a: a[10:20], lambda a: a[::-5], lambda a: a.reshape(64, 64)[3], lambda a: a.reshape(64, 64).T,
        lambda a: a.view("f4"), lambda a: a[5:6][0:1][...], memoryview, lambda a: a.ravel(), np.asarray,
        lambda a: np.frombuffer(a, "u2"), lambda a: a.view(np.recarray), lambda a: a.ctypes, iter,
        lambda a: np.broadcast_to(a, (3, 4096)), lambda a: np.lib.stride_tricks.as_strided(a, (4,), (9,)),
        lambda a: a.flat,
    ],
)  # fmt: skip
def test_every_kind_of_view_keeps_the_block(pool: slabpool.Pool, look: Any) -> None:
    array = pool.empty(4096, "u1")
    kept = look(array)
    del array
    assert pool.stats().live == 4096
    assert pool.stats().frees == 0
    del kept
    gc.collect()
    assert pool.stats().live == 0
    assert pool.stats().frees == 1


def test_base_chain_ends_in_an_owner_that_is_not_an_array(source: Any) -> None:
    array = source.empty((8, 8))
    base = array.base
    assert base is not None
    assert not isinstance(base, np.ndarray)
    assert array[2:].base is array
    assert array[2:][1:].base is array
    with pytest.raises(ValueError, match="own"):
        array.resize((100, 100))


def test_views_outlive_their_pool() -> None:
    pool = slabpool.Pool("16MiB")
    with pool.request("r") as req:
        arrays = [pool.full(1000, 3), req.full(1000, 4), pool.full(4 * MiB, 5, "u1")[17:]]
    del pool, req
    gc.collect()
    assert [int(a.min()) for a in arrays] == [3, 4, 5]
    arrays[0][:] = arrays[1]
    assert (arrays[0] == 4).all()


# ---- leaving the process


def test_save_and_load(source: Any) -> None:
    array = source.copy(np.arange(5000.0).reshape(50, 100))
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    loaded = np.load(file)
    assert (loaded == array).all()
    assert loaded.flags.owndata or loaded.base is not array


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_round_trip_is_an_ordinary_array(source: Any, pool: slabpool.Pool, protocol: int) -> None:
    array = source.copy(np.arange(100, dtype="i4").reshape(10, 10))
    before = pool.stats().allocations
    back = pickle.loads(pickle.dumps(array, protocol))
    assert (back == array).all()
    assert back.dtype == array.dtype
    assert pool.stats().allocations == before
    assert not np.shares_memory(back, array)


def test_pickle_out_of_band_and_deepcopy(source: Any) -> None:
    array = source.copy(np.arange(1000))
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(array, 5, buffer_callback=buffers.append)
    assert len(buffers) == 1  # sent without a copy
    assert np.shares_memory(pickle.loads(data, buffers=buffers), array)
    twin = copy.deepcopy(array)
    assert (twin == array).all()
    assert not np.shares_memory(twin, array)
