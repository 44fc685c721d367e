"""What the demo does without a pool: memory in dictionaries by request id, one for each device.

A small model of what exo 0.0.15 did (its issue 158), not exo itself. A device looks its state up by request
id, makes one where it finds none, and goes on at the position it finds. Nothing says that a request has
ended, so nothing is given back: the same id finds the keys of all requests before it and reads them again,
until the context is full and no more is answered; new ids add up. `limit` is the mend exo had: keep so many
ids per device and drop the one used longest ago, whether it is still being served or not. Other than in
exo a state starts small and is doubled, and exo's smaller dictionaries that never shrink are left out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from slabpool.demo.memory import MemoryFigures, Parcel, RequestRefused, Session
from slabpool.demo.model import F32, Decoder, KvPair
from slabpool.demo.workload import CONTEXT_LIMITS, GENERATED_LIMITS, Job

#: Tokens that a state is made for: the longest job fits.
FIRST_CONTEXT = CONTEXT_LIMITS[1] + GENERATED_LIMITS[1]
#: Tokens that a state can grow to, as in exo.
MAX_CONTEXT = 8192


class _State:
    """Caches of one request id on one device, and the position after the last token in them."""

    def __init__(self, model: Decoder, layers: range) -> None:
        shape = model.kv_shape(FIRST_CONTEXT)
        # Written, not only reserved: exo realizes its caches as it makes them.
        self.caches = [(np.full(shape, 0, np.float32), np.full(shape, 0, np.float32)) for _ in layers]
        self.position = 0

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.caches)

    def make_room(self, count: int) -> None:
        if self.position + count > MAX_CONTEXT:
            raise RequestRefused(f"the context of {MAX_CONTEXT} tokens is full")
        while self.position + count > self.caches[0][0].shape[1]:
            self.caches = [(_doubled(keys), _doubled(values)) for keys, values in self.caches]


class DictMemory:
    """Sessions whose memory is kept by request id.

    Parameters
    ----------
    model
        For the shapes of its caches.
    devices
        Names of the devices of the ring.
    limit
        How many request ids a device keeps; None for all of them.
    """

    def __init__(self, model: Decoder, devices: list[str], limit: int | None = None) -> None:
        self._model = model
        # Each dictionary is used by its device's thread alone, as in a process of its own.
        self._states: dict[str, OrderedDict[str, _State]] = {device: OrderedDict() for device in devices}
        self._limit = limit
        self._lock = threading.Lock()  # for the two figures
        self._held = 0
        self._peak = 0

    def open(self, job: Job, request_id: str) -> Session:
        return _DictSession(self, job, request_id)

    def figures(self) -> MemoryFigures:
        ids = {request_id for states in self._states.values() for request_id in states}
        return MemoryFigures(
            peak_live=self._peak,
            final_live=self._held,
            peak_committed=self._peak,
            final_committed=self._held,
            leaked_requests=len(ids),
            leaked_bytes=self._held,
            leaks=tuple(f"request id {key!r} is still in a dictionary" for key in sorted(ids)[:3]),
        )

    def poll_state(self, device: str, request_id: str, layers: range, count: int) -> tuple[int, list[KvPair]]:
        """The position and the caches found under an id, with room for `count` more tokens."""
        states = self._states[device]
        state = states.get(request_id)
        if state is None:
            if self._limit is not None and len(states) >= self._limit:
                _, evicted = states.popitem(last=False)
                self._count(-evicted.nbytes)
            state = states[request_id] = _State(self._model, layers)
            self._count(state.nbytes)
        else:
            states.move_to_end(request_id)
        before = state.nbytes
        state.make_room(count)
        self._count(state.nbytes - before)
        position = state.position
        state.position += count
        return position, state.caches

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self._held += nbytes
            self._peak = max(self._peak, self._held)


class _DictSession:
    def __init__(self, memory: DictMemory, job: Job, request_id: str) -> None:
        self.job = job
        self.tokens: list[int] = []
        self._memory = memory
        self._request_id = request_id

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        # The position in the dictionary counts, whatever the sender thought.
        return self._memory.poll_state(device, self._request_id, layers, count)

    def send(self, device: str, hidden: F32) -> Parcel:
        return _BytesParcel(hidden)

    def close(self) -> None:
        """Nobody is told: there is no end of a request."""

    def ack(self, device: str) -> None:
        """Nothing comes back."""


class _BytesParcel:
    """A hidden state as bytes, as it goes over a wire."""

    def __init__(self, hidden: F32) -> None:
        self._data = hidden.tobytes()
        self._shape = hidden.shape

    @property
    def hidden(self) -> F32:
        return np.frombuffer(self._data, np.float32).reshape(self._shape)

    def consumed(self, device: str) -> None:
        self._data = b""


def _doubled(cache: F32) -> F32:
    heads, length, dim = cache.shape
    larger = np.full((heads, 2 * length, dim), 0, np.float32)
    larger[:, :length] = cache
    return larger
