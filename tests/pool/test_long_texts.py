"""Names of a megabyte, layouts of 10,000 tensors, 4,096 devices: every str, repr and message stays short."""

from __future__ import annotations

import enum

import numpy as np
import pytest

import slabpool
from slabpool import GrowableTensor, Layout, Pool, SlabpoolError
from slabpool.arguments.texts import show
from slabpool.connector import AckAggregator

LIMIT = 1000
LONG = "x" * 1_000_000
DEVICES = [f"device-{number}" for number in range(4094)]
MANY = {f"tensor-{number}": ((1, 2), np.float32) for number in range(10_000)}
BIG = 1 << 100_000  # Python refuses to print it


class Wide(str):
    def __repr__(self) -> str:
        return LONG


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD = [
    LONG,
    [LONG] * 20,
    {LONG: LONG},
    BIG,
    -BIG,
    b"y" * 1_000_000,
    np.zeros(100_000),
    Broken(),
    type(LONG, (), {})(),
]
KINDS = ["str", "list", "dict", "int", "negative", "bytes", "array", "broken", "long type"]


def short(*values: object) -> None:
    for value in values:
        assert len(str(value)) <= LIMIT, str(value)[:200]
        assert len(repr(value)) <= LIMIT, repr(value)[:200]


@pytest.mark.parametrize("value", ODD, ids=KINDS)
def test_show_is_short_and_never_fails(value: object) -> None:
    assert len(show(value)) <= 300
    assert len(show([value] * 10)) <= 300


def test_show_is_the_repr_of_a_short_value() -> None:
    for value in ("gpu0", 5, 1.5, None, ("a", 1), [1, 2], {"a": 1}, b"id", True, np.int64(5)):
        assert show(value) == repr(value)
    assert show(Wide("a")) != LONG


def test_objects_of_a_pool_with_long_names() -> None:
    pool = Pool("16MiB", name=LONG, events=1000, debug=1)
    request = pool.request(LONG, devices=[LONG, LONG + "2", *DEVICES])
    layout = Layout({LONG: (4, np.uint8), "b": (4, np.uint8)})
    tensors = request.allocate(layout)
    growing = request.growable((1, 4), [("f" * 1000, np.uint8)], limit=8)
    array = request.empty(100, np.uint8)
    session = pool.session(LONG)
    kept = session.request()
    session.keep("n" * 100_000, kept.empty(10, np.uint8))
    request.ack(LONG)
    short(pool, request, layout, tensors, growing, session, kept, request.child(devices=[LONG + "2"]))
    short(*pool.requests(), *pool.sessions(), *pool.events(), pool.stats(), *pool.corruptions())
    kept.close()
    request.close()
    short(request, *pool.requests(), *pool.leaks())
    del array
    pool.close(force=True)
    short(pool, request, session)


def test_layouts_of_many_tensors() -> None:
    layout = Layout(MANY)
    pool = Pool("16MiB")
    with pool.request("r") as request:
        tensors = request.allocate(layout)
        short(layout, tensors)
        assert "and 9995 more" in repr(layout) and "and 9995 more" in repr(tensors)
        with pytest.raises(AttributeError) as caught:
            tensors.nothing
        short(caught.value)
    short(Layout({"a": (1, np.dtype([(f"field-{n}", np.uint8) for n in range(1000)]))}))


def test_shared_objects_with_long_names() -> None:
    name = "a" * 100_000
    dtype = np.dtype([(f"field{n}", "<u1") for n in range(100)])
    with Pool("1MiB", memory="shared", name=name) as pool, pool.request("r", devices=["d" * 3000]) as request:
        reference = request.ref(request.empty(3, dtype))
        peer = slabpool.attach(name, "d" * 3000)
        short(reference, peer, pool)
        with pytest.raises(SlabpoolError) as caught:
            slabpool.attach(name, "d" * 3000)
        short(caught.value)
        with pytest.raises(slabpool.InvalidArgumentError, match="too long for another process") as caught:
            slabpool.attach(name, "d" * 5000)
        short(caught.value)
        peer.ack(reference)
        with pytest.raises(slabpool.InvalidReferenceError) as caught:
            peer.open(reference)
        short(caught.value)
        peer.close()
        short(peer)


CALLS = {
    "a request's id": lambda pool, value: pool.request(value),
    "devices": lambda pool, value: pool.request("r", devices=value),
    "a device": lambda pool, value: pool.request("r", devices=[value, value]),
    "reserve": lambda pool, value: pool.request("r", reserve=value),
    "quota": lambda pool, value: pool.request("r", quota=value),
    "lease": lambda pool, value: pool.request("r", lease=value),
    "timeout": lambda pool, value: pool.request("r", timeout=value),
    "ack": lambda pool, value: pool.ack("long", value),
    "ack of an id": lambda pool, value: pool.ack(value, "nobody"),
    "generation": lambda pool, value: pool.ack("long", "a", generation=value),
    "device_lost": lambda pool, value: pool.device_lost(value),
    "heartbeat": lambda pool, value: pool.heartbeat(value),
    "shape": lambda pool, value: pool.empty(value),
    "shape of one": lambda pool, value: pool.empty((value,)),
    "dtype": lambda pool, value: pool.empty(1, value),
    "align": lambda pool, value: pool.empty(1, align=value),
    "a layout": lambda pool, value: Layout({"a": value}),
    "a layout's name": lambda pool, value: Layout(
        {"a": (1, "u1"), **({value: (1, value)} if _hashable(value) else {1: 1})}
    ),
    "a session": lambda pool, value: pool.session(value, ttl=value),
    "leaks": lambda pool, value: pool.leaks(older_than=value),
    "capacity": lambda pool, value: Pool(value),
    "memory": lambda pool, value: Pool("1MiB", memory=value),
    "name": lambda pool, value: Pool("1MiB", name=value, scrub=value),
    "scrub": lambda pool, value: Pool("1MiB", scrub=value),
    "debug": lambda pool, value: Pool("1MiB", debug=value),
    "events": lambda pool, value: Pool("1MiB", events=value),
    "numa_node": lambda pool, value: Pool("1MiB", numa_node=value),
    "attach": lambda pool, value: slabpool.attach(value, value),
    "a peer's device": lambda pool, value: slabpool.attach("nobody-has-this-name", value),
}


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("value", ODD, ids=KINDS)
@pytest.mark.parametrize("what", CALLS)
def test_errors_of_long_arguments(what: str, value: object) -> None:
    """Either the call takes the value, or it raises an error of slabpool's own with a short message."""
    pool = Pool("1MiB")
    pool.request("long", devices=["a"])
    try:
        short(CALLS[what](pool, value))
    except SlabpoolError as error:
        short(error)
    finally:
        pool.close(force=True)


def _errors(base: type[SlabpoolError]) -> list[type[SlabpoolError]]:
    return [base, *(error for child in base.__subclasses__() for error in _errors(child))]


@pytest.mark.parametrize("error", _errors(SlabpoolError), ids=lambda error: error.__name__)
def test_no_error_can_have_a_long_message(error: type[SlabpoolError]) -> None:
    short(error(LONG + "what to do"))
    assert str(error(LONG + "what to do")).endswith("what to do")
    assert str(error("a short message")) == "a short message"


# ---- numpy's ints and strings are names like Python's


class Rank(enum.IntEnum):
    FIRST = 5


INTS = [np.int64(5), np.uint8(5), np.int16(5), np.intp(5), Rank.FIRST]
NAMES = [(one, 5) for one in INTS] + [(np.str_("gpu5"), "gpu5")]
named = pytest.mark.parametrize(("like", "plain"), NAMES, ids=lambda value: f"{type(value).__name__}")


@named
def test_ids_of_numpy_are_ids(like: object, plain: object) -> None:
    pool = Pool("1MiB")
    request = pool.request(like, devices=["a", "b"])
    assert type(request.id) is type(plain) and request.id == plain
    assert pool.ack(plain, "a") is slabpool.Ack.PENDING
    assert pool.ack(like, "b") is slabpool.Ack.PENDING
    assert [type(record.request_id) for record in pool.requests()] == [type(plain)]
    session = pool.session(like)
    assert pool.sessions()[0].session_id == plain and type(pool.sessions()[0].session_id) is type(plain)
    session.close()


@named
def test_devices_of_numpy_are_devices(like: object, plain: object) -> None:
    pool = Pool("1MiB")
    request = pool.request("r", devices=["other", like])
    assert request.pending == {"other", plain}
    assert {type(device) for device in request.pending} == {str, type(plain)}
    child = request.child(devices=[like])
    assert child.pending == {plain}
    assert request.ack(plain) is slabpool.Ack.PENDING
    assert request.ack(like) is slabpool.Ack.DUPLICATE
    request.add_device(like)
    with pytest.raises(slabpool.DuplicateDeviceError):
        request.add_device(plain)
    with pytest.raises(slabpool.DuplicateDeviceError):
        pool.request("twice", devices=[like, plain])
    assert pool.ack("r", like, generation=np.int64(request.generation)) is slabpool.Ack.PENDING
    pool.heartbeat(like)
    assert pool.device_lost(like) == 0  # the child has left with its parent
    later = pool.request("later", devices=[plain])
    assert pool.device_lost(like) == 1 and later.pending == frozenset()


@pytest.mark.parametrize(
    "devices", [np.arange(3), np.arange(3, dtype=np.uint8), list(np.arange(3)), (np.int8(0), 1, 2)]
)
def test_arrays_of_devices(devices: object) -> None:
    pool = Pool("1MiB")
    for _ in range(2):  # the second time the pool knows them
        request = pool.request("r", devices=devices)
        assert request.pending == {0, 1, 2} and {type(device) for device in request.pending} == {int}
    assert pool.request("s", devices=np.array(["a", "b"])).pending == {"a", "b"}
    with pytest.raises(slabpool.InvalidTypeError):
        pool.request("r", devices=np.zeros((2, 2), int))
    with pytest.raises(slabpool.InvalidTypeError):
        pool.request("r", devices=np.array(1))


@pytest.mark.parametrize(
    "value",
    [True, np.True_, np.float64(1), 1.0, None, np.array([1]), np.datetime64("2020"), np.timedelta64(5)],
)
def test_what_is_no_name(value: object) -> None:
    pool = Pool("1MiB")
    request = pool.request("r", devices=[1])
    for call in (
        lambda: pool.request(value),
        lambda: pool.request("s", devices=[value]),
        lambda: request.ack(value),
        lambda: request.add_device(value),
        lambda: pool.ack(value, 1),
        lambda: pool.session(value),
    ):
        with pytest.raises(slabpool.InvalidTypeError):
            call()
    assert request.pending == {1}


def test_sizes_and_options_of_numpy() -> None:
    assert type(Pool("1MiB", name=np.str_("engine")).name) is str
    pool = Pool(np.int64(1 << 20), debug=np.int64(1), events=np.uint16(10))
    request = pool.request("r", reserve=np.uint32(1 << 16), quota=np.int64(1 << 17))
    assert request.quota == 1 << 17
    assert request.empty((np.int8(3), np.uint64(4)), align=np.int32(128)).shape == (3, 4)
    assert isinstance(request.growable((1, 4), np.uint8, limit=np.int64(8)), GrowableTensor)


def test_ranks_of_numpy() -> None:
    sends = AckAggregator(ranks=np.arange(2))
    request = sends.watch(Pool("1MiB").request("r", devices=[0, 1]))
    request.close()
    assert sends.report(np.int64(0), ["r"]) == [slabpool.Ack.PENDING]
    assert sends.report(1, ["r"]) == [slabpool.Ack.RELEASED]
