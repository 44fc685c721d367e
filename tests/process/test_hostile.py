"""A peer that writes random bytes over everything it can map, rings the bell and sends nonsense.

It may spoil the contents of tensors and its own acks, and nothing else. The owner does not crash, hands no
block out twice and reads nothing out of range; an honest device beside it is served normally.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

import slabpool
from slabpool import Ack
from slabpool.shared import rendezvous, wire
from tests.process import devices
from tests.process.devices import Device, ack, attached, total
from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]

ROUNDS = 300


class Raw:
    """Attached as a device without slabpool's help, by the descriptors themselves."""

    def __init__(self, name: str, device: str) -> None:
        self.line = rendezvous.connect(name)
        wire.send(self.line, {"attach": device, "version": wire.VERSION})
        message, self.files = wire.receive(self.line)
        assert message is not None
        self.number = message["number"]
        self.data, self.table, self.board, self.tally, self.bell = self.files

    def writable_data(self) -> int:
        """The descriptor for writing, which any peer may request."""
        wire.send(self.line, {"writable": True})
        _, files = wire.receive(self.line)
        return files[0]

    def close(self) -> None:
        """Let go."""
        wire.close(self.files)
        rendezvous.forks.release(self.line)


def size(fd: int) -> int:
    """Bytes of a file."""
    return os.fstat(fd).st_size


def test_read_only_files_cannot_be_mapped_for_writing(shared_pool: slabpool.Pool) -> None:
    raw = Raw("engine", "gpu0")
    for fd in (raw.table, raw.data):
        with pytest.raises(PermissionError):
            mmap.mmap(fd, mmap.PAGESIZE)
        with pytest.raises(OSError, match=r"Bad file|Operation not"):
            os.write(fd, b"x")
    # Not even root, who may open the file again whatever its mode, can write the table: it is sealed.
    try:
        again = os.open(f"/proc/self/fd/{raw.table}", os.O_RDWR)
    except PermissionError:
        pass
    else:
        with pytest.raises(PermissionError):
            mmap.mmap(again, mmap.PAGESIZE)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        os.close(again)
    # No process can shorten a file under another's mapping, or add a seal.
    raw.files.append(raw.writable_data())
    for fd in (raw.files[-1], raw.board, raw.tally):
        for length in (0, size(fd) // 2, size(fd) + mmap.PAGESIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, length)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, 1033, 8)  # F_ADD_SEALS, F_SEAL_WRITE
    raw.close()


def _map(fd: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.frombuffer(mmap.mmap(fd, size(fd)), "u1")


def scribble(_: None, name: str, device: str, place: Path, seed: int) -> int:
    """Writes random bytes over board, tally and data; rings, drains and blocks the bell.

    Makes the file `started` once it has done each of these. Ends when there is a file `stop`.
    """
    rng = np.random.default_rng(seed)
    raw = Raw(name, device)
    board, tally = _map(raw.board), _map(raw.tally)
    data = _map(raw.writable_data())
    os.set_blocking(raw.bell, True)  # shared with the owner
    words = board.view("u8")
    count = 0
    while not (place / "stop").exists():
        count += 1
        kind = count % 8
        if kind == 0:
            words[:] = rng.integers(0, 1 << 63, words.size, "u8")
        elif kind < 5:
            # Plausible acks: all slots marked, with small generations.
            words[:16] = ~np.uint64(0)
            words[8 : 8 + 1024] = ~np.uint64(0)
            words[8 + 1024 : 8 + 1024 + 65536] = rng.integers(0, 500 * count, 65536)
        elif kind == 5:
            start = rng.integers(0, tally.size - 65536)
            tally[start : start + 65536] = rng.integers(0, 256, 65536, "u1")
            tally[: 1 << 16] = 255
        elif kind == 6:
            start = rng.integers(0, 1 << 23)
            data[start : start + 4096] = rng.integers(0, 256, 4096, "u1")
        else:
            os.write(raw.bell, (1 << 62).to_bytes(8, "little"))
            os.read(raw.bell, 8)
            os.write(raw.bell, (1).to_bytes(8, "little"))
        if count == 8:
            (place / "started").touch()
    return count


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_everywhere(shared_pool: slabpool.Pool, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    hostile = Device("engine", None)
    hostile.start(scribble, "engine", "evil", tmp_path, seed)
    until((tmp_path / "started").exists)
    with attached(shared_pool, "good") as (good,):
        released = 0
        for i in range(ROUNDS):
            nbytes = rng.choice([100, 5000, 70000, 400000])
            # One request that only the honest device holds, and one that both hold.
            with shared_pool.request(f"good-{i}", devices=["good"]) as mine:
                x = mine.empty(nbytes, "u1")
                ref = mine.ref(x)
            with shared_pool.request(f"both-{i}", devices=["good", "evil"]) as both:
                other = both.empty(nbytes, "u1")
                shared = both.ref(other)
            # No byte is handed out twice.
            assert not np.shares_memory(x, other)
            assert mine.pending == {"good"}
            assert "good" in both.pending
            good.ask(total, ref)
            good.ask(total, shared)
            del x, other
            # The hostile peer can falsify the answer, but not the effect: the device's own hold is gone, and
            # no other.
            assert good.ask(ack, ref) in (Ack.RELEASED, Ack.PENDING)
            assert mine.state is slabpool.RequestState.RELEASED
            good.ask(ack, shared)
            assert both.pending <= {"evil"}
            released += both.state is slabpool.RequestState.RELEASED
            assert shared_pool._verify() is None
            if shared_pool.stats().live > 8 << 20:
                break
        stats = shared_pool.stats()
        assert stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached
        # A bell that is tampered with neither loses nor delays a wake-up.
        with shared_pool.request("last", devices=["good"]) as last:
            ref = last.ref()
        good.start(ack, ref)
        assert last.wait(timeout=devices.PATIENCE)
        good._answer()
    (tmp_path / "stop").touch()
    assert hostile._answer() > 8
    hostile.kill()
    until(lambda: shared_pool.stats().requests_draining == 0)
    assert (shared_pool.stats().live, shared_pool.stats().retained) == (0, 0)


def test_a_board_can_only_give_its_own_acks(shared_pool: slabpool.Pool) -> None:
    raw = Raw("engine", "evil")
    words = _map(raw.board).view("u8")
    requests = [shared_pool.request(i, devices=["good", "evil"]) for i in range(100)]
    held = [req.empty(1000, "u1") for req in requests]
    for req in requests:
        req.close()
    # Acknowledges every slot, for every possible generation and for impossible ones.
    for generation in [0, 1 << 63, (1 << 64) - 1, *range(1, 120), 1 << 32 | 1]:
        words[8 + 1024 : 8 + 1024 + 65536] = generation
        words[8 : 8 + 1024] = ~np.uint64(0)
        words[0] = ~np.uint64(0)
        shared_pool.stats()
    assert [req.pending for req in requests] == [{"good"}] * 100
    assert shared_pool.stats().acks == 100
    assert shared_pool.stats().live == 100 * 1024
    del held
    for req in requests:
        assert req.ack("good") is Ack.RELEASED
    assert shared_pool.stats().live == 0
    raw.close()


def test_a_heartbeat_from_the_future_counts_as_now(shared_pool: slabpool.Pool) -> None:
    raw = Raw("engine", "evil")
    board = _map(raw.board).view("i8")
    with shared_pool.request("r", devices=["evil"], lease=0.05) as req:
        pass
    until(lambda: req.state is slabpool.RequestState.IN_DOUBT)
    board[1] = 1 << 62
    until(lambda: req.state is slabpool.RequestState.DRAINING)
    board[1] = -(1 << 62)
    until(lambda: req.state is slabpool.RequestState.IN_DOUBT)
    raw.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"x" * 4096,
        b"x" * 100_000,
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"attach": "gpu0"}',
        b'{"attach": ["gpu0"], "version": 1}',
        b'{"attach": true, "version": 1}',
        b'{"attach": 1.5, "version": 1}',
        b'{"attach": "gpu0", "version": 2}',
        b'{"writable": true}',
        b"[" * 4000,
        b'{"attach": ' + b"9" * 4000,
    ],
    ids=lambda said: repr(said[:30]),
)
def test_nonsense_ends_the_connection_and_nothing_else(shared_pool: slabpool.Pool, said: bytes) -> None:
    before = devices.descriptors()
    line = rendezvous.connect("engine")
    line.settimeout(devices.PATIENCE)
    read, write = os.pipe()
    try:
        socket.send_fds(line, [said], [read, write])  # descriptors that the owner did not ask for
    except PermissionError:  # the kernel refuses them
        line.send(said)
    while line.recv(5000):  # perhaps an answer, then the end
        pass
    rendezvous.forks.release(line)
    os.close(read)
    os.close(write)
    with slabpool.attach("engine", device="gpu0") as peer:
        assert not peer.lost
    del peer
    until(lambda: devices.descriptors() == before)


def test_nonsense_after_attaching_loses_the_device(shared_pool: slabpool.Pool) -> None:
    raw = Raw("engine", "gpu0")
    req = shared_pool.request("r", devices=["gpu0"])
    raw.line.send(b'{"attach": "gpu1", "version": 1}')
    assert raw.line.recv(10) == b""
    until(lambda: req.pending == frozenset())
    raw.close()
    req.close()


def test_many_idle_connections_do_not_keep_a_device_out(shared_pool: slabpool.Pool) -> None:
    strangers = [rendezvous.connect("engine") for _ in range(200)]
    with slabpool.attach("engine", device="gpu0", timeout=devices.PATIENCE) as peer:
        assert not peer.lost
    for line in strangers:
        rendezvous.forks.release(line)


def test_a_full_queue_of_connections_is_waited_for(meeting_place: Path) -> None:
    claim = rendezvous.Claim("crowded")
    assert claim.listener is not None
    waiting = []
    with pytest.raises(slabpool.AttachError, match="does not answer"):
        while len(waiting) < 1000:
            waiting.append(rendezvous.connect("crowded", timeout=0.02))
    connecting = threading.Thread(
        target=lambda: waiting.append(rendezvous.connect("crowded", timeout=devices.PATIENCE))
    )
    connecting.start()
    count = len(waiting)
    claim.listener.accept()[0].close()
    connecting.join(devices.PATIENCE)
    assert len(waiting) == count + 1
    for line in waiting:
        rendezvous.forks.release(line)
    claim.release()


def test_threads_of_a_peer_acknowledge_once(shared_pool: slabpool.Pool) -> None:
    with slabpool.attach("engine", device="gpu0") as peer:
        for _ in range(50):
            requests = [shared_pool.request(i, devices=["gpu0"]) for i in range(20)]
            refs = [req.ref() for req in requests]
            for req in requests:
                req.close()
            answers: list[Ack] = []
            start = threading.Barrier(4)

            def work() -> None:
                start.wait(devices.PATIENCE)
                for ref in refs:
                    answers.append(peer.ack(ref))

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            start.wait(devices.PATIENCE)
            while any(thread.is_alive() for thread in threads):
                shared_pool.stats()  # the owner collects the acks meanwhile
            assert answers.count(Ack.RELEASED) == 20
            assert answers.count(Ack.PENDING) == 0
            assert shared_pool.stats().requests_draining == 0
