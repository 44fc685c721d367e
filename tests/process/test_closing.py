"""The owner closes, drops or leaves its pool: what a device has open stays as it was until it lets go."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool.shared import owner as owner_module
from tests.process.devices import PATIENCE, Device, attached
from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]

NBYTES = 1 << 20
OPTIONS: list[dict[str, Any]] = [{}, {"scrub": "release"}, {"debug": 1}]

_open: list[Any] = []  # in a device's process


def opens(peer: slabpool.Peer, ref: slabpool.TensorRef, writable: bool = False) -> None:
    """Opens a tensor, and keeps the view."""
    _open.append(peer.open(ref, writable=writable))


def sees(peer: slabpool.Peer) -> tuple[list[int], bool]:
    """The values in the last view, and whether the owner is known to be gone."""
    assert peer.wait_lost(PATIENCE)
    return np.unique(_open[-1]).tolist(), peer.lost


def writes(peer: slabpool.Peer, value: int) -> None:
    """Fills the last view."""
    _open[-1][:] = value


def lets_go(peer: slabpool.Peer) -> None:
    """Closes the peer."""
    peer.close()


def threads_of(name: str) -> list[threading.Thread]:
    """The threads that serve a pool."""
    return [thread for thread in threading.enumerate() if thread.name == f"slabpool-{name}"]


def leave_with_an_error(pool: slabpool.Pool) -> None:
    """An exception leaves the pool's block."""
    with pytest.raises(ZeroDivisionError), pool:
        raise ZeroDivisionError


def leave_by_exit(pool: slabpool.Pool) -> None:
    """SystemExit leaves the pool's block."""
    with pytest.raises(SystemExit), pool:
        sys.exit(3)


CLOSINGS: list[Callable[[slabpool.Pool], None]] = [
    lambda pool: pool.close(force=True),
    leave_with_an_error,
    leave_by_exit,
]


@pytest.mark.parametrize("close", CLOSINGS, ids=["force", "exception", "exit"])
@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize("end", [lambda d: d.ask(lets_go), lambda d: d.kill()], ids=["closes", "dies"])
def test_a_forced_close_leaves_a_device_its_bytes(
    meeting_place: Path,
    close: Callable[[slabpool.Pool], None],
    options: dict[str, Any],
    end: Callable[[Device], None],
) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine", **options)
    with attached(pool, "gpu0") as (device,):
        request = pool.request("both", devices=["gpu0", "local"])
        mine = pool.request("local", devices=["local"])
        device.ask(opens, request.ref(request.full(NBYTES, 4, "u1")))
        mine.full(NBYTES, 5, "u1")
        close(pool)
        assert pool.closed
        assert device.ask(sees) == ([4], True)
        # The name is free, and what no attached device holds is back.
        assert list(meeting_place.iterdir()) == []
        assert mine.state is slabpool.RequestState.RELEASED
        assert request.pending == {"gpu0"}
        stats = pool.stats()
        assert NBYTES <= stats.live <= stats.committed < 2 * NBYTES
        assert pool._verify() is None
        with slabpool.Pool("16MiB", memory="shared", name="engine") as second:
            second.full(NBYTES, 6, "u1")
            with slabpool.attach("engine", device="gpu0") as peer:
                assert not peer.lost
            assert device.ask(sees) == ([4], True)
        assert threads_of("engine") == [pool_thread(pool)]
        end(device)
        assert request.wait(timeout=PATIENCE)
        until(lambda: pool.stats().committed == 0)
        until(lambda: threads_of("engine") == [])
        assert list(meeting_place.iterdir()) == []


def pool_thread(pool: slabpool.Pool) -> threading.Thread:
    """The thread that serves a pool which is closed, for devices that hold something."""
    (thread,) = threads_of(pool.name)
    return thread


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_a_dropped_pool_leaves_a_device_its_bytes(meeting_place: Path, options: dict[str, Any]) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine", **options)
    device = Device("engine", "gpu0")
    with pool.request("r", devices=["gpu0"]) as request:
        device.ask(opens, request.ref(request.full(NBYTES, 4, "u1")), True)
    del pool, request
    assert device.ask(sees) == ([4], True)
    assert threads_of("engine") == []
    assert list(meeting_place.iterdir()) == []
    device.ask(writes, 9)
    assert device.ask(sees) == ([9], True)
    device.stop()


def test_a_view_of_the_owner_and_a_device_see_the_same_bytes_after_a_forced_close(
    meeting_place: Path,
) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine", scrub="release")
    with attached(pool, "gpu0") as (device,):
        request = pool.request("r", devices=["gpu0"])
        view = request.full(NBYTES, 4, "u1")
        device.ask(opens, request.ref(view), True)
        pool.close(force=True)
        device.ask(writes, 7)
        assert (view == 7).all()
        # Each of the two holds the bytes alone, too.
        del view
        assert device.ask(sees) == ([7], True)
        assert pool.stats().live >= NBYTES
        device.ask(lets_go)
        until(lambda: pool.stats().committed == 0)


def test_a_view_of_the_owner_keeps_its_bytes_when_the_device_lets_go(meeting_place: Path) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine", scrub="release")
    with attached(pool, "gpu0") as (device,):
        request = pool.request("r", devices=["gpu0"])
        view = request.full(NBYTES, 4, "u1")
        device.ask(opens, request.ref(view))
        pool.close(force=True)
        device.ask(lets_go)
        assert request.wait(timeout=PATIENCE)
        assert (view == 4).all()
        del view
        assert pool.stats().committed == 0


def test_what_a_session_keeps_stays_for_a_device_that_reads_it(meeting_place: Path) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine", scrub="release")
    session = pool.session("chat")
    with attached(pool, "gpu0") as (device,):
        turn = session.request(devices=["gpu0"])
        cache = turn.full(NBYTES, 4, "u1")
        session.keep("kv", cache)
        device.ask(opens, turn.ref(cache))
        del cache
        pool.close(force=True)
        assert device.ask(sees) == ([4], True)
        assert pool.stats().committed >= NBYTES
        device.ask(lets_go)
        until(lambda: pool.stats().committed == 0)


def test_children_that_a_device_holds_stay(meeting_place: Path) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    with attached(pool, "gpu0", "gpu1") as (first, second):
        parent = pool.request("p", devices=["gpu0", "gpu1", "local"])
        child = parent.child(devices=["gpu1", "local"])
        second.ask(opens, child.ref(child.full(NBYTES, 4, "u1")))
        first.ask(opens, parent.ref(parent.full(NBYTES, 5, "u1")))
        pool.close(force=True)
        assert (parent.pending, child.pending) == ({"gpu0", "gpu1"}, {"gpu1"})
        second.ask(lets_go)
        assert child.wait(timeout=PATIENCE)
        assert first.ask(sees) == ([5], True)
        until(lambda: parent.pending == {"gpu0"})
        first.ask(lets_go)
        until(lambda: pool.stats().committed == 0)


def test_a_device_that_holds_nothing_is_detached_by_the_close(meeting_place: Path) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    with attached(pool, "gpu0") as (device,):
        with pool.request("r", devices=["gpu0"]) as request:
            ref = request.ref(request.full(NBYTES, 4, "u1"))
        device.ask(acknowledges, ref)
        pool.close(force=True)
        assert (threads_of("engine"), pool.stats().committed) == ([], 0)


def acknowledges(peer: slabpool.Peer, ref: slabpool.TensorRef) -> None:
    """Acknowledges."""
    peer.ack(ref)


def test_a_silent_device_of_a_closed_pool_can_be_killed(meeting_place: Path) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    with attached(pool, "gpu0") as (device,):
        request = pool.request("r", devices=["gpu0"])
        device.ask(opens, request.ref(request.full(NBYTES, 4, "u1")))
        pool.close(force=True)
        with pytest.raises(slabpool.DeviceAttachedError, match="alive"):
            pool.device_lost("gpu0")
        assert pool.device_lost("gpu0", kill=True) == 1
        assert pool.stats().committed == 0
        device.process.join(PATIENCE)
        device.pipe.close()


def test_no_device_attaches_to_a_pool_that_is_closed(meeting_place: Path) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    link = owner_module.Link(pool)
    pool.close(force=True)
    with pytest.raises(slabpool.AttachError):
        link.attach("gpu0")


OWNER = """
import sys, slabpool
with slabpool.Pool("16MiB", memory="shared", name="engine", scrub="release") as pool:
    request = pool.request("r", devices=["gpu0"])
    print(request.ref(request.full(1 << 20, 4, "u1")).to_bytes().hex(), flush=True)
    sys.stdin.readline()
    {ending}
"""
ENDINGS = {
    "exit": "sys.exit()",
    "error": "raise RuntimeError",
    "del": "del pool, request; import gc; gc.collect(); sys.exit()",
    "interrupt": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("block", [True, False], ids=["with", "without"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_the_owners_program_leaves_a_device_its_bytes(
    meeting_place: Path, ending: str, block: bool
) -> None:
    code = OWNER.format(ending=ENDINGS[ending])
    if not block:
        code = code.replace("with slab", "pool = slab").replace(" as pool:", "").replace("\n    ", "\n")
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner, slabpool.attach("engine", device="gpu0", timeout=PATIENCE) as peer:
        view = peer.open(slabpool.TensorRef.from_bytes(bytes.fromhex(owner.stdout.readline())))
        owner.stdin.close()
        owner.wait(PATIENCE)
        assert peer.wait_lost(PATIENCE)
        assert (view == 4).all()
    assert list(meeting_place.iterdir()) == []
