"""The devices of the demo as processes: each attached to one shared pool, hidden states passed by reference.

The host hands each device a reference to its caches and to the hidden states it reads and writes, and
carries references between them; no tensor goes through a pipe. What must stay true: a device that is killed
ends the requests it had a part in, as not complete, and no others; it is started again, and attached, before
the next request is opened.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TypeAlias

import numpy as np

import slabpool
from slabpool.demo.memory import Parcel, PoolMemory, Session
from slabpool.demo.model import F32, Decoder, KvPair, ModelConfig, split_layers
from slabpool.demo.ring import Acknowledged, Finished, RingFailed
from slabpool.demo.workload import Job

_PATIENCE = 60.0  # seconds a device process may take to start


@dataclass(frozen=True, slots=True)
class _Open:
    """A session begins: its number, and keys and values of each layer of the device."""

    index: int
    caches: tuple[tuple[slabpool.TensorRef, slabpool.TensorRef], ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """New tokens on the first device, a hidden state on the others; where the result goes, if anywhere."""

    index: int
    start: int
    count: int
    tokens: tuple[int, ...]
    hidden: slabpool.TensorRef | None
    result: slabpool.TensorRef | None


@dataclass(frozen=True, slots=True)
class _Close:
    """The host is done with a session."""

    index: int
    request: slabpool.TensorRef


@dataclass(frozen=True, slots=True)
class _Answer:
    """A step is done (the token, on the last device), or a session is acknowledged (no step)."""

    index: int
    step: _Step | None = None
    token: int | None = None


_Message: TypeAlias = _Open | _Step | _Close | None


def _serve(pipe: Connection, pool: str, name: str, layers: range, config: ModelConfig, seed: int) -> None:
    """A device's process, until it is told to end, killed, or its host is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host's to handle
    model = Decoder(config, seed)
    caches: dict[int, list[KvPair]] = {}
    with (
        contextlib.suppress(EOFError, BrokenPipeError),
        slabpool.attach(pool, device=name, timeout=_PATIENCE) as peer,
    ):
        pipe.send(None)
        message: _Message
        while (message := pipe.recv()) is not None:
            if isinstance(message, _Open):
                caches[message.index] = [
                    (peer.open(keys, writable=True), peer.open(values, writable=True))
                    for keys, values in message.caches
                ]
            elif isinstance(message, _Close):
                del caches[message.index]  # before the ack: from then on they may be somebody else's
                peer.ack(message.request)
                pipe.send(_Answer(message.index))
            else:
                token = _step(peer, model, layers, caches[message.index], message)
                pipe.send(_Answer(message.index, message, token))


def _step(
    peer: slabpool.Peer, model: Decoder, layers: range, caches: list[KvPair], step: _Step
) -> int | None:
    hidden = model.embed(step.tokens) if step.hidden is None else peer.open(step.hidden)
    hidden = model.run_layers(hidden, layers.start, caches, step.start)  # shares nothing with what went in
    if step.hidden is not None:
        peer.ack(step.hidden)
    if step.result is None:
        return model.next_token(hidden)
    peer.open(step.result, writable=True)[:] = hidden
    peer.ack(step.result)
    return None


class SharedSession:
    """One request while processes serve it."""

    def __init__(self, job: Job, request: slabpool.Request, tensors: slabpool.Tensors) -> None:
        self.job = job
        self.tokens: list[int] = []
        self.request = request
        self.tensors = tensors
        #: Devices that live and have not acknowledged, and whether they have been told to.
        self.holders: set[str] = set()
        self.closing = False

    # What a device thread would ask for; a device's process has its own views, and its own acks.
    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        """Not here."""
        raise NotImplementedError

    def send(self, device: str, hidden: F32) -> Parcel:
        """Not here."""
        raise NotImplementedError

    def ack(self, device: str) -> None:
        """Not here."""
        raise NotImplementedError

    def close(self) -> None:
        """The host is done."""
        self.request.close()


class SharedMemory(PoolMemory):
    """Sessions for device processes, in a pool of ``memory="shared"``."""

    def _session(self, job: Job, request: slabpool.Request, tensors: slabpool.Tensors) -> Session:
        return SharedSession(job, request, tensors)


class _Device:
    """A process and the pipe to it."""

    def __init__(self, name: str, layers: range) -> None:
        self.name = name
        self.layers = layers
        self.process: multiprocessing.process.BaseProcess
        self.pipe: Connection

    def start(self, pool: str, config: ModelConfig, seed: int) -> None:
        # Afresh, so that no device inherits another's pipe or the host's memory.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        args = (theirs, pool, self.name, self.layers, config, seed)
        self.process = context.Process(target=_serve, args=args, daemon=True)
        self.process.start()
        theirs.close()

    def ready(self) -> None:
        """Returns once it is attached."""
        try:
            if self.pipe.poll(_PATIENCE):
                self.pipe.recv()
                return
        except EOFError:
            pass
        raise RingFailed(f"{self.name} did not start")

    def send(self, message: _Message) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is noticed by reading
            self.pipe.send(message)


class ProcessRing:
    """Device processes that serve sessions until the ``with`` block ends; as `ring.Ring` for `serve`.

    Parameters
    ----------
    config, seed
        Of the model, which each process makes for itself.
    devices
        Names, in the order of the layers.
    pool
        Shared; each process attaches to it.
    kill_every
        Kill a device at random whenever so many sessions have been submitted.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        devices: Sequence[str],
        pool: slabpool.Pool,
        kill_every: int | None = None,
    ) -> None:
        self.size = len(devices)
        #: Jobs that ended early because a device was killed, and how many were.
        self.interrupted: set[int] = set()
        self.kills = 0
        self._config, self._seed, self._pool = config, seed, pool
        ranges = split_layers(config.layers, len(devices))
        self._devices = [_Device(name, layers) for name, layers in zip(devices, ranges, strict=True)]
        self._kill_every = kill_every
        self._random = random.Random(seed)
        self._submitted = 0
        self._serving: dict[int, SharedSession] = {}  # unfinished
        self._held: dict[int, SharedSession] = {}  # not acknowledged by all
        self._events: deque[Finished | Acknowledged] = deque()

    def __enter__(self) -> ProcessRing:
        for device in self._devices:
            device.start(self._pool.name, self._config, self._seed)
        for device in self._devices:
            device.ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for device in self._devices:
            if error is None:
                device.send(None)
            else:
                device.process.kill()
            device.process.join()
            device.pipe.close()

    def submit(self, session: Session) -> None:
        """Start serving a session; `wait` will report it `Finished`."""
        assert isinstance(session, SharedSession)
        index, refs, tensors = session.job.index, session.request.ref, session.tensors
        self._serving[index] = self._held[index] = session
        session.holders = {device.name for device in self._devices}
        for device in self._devices:
            pairs = tuple((refs(tensors[f"k{i}"]), refs(tensors[f"v{i}"])) for i in device.layers)
            device.send(_Open(index, pairs))
        prompt = session.job.prompt
        self._pass_on(session, 0, 0, len(prompt), prompt, None)
        self._submitted += 1
        if self._kill_every is not None and self._submitted % self._kill_every == 0:
            self._random.choice(self._devices).process.kill()
            self.kills += 1

    def acknowledge(self, session: Session) -> None:
        """Tell every device that the host is done; `wait` will report one `Acknowledged` for each."""
        assert isinstance(session, SharedSession)
        session.closing = True
        for device in self._devices:
            if device.name in session.holders:
                device.send(_Close(session.job.index, session.request.ref()))
            else:  # it was killed, and let go by that
                self._events.append(Acknowledged(session))

    def wait(self) -> Finished | Acknowledged:
        """The next thing that happened; raises `RingFailed` if a device ended by itself."""
        while not self._events:
            by_pipe = {device.pipe: device for device in self._devices}
            for pipe in wait(list(by_pipe)):
                assert isinstance(pipe, Connection)
                try:
                    answer = pipe.recv()
                except (EOFError, ConnectionResetError):
                    self._died(by_pipe[pipe])
                else:
                    self._take(by_pipe[pipe], answer)
        return self._events.popleft()

    def _take(self, device: _Device, answer: _Answer) -> None:
        if answer.step is None:
            self._let_go(self._held[answer.index], device)
            return
        session = self._serving.get(answer.index)
        if session is None:  # interrupted meanwhile
            return
        step = answer.step
        if answer.token is None:
            position = self._devices.index(device) + 1
            self._pass_on(session, position, step.start, step.count, (), step.result)
            return
        session.tokens.append(answer.token)
        if len(session.tokens) == session.job.generate:
            self._finish(session, complete=True)
        else:
            self._pass_on(session, 0, step.start + step.count, 1, (answer.token,), None)

    def _pass_on(
        self,
        session: SharedSession,
        position: int,
        start: int,
        count: int,
        tokens: tuple[int, ...],
        hidden: slabpool.TensorRef | None,
    ) -> None:
        """Have a device do its part, with memory for what it passes on."""
        result = None
        if position + 1 < self.size:
            # The sender holds it while it writes, the receiver until it has read.
            both = [device.name for device in self._devices[position : position + 2]]
            try:
                with session.request.child(devices=both) as step:
                    result = step.ref(step.empty((count, self._config.dim), np.float32))
            except slabpool.UnknownDeviceError:
                return  # one of them was killed; its end is on its way to us
            except slabpool.PoolExhausted:
                self._finish(session, complete=False)
                return
        self._devices[position].send(_Step(session.job.index, start, count, tokens, hidden, result))

    def _finish(self, session: SharedSession, *, complete: bool) -> None:
        del self._serving[session.job.index]
        self._events.append(Finished(session, complete))

    def _let_go(self, session: SharedSession, device: _Device) -> None:
        session.holders.discard(device.name)
        if session.closing:
            self._events.append(Acknowledged(session))
        if not session.holders:
            del self._held[session.job.index]

    def _died(self, device: _Device) -> None:
        device.process.join()
        device.pipe.close()
        if device.process.exitcode != -signal.SIGKILL:
            raise RingFailed(f"{device.name} ended with exit status {device.process.exitcode}")
        for session in list(self._serving.values()):
            self.interrupted.add(session.job.index)
            self._finish(session, complete=False)
        for session in list(self._held.values()):
            if device.name in session.holders:
                self._let_go(session, device)
        # Attached again only once the owner has taken the dead one's holds away: a request opened after
        # this is held by the new process.
        device.start(self._pool.name, self._config, self._seed)
        device.ready()
