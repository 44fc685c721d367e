"""One scenario over the public interface, and the process that runs it with the k-th call failing.

Run as a program with the interposer preloaded: imports slabpool once, then forks a child for each k. Each
line that it prints is a JSON object about one k.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import slabpool

MiB = 1 << 20
PATIENCE = 120  # seconds after which a child counts as hung


class Faults:
    """The interposer of this process."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(None)
        self._lib.faults_calls.restype = self._lib.faults_failed.restype = ctypes.c_long

    def arm(self, call: str, k: int, native: bool) -> None:
        """From the next `resume` on the k-th call fails."""
        found = self._lib.faults_arm(call.encode(), ctypes.c_long(k), int(native))
        assert found > 2, f"{found} ranges of slabpool's library and modules"
        self._lib.faults_pause(1)

    def resume(self) -> None:
        """Calls count."""
        self._lib.faults_pause(0)

    def pause(self) -> None:
        """Calls do not count."""
        self._lib.faults_pause(1)

    @property
    def calls(self) -> int:
        """Calls that counted."""
        return int(self._lib.faults_calls())

    @property
    def failed(self) -> int:
        """Calls that were made to fail: 0 or 1."""
        return int(self._lib.faults_failed())


class Steps:
    """Makes calls while the interposer counts, and checks what a call does that meets the failure."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.refused: list[str] = []

    def forth(self, name: str, call: Callable[[], Any]) -> Any:
        """A call that may be refused. It then says why, and succeeds when it is made again."""
        failed = self._faults.failed
        try:
            return self._armed(call)
        except (slabpool.SlabpoolError, MemoryError, OSError) as error:
            refusal = error
        assert self._faults.failed > failed, f"{name} is refused without a failure: {refusal!r}"
        assert type(refusal) is MemoryError or str(refusal), f"{name}: {refusal!r} has no text"
        self.refused.append(f"{name}: {refusal!r:.300}")
        refusal.__traceback__ = None  # its frames hold what the call had made
        return call()

    def back(self, name: str, call: Callable[[], Any]) -> Any:
        """A call that returns memory: it is never refused."""
        try:
            return self._armed(call)
        except BaseException as error:
            raise AssertionError(f"{name} is refused: {error!r}") from error

    def _armed(self, call: Callable[[], Any]) -> Any:
        self._faults.resume()
        try:
            return call()
        finally:
            self._faults.pause()


class Device:
    """A process that attaches as a device when it is asked to.

    It is forked before the pool exists, and none of its calls fails.
    """

    def __init__(self, name: str) -> None:
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._pipe.close()
                signal.alarm(PATIENCE)
                self._serve(theirs, name)
                status = 0
            except EOFError:
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    @staticmethod
    def _serve(pipe: Connection, name: str) -> None:
        peer: Any = None
        while True:
            what, argument = pipe.recv()
            try:
                if what == "attach":
                    peer = slabpool.attach(name, device="b", timeout=PATIENCE)
                    answer: Any = True
                elif what == "sum":
                    answer = int(peer.open(argument).sum())
                elif what == "ack":
                    answer = peer.ack(argument).name
                else:
                    peer.close()
                    answer = True
                pipe.send(answer)
            except Exception as error:
                error.__traceback__ = error.__context__ = error.__cause__ = None
                pipe.send(error)

    def ask(self, what: str, argument: Any = None) -> Any:
        """The device's answer; its exceptions are raised here."""
        self._pipe.send((what, argument))
        assert self._pipe.poll(PATIENCE), f"the device does not answer {what}"
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Waits for the end of the process."""
        self._pipe.close()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the device ended with {status}"


def descriptors() -> set[str]:
    """Numbers and targets of the open descriptors."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{entry} {os.readlink(f'/proc/self/fd/{entry}')}")
        except OSError:  # the descriptor that lists the directory
            continue
    return found


def adds_up(pool: slabpool.Pool) -> slabpool.Stats:
    """The figures, which add up."""
    s = pool.stats()
    assert s.committed == s.live + s.retained + s.in_doubt + s.cached, s
    assert s.committed <= s.capacity, s
    return s


def scenario(kind: str, steps: Steps, device: Device | None, name: str) -> None:
    """Every part of a pool's life, after which nothing is held."""
    options: dict[str, Any] = {"memory": "shared", "name": name} if kind == "shared" else {}
    pool = steps.forth("Pool", lambda: slabpool.Pool("16MiB", events=64, **options))
    if device is not None:
        steps.forth("attach", lambda: device.ask("attach"))
    req = steps.forth("request", lambda: pool.request("a request", devices=["a", "b"]))
    small = steps.forth("empty", lambda: req.empty(1000, "u1"))
    large = steps.forth("zeros", lambda: req.zeros(300_000, "u1"))
    large[:] = 1
    assert int(small[:0].sum()) == 0
    child = steps.forth("child", lambda: req.child(devices=["a"]))
    assert steps.forth("a child's full", lambda: child.full(5000, 3, "u1")).sum() == 15_000
    grown = steps.forth("growable", lambda: req.growable((0, 64), "f4", axis=0, limit=8192))
    for length in (10, 2000, 8000):
        steps.forth("extend", lambda length=length: grown.extend(length - grown.shape[0]))
    turn_of = steps.forth("session", lambda: pool.session("a session"))
    turn = steps.forth("a turn", lambda: turn_of.request(devices=["a"]))
    kept = steps.forth("full", lambda: turn.full(5000, 7, "u1"))
    steps.forth("keep", lambda: turn_of.keep("a name", kept))
    kept = None
    steps.back("close of a turn", turn.close)
    steps.back("ack of a turn", lambda: turn.ack("a"))
    next_turn = steps.forth("the next turn", lambda: turn_of.request(devices=["a"]))
    assert steps.forth("get", lambda: turn_of["a name"]).sum() == 35_000
    steps.forth("copy", lambda: pool.copy(np.arange(999)))
    promised = steps.forth("request with a reserve", lambda: pool.request("q", reserve="2MiB", quota="4MiB"))
    for size in (100, 5000, 200_000):
        steps.forth("promised", lambda size=size: promised.empty(size, "u1"))
    adds_up(pool)
    steps.forth("requests", pool.requests)
    steps.forth("leaks", pool.leaks)
    steps.forth("events", pool.events)
    steps.back("close with a reserve", promised.close)
    steps.back("the end of the next turn", lambda: (next_turn.close(), next_turn.ack("a")))
    if device is not None:
        ref = steps.forth("ref", lambda: req.ref(large))
        assert device.ask("sum", ref) == 300_000
        assert steps.back("ack of a device", lambda: device.ask("ack", ref)) == "PENDING"
    steps.back("ack of a parent", lambda: req.ack("a"))
    steps.back("close of a child", child.close)
    steps.back("close", req.close)
    if device is None:
        steps.back("device_lost", lambda: pool.device_lost("b"))
    assert steps.forth("wait", lambda: req.wait(timeout=PATIENCE)), "the request is over"
    small = large = grown = None
    gc.collect()
    steps.back("close of a session", turn_of.close)
    steps.back("trim", pool.trim)
    s = adds_up(pool)
    assert (s.live, s.retained, s.in_doubt, s.reserved, s.requests_open) == (0, 0, 0, 0, 0), s
    assert s.allocations == s.frees, s
    assert pool._verify() is None
    # It is as good as new.
    again = [pool.full(MiB, i, "u1") for i in range(8)]
    assert [int(block[-1]) for block in again] == list(range(8))
    del again
    if device is not None:
        device.ask("close")
    steps.back("close of the pool", pool.close)
    s = adds_up(pool)
    assert s.live == 0 and s.allocations == s.frees, s


LONG = "a name that no std::string has room for without an allocation: "


def long_names(steps: Steps) -> None:
    """Calls that hand names and texts of any length from the core to Python, or the other way."""
    ids, devices = [LONG + "0", 10**40], [LONG + "1", -(10**40)]
    pool = steps.forth("Pool", lambda: slabpool.Pool("16MiB"))
    req = steps.forth("request", lambda: pool.request(ids[0], devices=devices))
    steps.forth("add_device", lambda: req.add_device(LONG + "2"))
    steps.forth("a request with an int", lambda: pool.request(ids[1], devices=devices)).close()
    session = steps.forth("session", lambda: pool.session(LONG))
    with steps.forth("a turn", session.request) as turn:
        steps.forth("keep", lambda: session.keep(LONG, turn.full(5000, 7, "u1")))
    steps.forth("sessions", pool.sessions)
    steps.forth("requests", pool.requests)
    steps.forth("a refusal", pool._refusal)
    for refused in (lambda: req.ack(devices[0], stream=77), lambda: pool.ack(ids[0], devices[0], stream=77)):
        steps.forth("ack behind a stream that does not exist", lambda call=refused: raises(call))
    steps.forth(
        "a pool of a GPU that there is not", lambda: raises(lambda: slabpool.Pool(1, memory="cuda:9"))
    )
    req.close()
    for name in ids:
        for device in devices:
            steps.forth("ack by id", lambda name=name, device=device: pool.ack(name, device))
    steps.back("ack", lambda: req.ack(LONG + "2"))
    assert req.state is slabpool.RequestState.RELEASED
    session.close()
    assert pool._verify() is None
    steps.back("close of the pool", pool.close)


def raises(call: Callable[[], Any]) -> None:
    """A call that is refused by the pool, and not for lack of memory."""
    try:
        call()
    except slabpool.SlabpoolError as error:
        error.__traceback__ = None
        return
    raise AssertionError("it is not refused")


def one(kind: str, call: str, k: int, native: bool) -> dict[str, Any]:
    """Runs the scenario with the k-th call failing, in this process."""
    name = f"faults-{os.getpid()}"
    faults = Faults()
    # What is loaded or made once for the process is there before descriptors are counted.
    with slabpool.Pool("1MiB", **({"memory": "shared", "name": name} if kind == "shared" else {})):
        pass
    before = descriptors()
    device = Device(name) if kind == "shared" else None
    steps = Steps(faults)
    faults.arm(call, k, native)
    if kind == "names":
        long_names(steps)
    else:
        scenario(kind, steps, device, name)
    if device is not None:
        device.end()
    gc.collect()
    leaked = descriptors() - before
    assert not leaked, f"leaked descriptors: {leaked}"
    return {"calls": faults.calls, "failed": faults.failed, "refused": steps.refused}


def forked(kind: str, call: str, k: int, native: bool) -> dict[str, Any]:
    """The same in a forked child; `error` says how it failed."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        signal.alarm(PATIENCE)
        try:
            result = one(kind, call, k, native)
        except BaseException:
            result = {"error": traceback.format_exc()[-3000:]}
        os.write(theirs, json.dumps(result).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    result = json.loads(answer) if answer else {"error": f"the process ended with status {status}"}
    return {"k": k, **result}


def main(kind: str, call: str, native: str, most: str, least: str, seconds: str) -> None:
    """Runs k = 0, which fails nothing, and then up to `most` others, evenly spread over all calls.

    After so many `seconds` no further k is started, except the first `least` ones."""
    warnings.simplefilter("ignore")
    end = time.monotonic() + float(seconds)
    whole = forked(kind, call, 0, native == "native")
    print(json.dumps(whole), flush=True)
    calls = whole.get("calls", 0)
    step = max(1, -(-calls // int(most)))
    for count, k in enumerate(range(1, calls + 1, step)):
        if count >= int(least) and time.monotonic() > end:
            break
        print(json.dumps(forked(kind, call, k, native == "native")), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
