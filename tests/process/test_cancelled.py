"""A device in another process hears that the owner has cancelled a request. All processes are real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import slabpool
from slabpool import Ack, Pool, TensorRef
from tests.process.devices import METHODS, Device, ack, attached
from tests.waiting import PATIENCE, until, waits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]


def cancelled(peer: slabpool.Peer, ref: TensorRef) -> bool:
    return peer.cancelled(ref)


def wait(peer: slabpool.Peer, ref: TensorRef, timeout: float | None = None) -> bool:
    return peer.wait_cancelled(ref, timeout)


def sleeps(device: Device) -> None:
    """Return once the device's main thread sleeps in a futex, where the kernel says so."""
    place = Path(f"/proc/{device.pid}/syscall")

    def look() -> bool:
        try:
            number = place.read_text().split()[0]
        except OSError:
            return True
        return number in ("202", "449")  # futex, futex_waitv on x86-64

    until(look)


@pytest.mark.parametrize("method", METHODS)
def test_a_device_hears_of_it(shared_pool: Pool, method: str) -> None:
    with attached(shared_pool, "gpu0", "gpu1", method=method) as (one, two):
        req = shared_pool.request("chat", devices=["gpu0", "gpu1"])
        ref = req.ref()
        assert not one.ask(cancelled, ref) and not two.ask(cancelled, ref)
        assert not one.ask(wait, ref, 0) and not one.ask(wait, ref, 0.001)
        one.start(wait, ref)
        sleeps(one)
        shared_pool.cancel("chat")
        assert one._answer() is True
        assert two.ask(cancelled, ref) and two.ask(wait, ref)
        assert one.ask(ack, ref) is Ack.PENDING
        assert not one.ask(cancelled, ref) and not one.ask(wait, ref)
        assert two.ask(ack, ref) is Ack.RELEASED
        assert req.wait(PATIENCE)
        assert not two.ask(cancelled, ref) and not two.ask(wait, ref)


def test_an_exception_in_the_owner_reaches_the_device(shared_pool: Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with contextlib.suppress(ZeroDivisionError), shared_pool.request("chat", devices=["gpu0"]) as req:
            device.start(wait, req.ref())
            sleeps(device)
            _ = 1 / 0
        assert device._answer() is True
        assert device.ask(ack, req.ref()) is Ack.RELEASED


def test_a_request_that_is_closed_can_no_longer_be_cancelled(shared_pool: Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        req = shared_pool.request("chat", devices=["gpu0"])
        ref = req.ref()
        device.start(wait, ref)
        sleeps(device)
        req.close()
        assert device._answer() is False
        req.cancel()  # too late
        assert not device.ask(cancelled, ref)
        assert device.ask(ack, ref) is Ack.RELEASED


def test_never_of_the_next_request_in_the_slot(shared_pool: Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        refs = []
        for i in range(20):
            req = shared_pool.request("chat", devices=["gpu0"])
            refs.append(req.ref())
            assert not any(device.ask(cancelled, ref) for ref in refs)
            assert not device.ask(wait, refs[-1], 0.001)
            req.cancel() if i % 2 else req.close()
            assert device.ask(wait, refs[-1]) is bool(i % 2)
            assert device.ask(ack, refs[-1]) is Ack.RELEASED
        slots = {ref.to_bytes()[44:48] for ref in refs}  # one and the same
        assert len(slots) == 1


def test_a_child_is_cancelled_with_its_parent(shared_pool: Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        req = shared_pool.request("chat", devices=["gpu0"])
        one, two = req.child(devices=["gpu0"]), req.child(devices=["gpu0"])
        refs = [one.ref(), two.ref(), req.ref()]
        one.cancel()
        assert [device.ask(cancelled, ref) for ref in refs] == [True, False, False]
        device.start(wait, refs[1])
        sleeps(device)
        req.cancel()
        assert device._answer() is True
        assert [device.ask(cancelled, ref) for ref in refs] == [True] * 3
        assert device.ask(ack, refs[2]) is Ack.RELEASED


def test_one_device_waits_and_others_are_killed(shared_pool: Pool) -> None:
    with attached(shared_pool, "gpu0", "gpu1") as (one, two):
        req = shared_pool.request("chat", devices=["gpu0", "gpu1"])
        ref = req.ref()
        for device in (one, two):
            device.start(wait, ref)
            sleeps(device)
        one.kill()
        until(lambda: req.pending == {"gpu1"})
        req.cancel()
        assert two._answer() is True
        assert two.ask(ack, ref) is Ack.RELEASED


def test_wrong_references(shared_pool: Pool) -> None:
    with (
        Pool("1MiB", memory="shared") as other,
        other.request("r", devices=["gpu0"]) as theirs,
        shared_pool.request("chat", devices=["gpu1"]) as req,
        slabpool.attach("engine", device="gpu0") as peer,
    ):
        for call in (peer.cancelled, peer.wait_cancelled):
            with pytest.raises(slabpool.InvalidReferenceError, match="of another pool"):
                call(theirs.ref())
            with pytest.raises(slabpool.UnknownDeviceError, match="never named"):
                call(req.ref())
            with pytest.raises(slabpool.InvalidTypeError, match="must be a TensorRef"):
                call(b"ref")  # type: ignore[arg-type]
        with pytest.raises(slabpool.InvalidTypeError, match="timeout"):
            peer.wait_cancelled(req.ref(), "soon")  # type: ignore[arg-type]
        with pytest.raises(slabpool.InvalidArgumentError, match="timeout"):
            peer.wait_cancelled(req.ref(), -1)
        assert theirs.ack("gpu0") is Ack.PENDING
        assert req.ack("gpu1") is Ack.PENDING


# ---- the end of who waits, and of whom it waits for

OWNER = """
import sys, slabpool
pool = slabpool.Pool("1MiB", memory="shared", name="engine")
req = pool.request("chat", devices=["gpu0"])
print(req.ref().to_bytes().hex(), flush=True)
for line in sys.stdin:
    pool.close(force=True)
    print("closed", flush=True)
"""


@contextlib.contextmanager
def owner() -> Iterator[tuple[subprocess.Popen[str], TensorRef]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, TensorRef.from_bytes(bytes.fromhex(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


class Waiter(threading.Thread):
    """A thread that waits without a timeout; what it hears."""

    def __init__(self, peer: slabpool.Peer, ref: TensorRef) -> None:
        super().__init__(daemon=True)
        self.peer, self.ref = peer, ref
        self.heard: object = None
        self.start()
        assert self.ident is not None
        until(waits(self.ident))

    def run(self) -> None:
        try:
            self.heard = self.peer.wait_cancelled(self.ref)
        except BaseException as error:
            self.heard = type(error)

    def end(self) -> object:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.heard


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_owner_that_is_killed(how: signal.Signals) -> None:
    with owner() as (process, ref), slabpool.attach("engine", device="gpu0") as peer:
        waiters = [Waiter(peer, ref) for _ in range(3)]
        process.send_signal(how)
        assert [waiter.end() for waiter in waiters] == [slabpool.OwnerLostError] * 3
        for call in (peer.cancelled, peer.wait_cancelled):
            with pytest.raises(slabpool.OwnerLostError):
                call(ref)


def test_an_owner_that_is_stopped_and_killed() -> None:
    with owner() as (process, ref), slabpool.attach("engine", device="gpu0") as peer:
        process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert not peer.wait_cancelled(ref, 0.05)
        assert time.monotonic() - started >= 0.05
        waiter = Waiter(peer, ref)
        process.kill()
        assert waiter.end() is slabpool.OwnerLostError


def test_an_owner_that_closes_its_pool() -> None:
    with owner() as (process, ref), slabpool.attach("engine", device="gpu0") as peer:
        waiter = Waiter(peer, ref)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("close\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        # Closing by force cancels; the thread may see that first, or that the pool is closed.
        assert waiter.end() in (True, slabpool.OwnerLostError)
        with pytest.raises(slabpool.OwnerLostError):
            peer.wait_cancelled(ref)


def test_a_peer_that_another_thread_closes() -> None:
    with owner() as (_, ref):
        peer = slabpool.attach("engine", device="gpu0")
        waiter = Waiter(peer, ref)
        peer.close()
        assert waiter.end() is slabpool.PoolClosedError
        with pytest.raises(slabpool.PoolClosedError):
            peer.cancelled(ref)


def test_its_own_ack_ends_a_wait() -> None:
    with owner() as (_, ref), slabpool.attach("engine", device="gpu0") as peer:
        waiter = Waiter(peer, ref)
        assert peer.ack(ref) is Ack.PENDING
        assert waiter.end() is False


INTERRUPTED = """
import signal, sys, slabpool
from slabpool import TensorRef
signal.signal(signal.SIGINT, signal.default_int_handler)
with slabpool.attach("engine", device="gpu0") as peer:
    try:
        print("waits", flush=True)
        peer.wait_cancelled(TensorRef.from_bytes(bytes.fromhex(sys.argv[1])))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_wait(shared_pool: Pool) -> None:
    with shared_pool.request("chat", devices=["gpu0"]) as req:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, req.ref().to_bytes().hex()], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=PATIENCE)[0] == "interrupted\n"
        finally:
            process.kill()
            process.wait()


CHILD = """
import json, os, sys, slabpool
from slabpool import TensorRef
ref = TensorRef.from_bytes(bytes.fromhex(sys.argv[1]))
peer = slabpool.attach("engine", device="gpu0")
read, write = os.pipe()
if os.fork() == 0:
    said = []
    for call in (peer.cancelled, peer.wait_cancelled):
        try:
            call(ref)
        except slabpool.ForkedPoolError as error:
            said.append(type(error).__name__)
    os.write(write, json.dumps(said).encode())
    os._exit(0)
os.wait()
print(os.read(read, 1000).decode(), flush=True)
peer.close()
"""


def test_the_child_of_a_fork_is_no_device(shared_pool: Pool) -> None:
    with shared_pool.request("chat", devices=["gpu0"]) as req:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, req.ref().to_bytes().hex()],
            stdout=subprocess.PIPE, text=True, timeout=PATIENCE, env=os.environ,
        )  # fmt: skip
        assert json.loads(done.stdout) == ["ForkedPoolError"] * 2
        until(lambda: not req.pending)
