"""`device_lost(kill=True)` signals the device's process and no other, in whatever PID namespace it lives.

All processes are real. A socket option or function that an older kernel lacks is made to fail in the owner.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import slabpool
from slabpool.shared import client, owner, rendezvous
from tests.conftest import _missing
from tests.process import devices
from tests.process.devices import attached, fill
from tests.process.test_hostile import Raw
from tests.waiting import until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # with threads, from Python 3.12 on
]

NO_OPTION = 9999  # of a socket: the kernel answers as one without SO_PEERPIDFD does
PEER_PIDFD = 77  # SO_PEERPIDFD, which Python does not name

# Attaches as gpu0. On "fork", starts a process that keeps a copy of the connection. Ends with its input.
DEVICE = """
import os, socket, subprocess, sys
import slabpool
peer = slabpool.attach("engine", device="gpu0", timeout=120)
print(os.getpid(), flush=True)
for line in sys.stdin:
    copies = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            copy = socket.socket(fileno=os.dup(fd))
        except OSError:                             # no socket, or the descriptor that listed the directory
            continue
        if copy.type == socket.SOCK_SEQPACKET:      # not the standard streams, which may be sockets
            copies.append(copy.detach())
    child = subprocess.Popen(["sleep", "600"], pass_fds=copies)
    print(len(copies), child.pid, flush=True)
"""

# Owns the pool, has a bystander in its own process group, and calls device_lost whenever it is asked to.
OWNER = """
import json, os, subprocess, sys
import slabpool
from slabpool.shared import client, rendezvous
client._SO_PEERPIDFD = int(sys.argv[1])
os.setsid()
bystander = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
assert os.getpgid(bystander.pid) == os.getpgrp()
with slabpool.Pool("1MiB", memory="shared", name="engine") as pool:
    request = pool.request("r", devices=["gpu0"])
    request.close()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "wait":
            said = request.wait(timeout=120)
        else:
            try:
                said = pool.device_lost("gpu0", kill=asked == "kill")
            except slabpool.SlabpoolError as error:
                said = [type(error).__name__, str(error)]
        print(json.dumps([said, bystander.poll()]), flush=True)
bystander.kill()
bystander.wait()
"""


class Program:
    """A Python program that answers each line with a line."""

    def __init__(self, source: str, *args: object, inside: list[str] | None = None) -> None:
        command = [*(inside or []), sys.executable, "-c", source, *map(str, args)]
        # In its own group, so that a signal to that group by mistake does not end the tests.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def read(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], devices.PATIENCE)[0], "the program hangs"
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """The answer to a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> int:
        """Ends its input; its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(devices.PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@contextlib.contextmanager
def program(source: str, *args: object, inside: list[str] | None = None) -> Iterator[Program]:
    """A running program; it has ended afterwards."""
    running = Program(source, *args, inside=inside)
    try:
        yield running
    finally:
        running.end()


def asked(running: Program, what: str) -> Any:
    """The owner's answer; its bystander is alive."""
    said, bystander = json.loads(running.ask(json.dumps(what)))
    assert bystander is None
    return said


def has_pidfd_of_peer() -> bool:
    """Whether the kernel has SO_PEERPIDFD."""
    here, there = socket.socketpair()
    with here, there:
        try:
            os.close(here.getsockopt(socket.SOL_SOCKET, PEER_PIDFD))
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return False
    return True


@pytest.fixture
def require_pidfd_of_peer() -> None:
    """Skip or fail if the kernel has no SO_PEERPIDFD."""
    if not has_pidfd_of_peer():
        _missing("needs SO_PEERPIDFD (Linux 6.5)")


@pytest.mark.parametrize("option", [client._SO_PEERPIDFD, NO_OPTION], ids=["pidfd", "no pidfd"])
def test_a_device_outside_the_namespace_of_the_owner(pid_namespace: list[str], option: int) -> None:
    """The kernel says pid 0 for such a device: it is not killed, and neither is the owner's group."""
    with program(OWNER, option, inside=pid_namespace) as engine:
        assert json.loads(engine.read()) == "ready"
        with program(DEVICE) as device:
            assert int(device.read()) == device.process.pid
            kind, text = asked(engine, "look")
            assert kind == "DeviceAttachedError"
            assert "as a process in another PID namespace, which is alive" in text
            for _ in range(2):
                kind, text = asked(engine, "kill")
                assert kind == "DeviceAttachedError"
                assert "cannot be named from here" in text
                assert "it is in another PID namespace" in text
                assert "close its peer there" in text
            with pytest.raises(slabpool.DeviceAttachedError, match="a process in another PID namespace"):
                slabpool.attach("engine", device="gpu0")
            assert device.process.poll() is None
            assert device.end() == 0
        assert asked(engine, "wait") is True
        assert engine.end() == 0


@pytest.mark.usefixtures("require_pidfd_of_peer")
def test_the_death_of_a_device_outside_whose_child_keeps_the_connection(pid_namespace: list[str]) -> None:
    with program(OWNER, client._SO_PEERPIDFD, inside=pid_namespace) as engine:
        assert json.loads(engine.read()) == "ready"
        with program(DEVICE) as device:
            device.read()
            copies, child = map(int, device.ask("fork").split())
            try:
                assert copies == 1
                device.process.kill()
                assert device.process.wait() == -signal.SIGKILL
                assert asked(engine, "wait") is True
                os.kill(child, 0)  # it still has the connection
            finally:
                os.kill(child, signal.SIGKILL)
        assert engine.end() == 0


@pytest.mark.parametrize("option", [client._SO_PEERPIDFD, NO_OPTION], ids=["pidfd", "by number"])
def test_a_device_in_a_namespace_below_is_killed(
    shared_pool: slabpool.Pool, pid_namespace: list[str], monkeypatch: pytest.MonkeyPatch, option: int
) -> None:
    monkeypatch.setattr(client, "_SO_PEERPIDFD", option)
    with shared_pool.request("r", devices=["gpu0"]) as request:
        request.empty(1000)
    with program(DEVICE, inside=pid_namespace) as device:
        assert int(device.read()) == 1  # by its own count
        assert shared_pool.device_lost("gpu0", kill=True) == 1
        assert request.state is slabpool.RequestState.RELEASED
        assert device.process.wait(devices.PATIENCE) != 0


def test_a_pidfd_by_number_is_verified(shared_pool: slabpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SO_PEERPIDFD, a process is killed only if it maps the device's board."""
    monkeypatch.setattr(client, "_SO_PEERPIDFD", NO_OPTION)
    with program("import sys; print(flush=True); sys.stdin.read()") as bystander:
        bystander.read()
        true = rendezvous.credentials
        # As if the device had died after it connected, and its number had gone to the bystander.
        monkeypatch.setattr(owner, "credentials", lambda line: (bystander.process.pid, true(line)[1]))
        raw = Raw("engine", "gpu0")
        with pytest.raises(slabpool.DeviceAttachedError, match="may be another one"):
            shared_pool.device_lost("gpu0", kill=True)
        assert bystander.process.poll() is None
        earlier = shared_pool.request("earlier", devices=["gpu0"])
        earlier.close()
        raw.close()
        until(lambda: earlier.state is slabpool.RequestState.RELEASED)
        assert bystander.end() == 0
    monkeypatch.setattr(owner, "credentials", true)
    with shared_pool.request("r", devices=["gpu0"]) as request:
        ref = request.ref(request.empty(1000, "f4"))
    with attached(shared_pool, "gpu0") as (device,):
        device.ask(fill, ref, 1.0)
        assert shared_pool.device_lost("gpu0", kill=True) == 1
        until(lambda: device.process.exitcode is not None)
        assert device.process.exitcode == -signal.SIGKILL
        device.pipe.close()


def test_without_any_pidfd_no_process_is_killed(
    shared_pool: slabpool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, f"no descriptor for {pid}")

    monkeypatch.setattr(client, "_SO_PEERPIDFD", NO_OPTION)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with shared_pool.request("r", devices=["gpu0"]) as request:
        ref = request.ref(request.empty(1000, "f4"))
    with attached(shared_pool, "gpu0") as (device,):
        with pytest.raises(
            slabpool.DeviceAttachedError, match=rf"no pidfd of it, and its number {device.pid}"
        ):
            shared_pool.device_lost("gpu0", kill=True)
        device.ask(fill, ref, 1.0)  # it is alive
        assert request.pending == {"gpu0"}
        device.kill()
        assert request.wait(timeout=devices.PATIENCE)


# Stops a process at its exit, as a debugger does, until the input ends.
TRACER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
SEIZE, DETACH, TRACEEXIT = 0x4206, 17, 0x40
pid = int(sys.argv[1])
if libc.ptrace(SEIZE, pid, None, TRACEEXIT):
    print("refused:", os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(1)
print("traced", flush=True)
_, status = os.waitpid(pid, 0x40000000)
print("stopped" if os.WIFSTOPPED(status) else f"ended with {status}", flush=True)
sys.stdin.read()
libc.ptrace(DETACH, pid, None, None)
"""


def test_a_killed_process_that_does_not_end(
    shared_pool: slabpool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owner._PATIENCE == 30
    monkeypatch.setattr(owner, "_PATIENCE", 0.2)
    with shared_pool.request("r", devices=["gpu0"]) as request:
        request.empty(1000)
    with program(DEVICE) as device:
        device.read()
        with program(TRACER, device.process.pid) as tracer:
            said = tracer.read()
            if said != "traced":
                _missing(f"needs the right to trace another process ({said})")
            with pytest.raises(
                slabpool.DeviceAttachedError, match=r"was killed, but has not ended within 0\.2 s.*still held"
            ):
                shared_pool.device_lost("gpu0", kill=True)
            assert tracer.read() == "stopped"
            assert request.pending == {"gpu0"}
            assert shared_pool.stats().live > 0
            assert tracer.end() == 0
        monkeypatch.setattr(owner, "_PATIENCE", devices.PATIENCE)
        # The kernel ends it now; a repeated call waits for that, or it is detached already.
        assert shared_pool.device_lost("gpu0", kill=True) in (0, 1)
        assert device.process.wait(devices.PATIENCE) == -signal.SIGKILL
        assert request.wait(timeout=devices.PATIENCE)
        assert shared_pool.stats().live == 0
