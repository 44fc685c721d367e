"""Device processes that run what a test asks for: a function of this file or of the test's.

Devices are daemons, so that a failed test leaves nothing running.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import slabpool
from tests.waiting import PATIENCE, until

METHODS = ["fork", "spawn", "forkserver"]


def _serve(pipe: multiprocessing.connection.Connection, pool: str, device: str | None, place: str) -> None:
    signal.alarm(10 * PATIENCE)
    os.environ["XDG_RUNTIME_DIR"] = place  # a fork server keeps the one of the test that started it
    peer = None
    try:
        if device is not None:
            peer = slabpool.attach(pool, device=device, timeout=PATIENCE)
        pipe.send((True, os.getpid()))
        while True:
            asked = pipe.recv()
            if asked is None:
                break
            work, args = asked
            try:
                pipe.send((True, work(peer, *args)))
            except Exception as error:
                error.__traceback__ = None
                pipe.send((False, error))
    except EOFError:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        if peer is not None:
            peer.close()


class Device:
    """A process, attached as a device unless `device` is None."""

    def __init__(self, pool: str, device: str | None, method: str = "fork") -> None:
        context = multiprocessing.get_context(method)
        self.pipe, theirs = context.Pipe()
        # A daemon, so it ends with this process even if the test fails.
        self.process = context.Process(
            target=_serve, args=(theirs, pool, device, os.environ["XDG_RUNTIME_DIR"]), daemon=True
        )
        self.process.start()
        theirs.close()
        self.device = device
        self.pid = self._answer()

    def _answer(self) -> Any:
        assert self.pipe.poll(PATIENCE), "the device hangs"
        worked, answer = self.pipe.recv()
        if not worked:
            raise answer
        return answer

    def ask(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of `work(peer, *args)` in the device's process, or its exception."""
        self.pipe.send((work, args))
        return self._answer()

    def start(self, work: Callable[..., Any], *args: Any) -> None:
        """Like `ask`, but without waiting for the result."""
        self.pipe.send((work, args))

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self.process.kill()
        # Not join(): processes that it forked have copies of the pipe that join() watches.
        until(lambda: self.process.exitcode is not None)
        assert self.process.exitcode == -signal.SIGKILL
        self.pipe.close()

    def stop(self) -> None:
        """Let it end by itself."""
        # Not by closing the pipe, because processes forked later have copies of this end.
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.pipe.close()
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError("the device does not end")


@contextlib.contextmanager
def attached(pool: slabpool.Pool, *devices: str, method: str = "fork") -> Iterator[list[Device]]:
    """One device process for each name."""
    crew = [Device(pool.name, device, method) for device in devices]
    try:
        yield crew
    finally:
        for device in crew:
            if not device.pipe.closed:
                device.stop()


def total(peer: slabpool.Peer, ref: slabpool.TensorRef) -> float:
    """The sum of a tensor."""
    return float(peer.open(ref).sum())


def ack(peer: slabpool.Peer, ref: slabpool.TensorRef) -> slabpool.Ack:
    """An acknowledgement."""
    return peer.ack(ref)


def fill(peer: slabpool.Peer, ref: slabpool.TensorRef, value: float) -> None:
    """Fills the tensor through a writable view."""
    peer.open(ref, writable=True).fill(value)


def shared_maps() -> int:
    """The number of memfd mappings in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:slabpool")


def descriptors() -> dict[str, str]:
    """Open descriptors of this process, and their targets."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor that lists the directory is gone
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
    return found
