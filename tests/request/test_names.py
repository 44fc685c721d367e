"""Names of requests are any text. Names of devices come and go: 4,096 at a time.

A late ack under an old name never counts for a new one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import slabpool
from slabpool import Ack, DuplicateDeviceError, Pool, TooManyDevicesError, UnknownDeviceError
from tests.settled import settled
from tests.waiting import PATIENCE, until

MAX = 4096
NAMES = 6000


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("16MiB") as pool:
        yield pool
        pool.close(force=True)


def fill(pool: Pool, free: int, by: str = "idle") -> slabpool.Request:
    """A request that waits for names, so that the pool has room for `free` others."""
    return pool.request("filler", [f"{by}-{i}" for i in range(MAX - free)])


def end(request: slabpool.Request, *devices: str) -> None:
    request.close()
    for device in devices:
        request.ack(device)


def test_6000_names_by_request(pool: Pool) -> None:
    alive: list[tuple[slabpool.Request, str]] = []
    for i in range(NAMES):
        name = f"node-{i}"
        alive.append((pool.request("x", [name]), name))
        assert alive[-1][0].pending == {name}
        if len(alive) == 8:
            request, name = alive.pop(0)
            request.close()
            assert request.ack(name) is Ack.RELEASED
            assert request.ack(name) is Ack.LATE
    for request, name in alive:
        end(request, name)
    assert pool.stats().live == 0


def test_6000_names_by_add_device_to_one_request(pool: Pool) -> None:
    request = pool.request("x", ["stays"])
    for i in range(NAMES):
        request.add_device(f"node-{i}")
        assert request.pending == {"stays", f"node-{i}"}
        assert request.ack(f"node-{i}") is Ack.PENDING
    # Answers are those of an ack that was counted, whether the name still has a number or not.
    for i in (0, 1, 2, 4000, NAMES - 1):
        assert request.ack(f"node-{i}") is Ack.DUPLICATE
    with pytest.raises(UnknownDeviceError):
        request.ack("never")
    request.add_device("node-0")
    with pytest.raises(DuplicateDeviceError):
        request.add_device("node-0")
    request.close()
    assert request.ack("stays") is Ack.PENDING
    assert request.ack("node-0") is Ack.RELEASED
    assert [request.ack(name) for name in ("node-0", "node-5", "stays")] == [Ack.LATE] * 3


def test_6000_names_by_child(pool: Pool) -> None:
    for i in range(NAMES):
        with pool.request("x", [f"node-{i}"]) as parent:
            child = parent.child([f"node-{i}"])
            end(child, f"node-{i}")
        assert parent.ack(f"node-{i}") is Ack.RELEASED
        assert child.ack(f"node-{i}") is Ack.LATE


def test_late_acks_of_old_names(pool: Pool) -> None:
    old = [pool.request("old", [f"old-{i}"]) for i in range(8)]
    for i, request in enumerate(old):
        end(request, f"old-{i}")
    before = pool.stats()
    filler = fill(pool, 8)
    new = pool.request("old", [f"new-{i}" for i in range(8)])  # the numbers of the old names
    for i, request in enumerate(old):
        assert request.ack(f"old-{i}") is Ack.LATE
        assert request.remove_device(f"old-{i}") is Ack.LATE
        with pytest.raises(UnknownDeviceError, match=f"'new-{i}' was never named"):
            request.ack(f"new-{i}")
    for call in (pool.heartbeat, pool.device_lost, lambda name: pool.ack("old", name)):
        with pytest.raises(UnknownDeviceError, match=r"'old-0' was never named .* other names needed room"):
            call("old-0")
    after = pool.stats()
    assert (after.acks, after.late_acks) == (before.acks, before.late_acks + 16 + 8)
    assert new.pending == {f"new-{i}" for i in range(8)}
    assert filler.state is slabpool.RequestState.OPEN and len(filler.pending) == MAX - 8
    with pytest.raises(TooManyDevicesError, match="something waits for each of the others"):
        new.add_device("more")


def test_a_refusal_says_the_names_of_its_moment(pool: Pool) -> None:
    held = pool.request("held", ["old"])
    held.empty(8 << 20, np.uint8)
    with pytest.raises(slabpool.PoolExhausted) as refused:
        pool.empty(12 << 20, np.uint8)
    end(held, "old")
    fill(pool, 0)  # takes the number of old
    assert "'held' generation 1" in str(refused.value)
    assert "waits for old," in str(refused.value)


class Sweeps:
    """A generation whose conversion makes the pool take back the number of a name, and give it to another."""

    def __init__(self, pool: Pool, generation: int) -> None:
        self.pool = pool
        self.generation = generation
        self.new: slabpool.Request | None = None

    def __index__(self) -> int:
        fill(self.pool, 1)
        self.new = self.pool.request("r", ["new"])
        return self.generation


@pytest.mark.parametrize("opened", [0, 2], ids=["of the old request", "of the new one"])
def test_a_number_that_is_taken_back_during_an_ack_by_id(pool: Pool, opened: int) -> None:
    end(old := pool.request("r", ["old"]), "old")
    code = Sweeps(pool, old.generation + opened)
    with pytest.raises(UnknownDeviceError):
        pool.ack("r", "old", generation=code)  # type: ignore[arg-type]
    assert code.new is not None and code.new.generation == old.generation + 2
    assert code.new.pending == {"new"}
    assert pool.ack("r", "new") is Ack.PENDING


@pytest.mark.parametrize("open_requests", [1, 5000])
def test_a_refused_name_with_all_names_in_use(pool: Pool, open_requests: int) -> None:
    filler = fill(pool, 0)
    others = [pool.request(i, ["idle-0"]) for i in range(open_requests)]
    before = settled(pool)
    for attempt in range(3):
        with pytest.raises(TooManyDevicesError):
            pool.request("one more", [f"new-{attempt}"])
    assert pool.stats() == before
    # Each name is free for another one as soon as nothing waits for it.
    assert filler.ack("idle-7") is Ack.PENDING
    assert pool.request("one more", ["new"]).pending == {"new"}
    with pytest.raises(TooManyDevicesError):
        pool.request("two more", ["newer"])
    assert filler.ack("idle-0") is Ack.PENDING
    with pytest.raises(TooManyDevicesError):  # the others wait for it
        pool.request("two more", ["newer"])
    for request in others:
        request.close()
        assert request.ack("idle-0") is Ack.RELEASED
    assert pool.request("two more", ["newer"]).pending == {"newer"}


def test_a_name_comes_back_under_another_number(pool: Pool) -> None:
    end(old := pool.request("old", ["a"]), "a")
    longest = pool.request("longest", ["a", "b"])
    longest.ack("a")
    filler = fill(pool, 1)  # takes the number of a
    assert longest.ack("a") is Ack.DUPLICATE
    filler.ack("idle-0")
    again = pool.request("again", ["a"])
    assert (old.ack("a"), longest.ack("a")) == (Ack.LATE, Ack.DUPLICATE)
    assert again.pending == {"a"}
    longest.add_device("a")
    assert (longest.pending, longest.ack("a"), longest.pending) == ({"a", "b"}, Ack.PENDING, {"b"})
    again.close()
    assert again.ack("a") is Ack.RELEASED


def test_a_refusal_takes_no_name_and_no_number(pool: Pool) -> None:
    fill(pool, 2)
    with pytest.raises(TooManyDevicesError):
        pool.request("r", ["x", "y", "z"])
    with pytest.raises(UnknownDeviceError):
        pool.heartbeat("x")
    pool.request("r", ["x", np.str_("y")]).cancel()
    with pytest.raises(DuplicateDeviceError):
        pool.request("r", ["x", "x"])


def test_a_lease_does_not_count_signs_of_the_old_name(pool: Pool) -> None:
    end(pool.request("old", ["old"]), "old")
    pool.heartbeat("old")
    fill(pool, 1)
    request = pool.request("r", ["new"], lease=1e-9)
    request.empty(8)
    until(lambda: pool.stats().in_doubt > 0)
    assert request.state is slabpool.RequestState.IN_DOUBT


def test_events_keep_the_old_names() -> None:
    with Pool("1MiB", events=20_000) as pool:
        for i in range(NAMES):
            end(pool.request("x", [f"node-{i}"]), f"node-{i}")
        acked = [event.device for event in pool.events() if event.kind == "ack"]
        assert acked == [f"node-{i}" for i in range(NAMES - len(acked), NAMES)]
        assert len(acked) > MAX
    with Pool("1MiB", events=100) as pool:
        for i in range(NAMES):
            end(pool.request("x", [f"node-{i}"]), f"node-{i}")
        acked = [event.device for event in pool.events() if event.kind == "ack"]
        assert acked == [f"node-{i}" for i in range(NAMES - len(acked), NAMES)]


@pytest.mark.parametrize("debug", [0, 1], ids=["with the GIL", "without the GIL"])
def test_threads_with_more_names_than_numbers(debug: int) -> None:
    """Every ack counts for its own request, while other threads take numbers back."""
    pool = Pool("16MiB", debug=debug)
    filler = fill(pool, 12)
    wrong: list[object] = []

    def serve(thread: int) -> None:
        try:
            for i in range(300):
                name = f"{thread}.{i}"
                request = pool.request(thread, [name], reserve=65536, timeout=PATIENCE)
                request.add_device(f"{name}+")
                assert request.pending == {name, f"{name}+"}
                request.close()
                assert pool.ack(thread, name) is Ack.PENDING
                assert request.ack(f"{name}+") is Ack.RELEASED
                assert request.ack(name) is Ack.LATE
        except BaseException as error:
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=serve, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert pool.stats().acks == 4 * 300 * 2
    assert len(filler.pending) == MAX - 12
    filler.cancel()
    assert pool.stats().requests_open == 0


def test_a_name_that_got_another_number_is_found_under_that(pool: Pool) -> None:
    name = "gpu0"  # the same object each time: it is remembered with its number
    before = pool.request("r", [name])
    end(before, name)
    fill(pool, 1)
    taken = pool.request("s", ["other"])  # "gpu0" gives up its number
    assert before.ack(name) is Ack.LATE
    assert taken.pending == {"other"}
    end(taken, "other")
    again = pool.request("r", [name])  # and "other" its own
    assert again.pending == {name} and again.ack(name) is Ack.PENDING
    again.close()
    with pytest.raises(UnknownDeviceError):
        pool.ack("r", "other")
    assert pool.ack("r", name) is Ack.LATE


def test_more_names_than_are_remembered(pool: Pool) -> None:
    names = [f"node-{i}" for i in range(500)]
    for devices in (names, names[::-1]):
        request = pool.request("r", devices)
        request.close()
        assert request.pending == set(names)
        answers = [request.ack(name) for name in devices]
        assert answers == [Ack.PENDING] * 499 + [Ack.RELEASED]


@pytest.mark.parametrize(
    "request_id",
    ["", "x", "x" * 126, "x" * 127, "x" * 5000, "ü" * 63, "ü" * 64, "a\0b", "\ud800", "\U0001f600"],
    ids=lambda text: f"{len(text)}-{text[:1]!a}",
)
def test_any_text_is_an_id(pool: Pool, request_id: str) -> None:
    request = pool.request(request_id, ["gpu0"])
    other = pool.request(request_id + "-", ["gpu0"])
    assert [record.request_id for record in pool.requests()] == [request_id, request_id + "-"]
    request.close()
    assert pool.ack(request_id, "gpu0") is Ack.RELEASED
    assert other.state is slabpool.RequestState.OPEN
    end(other, "gpu0")
