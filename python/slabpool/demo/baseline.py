"""The demo without a pool: each device keeps its caches in a dictionary, by request id.

This is a small model of exo 0.0.15 (issue 158), not exo itself. A device looks up its state by request id,
makes one if there is none, and continues at the position in it. Devices never learn that a request has ended,
so they free nothing. If all requests have the same id, each one reads the keys of all earlier ones, until the
context is full and requests are refused. If each request has an id of its own, the states accumulate.

`limit` models exo's fix: each device keeps that many ids and evicts the least recently used one, even if its
request is still running. There are two differences from exo: a state starts small and doubles when it is
full, and exo's smaller dictionaries, which never shrink either, are left out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from slabpool.demo.memory import Conversation, MemoryFigures, Parcel, RequestRefused
from slabpool.demo.model import F32, Decoder, KvPair
from slabpool.demo.workload import CONTEXT_LIMITS, GENERATED_LIMITS, Job

#: Initial length of a state, in tokens: the longest job fits.
FIRST_CONTEXT = CONTEXT_LIMITS[1] + GENERATED_LIMITS[1]
#: Largest length of a state, in tokens, as in exo.
MAX_CONTEXT = 8192


class _State:
    """Caches of one request id on one device, and the position after the last token in them."""

    def __init__(self, model: Decoder, layers: range) -> None:
        shape = model.kv_shape(FIRST_CONTEXT)
        # np.full writes every page: exo also realizes its caches when it makes them.
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
    """Caches in dictionaries by request id.

    Parameters
    ----------
    model : Decoder
        Its configuration gives the shapes of the caches.
    devices : list of str
        Names of the devices of the ring.
    limit : int, optional
        Request ids that a device keeps. By default a device keeps all of them.
    """

    def __init__(self, model: Decoder, devices: list[str], limit: int | None = None) -> None:
        self._model = model
        # Only the device's own thread uses its dictionary.
        self._states: dict[str, OrderedDict[str, _State]] = {device: OrderedDict() for device in devices}
        self._limit = limit
        self._lock = threading.Lock()  # protects _held and _peak
        self._held = 0
        self._peak = 0

    def open(self, job: Job, request_id: str) -> Conversation:
        return _DictConversation(self, job, request_id)

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

    def advance(self, device: str, request_id: str, layers: range, count: int) -> tuple[int, list[KvPair]]:
        """Return position and caches of a request id, make room for `count` tokens, and move the position."""
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


class _DictConversation:
    def __init__(self, memory: DictMemory, job: Job, request_id: str) -> None:
        self.job = job
        self.tokens: list[int] = []
        self._memory = memory
        self._request_id = request_id

    def caches(self, device: str, layers: range, start: int, count: int) -> tuple[int, list[KvPair]]:
        # As in exo, `start` is ignored: the device continues at the position in its dictionary.
        return self._memory.advance(device, self._request_id, layers, count)

    def send(self, device: str, hidden: F32) -> Parcel:
        return _BytesParcel(hidden)

    def close(self) -> None:
        """Do nothing: the baseline has no message for the end of a request."""

    def ack(self, device: str) -> None:
        """Do nothing: the baseline frees no memory."""


class _BytesParcel:
    """A hidden state, serialized to bytes."""

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
