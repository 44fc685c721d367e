"""The devices of the demo as processes: each attaches to one shared pool and gets hidden states by reference.

The host sends each device references to its caches and to the hidden states that it reads and writes. No
tensor goes through a pipe.

Invariants:
- When a device is killed, the running requests end as incomplete. Other requests are not affected.
- The device is started again and attached before the next request is opened.
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
from slabpool.demo.memory import Conversation, PoolConversation, PoolMemory
from slabpool.demo.model import Decoder, KvPair, ModelConfig, split_layers
from slabpool.demo.ring import Acknowledged, Finished, RingFailed
from slabpool.demo.workload import Job

_START_TIMEOUT = 60.0  # seconds a device process may take to start


@dataclass(frozen=True, slots=True)
class _Open:
    """A conversation begins: its index, and keys and values of each layer of the device."""

    index: int
    caches: tuple[tuple[slabpool.TensorRef, slabpool.TensorRef], ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """One step: new tokens for the first device, a hidden state for the others.

    The device writes its hidden state to `result`. The last device has no `result`: it answers with a token.
    """

    index: int
    start: int
    count: int
    tokens: tuple[int, ...]
    hidden: slabpool.TensorRef | None
    result: slabpool.TensorRef | None


@dataclass(frozen=True, slots=True)
class _Close:
    """The host has closed a conversation; the device acknowledges `request`."""

    index: int
    request: slabpool.TensorRef


@dataclass(frozen=True, slots=True)
class _Answer:
    """A device's answer: a step is done (with the token, from the last device) or, without a step, an ack."""

    index: int
    step: _Step | None = None
    token: int | None = None


_Message: TypeAlias = _Open | _Step | _Close | None


def _serve(pipe: Connection, pool: str, name: str, layers: range, config: ModelConfig, seed: int) -> None:
    """Run a device's process until the host sends None or closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host handles Ctrl-C
    model = Decoder(config, seed)
    caches: dict[int, list[KvPair]] = {}
    with (
        contextlib.suppress(EOFError, BrokenPipeError),
        slabpool.attach(pool, device=name, timeout=_START_TIMEOUT) as peer,
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
                del caches[message.index]  # before the ack, because the pool may reuse the memory after it
                peer.ack(message.request)
                pipe.send(_Answer(message.index))
            else:
                token = _step(peer, model, layers, caches[message.index], message)
                pipe.send(_Answer(message.index, message, token))


def _step(
    peer: slabpool.Peer, model: Decoder, layers: range, caches: list[KvPair], step: _Step
) -> int | None:
    hidden = model.embed(step.tokens) if step.hidden is None else peer.open(step.hidden)
    hidden = model.run_layers(hidden, layers.start, caches, step.start)  # new memory, so the ack may follow
    if step.hidden is not None:
        peer.ack(step.hidden)
    if step.result is None:
        return model.next_token(hidden)
    peer.open(step.result, writable=True)[:] = hidden
    peer.ack(step.result)
    return None


class SharedConversation(PoolConversation):
    """One request while device processes serve it."""

    def __init__(self, job: Job, request: slabpool.Request, tensors: slabpool.Tensors) -> None:
        super().__init__(job, request, tensors)
        #: Living devices that have not acknowledged.
        self.holders: set[str] = set()
        #: Whether the host has asked the devices to acknowledge.
        self.closing = False


class SharedMemory(PoolMemory):
    """Opens conversations for device processes, in a pool with ``memory="shared"``."""

    _conversation_type = SharedConversation


class _Device:
    """A process and the pipe to it."""

    def __init__(self, name: str, layers: range) -> None:
        self.name = name
        self.layers = layers
        self.process: multiprocessing.process.BaseProcess
        self.pipe: Connection

    def start(self, pool: str, config: ModelConfig, seed: int) -> None:
        # "spawn", so that no device inherits the pipe of another one or the host's memory.
        context = multiprocessing.get_context("spawn")
        self.pipe, device_end = context.Pipe()
        args = (device_end, pool, self.name, self.layers, config, seed)
        self.process = context.Process(target=_serve, args=args, daemon=True)
        self.process.start()
        device_end.close()

    def wait_until_attached(self) -> None:
        """Wait until the process is attached to the pool; raises `RingFailed` if it does not start."""
        try:
            if self.pipe.poll(_START_TIMEOUT):
                self.pipe.recv()
                return
        except EOFError:
            pass
        raise RingFailed(f"{self.name} did not attach to the pool within {_START_TIMEOUT:g} seconds")

    def send(self, message: _Message) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `ProcessRing.wait` sees the death
            self.pipe.send(message)


class ProcessRing:
    """Device processes that serve conversations until the ``with`` block ends.

    It has the same methods as `slabpool.demo.ring.Ring`.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Seed of the model's weights; each process makes its own model.
    devices : sequence of str
        Names, in the order of the layers.
    pool : slabpool.Pool
        A shared pool; each process attaches to it.
    kill_every : int, optional
        Kill a random device after every `kill_every` submitted conversations.
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
        #: Indices of the jobs that ended early because a device was killed.
        self.interrupted: set[int] = set()
        #: Devices killed.
        self.kills = 0
        self._config, self._seed, self._pool = config, seed, pool
        ranges = split_layers(config.layers, len(devices))
        self._devices = [_Device(name, layers) for name, layers in zip(devices, ranges, strict=True)]
        self._kill_every = kill_every
        self._random = random.Random(seed)
        self._submitted = 0
        self._serving: dict[int, SharedConversation] = {}  # unfinished
        self._held: dict[int, SharedConversation] = {}  # not yet acknowledged by every device
        self._events: deque[Finished | Acknowledged] = deque()

    def __enter__(self) -> ProcessRing:
        for device in self._devices:
            device.start(self._pool.name, self._config, self._seed)
        for device in self._devices:
            device.wait_until_attached()
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

    def submit(self, conversation: Conversation) -> None:
        """Start serving a conversation; `wait` will report it `Finished`."""
        assert isinstance(conversation, SharedConversation)
        index, refs, tensors = conversation.job.index, conversation.request.ref, conversation.tensors
        self._serving[index] = self._held[index] = conversation
        conversation.holders = {device.name for device in self._devices}
        for device in self._devices:
            pairs = tuple((refs(tensors[f"k{i}"]), refs(tensors[f"v{i}"])) for i in device.layers)
            device.send(_Open(index, pairs))
        prompt = conversation.job.prompt
        self._pass_on(conversation, 0, 0, len(prompt), prompt, None)
        self._submitted += 1
        if self._kill_every is not None and self._submitted % self._kill_every == 0:
            self._random.choice(self._devices).process.kill()
            self.kills += 1

    def acknowledge(self, conversation: Conversation) -> None:
        """Ask every device to acknowledge; `wait` will report one `Acknowledged` for each."""
        assert isinstance(conversation, SharedConversation)
        conversation.closing = True
        for device in self._devices:
            if device.name in conversation.holders:
                device.send(_Close(conversation.job.index, conversation.request.ref()))
            else:  # the device was killed, and its hold ended with it
                self._events.append(Acknowledged(conversation))

    def wait(self) -> Finished | Acknowledged:
        """Return the next event; raises `RingFailed` if a device exited without being killed."""
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
            self._remove_holder(self._held[answer.index], device)
            return
        conversation = self._serving.get(answer.index)
        if conversation is None:  # a kill has ended it in the meantime
            return
        step = answer.step
        if answer.token is None:
            position = self._devices.index(device) + 1
            self._pass_on(conversation, position, step.start, step.count, (), step.result)
            return
        conversation.tokens.append(answer.token)
        if len(conversation.tokens) == conversation.job.generate:
            self._finish(conversation, complete=True)
        else:
            self._pass_on(conversation, 0, step.start + step.count, 1, (answer.token,), None)

    def _pass_on(
        self,
        conversation: SharedConversation,
        position: int,
        start: int,
        count: int,
        tokens: tuple[int, ...],
        hidden: slabpool.TensorRef | None,
    ) -> None:
        """Send a device its step, with memory for the hidden state that it passes on."""
        result = None
        if position + 1 < self.size:
            # The sender holds the memory until it has written it, the receiver until it has read it.
            both = [device.name for device in self._devices[position : position + 2]]
            try:
                with conversation.request.child(devices=both) as step:
                    result = step.ref(step.empty((count, self._config.dim), np.float32))
            except slabpool.UnknownDeviceError:
                return  # one of the two was killed: `wait` will see that its pipe is closed
            except slabpool.PoolExhausted:
                self._finish(conversation, complete=False)
                return
        self._devices[position].send(_Step(conversation.job.index, start, count, tokens, hidden, result))

    def _finish(self, conversation: SharedConversation, *, complete: bool) -> None:
        del self._serving[conversation.job.index]
        self._events.append(Finished(conversation, complete))

    def _remove_holder(self, conversation: SharedConversation, device: _Device) -> None:
        conversation.holders.discard(device.name)
        if conversation.closing:
            self._events.append(Acknowledged(conversation))
        if not conversation.holders:
            del self._held[conversation.job.index]

    def _died(self, device: _Device) -> None:
        device.process.join()
        device.pipe.close()
        if device.process.exitcode != -signal.SIGKILL:
            raise RingFailed(f"{device.name} ended with exit status {device.process.exitcode}")
        for conversation in list(self._serving.values()):
            self.interrupted.add(conversation.job.index)
            self._finish(conversation, complete=False)
        for conversation in list(self._held.values()):
            if device.name in conversation.holders:
                self._remove_holder(conversation, device)
        # The pool accepts the new process only after it has removed the holds of the dead one. So requests
        # opened from here on are held by the new process.
        device.start(self._pool.name, self._config, self._seed)
        device.wait_until_attached()
