"""No call of the owner waits for another process without a deadline: descriptors, locks, memory maps."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slabpool
from slabpool.shared import client as client_module
from slabpool.shared import foreign, forks, rendezvous, wire
from tests.process import devices
from tests.process.devices import PATIENCE
from tests.waiting import until

# Sends the owner a TCP socket whose close() waits for a reader that there is not, then lets go of it.
LINGERING = """
import socket, struct, sys
name, message = sys.argv[1:]
quiet = socket.socket()
quiet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
quiet.bind(("127.0.0.1", 0))
quiet.listen(1)
line = socket.create_connection(quiet.getsockname())
line.setblocking(False)
try:
    while True:
        line.send(b"x" * 65536)
except BlockingIOError:
    pass
line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
owner = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
owner.connect(name)
try:
    if message == "second":
        owner.send(b'{"attach": "evil", "version": 1}')
        assert owner.recv(4096)
    socket.send_fds(owner, [b"{}"], [line.fileno()])
    answer = "sent"
except PermissionError:
    answer = "refused"
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
line.close()
if message == "gone":
    owner.close()
print(answer, flush=True)
sys.stdin.readline()
"""


class Lingering:
    """A process that has sent such a socket; `end` lets the closing finish."""

    def __init__(self, place: Path, message: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", LINGERING, str(place / "engine.sock"), message],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.answer = self.process.stdout.readline().strip()

    def end(self) -> None:
        """The socket's other end closes, so the closing ends."""
        with self.process:
            self.process.kill()


def closers() -> int:
    """Threads that are closing something."""
    return sum(thread.name == "slabpool-closer" for thread in threading.enumerate())


@pytest.fixture
def no_passrights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a kernel that does not refuse descriptors."""
    monkeypatch.setattr(foreign, "refuse_descriptors", lambda listener: False)
    yield
    until(lambda: closers() == 0)
    assert not foreign.crowded()


# "gone": the sender lets go of the connection, whose queue has the descriptor.
@pytest.mark.parametrize("message", ["first", "second", "gone"])
def test_the_owner_goes_on_after_a_descriptor_whose_close_blocks(
    no_passrights: None, meeting_place: Path, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = threading.Event()
    brings_descriptors = foreign.brings_descriptors

    def look(connection: socket.socket) -> bool:
        # The sender must have closed its copy before the owner closes the other one, or the sender waits.
        if connection.recv(16, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"{}":
            assert sent.wait(PATIENCE)
        return brings_descriptors(connection)

    monkeypatch.setattr(foreign, "brings_descriptors", look)
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    with devices.attached(pool, "gpu0") as (device,):
        request = pool.request("r", devices=["gpu0", "evil"])
        bad = Lingering(meeting_place, message)
        try:
            assert bad.answer == "sent"
            sent.set()
            until(lambda: closers() == 1)
            # Others attach, a death is noticed, and the pool closes, while the descriptor is being closed.
            with slabpool.attach("engine", device="good", timeout=PATIENCE) as peer:
                assert not peer.lost
            device.kill()
            if message == "second":
                until(lambda: request.pending == frozenset())
            else:
                until(lambda: request.pending == {"evil"})
            pool.close(force=True)
            assert list(meeting_place.iterdir()) == []
            assert closers() >= 1
        finally:
            bad.end()


def test_closing_goes_on_while_the_listener_holds_such_descriptors(
    no_passrights: None, meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "crowded", lambda: True)  # so nothing is accepted
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    bad = Lingering(meeting_place, "gone")
    try:
        assert bad.answer == "sent"
        pool.close()
        until(lambda: closers() == 1)
        assert list(meeting_place.iterdir()) == []
    finally:
        monkeypatch.undo()
        bad.end()


def test_the_kernel_refuses_descriptors_where_it_can(shared_pool: slabpool.Pool, meeting_place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        if not foreign.refuse_descriptors(probe):
            pytest.skip("the kernel has no SO_PASSRIGHTS (Linux 6.16)")
    bad = Lingering(meeting_place, "second")
    bad.end()
    assert bad.answer == "refused"
    assert closers() == 0


def test_descriptors_are_seen_and_not_received(no_passrights: None, meeting_place: Path) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        read, write = os.pipe()
        socket.send_fds(there, [b"{}"], [write])
        there.send(b"{}")
        os.close(write)
        before = devices.descriptors()
        assert foreign.brings_descriptors(here)
        assert foreign.brings_descriptors(here)
        assert devices.descriptors() == before
        assert wire.receive_alone(here) is None
        assert os.read(read, 1) == b""  # the kernel has closed the only copy
        assert not foreign.brings_descriptors(here)
        assert wire.receive_alone(here) == {}
        os.close(read)


class Blocking:
    """Something whose close() waits."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.go = threading.Event()
        self.closed = False
        with forks.lock:
            forks.held.add(self)

    def close(self) -> None:
        """Closes, once it may. A forked child has a reference that is not the last."""
        if os.getpid() == self.process:
            self.go.wait(PATIENCE)
        self.closed = True


def test_the_number_of_closing_threads_is_bounded() -> None:
    things = [Blocking() for _ in range(foreign.THREADS + foreign.MOST_WAITING)]
    for thing in things[:-1]:
        foreign.close_elsewhere(thing)
    until(lambda: closers() == foreign.THREADS)
    assert not foreign.crowded()
    foreign.close_elsewhere(things[-1])
    assert (closers(), foreign.crowded()) == (foreign.THREADS, True)
    for thing in things:
        thing.go.set()
    until(lambda: closers() == 0)
    assert all(thing.closed for thing in things)
    assert not foreign.crowded()
    assert not forks.held.intersection(things)


def test_a_crowded_owner_serves_the_devices_that_it_has(
    meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = slabpool.Pool("16MiB", memory="shared", name="engine")
    with devices.attached(pool, "gpu0") as (device,):
        crowded = threading.Event()
        crowded.set()
        monkeypatch.setattr(foreign, "crowded", crowded.is_set)
        with pytest.raises(slabpool.AttachError, match="does not answer"):
            slabpool.attach("engine", device="gpu1", timeout=0.3)
        request = pool.request("r", devices=["gpu0"])
        request.close()
        device.kill()
        assert request.wait(timeout=PATIENCE)
        crowded.clear()
        with slabpool.attach("engine", device="gpu1", timeout=PATIENCE) as peer:
            assert not peer.lost
    pool.close()


HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_lock_of_the_directory_is_waited_for_with_a_deadline(
    meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting_place.mkdir(mode=0o700)
    patience = rendezvous._PATIENCE
    monkeypatch.setattr(rendezvous, "_PATIENCE", 0.2)
    before = devices.descriptors()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(meeting_place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(
            slabpool.SystemRefusedError, match=f"process {holder.pid} has held the lock"
        ) as raised:
            slabpool.Pool("1MiB", memory="shared", name="engine")
        assert raised.value.errno == errno.ETIMEDOUT
        assert str(meeting_place) in str(raised.value)
        holder.kill()
    monkeypatch.setattr(rendezvous, "_PATIENCE", patience)
    del raised
    gc.collect()
    assert {fd: what for fd, what in devices.descriptors().items() if before.get(fd) != what} == {}
    with slabpool.Pool("1MiB", memory="shared", name="engine"):
        pass


def test_a_lock_that_is_released_in_time_is_taken(
    meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting_place.mkdir(mode=0o700)
    fd = os.open(meeting_place, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        # A fork is possible meanwhile.
        assert forks.lock.acquire(blocking=False)
        forks.lock.release()
        if len(pauses) == 3:
            os.close(fd)

    monkeypatch.setattr(rendezvous.time, "sleep", pause)
    with slabpool.Pool("1MiB", memory="shared", name="engine"):
        assert len(pauses) == 3


def test_a_process_whose_maps_cannot_be_read_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(client_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(client_module, "_maps_board", lambda client: go.wait(PATIENCE))
    here, there = socket.socketpair()
    with here, there:
        client = client_module.Client(here, 4242, forks.Descriptor(-1), False)
        assert (
            client_module.unnamed(client) == "the memory maps of process 4242 could not be read within 0.05 s"
        )
        go.set()
        until(lambda: all(thread.name != "slabpool-call" for thread in threading.enumerate()))
        monkeypatch.setattr(client_module, "_PATIENCE", PATIENCE)
        assert client_module.unnamed(client) is None


def test_within_passes_on_what_the_call_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        foreign.within(PATIENCE, lambda: 1 // 0)
    assert foreign.within(PATIENCE, lambda: 3) == 3


def test_a_forked_child_closes_on_threads_of_its_own() -> None:
    """Although all threads of the parent are closing, and another one holds the lock."""
    things = [Blocking() for _ in range(foreign.THREADS + 1)]
    for thing in things:
        foreign.close_elsewhere(thing)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with foreign._lock:
            held.set()
            assert done.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        answer = 1
        try:
            signal.alarm(round(PATIENCE))  # ends a child that hangs
            own = Blocking()
            own.go.set()
            foreign.close_elsewhere(own)
            until(lambda: own.closed and closers() == 0)
            answer = 0
        finally:
            os._exit(answer)
    status = os.waitpid(child, 0)[1]
    done.set()
    holder.join()
    for thing in things:
        thing.go.set()
    until(lambda: closers() == 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("lock", [forks.lock, foreign._lock], ids=["forks", "foreign"])
def test_a_pool_is_dropped_on_a_thread_with_a_lock(
    lock: Any, meeting_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector runs anywhere: the thread that serves peers must not be waited for there."""
    monkeypatch.setattr(foreign, "refuse_descriptors", lambda listener: False)  # so both locks are needed
    pools = [slabpool.Pool("1MiB", memory="shared", name="engine")]
    (service,) = (t for t in threading.enumerate() if t.name == "slabpool-engine")
    dropped = threading.Event()

    def drop() -> None:
        with lock:
            pools.clear()
            gc.collect()
            dropped.set()

    threading.Thread(target=drop, daemon=True).start()
    assert dropped.wait(PATIENCE)
    service.join(PATIENCE)
    assert not service.is_alive()
    slabpool.Pool("1MiB", memory="shared", name="engine").close()
