"""Silence and death: a device that is silent for longer than the lease puts a request in doubt and keeps all
it holds; a device that is lost releases all it holds.

Leases here are a hundredth of a second or an hour. Tests wait for the effect of a lease, and never sleep for
it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slabpool import Ack, Pool, RequestState
from tests.waiting import until

TINY = 0.01
HOUR = 3600


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("1MiB") as pool:
        yield pool
        assert pool._verify() is None


def figures(pool: Pool) -> tuple[int, int, int]:
    s = pool.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached
    return s.live, s.in_doubt, s.requests_in_doubt


def test_silent_device_puts_a_request_in_doubt_and_an_ack_takes_it_out(pool: Pool) -> None:
    req = pool.request("r", ["gpu0", "gpu1"], lease=TINY)
    array = req.full(512, 7.0)
    req.close()
    until(lambda: req.state is RequestState.IN_DOUBT)
    assert figures(pool) == (0, 4096, 1)
    (record,) = pool.leaks()
    assert (record.state, record.nbytes, record.pending) == (RequestState.IN_DOUBT, 4096, {"gpu0", "gpu1"})
    # Memory in doubt is not handed out: only free memory is.
    others = [pool.empty(512) for _ in range(255)]
    with pytest.raises(MemoryError, match="4 KiB in doubt"):
        pool.empty(512)
    assert (array == 7).all()
    del others, array
    assert req.ack("gpu0") is Ack.PENDING
    assert req.ack("gpu1") is Ack.RELEASED
    assert figures(pool) == (0, 0, 0)


def test_sign_of_life_renews_the_lease(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"], lease=0.2)
    req.empty(512)
    req.close()
    until(lambda: figures(pool)[2] == 1)

    # On a busy machine a lease may be over before its effect is read. Then the sign is given again.
    def heartbeat_seen() -> bool:
        pool.heartbeat("gpu0")
        return req.state is RequestState.DRAINING

    def heartbeat_counted() -> bool:
        pool.heartbeat("gpu0")
        return figures(pool) == (4096, 0, 0)

    # An ack of another request is a sign of life as well.
    def ack_seen() -> bool:
        with pool.request("other", ["gpu0"]) as other:
            other.ack("gpu0")
            return req.state is RequestState.DRAINING

    for seen in (heartbeat_seen, heartbeat_counted, ack_seen):
        until(seen)
        until(lambda: req.state is RequestState.IN_DOUBT)
    assert req.ack("gpu0") is Ack.RELEASED


def test_open_request_too_is_in_doubt_when_a_device_is_silent(pool: Pool) -> None:
    with pool.request("r", ["gpu0"], lease=TINY) as req:
        req.empty(512)
        until(lambda: req.state is RequestState.IN_DOUBT)
        assert figures(pool) == (0, 4096, 1)
        assert pool.stats().requests_open == 1
        req.empty(512)  # the host may still allocate
        assert figures(pool) == (0, 8192, 1)
        req.ack("gpu0")
        assert req.state is RequestState.OPEN
        assert figures(pool) == (8192, 0, 0)


def test_only_requests_with_a_lease_and_a_silent_device_are_in_doubt(pool: Pool) -> None:
    silent = pool.request("silent", ["gpu0"], lease=TINY)
    patient = pool.request("patient", ["gpu0"], lease=HOUR)
    without = pool.request("without", ["gpu0"])
    deviceless = pool.request("deviceless", lease=TINY)
    acked = pool.request("acked", ["gpu1"], lease=TINY)
    acked.ack("gpu1")
    every = [silent, patient, without, deviceless, acked]
    for req in every:
        req.empty(512)
    until(lambda: silent.state is RequestState.IN_DOUBT)
    assert [req.state for req in every] == [RequestState.IN_DOUBT] + [RequestState.OPEN] * 4
    assert figures(pool) == (4 * 4096, 4096, 1)
    for req in every:
        req.close()
    assert pool.device_lost("gpu0") == 3


def test_child_has_its_parents_lease(pool: Pool) -> None:
    with pool.request("r", ["gpu0"], lease=TINY) as parent:
        child = parent.child(["gpu0"])
        child.empty(512)
        child.close()
        until(lambda: child.state is RequestState.IN_DOUBT)
        assert figures(pool) == (0, 4096, 2)
        assert child.ack("gpu0") is Ack.RELEASED
        parent.ack("gpu0")


def test_retained_views_of_a_released_request_are_not_in_doubt(pool: Pool) -> None:
    req = pool.request("r", ["gpu0"], lease=TINY)
    array = req.full(512, 7.0)
    req.close()
    until(lambda: req.state is RequestState.IN_DOUBT)
    assert pool.stats().retained == 0
    assert req.ack("gpu0") is Ack.RELEASED
    assert (pool.stats().retained, figures(pool)) == (4096, (0, 0, 0))
    del array


def test_lost_device_releases_everything(pool: Pool) -> None:
    doubtful = pool.request("a", ["gpu0"], lease=TINY)
    draining = pool.request("b", ["gpu0"])
    open_one = pool.request("c", ["gpu0"])
    shared = pool.request("d", ["gpu0", "gpu1"])
    done = pool.request("e", ["gpu0"])
    done.ack("gpu0")
    every = [doubtful, draining, open_one, shared, done]
    arrays = [req.full(64, number) for number, req in enumerate(every)]
    for req in (doubtful, draining, shared):
        req.close()
    until(lambda: doubtful.state is RequestState.IN_DOUBT)
    assert pool.device_lost("gpu0") == 4
    assert [req.state.value for req in every] == ["released", "released", "open", "draining", "open"]
    assert shared.pending == {"gpu1"}
    assert pool.stats().retained == 2 * 512
    assert all((array == number).all() for number, array in enumerate(arrays))
    arrays.clear()
    assert draining.ack("gpu0") is Ack.LATE
    assert shared.ack("gpu0") is Ack.DUPLICATE
    assert pool.stats().acks == 1
    # It may come back, because a new request may name it.
    again = pool.request("f", ["gpu0"])
    again.close()
    assert again.ack("gpu0") is Ack.RELEASED
    for req in (open_one, done, shared):
        req.close()
    assert shared.ack("gpu1") is Ack.RELEASED
    assert pool.stats().live == 0


def test_loss_is_in_the_event_log() -> None:
    with Pool("1MiB", events=100) as pool:
        req = pool.request("r", ["gpu0", 1])
        req.close()
        pool.device_lost(1)
        assert [(e.device, e.generation) for e in pool.events() if e.kind == "lost"] == [(1, req.generation)]
        pool.device_lost("gpu0")


def test_4096_devices(pool: Pool) -> None:
    devices = [f"d{i}" if i % 2 else i for i in range(4096)]
    req = pool.request("all", devices)
    assert req.pending == set(devices)
    req.empty(512)
    req.close()
    for device in devices[:-1]:
        assert req.ack(device) is Ack.PENDING
    assert req.pending == {devices[-1]}
    assert req.ack(devices[0]) is Ack.DUPLICATE
    assert pool.stats().live == 4096
    assert req.ack(devices[-1]) is Ack.RELEASED
    assert pool.stats().live == 0
    # A request that names few of them, far apart; and one whose other devices are lost.
    few = pool.request("few", [devices[4095], devices[0], devices[2000]])
    few.close()
    assert [few.ack(devices[i]) for i in (2000, 4095, 0)] == [Ack.PENDING, Ack.PENDING, Ack.RELEASED]
    lost = pool.request("lost", devices)
    lost.close()
    assert sum(pool.device_lost(device) for device in devices) == 4096
    assert lost.state is RequestState.RELEASED
