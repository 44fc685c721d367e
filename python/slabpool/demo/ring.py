"""The devices of the demo: one thread each, in a ring, each with a range of the model's layers.

The first device embeds tokens, hidden states go from device to device, the last one chooses the next token
and hands it to the first. When the host is done with a request every device is told, and acknowledges from
its own thread. What must stay true: a thread that fails says so and ends every wait in the ring, the host's
and the other devices', so that nothing hangs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from slabpool.demo.memory import Parcel, RequestRefused, Session
from slabpool.demo.model import F32, Decoder, split_layers


class RingFailed(RuntimeError):
    """A device thread ended with an error; the message names both, and the error is the cause."""


@dataclass(frozen=True, slots=True)
class Finished:
    """No more tokens of a session will come; the devices still hold it."""

    session: Session
    #: All its tokens are there. False: a device refused to go on.
    complete: bool


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One device has acknowledged a session."""

    session: Session


@dataclass(frozen=True, slots=True)
class _Step:
    """Work for one device: new tokens on the first device, a hidden state on the others."""

    session: Session
    start: int
    count: int
    tokens: tuple[int, ...] = ()
    parcel: Parcel | None = None


@dataclass(frozen=True, slots=True)
class _Acknowledge:
    session: Session


#: None ends the thread.
_Message: TypeAlias = _Step | _Acknowledge | None


class Ring:
    """Device threads that serve sessions until the ``with`` block ends.

    Parameters
    ----------
    model
        Shared by all devices; each runs its own layers of it.
    devices
        Names, in the order of the layers; 1 to as many as the model has layers.

    Examples
    --------
    >>> import slabpool
    >>> from slabpool.demo.memory import PoolMemory
    >>> from slabpool.demo.model import Decoder, ModelConfig
    >>> from slabpool.demo.ring import Ring
    >>> from slabpool.demo.workload import Job
    >>> model, devices = Decoder(ModelConfig(), seed=0), ["device0", "device1"]
    >>> with slabpool.Pool("16MiB") as pool, Ring(model, devices) as ring:
    ...     session = PoolMemory(pool, model, devices).open(Job(0, (256, 72), 5), "chat-42")
    ...     ring.submit(session)
    ...     finished = ring.wait()
    ...     session.close()
    ...     ring.acknowledge(session)
    ...     acks = [ring.wait() for _ in devices]
    ...     len(session.tokens), pool.stats().live
    (5, 0)
    """

    def __init__(self, model: Decoder, devices: Sequence[str]) -> None:
        # SimpleQueue has no bound, so a put never waits; only a get does, and a failure ends every get.
        self.events: queue.SimpleQueue[Finished | Acknowledged | None] = queue.SimpleQueue()
        self._failure: tuple[str, BaseException] | None = None
        self._failure_lock = threading.Lock()  # the first failure is the one to report
        self.size = len(devices)
        ranges = split_layers(model.config.layers, len(devices))
        self._devices = [
            _Device(self, model, name, layers) for name, layers in zip(devices, ranges, strict=True)
        ]
        for device, following in zip(self._devices, [*self._devices[1:], self._devices[0]], strict=True):
            device.following = following

    def __enter__(self) -> Ring:
        for device in self._devices:
            device.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_threads()
        for device in self._devices:
            device.thread.join()
        if error is None:
            self._raise_failure()

    def submit(self, session: Session) -> None:
        """Start serving a session; `wait` will report it `Finished`."""
        prompt = session.job.prompt
        self._devices[0].inbox.put(_Step(session, 0, len(prompt), tokens=prompt))

    def acknowledge(self, session: Session) -> None:
        """Tell every device that the host is done; `wait` will report one `Acknowledged` for each."""
        for device in self._devices:
            device.inbox.put(_Acknowledge(session))

    def wait(self) -> Finished | Acknowledged:
        """The next thing that happened; raises `RingFailed` if a device thread died."""
        self._raise_failure()
        event = self.events.get()
        if event is None:
            self._raise_failure()
            raise RuntimeError("the ring has ended")
        return event

    def fail(self, device: str, error: BaseException) -> None:
        """Called by a device thread that ends early: wakes the host and ends the other threads."""
        with self._failure_lock:
            if self._failure is None:
                self._failure = (device, error)
        self.events.put(None)
        self._end_threads()

    def _end_threads(self) -> None:
        for device in self._devices:
            device.inbox.put(None)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            device, error = self._failure
            raise RingFailed(f"{device} failed: {type(error).__name__}: {error}") from error


class _Device:
    """One thread, its inbox and its layers."""

    following: _Device

    def __init__(self, ring: Ring, model: Decoder, name: str, layers: range) -> None:
        self.name = name
        self.inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"slabpool-demo-{name}", daemon=True)
        self._ring = ring
        self._model = model
        self._layers = layers

    def _run(self) -> None:
        try:
            while (message := self.inbox.get()) is not None:
                if isinstance(message, _Acknowledge):
                    message.session.ack(self.name)
                    self._ring.events.put(Acknowledged(message.session))
                    continue
                try:
                    self._step(message)
                except RequestRefused:
                    self._ring.events.put(Finished(message.session, complete=False))
        except BaseException as error:  # whatever ends this thread has to reach the host
            self._ring.fail(self.name, error)

    def _step(self, step: _Step) -> None:
        session = step.session
        # Views of the session's memory live in this call alone (`_forward`), or in a parcel.
        hidden = self._forward(step)
        if self._layers.stop < self._model.config.layers:
            parcel = session.send(self.following.name, hidden)
            self.following.inbox.put(_Step(session, step.start, step.count, parcel=parcel))
            return
        token = self._model.next_token(hidden)
        session.tokens.append(token)
        if len(session.tokens) == session.job.generate:
            self._ring.events.put(Finished(session, complete=True))
        else:
            self.following.inbox.put(_Step(session, step.start + step.count, 1, tokens=(token,)))

    def _forward(self, step: _Step) -> F32:
        start, caches = step.session.caches(self.name, self._layers, step.start, step.count)
        parcel, first = step.parcel, self._layers.start
        if parcel is None:
            return self._model.run_layers(self._model.embed(step.tokens), first, caches, start)
        hidden = self._model.run_layers(parcel.hidden, first, caches, start)
        parcel.consumed(self.name)
        return hidden
