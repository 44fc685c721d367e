"""The demo's tensors: each conversation is one request of a pool.

A conversation is one request of the demo while it is being served. Devices get their caches from it, send
hidden states through it, and acknowledge it when they are done. `PoolMemory` makes conversations in a
`slabpool.Pool`; `baseline.py` makes them without one.

Invariant: no array of a conversation outlives the call or the parcel that it was made for. So a device that
has acknowledged has no view of the conversation's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

import slabpool
from slabpool.demo.model import F32, Decoder, KvPair
from slabpool.demo.workload import Job


class RequestRefused(Exception):
    """This request cannot continue; other requests can."""


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Memory figures of a finished run, in bytes."""

    #: Highest live bytes. For a pool: the highest value sampled after a request got its memory.
    peak_live: int
    final_live: int
    peak_committed: int
    final_committed: int
    leaked_requests: int
    leaked_bytes: int
    #: A description of each of the first three leaks.
    leaks: tuple[str, ...]


class Parcel(Protocol):
    """A hidden state in transit to one device."""

    @property
    def hidden(self) -> F32:
        """The hidden state, of shape ``(n, dim)``. It may be read until `consumed` is called."""

    def consumed(self, device: str) -> None:
        """The device has read the hidden state; its memory may be reused."""


class Conversation(Protocol):
    """One request while it is served. Only the last device of the ring appends to `tokens`."""

    job: Job
    tokens: list[int]

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        """Return the next token's position and the caches of `layers`, with room for `count` more tokens.

        Raises `RequestRefused` if there is no room.
        """

    def send(self, device: str, hidden: F32) -> Parcel:
        """Copy a hidden state into memory that `device` reads."""

    def close(self) -> None:
        """Close the request for the host. The host calls this once."""

    def ack(self, device: str) -> None:
        """Acknowledge for a device. Each device calls this once, on its own thread."""


class Memory(Protocol):
    """Opens conversations and reports the memory that they used."""

    def open(self, job: Job, request_id: str) -> Conversation:
        """Open a conversation; raises `slabpool.PoolExhausted` if an earlier one must return memory first."""

    def figures(self) -> MemoryFigures:
        """Return the figures. Call this after every conversation has ended."""


class PoolConversation:
    """A conversation whose memory belongs to a request of a pool."""

    def __init__(self, job: Job, request: slabpool.Request, tensors: slabpool.Tensors) -> None:
        self.job = job
        self.tokens: list[int] = []
        self.request = request
        self.tensors = tensors

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        tensors = self.tensors
        return start, [(tensors[f"k{layer}"], tensors[f"v{layer}"]) for layer in layers]

    def send(self, device: str, hidden: F32) -> Parcel:
        step = self.request.child(devices=[device])
        parcel = _PoolParcel(step, step.copy(hidden))
        step.close()  # the sender is done; only the receiver still holds the memory
        return parcel

    def close(self) -> None:
        self.request.close()

    def ack(self, device: str) -> None:
        answer = self.request.ack(device)
        if answer not in (slabpool.Ack.PENDING, slabpool.Ack.RELEASED):
            raise RuntimeError(f"the first ack of {device} returned {answer.name}")


class PoolMemory:
    """Opens each conversation as a request of a pool.

    Parameters
    ----------
    pool : slabpool.Pool
        Its capacity limits the number of open conversations.
    model : Decoder
        Its configuration gives the shapes of the caches.
    devices : list of str
        Names of the devices of the ring. All of them hold every request.
    """

    _conversation_type = PoolConversation

    def __init__(self, pool: slabpool.Pool, model: Decoder, devices: list[str]) -> None:
        self._pool = pool
        self._model = model
        self._devices = devices
        self._layouts: dict[int, slabpool.Layout] = {}
        # Sampled in `open`, because `Stats.peak_live` is too coarse here: its error is up to 1/256 of the
        # capacity for each thread, and the demo needs less memory than that.
        self._peak_live = 0

    def open(self, job: Job, request_id: str) -> Conversation:
        """Open a request and allocate the caches of all layers, at their final length, in one call."""
        layout = self._layout(len(job.prompt) + job.generate)
        request = self._pool.request(request_id, devices=self._devices)
        try:
            tensors = request.allocate(layout)
        except slabpool.PoolExhausted:
            # The devices do not know this request yet, so they will not acknowledge it: remove them.
            request.cancel()
            for device in self._devices:
                request.remove_device(device)
            raise
        self._peak_live = max(self._peak_live, self._pool.stats().live)
        return self._conversation_type(job, request, tensors)

    def figures(self) -> MemoryFigures:
        stats = self._pool.stats()
        leaks = self._pool.leaks()
        return MemoryFigures(
            peak_live=self._peak_live,
            final_live=stats.live,
            peak_committed=stats.peak_committed,
            final_committed=stats.committed,
            leaked_requests=len(leaks),
            leaked_bytes=stats.live + stats.retained + stats.in_doubt,
            leaks=tuple(str(leak) for leak in leaks[:3]),
        )

    def _layout(self, length: int) -> slabpool.Layout:
        layout = self._layouts.get(length)
        if layout is None:
            shape = self._model.kv_shape(length)
            names = [f"{kind}{layer}" for layer in range(self._model.config.layers) for kind in "kv"]
            layout = self._layouts[length] = slabpool.Layout(dict.fromkeys(names, (shape, np.float32)))
        return layout


class _PoolParcel:
    def __init__(self, step: slabpool.Request, hidden: F32) -> None:
        self._step = step
        self._hidden: F32 | None = hidden

    @property
    def hidden(self) -> F32:
        if self._hidden is None:
            raise RuntimeError("this hidden state has been consumed")
        return self._hidden

    def consumed(self, device: str) -> None:
        self._hidden = None  # before the ack, because a live view would retain the memory
        answer = self._step.ack(device)
        if answer is not slabpool.Ack.RELEASED:
            raise RuntimeError(f"the ack of {device} did not release a hidden state: {answer.name}")
