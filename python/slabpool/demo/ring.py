"""The devices of the demo: one thread each, in a ring, each with a range of the model's layers.

The first device embeds tokens, each device passes its hidden state to the next one, and the last device
chooses the next token and sends it to the first. After the host has closed a request, each device
acknowledges it on its own thread.

Invariant: a thread that fails reports its error and wakes every waiter in the ring, so nothing hangs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from slabpool.demo.memory import Conversation, Parcel, RequestRefused
from slabpool.demo.model import F32, Decoder, split_layers


class RingFailed(RuntimeError):
    """A device failed. The message names the device and the error; the error is also the ``__cause__``."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last token of a conversation has been generated; the devices still hold its request."""

    conversation: Conversation
    #: Whether all tokens were generated. False: a device refused to continue or was killed.
    complete: bool


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One device has acknowledged a conversation."""

    conversation: Conversation


@dataclass(frozen=True, slots=True)
class _Step:
    """Work for one device: new tokens for the first device, a hidden state for the others."""

    conversation: Conversation
    start: int
    count: int
    tokens: tuple[int, ...] = ()
    parcel: Parcel | None = None


@dataclass(frozen=True, slots=True)
class _Acknowledge:
    conversation: Conversation


#: None stops the thread.
_Message: TypeAlias = _Step | _Acknowledge | None


class Ring:
    """Device threads that serve conversations until the ``with`` block ends.

    Parameters
    ----------
    model : Decoder
        All devices use it; each runs its own layers.
    devices : sequence of str
        Names, in the order of the layers. There are at most as many devices as layers.

    Examples
    --------
    >>> import slabpool
    >>> from slabpool.demo.memory import PoolMemory
    >>> from slabpool.demo.model import Decoder, ModelConfig
    >>> from slabpool.demo.ring import Ring
    >>> from slabpool.demo.workload import Job
    >>> model, devices = Decoder(ModelConfig(), seed=0), ["device0", "device1"]
    >>> with slabpool.Pool("16MiB") as pool, Ring(model, devices) as ring:
    ...     conversation = PoolMemory(pool, model, devices).open(Job(0, (256, 72), 5), "chat-42")
    ...     ring.submit(conversation)
    ...     finished = ring.wait()
    ...     conversation.close()
    ...     ring.acknowledge(conversation)
    ...     acks = [ring.wait() for _ in devices]
    ...     len(conversation.tokens), pool.stats().live
    (5, 0)
    """

    def __init__(self, model: Decoder, devices: Sequence[str]) -> None:
        # SimpleQueue is unbounded, so put() never blocks. get() blocks, and `fail` wakes every get().
        self.events: queue.SimpleQueue[Finished | Acknowledged | None] = queue.SimpleQueue()
        self._failure: tuple[str, BaseException] | None = None
        self._failure_lock = threading.Lock()  # protects `_failure`, which keeps the first failure
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

    def submit(self, conversation: Conversation) -> None:
        """Start serving a conversation; `wait` will report it `Finished`."""
        prompt = conversation.job.prompt
        self._devices[0].inbox.put(_Step(conversation, 0, len(prompt), tokens=prompt))

    def acknowledge(self, conversation: Conversation) -> None:
        """Ask every device to acknowledge; `wait` will report one `Acknowledged` for each."""
        for device in self._devices:
            device.inbox.put(_Acknowledge(conversation))

    def wait(self) -> Finished | Acknowledged:
        """Return the next event; raises `RingFailed` if a device thread failed."""
        self._raise_failure()
        event = self.events.get()
        if event is None:
            self._raise_failure()
            raise RuntimeError("the ring has ended")
        return event

    def fail(self, device: str, error: BaseException) -> None:
        """Record the failure of a device thread, wake the host and stop the other threads."""
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
                    message.conversation.ack(self.name)
                    self._ring.events.put(Acknowledged(message.conversation))
                    continue
                try:
                    self._step(message)
                except RequestRefused:
                    self._ring.events.put(Finished(message.conversation, complete=False))
        except BaseException as error:  # also SystemExit: the host must learn why this thread ended
            self._ring.fail(self.name, error)

    def _step(self, step: _Step) -> None:
        conversation = step.conversation
        # Only `_forward` and parcels hold views of the conversation's memory.
        hidden = self._forward(step)
        if self._layers.stop < self._model.config.layers:
            parcel = conversation.send(self.following.name, hidden)
            self.following.inbox.put(_Step(conversation, step.start, step.count, parcel=parcel))
            return
        token = self._model.next_token(hidden)
        conversation.tokens.append(token)
        if len(conversation.tokens) == conversation.job.generate:
            self._ring.events.put(Finished(conversation, complete=True))
        else:
            self.following.inbox.put(_Step(conversation, step.start + step.count, 1, tokens=(token,)))

    def _forward(self, step: _Step) -> F32:
        start, caches = step.conversation.caches(self.name, self._layers, step.start, step.count)
        parcel, first = step.parcel, self._layers.start
        if parcel is None:
            return self._model.run_layers(self._model.embed(step.tokens), first, caches, start)
        hidden = self._model.run_layers(parcel.hidden, first, caches, start)
        parcel.consumed(self.name)
        return hidden
