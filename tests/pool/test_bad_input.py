"""Bad input to a pool: capacities, options, shapes, dtypes, sizes, and calls on a closed pool.

Each raises its own error, whose message says what was passed, what was expected and what to do, and changes
nothing in the pool (tests/scene.py). Bad input about requests and devices is in tests/request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import InvalidArgumentError as BadValue
from slabpool import InvalidTypeError as BadType
from slabpool import Layout, Pool, PoolClosedError, RequestClosedError, TensorTooLargeError
from tests.scene import Scene, refused, says
from tests.settled import settled

MAX_CAPACITY = 1 << 42


class Huge:
    """An int to numpy and to slabpool, too large for either."""

    def __index__(self) -> int:
        return 1 << 80

    def __repr__(self) -> str:
        return "Huge()"


def short(value: Any) -> str:
    """A parameter id, also for numbers that Python refuses to print."""
    return f"{value.bit_length()} bits" if type(value) is int and value > 1 << 99 else repr(value)[:30]


# ---- making a pool

CAPACITIES: list[tuple[Any, type[Exception], str]] = [
    (0, BadValue, f"capacity must be from 16384 to {MAX_CAPACITY} bytes ... got 0"),
    (-1, BadValue, "capacity ... got -1"),
    (100, BadValue, "from 16384 to ... got 100"),
    ("0", BadValue, "capacity ... '0'"),
    ("0GiB", BadValue, "capacity ... '0GiB' (0 bytes)"),
    (1 << 60, BadValue, f"{MAX_CAPACITY} ... {1 << 60}"),
    ("5000TiB", BadValue, f"{MAX_CAPACITY} ... '5000TiB'"),
    (10**5000, BadValue, f"{MAX_CAPACITY} ... bits"),
    ("9" * 5000, BadValue, "such as '2GiB' ... 999"),
    ("", BadValue, "capacity ... '2GiB' ... ''"),
    ("2 elephants", BadValue, "'2GiB' ... '2 elephants'"),
    ("-2GiB", BadValue, "'-2GiB'"),
    ("1e9", BadValue, "'1e9'"),
    ("2GiB 3", BadValue, "'2GiB 3'"),
    (1.5e9, BadType, "'2GiB' ... 1500000000.0 ... float"),
    (None, BadType, "capacity ... None ... NoneType"),
    (True, BadType, "capacity ... True"),
    (b"2GiB", BadType, "b'2GiB' ... bytes"),
    ([1 << 20], BadType, "list"),
    (float("nan"), BadType, "nan"),
]

OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"memory": "moon"}, BadValue, "memory ... 'host' ... 'moon'"),
    ({"memory": None}, BadValue, "memory ... 'host' ... None"),
    ({"scrub": "always"}, BadValue, "scrub ... 'never' or 'release' ... 'always'"),
    ({"debug": 3}, BadValue, "debug ... 0, 1 or 2 ... 3"),
    ({"debug": "yes"}, BadValue, "debug ... 'yes'"),
    ({"events": -1}, BadValue, "events ... -1"),
    ({"events": 1 << 40}, BadValue, f"events ... {1 << 24} ... {1 << 40}"),
    ({"events": 1.5}, BadValue, "events ... an int ... 1.5"),
    ({"numa_node": -1}, BadValue, "numa_node ... -1"),
    ({"numa_node": "0"}, BadValue, "numa_node ... an int ... '0'"),
    ({"numa_node": 900}, slabpool.SystemRefusedError, "1MiB ... NUMA node 900"),
    ({"numa_node": 1 << 40}, BadValue, f"numa_node ... {1 << 40}"),
    ({"name": 7}, BadType, "name ... a str ... 7"),
]


@pytest.mark.parametrize(("capacity", "error", "text"), CAPACITIES, ids=short)
def test_capacity(capacity: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        Pool(capacity)
    says(raised, text)


def test_capacity_at_its_bounds() -> None:
    assert Pool(16384).capacity == 16384
    assert Pool("16 kib").capacity == 16384
    assert Pool("0.5MB").capacity == 500_000
    for beyond in (16383, MAX_CAPACITY + 1):
        with pytest.raises(BadValue):
            Pool(beyond)


@pytest.mark.parametrize(("options", "error", "text"), OPTIONS, ids=short)
def test_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        Pool("1MiB", **options)
    says(raised, text)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="debugging"):
        Pool("1MiB", debugging=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Pool()  # type: ignore[call-arg]


# ---- shapes and dtypes

SHAPES: list[tuple[Any, type[Exception], str]] = [
    (-1, BadValue, "negative dimension ... -1"),
    ((2, -3), BadValue, "negative dimension ... (2, -3)"),
    ([-(1 << 70)], BadValue, "negative dimension"),
    (1.5, BadType, "an int or a tuple of ints ... 1.5 ... float"),
    ((2, 3.0), BadType, "an int or a tuple of ints ... (2, 3.0) ... float"),
    ((2, None), BadType, "(2, None) ... NoneType"),
    ("3", BadType, "'3' ... str"),
    (("3",), BadType, "('3',) ... str"),
    (None, BadType, "None"),
    ({3}, BadType, "{3} ... set"),
    (((2, 3), 4), BadType, "((2, 3), 4) ... tuple"),
    (1 << 61, BadValue, f"too large ... {1 << 61}"),
    (1 << 64, BadValue, f"too large ... {1 << 64}"),
    ((1 << 32, 1 << 32), BadValue, "too large"),
    ((1 << 62, 4, 0), BadValue, "too large"),
    ((4, 0, 1 << 62), BadValue, "too large"),
    ((Huge(),), BadValue, "too large ... Huge()"),
    ((1,) * 65, BadValue, "65 dimensions ... at most 64"),
]

DTYPES: list[tuple[Any, type[Exception], str]] = [
    (object, BadType, "object ... Python objects ... plain values"),
    ("O", BadType, "object ... Python objects"),
    ([("a", "i4"), ("b", "O")], BadType, "'O' ... Python objects"),
    ([("a", [("deep", object, (2,))])], BadType, "Python objects"),
    (dict, BadType, "Python objects"),
    ("no such type", BadType, "numpy understands ... 'no such type'"),
    (3, BadType, "numpy understands ... 3"),
    ([("a",)], BadType, "numpy understands"),
]


@pytest.mark.parametrize(("shape", "error", "text"), SHAPES, ids=short)
def test_shape(scene: Scene, shape: Any, error: type[Exception], text: str) -> None:
    for source in (scene.pool, scene.req):
        refused(scene, lambda _, s=source: s.empty(shape), error, text)
        refused(scene, lambda _, s=source: s.zeros(shape, "f4"), error, text)
        refused(scene, lambda _, s=source: s.full(shape, 1.0), error, text)
    with pytest.raises(error) as raised:
        Layout({"a": (3, "f4"), "b": (shape, "f8")})
    says(raised, text)


@pytest.mark.parametrize(("dtype", "error", "text"), DTYPES, ids=short)
def test_dtype(scene: Scene, dtype: Any, error: type[Exception], text: str) -> None:
    refused(scene, lambda s: s.pool.empty(3, dtype), error, text)
    refused(scene, lambda s: s.req.zeros(3, dtype), error, text)
    refused(scene, lambda s: s.req.full(3, 0, dtype), error, text)
    with pytest.raises(error) as raised:
        Layout({"a": (3, dtype)})
    says(raised, text)
    # A bad dtype does not replace the last good one in the cache.
    assert scene.pool.empty(1, "f4").dtype == np.float32


def test_overflow_is_found_in_bytes_not_only_in_items(scene: Scene) -> None:
    for dtype in ("u1", "f8", "V4096"):
        refused(scene, lambda s, d=dtype: s.pool.empty((1 << 31, 1 << 31, 3), d), BadValue, "too large")
    # A size that an address can hold, but that no pool has.
    refused(scene, lambda s: s.pool.empty((1 << 31, 1 << 31), "u1"), TensorTooLargeError, "'scene'")
    with pytest.raises(BadValue, match="together"):
        Layout(dict.fromkeys("abcd", (1 << 60, "f4")))


def test_values_that_are_objects_are_refused(scene: Scene) -> None:
    refused(scene, lambda s: s.pool.copy([object()]), BadType, "Python objects")
    refused(scene, lambda s: s.req.full(2, object()), BadType, "Python objects")


def test_failed_fill_gives_the_block_back(scene: Scene) -> None:
    live = scene.pool.stats().live
    for shape, value, dtype in [(3, [1, 2], None), (3, "text", "f4"), ((), [[1, 2]], None)]:
        with pytest.raises(ValueError, match="could not"):
            scene.pool.full(shape, value, dtype)
    assert scene.pool.stats().live == live


# ---- how to allocate

SETTINGS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("0", {"align": 0}, BadValue, f"power of two from 1 to {2 << 20} ... got 0"),
    ("48", {"align": 48}, BadValue, "align ... power of two ... 48"),
    ("-64", {"align": -64}, BadValue, "align ... power of two ... -64"),
    ("4 MiB", {"align": 4 << 20}, BadValue, f"{2 << 20} ... {4 << 20}"),
    ("text", {"align": "64"}, BadType, "align must be an int ... '64' ... str"),
    ("float", {"align": 64.0}, BadType, "align must be an int ... 64.0 ... float"),
    ("soon", {"timeout": "soon"}, BadType, "timeout must be seconds or None ... 'soon'"),
    ("list", {"timeout": [1]}, BadType, "timeout must be seconds or None ... [1]"),
    ("-huge", {"timeout": -(10**400)}, BadValue, "timeout must be seconds from 0 on"),
    ("bytes", {"timeout": b"1"}, BadType, "timeout must be seconds or None ... b'1' of type bytes"),
    ("digits", {"timeout": "1"}, BadType, "timeout must be seconds or None ... '1' of type str"),
    ("True", {"timeout": True}, BadType, "timeout must be seconds or None ... True of type bool"),
    ("-1", {"timeout": -1}, BadValue, "timeout must be seconds from 0 on ... -1"),
    ("nan", {"timeout": float("nan")}, BadValue, "timeout must be seconds from 0 on ... nan"),
]


@pytest.mark.parametrize(("settings", "error", "text"), [case[1:] for case in SETTINGS], ids=short)
def test_align_and_timeout(scene: Scene, settings: Any, error: type[Exception], text: str) -> None:
    for source in (scene.pool, scene.req):
        refused(scene, lambda _, s=source: s.empty(3, **settings), error, text)
        refused(scene, lambda _, s=source: s.zeros(3, **settings), error, text)
        refused(scene, lambda _, s=source: s.full(3, 1.0, **settings), error, text)
        refused(scene, lambda _, s=source: s.copy([1], **settings), error, text)


@pytest.mark.parametrize("timeout", [None, 60])
def test_larger_than_the_capacity_fails_at_once(scene: Scene, timeout: float | None) -> None:
    text = "2 MiB ... capacity of pool 'scene', 1 MiB ... larger or the tensor smaller"
    layout = Layout({"a": (1 << 20, "u1"), "b": (1 << 20, "u1")})
    refused(scene, lambda s: s.pool.empty(2 << 20, "u1", timeout=timeout), TensorTooLargeError, text)
    text = text.replace("2 MiB", "2 MiB for request 'chat' generation 1")
    refused(scene, lambda s: s.req.zeros(1 << 18, timeout=timeout), TensorTooLargeError, text)
    refused(scene, lambda s: s.req.allocate(layout, timeout=timeout), TensorTooLargeError, text)
    refused(scene, lambda s: s.pool.empty(1 << 60, "u1", timeout=timeout), TensorTooLargeError, "TiB")


@pytest.mark.parametrize("capacity", [20_000, 100_000, 500_000])
def test_sizes_beyond_the_whole_pages_of_the_capacity_fail_at_once(capacity: int) -> None:
    # Memory is committed in whole pages, so the last bytes of such a capacity can never be used. A size that
    # is refused in an empty pool can never be served, so no call may wait for it.
    with Pool(capacity) as pool:
        for nbytes in range(capacity - 40_000, capacity + 1, 1000):
            try:
                pool.empty(max(nbytes, 1), "u1", timeout=5)
            except TensorTooLargeError:
                break
        else:
            assert capacity % 4096 == 0


# ---- reports

LOOKS: list[tuple[str, Any, type[Exception], str]] = [
    ("text", "old", BadType, "older_than must be seconds ... 'old'"),
    ("None", None, BadType, "older_than must be seconds ... None"),
    ("-1", -1, BadValue, "older_than must be seconds from 0 on ... -1"),
    ("nan", float("nan"), BadValue, "older_than must be seconds from 0 on ... nan"),
]


@pytest.mark.parametrize(("older_than", "error", "text"), [case[1:] for case in LOOKS], ids=short)
def test_older_than(scene: Scene, older_than: Any, error: type[Exception], text: str) -> None:
    refused(scene, lambda s: s.pool.leaks(older_than), error, text)
    assert scene.pool.leaks(float("inf")) == []
    assert len(scene.pool.leaks(0)) == len(scene.pool.requests())


# ---- a closed pool


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.empty(3), lambda pool: pool.zeros(0), lambda pool: pool.full(3, 1),
        lambda pool: pool.copy([1]), lambda pool: pool.request("r"), lambda pool: pool.empty(3, timeout=60),
        lambda pool: pool.request("r", reserve=4096), lambda pool: pool.request("r", timeout=60),
    ],
)  # fmt: skip
def test_closed_pool_serves_nothing(call: Any) -> None:
    pool = Pool("1MiB", name="shut")
    pool.close()
    before = settled(pool)
    with pytest.raises(PoolClosedError) as raised:
        call(pool)
    says(raised, "pool 'shut' is closed ... new pool")
    assert pool.stats() == before


def test_request_of_a_closed_pool() -> None:
    pool = Pool("1MiB", name="shut")
    req = pool.request("r", ["gpu0"])
    pool.close(force=True)
    for call in (lambda: req.empty(3), lambda: req.child(), lambda: req.allocate(Layout({"a": (1, "u1")}))):
        with pytest.raises((PoolClosedError, RequestClosedError)):
            call()
    assert req.ack("gpu0") is slabpool.Ack.LATE


# ---- errors as a program catches them


@pytest.mark.parametrize(
    ("call", "builtin"),
    [
        (lambda s: s.pool.empty(-1), ValueError),
        (lambda s: s.pool.empty(1.5), TypeError),
        (lambda s: s.pool.empty(2 << 20, "u1"), MemoryError),
        (lambda s: s.pool.empty(2 << 20, "u1"), ValueError),
        (lambda s: s.bounded.empty(1 << 17, "u1"), MemoryError),
        (lambda s: s.req.ack("gpu7"), LookupError),
        (lambda s: s.pool.ack("twin", "gpu0"), LookupError),
        (lambda s: s.closed.empty(1), RuntimeError),
        (lambda s: s.pool.close(), RuntimeError),
        (lambda s: s.pool.request("r", ["a", "a"]), ValueError),
    ],
)
def test_each_error_is_also_a_builtin_one(scene: Scene, call: Any, builtin: type[Exception]) -> None:
    with pytest.raises(slabpool.SlabpoolError) as raised:
        call(scene)
    assert isinstance(raised.value, builtin)
