"""Where the demo's tensors come from: one pool, and one request of it for each request served.

A session is one request being served: the devices take its caches from it, send hidden states through it
and tell it when they are done. `PoolMemory` serves sessions from a `slabpool.Pool`; `baseline.py` has the
other kind. What must stay true: no array of a session outlives the call or the parcel it was made for, so
that a device that acknowledges has really let go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

import slabpool
from slabpool.demo.model import F32, Decoder, KvPair
from slabpool.demo.workload import Job


class RequestRefused(Exception):
    """This one request cannot be served any further; others can."""


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """What the memory of a run came to; bytes."""

    #: Highest live bytes seen; for a pool, as each request had just been given its memory.
    peak_live: int
    final_live: int
    peak_committed: int
    final_committed: int
    leaked_requests: int
    leaked_bytes: int
    #: One line for each of the first leaks.
    leaks: tuple[str, ...]


class Parcel(Protocol):
    """A hidden state on its way to one device."""

    @property
    def hidden(self) -> F32:
        """``(n, dim)``, to be read until `consumed`."""

    def consumed(self, device: str) -> None:
        """The device is done with it; nobody reads it any more."""


class Session(Protocol):
    """One request while it is served. `tokens` is written by the last device of the ring alone."""

    job: Job
    tokens: list[int]

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        """Caches of a device's layers with room for `count` more tokens, and the position where they go.

        Raises `RequestRefused` where there can be no room.
        """

    def send(self, device: str, hidden: F32) -> Parcel:
        """Copy a hidden state into memory that `device` will read."""

    def close(self) -> None:
        """The host is done. Called once, by the host."""

    def ack(self, device: str) -> None:
        """A device is done. Called once by each device, from its own thread."""


class Memory(Protocol):
    """Opens sessions, and says in the end what they cost."""

    def open(self, job: Job, request_id: str) -> Session:
        """Start serving a job; raises `slabpool.PoolExhausted` where it has to wait for others to end."""

    def figures(self) -> MemoryFigures:
        """To be called when every session has ended."""


class PoolMemory:
    """Sessions whose memory belongs to a request of a pool.

    Parameters
    ----------
    pool
        Its capacity bounds how many sessions are open at once.
    model
        For the shapes of its caches.
    devices
        Names of the devices of the ring; all of them hold every request.
    """

    def __init__(self, pool: slabpool.Pool, model: Decoder, devices: list[str]) -> None:
        self._pool = pool
        self._model = model
        self._devices = devices
        self._layouts: dict[int, slabpool.Layout] = {}
        # Looked at as each request has its memory. The pool's own peak is put together from threads and may
        # be off by 1/64 of the capacity for each of them, which is more than the demo needs in all.
        self._peak_live = 0

    def open(self, job: Job, request_id: str) -> Session:
        """Open a request and allocate the caches of all its layers at their final length, in one call."""
        layout = self._layout(len(job.prompt) + job.generate)
        request = self._pool.request(request_id, devices=self._devices)
        try:
            tensors = request.allocate(layout)
        except slabpool.PoolExhausted:
            # No device has heard of it yet, so the host answers for them.
            request.cancel()
            for device in self._devices:
                request.remove_device(device)
            raise
        self._peak_live = max(self._peak_live, self._pool.stats().live)
        return self._session(job, request, tensors)

    def _session(self, job: Job, request: slabpool.Request, tensors: slabpool.Tensors) -> Session:
        return _PoolSession(job, request, tensors)

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


class _PoolSession:
    def __init__(self, job: Job, request: slabpool.Request, tensors: slabpool.Tensors) -> None:
        self.job = job
        self.tokens: list[int] = []
        self._request = request
        self._tensors = tensors

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        tensors = self._tensors
        return start, [(tensors[f"k{layer}"], tensors[f"v{layer}"]) for layer in layers]

    def send(self, device: str, hidden: F32) -> Parcel:
        step = self._request.child(devices=[device])
        parcel = _PoolParcel(step, step.copy(hidden))
        step.close()  # the sender is done; the memory waits for the receiver alone
        return parcel

    def close(self) -> None:
        self._request.close()

    def ack(self, device: str) -> None:
        answer = self._request.ack(device)
        if answer not in (slabpool.Ack.PENDING, slabpool.Ack.RELEASED):
            raise RuntimeError(f"the only ack of {device} was answered {answer.name}")


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
        self._hidden = None  # before the ack: a view that is still there would retain the memory
        answer = self._step.ack(device)
        if answer is not slabpool.Ack.RELEASED:
            raise RuntimeError(f"a hidden state did not come back with the ack of {device}: {answer.name}")
