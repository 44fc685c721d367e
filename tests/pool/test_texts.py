"""Texts for logs stay short: str, repr and errors, with the most devices, many requests, many names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import slabpool
from slabpool import Pool
from slabpool.arguments.texts import few, short
from slabpool.records import waits_for

DEVICES = [f"device-{number}" for number in range(4096)]
LIMIT = 1000


@pytest.fixture
def crowd() -> tuple[Pool, slabpool.Request]:
    """A pool with as many devices as it can tell apart, all of them in one request."""
    pool = Pool("16MiB")
    request = pool.request("crowd", devices=DEVICES)
    request.empty(1000)
    return pool, request


def test_few_and_short() -> None:
    assert few(f"d{number}" for number in range(5)) == "d0, d1, d2, d3, d4"
    assert few(f"d{number}" for number in range(4096)) == "d0, d1, d2, d3, d4 and 4091 more"
    assert len(few(["x" * 100_000] * 4096)) < 300
    assert short("x" * 40) == "x" * 40
    assert [len(short("x" * length)) for length in (41, 42, 100_000)] == [40, 40, 40]
    assert short("a" * 50 + "z" * 50, 10) == "aaaa...zzz"


def test_reprs_and_records_are_short(crowd: tuple[Pool, slabpool.Request]) -> None:
    pool, request = crowd
    texts = [repr(request), str(pool.requests()[0]), repr(pool.requests()[0])]
    request.close()
    texts += [repr(request), str(pool.leaks()[0]), repr(pool.leaks()[0])]
    for text in texts:
        assert "device-0" in text and "4091 more" in text and "crowd" in text
        assert len(text) < LIMIT
    assert len(pool.leaks()[0].pending) == 4096  # the record itself is whole


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (slabpool.UnknownDeviceError, lambda pool, request: request.ack("nobody")),
        (slabpool.UnknownDeviceError, lambda pool, request: pool.ack("crowd", "nobody")),
        (slabpool.UnknownDeviceError, lambda pool, request: pool.device_lost("nobody")),
        (slabpool.UnknownDeviceError, lambda pool, request: request.child(["nobody"])),
        (slabpool.TooManyDevicesError, lambda pool, request: pool.request("x", devices=["one-more"])),
        (
            slabpool.DuplicateDeviceError,
            lambda pool, request: pool.request("x", devices=[*DEVICES, "device-7"]),
        ),
        (slabpool.DuplicateDeviceError, lambda pool, request: request.add_device("device-7")),
        (slabpool.PoolExhausted, lambda pool, request: [pool.empty(9 << 20, "u1") for _ in range(2)]),
        (slabpool.PoolExhausted, lambda pool, request: pool.request("x", reserve="15.999MiB")),
        (slabpool.PoolBusyError, lambda pool, request: pool.close()),
    ],
)
def test_errors_are_short(
    crowd: tuple[Pool, slabpool.Request],
    error: type[Exception],
    call: Callable[[Pool, slabpool.Request], object],
) -> None:
    with pytest.raises(error) as caught:
        call(*crowd)
    assert 20 < len(str(caught.value)) < LIMIT


def test_the_list_of_holders_is_short() -> None:
    """Many requests, each with all devices, one of them with many generations."""
    pool = Pool("16MiB")
    requests = [pool.request("same", devices=DEVICES) for _ in range(50)]
    for request in requests:
        request.empty(1000)
    errors: list[str] = []
    for call in (lambda: pool.ack("same", "device-7"), lambda: pool.empty(16 << 20, "u1"), pool.close):
        with pytest.raises(slabpool.SlabpoolError) as caught:
            call()
        errors.append(str(caught.value))
    assert "and 45 more" in errors[0]
    assert "and 45 more requests" in errors[1] and "and 45 more requests" in errors[2]
    # Five holders, each with the line that opened it; the length of its path is not the pool's.
    assert max(len(text.replace(__file__, "")) for text in errors) < 1.5 * LIMIT


def test_a_long_name_keeps_the_mark_of_its_stream() -> None:
    long = "x" * 100_000
    text = waits_for(frozenset([long, "gpu0"]), frozenset([long]))
    assert text == "gpu0, xxxxxxxxx...xxxxxxxx (its stream's work)"


def test_sessions_are_short() -> None:
    pool = Pool("16MiB")
    session = pool.session("chat", budget="2MiB")
    with session.request() as turn:
        for number in range(300):
            session.keep(f"tensor-{number:03}" + "x" * 200, turn.empty(1000, "u1"))
        (record,) = pool.sessions()
        for text in (repr(session), str(record), repr(record)):
            assert "tensor-000" in text and "295 more" in text
            assert len(text) < LIMIT
        with pytest.raises(slabpool.QuotaExceededError) as caught:
            session.keep("large", turn.empty(3 << 20, "u1"))
        assert "295 more" in str(caught.value) and len(str(caught.value)) < LIMIT
