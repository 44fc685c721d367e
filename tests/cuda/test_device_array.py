"""DeviceArray: attributes, views and copies, and that its block stays as long as any of them uses it."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import slabpool
from slabpool import DeviceArray, InvalidArgumentError, InvalidTypeError, Pool, RequestState
from slabpool._core import strides as _strided
from tests.cuda.gpu_work import Work
from tests.cuda.standin_build import LAUNCH_FAILED, Standin
from tests.cuda.streams import held, settle, stream
from tests.scene import says
from tests.settled import settled


@pytest.fixture
def pool(cuda: object) -> Iterator[Pool]:
    with Pool("64MiB", memory="cuda:0") as made:
        yield made
        gc.collect()
        assert made.stats().live == 0
        assert made._verify() is None


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


# ---- attributes


def test_attributes(pool: Pool) -> None:
    x = pool.zeros((2, 3, 4), np.float32)
    assert (x.shape, x.strides, x.dtype) == ((2, 3, 4), (48, 16, 4), np.dtype("f4"))
    assert (x.ndim, x.size, x.itemsize, x.nbytes, len(x)) == (3, 24, 4, 96, 2)
    assert (x.device, x.stream) == (0, 1)
    assert x.ptr % 64 == 0
    scalar = pool.zeros((), np.int16)
    assert (scalar.shape, scalar.size, scalar.nbytes) == ((), 1, 2)
    empty = pool.zeros((3, 0), np.int16)
    assert (empty.size, empty.nbytes) == (0, 0)
    assert empty.copy_to_host().shape == (3, 0)
    with pytest.raises(TypeError, match="0-d"):
        len(scalar)


def test_repr_tells_everything_but_contents(pool: Pool) -> None:
    assert repr(pool.full((2, 3), 7, "i4")) == "<DeviceArray (2, 3) int32 on cuda:0>"
    with pool.request("r") as req:
        assert (
            repr(req.zeros(3))
            == f"<DeviceArray (3,) float64 on cuda:0, of request generation {req.generation}>"
        )


def test_only_a_pool_makes_one() -> None:
    for make in (DeviceArray, lambda: DeviceArray.__new__(DeviceArray)):
        with pytest.raises(InvalidTypeError, match="made by a pool"):
            make()


@pytest.mark.parametrize(
    "use",
    [
        np.asarray, np.array, bool, float, complex, int, list, iter, tuple, memoryview, pickle.dumps,
        lambda x: 3 in x, lambda x: np.add(x, 1), lambda x: x.__setitem__(0, 1),
        lambda x: sum(x), lambda x: x[0] + 1,
    ],
)  # fmt: skip
def test_nothing_is_copied_unasked(pool: Pool, use: Callable[[DeviceArray], object]) -> None:
    x = pool.zeros((2, 2))
    with pytest.raises((TypeError, BufferError)) as raised:
        use(x)
    assert "0." not in str(raised.value)
    del raised
    with pytest.raises(TypeError, match="copy_to_host"):
        np.asarray(x)
    with pytest.raises((RuntimeError, BufferError)):  # numpy accepts CPU memory only
        np.from_dlpack(x)


# ---- filling


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0, "f8"),
        (-1, "i4"),
        (1.5, "f4"),
        (True, "?"),
        (2 + 3j, "c8"),
        (b"ab", "S3"),
        (7, "u1"),
        ([1, 2, 3], "i2"),
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (100_000, 3), (0, 3)])
def test_full_is_numpys(pool: Pool, shape: tuple[int, ...], value: Any, dtype: str) -> None:
    if shape == () and isinstance(value, list):
        with pytest.raises(ValueError, match="broadcast"):
            pool.full(shape, value, dtype)
        return
    assert np.array_equal(pool.full(shape, value, dtype).copy_to_host(), np.full(shape, value, dtype))


def test_full_of_what_cannot_be(pool: Pool) -> None:
    before = settled(pool)
    for value in ("text", object()):
        with pytest.raises((ValueError, TypeError)):
            pool.full(3, value, "f4")
    assert pool.stats() == before


@pytest.mark.parametrize(
    "array",
    [
        numbers(4, 6), numbers(4, 6)[::-2, 1::2], numbers(4, 6).T, np.float64(7), [1, 2, 3], np.empty((0, 3)),
        np.asfortranarray(numbers(3, 5, 2)),
    ],
)  # fmt: skip
def test_copy_takes_what_numpy_takes(pool: Pool, array: Any) -> None:
    made = pool.copy(array)
    assert made.dtype == np.asarray(array).dtype
    assert made.strides == _strided.c_strides(made.shape, made.itemsize)
    assert np.array_equal(made.copy_to_host(), array)
    again = pool.copy(made)
    assert again.ptr != made.ptr
    assert np.array_equal(again.copy_to_host(), array)


class OnlyInterface:
    """An array of another library, which has only the CUDA Array Interface."""

    def __init__(self, array: DeviceArray, **changes: object) -> None:
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_copy_takes_other_libraries_arrays(pool: Pool) -> None:
    x = pool.copy(numbers(4, 6))
    assert np.array_equal(pool.copy(OnlyInterface(x[1:, ::2])).copy_to_host(), numbers(4, 6)[1:, ::2])
    assert np.array_equal(pool.copy(OnlyInterface(x, stream=None)).copy_to_host(), numbers(4, 6))
    for changes, text in [({"stream": 0}, "stream 0"), ({"mask": object()}, "mask")]:
        with pytest.raises(InvalidArgumentError, match=text):
            pool.copy(OnlyInterface(x, **changes))


def test_copy_waits_for_the_producers_stream(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, stream() as s:
        x, seven = pool.zeros(100), pool.full(100, 7.0)
        copies: list[DeviceArray] = []
        with held(standin, s):
            seven.copy_to(x, stream=s)
            worker = threading.Thread(target=lambda given: copies.append(pool.copy(given)), args=(x.on(s),))
            worker.start()
        worker.join()
        assert (copies[0].copy_to_host() == 7).all()
        copies.clear()
        del x, seven, worker


# ---- views


def check_view(view: DeviceArray, expected: np.ndarray[Any, Any]) -> None:
    assert view.shape == expected.shape
    assert np.array_equal(view.copy_to_host(), expected)


def test_views_show_the_same_memory(pool: Pool) -> None:
    host = numbers(4, 6)
    x = pool.copy(host)
    check_view(x[1], host[1])
    check_view(x[-1, 2], np.asarray(host[-1, 2]))
    check_view(x[..., None, ::-1], host[..., None, ::-1])
    check_view(x[np.int64(1) :, 2:5].T, host[1:, 2:5].T)
    check_view(x.reshape(2, -1, 3), host.reshape(2, -1, 3))
    check_view(x.reshape((24,))[3:7], host.reshape(24)[3:7])
    check_view(x.view("u1")[:, :3], host.view("u1")[:, :3])
    check_view(x.view(np.int32).transpose((1, 0)), host.view(np.int32).T)
    check_view(x[1:3].T.reshape(3, 2, 2)[::2], host[1:3].T.reshape(3, 2, 2)[::2])
    row = x[2]
    del x
    check_view(row, host[2])
    row.copy_from_host(np.zeros(6, np.float32))
    assert pool.stats().live > 0


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda x: x[[1, 2]], InvalidTypeError, "ints, slices ... list [1, 2] ... kernel"),
        (lambda x: x[np.array([True] * 4)], InvalidTypeError, "index array ... (4,)"),
        (lambda x: x[True], InvalidTypeError, "bool True"),
        (lambda x: x[1.0], InvalidTypeError, "float 1.0"),
        (lambda x: x[4], IndexError, "index 4 is out of bounds for axis 0 with size 4"),
        (lambda x: x[0, 0, 0], IndexError, "too many indices: 3"),
        (lambda x: x[..., ...], IndexError, "single ellipsis"),
        (lambda x: x.reshape(5, 5), InvalidArgumentError, "(4, 6), 24 elements, to (5, 5)"),
        (lambda x: x.reshape(-1, -1), InvalidArgumentError, "to (-1, -1)"),
        (lambda x: x.T.reshape(-1), InvalidArgumentError, "without a copy ... pool.copy(array)"),
        (lambda x: x.reshape("a"), InvalidTypeError, "shape must be ints"),
        (lambda x: x.transpose(0), InvalidArgumentError, "each of 2 axes once, got (0,)"),
        (lambda x: x.transpose(0, 0), InvalidArgumentError, "each of 2 axes once"),
        (lambda x: x.view("f8")[:, :1].view("V5"), InvalidArgumentError, "8 bytes ... 5 bytes each"),
        (lambda x: x.T.view("f8"), InvalidArgumentError, "contiguous ... 24 bytes"),
        (lambda x: x[0, 0].view("u1"), InvalidArgumentError, "0-d"),
        (lambda x: x.view(object), InvalidTypeError, "Python objects"),
        (lambda x: x[(None,) * 63], InvalidArgumentError, "at most 64 dimensions, not 65"),
    ],
)
def test_views_that_cannot_be(pool: Pool, use: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        use(pool.zeros((4, 6), "f4"))
    says(raised, text)
    del raised


KEYS = st.one_of(
    st.integers(-7, 7),
    st.builds(slice, *[st.none() | st.integers(-8, 8)] * 2, st.sampled_from([None, 1, 2, -1, -3])),
    st.none(),
)


@given(st.lists(st.sampled_from([0, 1, 2, 3, 6]), max_size=4), st.lists(KEYS, max_size=5), st.data())
def test_arithmetic_of_views_is_numpys(shape: list[int], key: list[Any], data: st.DataObject) -> None:
    array = np.empty(shape, "i4")
    try:
        expected = array[(*key, ...)]
    except IndexError:
        with pytest.raises(IndexError):
            _strided.index(array.shape, array.strides, tuple(key))
        return
    dims, strides, offset = _strided.index(array.shape, array.strides, tuple(key))
    same_layout(dims, strides, expected)
    if expected.size:
        first = expected.__array_interface__["data"][0] - array.__array_interface__["data"][0]
        assert first == offset
    assert _strided.is_c_contiguous(dims, strides, 4) == expected.flags.c_contiguous
    axes = data.draw(st.permutations(range(expected.ndim)))
    dims, strides = _strided.transpose(dims, strides, axes)
    expected = expected.transpose(axes)
    same_layout(dims, strides, expected)
    wanted = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 9, 12, -1]), max_size=5))
    try:
        copied = expected.reshape(wanted)
    except ValueError:
        with pytest.raises(InvalidArgumentError):
            _strided.reshape(dims, strides, 4, wanted)
        return
    try:
        new = _strided.reshape(dims, strides, 4, wanted)
    except InvalidArgumentError:
        assert not np.shares_memory(copied, array)
        return
    assert expected.size == 0 or np.shares_memory(copied, array)
    same_layout(*new, copied)


def same_layout(shape: tuple[int, ...], strides: tuple[int, ...], array: np.ndarray[Any, Any]) -> None:
    assert shape == array.shape
    if array.size:
        assert all(a == b for a, b, dim in zip(strides, array.strides, shape, strict=True) if dim != 1)


# ---- copies


@pytest.mark.parametrize(
    "cut", [np.s_[:], np.s_[::-1], np.s_[1:3, ::2], np.s_[:, 1], np.s_[2:2], np.s_[3, 3]]
)
def test_copies_of_parts(pool: Pool, cut: Any) -> None:
    host = numbers(4, 6)
    x = pool.copy(host)
    assert np.array_equal(x[cut].copy_to_host(), host[cut])
    out = np.zeros((4, 6), np.float32)
    if out[cut].ndim:
        assert x[cut].copy_to_host(out[cut]).base is not None
        assert np.array_equal(out[cut], host[cut])
    rest = np.ones((4, 6), bool)
    rest[cut] = False
    assert not out[rest].any()
    y = pool.zeros((4, 6), "f4")
    y[cut].copy_from_host(-host[cut])
    assert np.array_equal(y.copy_to_host(), np.where(rest, 0, -host))
    z = pool.zeros((4, 6), "f4")
    assert x[cut].copy_to(z[cut]).shape == host[cut].shape
    assert np.array_equal(z.copy_to_host(), np.where(rest, 0, host))
    turned = pool.zeros((6, 4), "f4")
    x[cut].T.copy_to(turned.T[cut].T)
    assert np.array_equal(turned.copy_to_host(), np.where(rest, 0, host).T)


def test_between_devices_nothing_is_copied_directly(pool: Pool) -> None:
    if len(slabpool.cuda.devices()) < 2:
        pytest.skip("needs two GPUs")
    with Pool("64MiB", memory="cuda:1") as other:
        x, y = pool.copy(numbers(3, 5)), other.zeros((3, 5), "f4")
        assert (x.device, y.device) == (0, 1)
        says_so = "device 0 and .* on device 1; copy through the host"
        with pytest.raises(InvalidArgumentError, match=says_so):
            x.copy_to(y)
        with pytest.raises(InvalidArgumentError, match=says_so):
            other.copy(x)
        y.copy_from_host(x.copy_to_host())
        assert np.array_equal(y.copy_to_host(), numbers(3, 5))
        del x, y


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda x: x.copy_to_host(np.empty(4, "f4")), InvalidArgumentError, "shape (2, 3), and has (4,)"),
        (
            lambda x: x.copy_to_host(np.empty((2, 3))),
            InvalidArgumentError,
            "dtype float32, and has float64 ... astype",
        ),
        (lambda x: x.copy_to_host([[0.0] * 3] * 2), InvalidTypeError, "numpy array, got list"),
        (lambda x: x.copy_to_host(np.broadcast_to(np.float32(0), (2, 3))), InvalidArgumentError, "read-only"),
        (lambda x: x.copy_from_host(np.zeros(3, "f4")), InvalidArgumentError, "shape (2, 3), and has (3,)"),
        (lambda x: x.copy_from_host(0), InvalidArgumentError, "shape (2, 3), and has ()"),
        (lambda x: x.copy_from_host(np.zeros((2, 3))), InvalidArgumentError, "astype"),
        (lambda x: x.copy_to(x.T), InvalidArgumentError, "out must have the shape (2, 3), and has (3, 2)"),
        (lambda x: x.copy_to(np.empty((2, 3), "f4")), TypeError, "DeviceArray"),
        (lambda x: x.copy_to_host(stream="s"), InvalidTypeError, "'s'"),
        (lambda x: x.on(-5), InvalidArgumentError, "-5"),
    ],
)
def test_copies_that_cannot_be(pool: Pool, use: Any, error: type[Exception], text: str) -> None:
    x = pool.copy(numbers(2, 3))
    with pytest.raises(error) as raised:
        use(x)
    says(raised, text)
    del raised
    assert np.array_equal(x.copy_to_host(), numbers(2, 3))


def test_a_stream_that_is_none(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool:
        x = pool.zeros(10)
        with pytest.raises(InvalidArgumentError, match="no stream of this process"):
            x.copy_to_host(stream=12345)
        standin.clear_complaints()
        del x


# ---- on a stream: a queued copy keeps both sides


def test_on_a_stream_the_call_returns_at_once_and_both_sides_stay(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        x = pool.full(1000, 7.0)
        out = staging.zeros(1000)
        address = out.ctypes.data
        with held(standin, s):
            assert x.copy_to_host(out, stream=s) is out
            assert not out.any()
            del x, out
            assert pool.stats().live > 0 and staging.stats().live > 0
            # No allocation gets the block again.
            others = [staging.zeros(1000) for _ in range(20)]
            assert address not in {other.ctypes.data for other in others}
            assert not any(other.any() for other in others)
            del others
        assert pool.stats().live == 0 and staging.stats().live == 0


def test_copies_from_the_host_and_on_the_device_too(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="managed:0") as staging, stream() as s:
        source = staging.full(1000, 3.0)
        x, y = pool.zeros(1000), pool.zeros(1000)
        with held(standin, s):
            x.copy_from_host(source, stream=s)
            x[::-1].copy_to(y, stream=s)
            del source
            assert staging.stats().live > 0
        assert (y.copy_to_host() == 3).all()
        assert staging.stats().live == 0
        del x, y


def test_memory_of_the_heap_is_waited_for(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, stream() as s:
        x = pool.full(1000, 7.0)
        out = x.copy_to_host(stream=s)  # the caller could not tell when to read it, so the copy is finished
        assert (out == 7).all()
        x.copy_from_host(np.ones(1000), stream=s)
        assert (x.copy_to_host() == 1).all()
        assert standin.calls("cuEventCreate") == 0
        del x


def test_what_is_under_way_counts_as_retained_after_the_request(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        req = pool.request("r", ["gpu0"])
        x = req.full(1000, 7.0)
        out = staging.empty(1000)
        with held(standin, s):
            x.copy_to_host(out, stream=s)
            del x
            req.close()
            assert req.ack("gpu0") is slabpool.Ack.RELEASED
            stats = pool.stats()
            assert stats.retained > 0 and stats.live == 0
            assert stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached
            with pytest.raises(slabpool.PoolBusyError):
                pool.close()
        assert (out == 7).all()
        assert pool.stats().retained == 0
        del out


def test_an_allocation_without_room_looks_what_is_done(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        most = 40 << 20
        x = pool.zeros(most, np.uint8)
        with held(standin, s):
            x.copy_to_host(staging.empty(most, np.uint8), stream=s)
            del x
            for ask in (lambda: pool.empty(most, np.uint8), lambda: pool.request("r", reserve=most)):
                with pytest.raises(slabpool.PoolExhausted):
                    ask()
            del ask
        exhaustions = pool.stats  # not called here, because it polls too
        assert pool.empty(most, np.uint8).nbytes == most
        assert exhaustions().exhaustions == 2


def test_an_allocation_that_waits_looks_too(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        most = 40 << 20
        x = pool.zeros(most, np.uint8)
        got: list[int] = []
        with held(standin, s):
            x.copy_to_host(staging.empty(most, np.uint8), stream=s)
            del x
            waiter = threading.Thread(
                target=lambda: got.append(pool.empty(most, np.uint8, timeout=120).nbytes)
            )
            waiter.start()
        waiter.join()
        assert got == [most]


def test_records_do_not_gather(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        x, out = pool.zeros(10), staging.empty(10)
        for _ in range(200):
            x.copy_to_host(out, stream=s)
            settle(standin)
        assert standin.calls("cuEventCreate") == 200
        assert standin.leaks().count("cuEventCreate") <= 2
        del x, out
        assert pool.stats().live == 0


@pytest.mark.parametrize("name", ["cuMemcpyAsync", "cuEventCreate", "cuEventRecord", "cuStreamSynchronize"])
def test_a_copy_that_fails_leaves_nothing_under_way(standin: Standin, name: str) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        x, out = pool.full((4, 4), 7.0), staging.zeros((4, 4))
        for nth in (1, 3):
            standin.fail(name, nth=nth, result=1, times=1)
            on = s if name.startswith("cuEvent") else None
            if nth == 1 or name == "cuMemcpyAsync":
                with pytest.raises(slabpool.SlabpoolError, match="copying 64 bytes to the host failed"):
                    x[:, ::2].copy_to_host(out[:, ::2], stream=on)
            else:
                x[:, ::2].copy_to_host(out[:, ::2], stream=on)
            standin.clear_faults()
        settle(standin)  # a copy that is still queued on the stream keeps both arrays
        x.copy_to_host(out)
        assert (out == 7).all()
        del x, out
        assert pool.stats().live == staging.stats().live == 0


def test_a_lost_device_lets_go_of_what_was_under_way(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        x, out = pool.zeros(1000), staging.zeros(1000)
        with held(standin, s):
            x.copy_to_host(out, stream=s)
            del x, out
            assert pool.stats().live > 0
            standin.lose_device(0, LAUNCH_FAILED)
            assert pool.stats().live == 0 and staging.stats().live == 0
            standin.lose_device(0, 0)
    del pool, staging
    gc.collect()
    assert standin.leaks().split() == ["cuEventCreate"]  # a lost device refuses to destroy it
    standin.reset()


def test_a_captured_stream_is_refused(standin: Standin) -> None:
    work = Work(standin)
    with Pool("64MiB", memory="cuda:0") as pool, Pool("64MiB", memory="pinned") as staging, stream() as s:
        x, out = pool.zeros(10), staging.zeros(10)
        work.capture(s, True)
        with pytest.raises(InvalidArgumentError) as raised:
            x.copy_to_host(out, stream=s)
        says(raised, "copying 80 bytes to the host failed ... captured into a graph")
        del raised
        work.capture(s, False)
        x.copy_to_host(out, stream=s)
        settle(standin)  # so that the pools are not busy with it
        del x, out


# ---- law 2


def test_a_live_array_keeps_its_block(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"])
    x = req.copy(numbers(100))
    part = x[10:20]
    del x
    req.close()
    assert req.ack("gpu0") is slabpool.Ack.RELEASED
    assert req.state is RequestState.RELEASED
    stats = pool.stats()
    assert stats.live == 0 and stats.retained > 0
    assert stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached
    others = [pool.full(100, 1.0, "f4") for _ in range(50)]
    assert np.array_equal(part.copy_to_host(), numbers(100)[10:20])
    del others, part
    assert pool.stats().retained == 0


def test_it_outlives_its_pool(cuda: object) -> None:
    pool = Pool("64MiB", memory="cuda:0")
    x = pool.copy(numbers(10))
    pool.close(force=True)
    del pool
    gc.collect()
    assert np.array_equal(x[::2].copy_to_host(), numbers(10)[::2])


def test_threads(pool: Pool) -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(60):
                x = pool.full((10, 10), seed * 100 + i, "i4")
                assert (x[i % 10].copy_to_host() == seed * 100 + i).all()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_in_a_forks_child_it_says_so(standin: Standin) -> None:
    with Pool("64MiB", memory="cuda:0") as pool:
        x = pool.zeros(10)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert "cuda:0" in repr(x) and x[1:].shape == (9,)
                x.copy_to_host()
            except slabpool.DeviceUnavailableError as error:
                code = 0 if "fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert standin.calls_after_fork() == 0
        del x
