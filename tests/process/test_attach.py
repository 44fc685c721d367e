"""Attaching: which processes may, as which device, by which name; and what each side leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import (
    Ack,
    AttachError,
    DeviceAttachedError,
    ForkedPoolError,
    InvalidArgumentError,
    InvalidTypeError,
    NameInUseError,
    OwnerLostError,
    PoolClosedError,
    UnknownDeviceError,
)
from slabpool.shared import attach as attach_module
from tests.process import devices
from tests.process.devices import METHODS, Device, ack, attached, fill, total
from tests.process.test_fork import in_child
from tests.waiting import until, waits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_crosses_and_returns(shared_pool: slabpool.Pool, method: str) -> None:
    with attached(shared_pool, "gpu0", "gpu1", method=method) as (first, second):
        with shared_pool.request("chat-42", devices=["gpu0", "gpu1"]) as req:
            x = req.full((1, 4096), 3, np.float32)
            ref = req.ref(x)
        assert first.ask(total, ref) == 3 * 4096
        second.ask(fill, ref, 5.0)
        assert (x == 5).all()
        assert first.ask(total, ref) == 5 * 4096
        assert shared_pool.stats().live == x.nbytes
        assert first.ask(ack, ref) is Ack.PENDING
        assert shared_pool.requests()[0].pending == {"gpu1"}
        assert first.ask(ack, ref) is Ack.DUPLICATE
        del x
        assert second.ask(ack, ref) is Ack.RELEASED
        stats = shared_pool.stats()
        assert (stats.live, stats.retained, stats.acks, stats.requests_draining) == (0, 0, 2, 0)
        assert second.ask(ack, ref) is Ack.LATE
        assert req.state is slabpool.RequestState.RELEASED


def test_memory_returns_by_the_next_allocation(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with shared_pool.request("r", devices=["gpu0"]) as req:
            ref = req.ref(req.empty(12 << 20, "u1"))
        with pytest.raises(slabpool.PoolExhausted):
            shared_pool.empty(12 << 20, "u1")
        device.ask(ack, ref)
        assert shared_pool.empty(12 << 20, "u1").nbytes == 12 << 20


def test_an_ack_wakes_a_waiter(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with shared_pool.request("r", devices=["gpu0"]) as req:
            ref = req.ref(req.empty(12 << 20, "u1"))
        made: list[int] = []
        waiter = threading.Thread(
            target=lambda: made.append(shared_pool.empty(12 << 20, "u1", timeout=devices.PATIENCE).nbytes)
        )
        waiter.start()
        assert waiter.ident is not None
        until(waits(waiter.ident))
        device.ask(ack, ref)
        waiter.join(devices.PATIENCE)
        assert made == [12 << 20]


def test_a_return_in_this_process_wakes_a_waiter_too(shared_pool: slabpool.Pool) -> None:
    mine = shared_pool.empty(12 << 20, "u1")
    made: list[int] = []
    waiters = [
        threading.Thread(
            target=lambda: made.append(shared_pool.empty(4 << 20, "u1", timeout=devices.PATIENCE).nbytes)
        )
        for _ in range(3)
    ]
    held = shared_pool.empty(4 << 20, "u1")
    for waiter in waiters:
        waiter.start()
    for waiter in waiters:
        assert waiter.ident is not None
        until(waits(waiter.ident))
    del mine
    for waiter in waiters:
        waiter.join(devices.PATIENCE)
    assert made == [4 << 20] * 3
    del held


def test_acks_wake_asyncio(shared_pool: slabpool.Pool) -> None:
    async def main(device: Device) -> None:
        req = shared_pool.request("a", devices=["gpu0"])
        x = req.empty(12 << 20, "u1")
        ref = req.ref(x)
        del x
        req.close()
        # Both wait; only then is the device asked to acknowledge.
        opening = asyncio.ensure_future(
            shared_pool.request_async("b", reserve="12MiB", timeout=devices.PATIENCE)
        )
        ending = asyncio.ensure_future(req.released())
        await asyncio.sleep(0)
        device.start(ack, ref)
        with await opening as second:
            assert second.id == "b"
        await ending

    with attached(shared_pool, "gpu0") as (device,):
        asyncio.run(main(device))
        assert device._answer() is Ack.RELEASED


def test_wait_for_a_request(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        req = shared_pool.request("a", devices=["gpu0"])
        ref = req.ref()
        assert ref.nbytes == 0
        req.close()
        assert not req.wait(timeout=0.01)
        device.start(ack, ref)
        assert req.wait(timeout=devices.PATIENCE)


def test_more_devices_than_a_word_holds(shared_pool: slabpool.Pool) -> None:
    names = [f"gpu{i}" for i in range(70)]
    peers = [slabpool.attach("engine", device=name) for name in names]
    with shared_pool.request("wide", devices=names) as req:
        ref = req.ref(req.zeros(100))
    assert [peer.ack(ref) for peer in peers] == [Ack.PENDING] * 69 + [Ack.RELEASED]
    assert shared_pool.stats().live == 0
    for peer in peers:
        peer.close()


def test_names_of_peers_come_and_go(shared_pool: slabpool.Pool) -> None:
    """More names than numbers, one after the other; requests on other names keep theirs."""
    with shared_pool.request("r", devices=["gpu0", "pid-7"]) as req:
        for i in range(5000):
            with slabpool.attach("engine", device=f"pid-{i}", timeout=devices.PATIENCE) as peer:
                if i in (7, 4999):
                    if i == 4999:
                        req.add_device("pid-4999")
                    assert peer.ack(req.ref()) is Ack.PENDING
                    assert req.pending == {"gpu0"}
        assert req.ack("pid-7") is Ack.DUPLICATE
    assert req.ack("gpu0") is Ack.RELEASED


def test_a_name_has_one_owner(meeting_place: Path) -> None:
    with slabpool.Pool("1MiB", memory="shared", name="one"):
        with pytest.raises(NameInUseError, match="'one' exists already"):
            slabpool.Pool("1MiB", memory="shared", name="one")
        assert in_child(_claims_one) == "NameInUseError"
        with slabpool.Pool("1MiB", memory="shared", name="two"), slabpool.Pool("1MiB", memory="shared"):
            assert len(list(meeting_place.iterdir())) == 6
    with slabpool.Pool("1MiB", memory="shared", name="one"):
        pass
    assert list(meeting_place.iterdir()) == []


def _claims_one() -> str:
    try:
        slabpool.Pool("1MiB", memory="shared", name="one")
    except slabpool.SlabpoolError as error:
        return type(error).__name__
    return "made"


@pytest.mark.parametrize("name", ["a b/../c", "ü" * 200, ".", "h-x", "x" * 41])
def test_any_name_works(name: str, meeting_place: Path) -> None:
    with slabpool.Pool("1MiB", memory="shared", name=name) as pool:
        assert {path.parent for path in meeting_place.iterdir()} == {meeting_place}
        with slabpool.attach(name, device=3) as peer:
            with pool.request("r", devices=[3]) as req:
                ref = req.ref()
            assert peer.ack(ref) is Ack.RELEASED


def test_a_long_path_to_the_meeting_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ("d" * 120)
    place.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    with slabpool.Pool("1MiB", memory="shared", name="far"), slabpool.attach("far", device="gpu0") as peer:
        assert not peer.lost


def test_the_place_and_the_socket_are_private(shared_pool: slabpool.Pool, meeting_place: Path) -> None:
    assert stat.S_IMODE(meeting_place.stat().st_mode) == 0o700
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in meeting_place.iterdir()}
    assert modes == {".sock": 0o600, ".lock": 0o600}
    meeting_place.chmod(0o755)
    for call in (
        lambda: slabpool.attach("engine", device="gpu0"),
        lambda: slabpool.Pool("1MiB", memory="shared", name="other"),
    ):
        with pytest.raises((AttachError, slabpool.SystemRefusedError), match="must be a directory of user"):
            call()
    meeting_place.chmod(0o700)


def test_a_link_in_place_of_the_directory_is_refused(meeting_place: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    meeting_place.symlink_to(tmp_path / "real")
    with pytest.raises(slabpool.SystemRefusedError, match="must be a directory"):
        slabpool.Pool("1MiB", memory="shared", name="engine")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_refused_by_its_credentials(shared_pool: slabpool.Pool, meeting_place: Path) -> None:
    # Refused even if the modes of the directory would let it in.
    path = meeting_place / "engine.sock"
    for parent in [path, *list(path.parents)[:-1]]:
        parent.chmod(parent.stat().st_mode | 0o777) if parent.is_relative_to(meeting_place) else None

    def as_nobody() -> str:
        here = os.open(meeting_place, os.O_PATH)  # user nobody may not be able to reach it by path
        os.setuid(65534)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.settimeout(devices.PATIENCE)
        line.connect(f"/proc/self/fd/{here}/engine.sock")
        try:
            line.send(b'{"attach": "gpu0", "version": 1}')
            return repr(line.recv(100))
        except ConnectionError as error:
            return type(error).__name__

    assert in_child(as_nobody) in ("b''", "BrokenPipeError", "ConnectionResetError")
    meeting_place.chmod(0o700)
    path.chmod(0o600)
    with slabpool.attach("engine", device="gpu0"):
        pass


def test_attaching_without_an_owner() -> None:
    with pytest.raises(AttachError, match="there is no shared pool named 'engine'"):
        slabpool.attach("engine", device="gpu0")
    with pytest.raises(AttachError, match="no shared pool"):
        slabpool.attach("engine", device="gpu0", timeout=0.05)


def test_an_owner_that_is_stopped(meeting_place: Path) -> None:
    code = (
        "import slabpool, signal; p = slabpool.Pool('1MiB', memory='shared', name='stopped'); signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    try:
        slabpool.attach("stopped", device="gpu0", timeout=devices.PATIENCE).close()
        owner.send_signal(signal.SIGSTOP)
        os.waitpid(owner.pid, os.WUNTRACED)  # until all its threads have stopped
        with pytest.raises(AttachError, match="does not answer"):
            slabpool.attach("stopped", device="gpu1", timeout=0.1)
    finally:
        owner.kill()
        owner.wait()
    assert len(list(meeting_place.iterdir())) == 2
    # The next pool, of any name, removes what it left.
    with slabpool.Pool("1MiB", memory="shared", name="next"):
        assert {path.stem for path in meeting_place.iterdir()} == {"next"}


def test_an_owner_without_descriptors_serves_once_it_has_some(shared_pool: slabpool.Pool) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with attached(shared_pool, "gpu0") as (device,):
        # Exactly what is open now, so no connection can be accepted.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, devices.descriptors())) + 1, limits[1]))
        filler = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    filler.append(os.dup(0))
            device.start(attaches_again, "engine")
            assert not device.pipe.poll(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in filler:
                os.close(fd)
        assert device._answer() == "attached"


def attaches_again(peer: slabpool.Peer, name: str) -> str:
    """Tries to attach as another device."""
    with slabpool.attach(name, device="other", timeout=devices.PATIENCE):
        return "attached"


def test_attach_waits_for_the_owner(meeting_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[slabpool.Pool] = []
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            pools.append(slabpool.Pool("1MiB", memory="shared", name="late"))

    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=pause)
    monkeypatch.setattr(attach_module, "time", clock)
    with slabpool.attach("late", device="gpu0", timeout=devices.PATIENCE) as peer:
        assert not peer.lost
        assert len(pauses) == 3
    pools[0].close()


def test_a_device_is_one_process_at_a_time(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with pytest.raises(DeviceAttachedError, match=f"attached already, as process {device.pid}"):
            slabpool.attach("engine", device="gpu0")
        device.kill()
        # At once, because the owner checks whether the process lives before it refuses.
        with slabpool.attach("engine", device="gpu0") as peer:
            with shared_pool.request("r", devices=["gpu0"]) as req:
                ref = req.ref()
            assert peer.ack(ref) is Ack.RELEASED
        with slabpool.attach("engine", device="gpu0", timeout=devices.PATIENCE):
            pass


def test_an_old_ack_does_not_count_for_the_next_peer(shared_pool: slabpool.Pool) -> None:
    req = shared_pool.request("r", devices=["gpu0"])
    ref = req.ref()
    with slabpool.attach("engine", device="gpu0") as peer:
        assert peer.ack(ref) is Ack.PENDING
    with slabpool.attach("engine", device="gpu0", timeout=devices.PATIENCE) as peer:
        assert peer.ack(ref) is Ack.DUPLICATE
        req.add_device("gpu0")
        assert req.pending == {"gpu0"}
        assert peer.ack(ref) is Ack.PENDING
        assert peer.ack(ref) is Ack.DUPLICATE
        assert req.pending == frozenset()
        req.add_device("gpu0")
        req.close()
        assert peer.ack(ref) is Ack.RELEASED
    assert shared_pool.stats().requests_draining == 0


def test_several_peers_in_one_process_and_one_in_several_pools(shared_pool: slabpool.Pool) -> None:
    with (
        slabpool.Pool("1MiB", memory="shared", name="second") as second,
        slabpool.attach("engine", device="gpu0") as a,
        slabpool.attach("engine", device="gpu1") as b,
        slabpool.attach("second", device="gpu0") as c,
    ):
        with shared_pool.request("r", devices=["gpu0", "gpu1"]) as one, second.request("r", ["gpu0"]) as two:
            x, y = one.full(10, 1.0), two.full(10, 2.0)
            refs = one.ref(x), two.ref(y)
        assert (a.open(refs[0]).sum(), b.open(refs[0]).sum(), c.open(refs[1]).sum()) == (10, 10, 20)
        assert (a.ack(refs[0]), c.ack(refs[1]), b.ack(refs[0])) == (Ack.PENDING, Ack.RELEASED, Ack.RELEASED)
        del x, y
        assert (shared_pool.stats().live, second.stats().live) == (0, 0)


def test_children_and_growing_requests(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0", "gpu1") as (first, second):
        req = shared_pool.request("chat", devices=["gpu0", "gpu1"])
        whole = req.ref(req.full(1000, 1.0))
        for step in range(5):
            with req.child(devices=["gpu1"]) as child:
                hidden = child.ref(child.full(100, float(step)))
            assert second.ask(total, hidden) == 100 * step
            with pytest.raises(UnknownDeviceError, match="'gpu0' was never named"):
                first.ask(total, hidden)
            assert second.ask(ack, hidden) is Ack.RELEASED
            assert len(shared_pool.requests()) == 1
            later = req.ref(req.full(10 + step, 2.0))
            assert first.ask(total, later) == 2 * (10 + step)
        with req.child(devices=["gpu1"]) as child:
            hidden = child.ref(child.empty(10))
        req.close()
        assert first.ask(ack, whole) is Ack.PENDING
        # An ack of the request is an ack of its child too.
        assert second.ask(ack, whole) is Ack.RELEASED
        assert shared_pool.stats().live == 0
        assert second.ask(ack, hidden) is Ack.LATE


def test_silence_is_doubt_and_a_heartbeat_ends_it(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with shared_pool.request("r", devices=["gpu0"], lease=0.2) as req:
            ref = req.ref(req.empty(1000, "u1"))
        until(lambda: shared_pool.stats().in_doubt == 1024)
        assert req.state is slabpool.RequestState.IN_DOUBT
        assert shared_pool.stats().live == 0

        # On a busy machine the lease may be over before its effect is read. Then the sign is given again.
        def heartbeat_counts() -> bool:
            device.ask(heartbeat)
            return req.state is slabpool.RequestState.DRAINING

        until(heartbeat_counts)
        device.ask(ack, ref)
        assert shared_pool.stats().in_doubt == 0


def heartbeat(peer: slabpool.Peer) -> None:
    """Sends a heartbeat."""
    peer.heartbeat()


def test_closed_peers_and_pools_say_so(shared_pool: slabpool.Pool) -> None:
    peer = slabpool.attach("engine", device="gpu0")
    with shared_pool.request("r", devices=["gpu0"]) as req:
        ref = req.ref(req.empty(10))
    peer.close()
    peer.close()
    for call in (lambda: peer.open(ref), lambda: peer.ack(ref), peer.heartbeat, peer.wait_lost):
        with pytest.raises(PoolClosedError, match="is closed; attach"):
            call()
    until(lambda: shared_pool.stats().requests_draining == 0)  # the closed peer no longer holds it
    peer = slabpool.attach("engine", device="gpu0", timeout=devices.PATIENCE)
    shared_pool.close()
    assert peer.lost
    for call in (lambda: peer.open(ref), lambda: peer.ack(ref), peer.heartbeat):
        with pytest.raises(OwnerLostError, match="closed it or is gone"):
            call()
    assert peer.wait_lost(devices.PATIENCE)
    peer.close()


def test_a_dropped_peer_is_closed_with_a_warning(shared_pool: slabpool.Pool) -> None:
    slabpool.attach("engine", device="gpu0")
    with pytest.warns(ResourceWarning, match="was dropped while attached"):
        peer = slabpool.attach("engine", device="gpu1")
        del peer


def test_a_fork_of_a_peer_cannot_use_it_nor_keep_it_attached(shared_pool: slabpool.Pool) -> None:
    with slabpool.attach("engine", device="gpu0") as peer:
        with shared_pool.request("r", devices=["gpu0"]) as req:
            ref = req.ref(req.full(10, 2.0))
        view = peer.open(ref)

        def child() -> list[str]:
            said = [repr(float(view.sum()))]
            for call in (lambda: peer.open(ref), lambda: peer.ack(ref), peer.heartbeat):
                try:
                    call()
                except ForkedPoolError as error:
                    said.append(str(error)[:25])
            peer.close()
            return [*said, repr(peer)]

        assert in_child(child) == [
            "20.0",
            *["the peer of pool 'engine' "[:25]] * 3,
            "<Peer 'gpu0' of pool 'engine': inherited through fork>",
        ]
        assert peer.ack(ref) is Ack.RELEASED
    # A child that outlives its parent's peer does not keep the device attached.
    with attached(shared_pool, "gpu1") as (device,):
        orphan = device.ask(forks_a_sleeper)
        device.kill()
        with slabpool.attach("engine", device="gpu1"):
            pass
        os.kill(orphan, 9)


def forks_a_sleeper(peer: slabpool.Peer) -> int:
    """Forks a child that does nothing until it is killed."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.pause()
    return pid


def test_a_fork_of_the_owner_is_not_the_owner(shared_pool: slabpool.Pool, meeting_place: Path) -> None:
    def child() -> str:
        try:
            shared_pool.close(force=True)
        except ForkedPoolError:
            return "refused"
        return "closed"

    assert in_child(child) == "refused"
    assert len(list(meeting_place.iterdir())) == 2
    with slabpool.attach("engine", device="gpu0") as peer:
        assert not peer.lost


def test_a_pool_that_is_dropped_leaves_nothing(meeting_place: Path) -> None:
    before = devices.descriptors(), devices.shared_maps(), threading.active_count()
    pool = slabpool.Pool("1MiB", memory="shared", name="dropped")
    peer = slabpool.attach("dropped", device="gpu0")
    req = pool.request("r", devices=["gpu0"])
    array = req.empty(10)
    view = peer.open(req.ref(array))
    req.close()
    del pool, array, req
    assert peer.wait_lost(devices.PATIENCE)
    assert view.shape == (10,)
    peer.close()
    del peer, view
    assert (devices.descriptors(), devices.shared_maps(), threading.active_count()) == before
    assert list(meeting_place.iterdir()) == []


def test_the_end_of_the_interpreter_leaves_nothing(meeting_place: Path) -> None:
    code = "import slabpool; pool = slabpool.Pool('1MiB', memory='shared', name='end')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=devices.PATIENCE)
    assert list(meeting_place.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: slabpool.attach(3, device="gpu0"), InvalidTypeError, "name must be a str"),  # type: ignore[arg-type]
        (lambda: slabpool.attach("x", device=b"g"), InvalidTypeError, "device must be a str or an int"),  # type: ignore[arg-type]
        (lambda: slabpool.attach("x", device=True), InvalidTypeError, "device must be a str or an int"),
        (lambda: slabpool.attach("x", device=1, timeout="1"), InvalidTypeError, "timeout must be"),  # type: ignore[arg-type]
        (lambda: slabpool.attach("x", device=1, timeout=-1), InvalidArgumentError, "timeout must be"),
        (lambda: slabpool.Pool("1MiB", memory="shared", name=""), InvalidArgumentError, "must not be empty"),
        (lambda: slabpool.Pool("1MiB", memory="shared", huge_pages=True), InvalidArgumentError, "huge_pages"),
        (lambda: slabpool.Pool("1MiB", memory="shared", numa_node=0), InvalidArgumentError, "numa_node"),
        (lambda: slabpool.Peer(), InvalidTypeError, "made by slabpool.attach"),
    ],
)
def test_bad_arguments(call, error, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=text):
        call()


def test_a_lost_device_that_is_alive_keeps_its_requests(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with shared_pool.request("r", devices=["gpu0"]) as req:
            req.empty(1000)
        with pytest.raises(DeviceAttachedError, match=f"as process {device.pid}, which is alive"):
            shared_pool.device_lost("gpu0")
        assert shared_pool.stats().requests_draining == 1
        device.process.join(0)
        os.kill(device.pid, signal.SIGSTOP)  # it hangs, but is alive
        assert shared_pool.device_lost("gpu0", kill=True) == 1
        assert shared_pool.stats().live == 0
        device.process.join(devices.PATIENCE)
        assert device.process.exitcode == -9
        device.pipe.close()
    with (
        slabpool.attach("engine", device="gpu0"),
        pytest.raises(DeviceAttachedError, match="in this process"),
    ):
        shared_pool.device_lost("gpu0", kill=True)
    with pytest.raises(UnknownDeviceError):
        shared_pool.device_lost("never", kill=True)


def test_a_multiprocessing_child_may_hold_the_owner(meeting_place: Path) -> None:
    # The owner dies by kill -9. Its devices notice and keep their mappings, and the name becomes free.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    owner = context.Process(target=_owner, args=(theirs,), daemon=True)
    owner.start()
    assert ours.poll(devices.PATIENCE)
    ref = ours.recv()
    with slabpool.attach("theirs", device="gpu0") as peer:
        view = peer.open(ref)
        assert not peer.wait_lost(0)
        owner.kill()
        assert peer.wait_lost(devices.PATIENCE)
        assert peer.lost
        with pytest.raises(OwnerLostError):
            peer.open(ref)
        with pytest.raises(OwnerLostError):
            peer.ack(ref)
        assert (view == 4).all()
        owner.join(devices.PATIENCE)  # the name is in use until all of its files are closed
        with pytest.raises(AttachError, match="no shared pool"):
            slabpool.attach("theirs", device="gpu1")
        with (
            slabpool.Pool("1MiB", memory="shared", name="theirs") as pool,
            slabpool.attach("theirs", device="gpu0") as again,
            pool.request("r", ["gpu0"]) as req,
        ):
            with pytest.raises(slabpool.InvalidReferenceError, match="of another pool"):
                again.open(ref)
            with pytest.raises(slabpool.InvalidReferenceError, match="of another pool"):
                again.ack(ref)
            assert again.ack(req.ref()) is Ack.PENDING
    assert list(meeting_place.iterdir()) == []


def _owner(pipe) -> None:  # type: ignore[no-untyped-def]
    pool = slabpool.Pool("1MiB", memory="shared", name="theirs")
    req = pool.request("r", devices=["gpu0"])
    pipe.send(req.ref(req.full(1000, 4.0)))
    pipe.recv()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": 1 << 2048}, slabpool.InvalidArgumentError),
        ({"device": 10**5000}, slabpool.InvalidArgumentError),
        ({"device": np.timedelta64(5)}, slabpool.InvalidTypeError),
        ({"device": "gpu0", "timeout": -(10**400)}, slabpool.InvalidArgumentError),
        ({"device": "gpu0", "timeout": float("nan")}, slabpool.InvalidArgumentError),
        ({"device": "gpu0", "timeout": "x" * 10**6}, slabpool.InvalidTypeError),
    ],
)
def test_arguments_that_cannot_be_served(
    shared_pool: slabpool.Pool, options: dict[str, Any], error: type[slabpool.SlabpoolError]
) -> None:
    with pytest.raises(error):
        slabpool.attach(shared_pool.name, **options)


@pytest.mark.parametrize("timeout", [10**400, 1 << 63, 1e300, np.int64(5), np.float64(0.5)])
def test_a_timeout_of_any_size(shared_pool: slabpool.Pool, timeout: Any) -> None:
    with slabpool.attach(np.str_(shared_pool.name), device=5, timeout=timeout) as peer:
        assert peer.device == 5
        assert not peer.lost


@pytest.mark.parametrize("device", [1 << 64, 1 << 127, -(1 << 127), (1 << 2048) - 1, 1 - (1 << 2048)])
def test_every_int_that_is_a_name_attaches(shared_pool: slabpool.Pool, device: int) -> None:
    with slabpool.attach(shared_pool.name, device=device) as peer:
        request = shared_pool.request("r", devices=[device])
        ref = request.ref(request.full(100, 7, "u1"))
        request.close()
        assert peer.open(ref).sum() == 700
        assert peer.ack(ref) is slabpool.Ack.RELEASED
