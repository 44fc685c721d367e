"""What a pool reports: plain, immutable records.

They are copies of one instant, and keep no memory alive.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class Ack(enum.Enum):
    """The answer to an acknowledgement.

    Examples
    --------
    >>> import slabpool
    >>> with slabpool.Pool("1MiB") as pool:
    ...     req = pool.request("r", devices=["gpu0"])
    ...     req.close()
    ...     req.ack("gpu0"), req.ack("gpu0")
    (<Ack.RELEASED: 'released'>, <Ack.LATE: 'late'>)
    """

    #: Counted; the request still has holders.
    PENDING = "pending"
    #: Counted, and the device was the last holder: the memory was returned.
    RELEASED = "released"
    #: The device had acknowledged before; nothing changed.
    DUPLICATE = "duplicate"
    #: The request was released before; nothing changed.
    LATE = "late"


class RequestState(enum.Enum):
    """The state of a request.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> req = pool.request("r", devices=["gpu0"])
    >>> states = [req.state]
    >>> req.close()
    >>> states.append(req.state)
    >>> _ = req.ack("gpu0")
    >>> [state.value for state in [*states, req.state]]
    ['open', 'draining', 'released']
    """

    #: The host is a holder: memory can be allocated.
    OPEN = "open"
    #: The host has left; devices still have to acknowledge.
    DRAINING = "draining"
    #: A device that has to acknowledge has been silent for longer than the lease.
    IN_DOUBT = "in_doubt"
    #: It has no holder. Bytes that live views keep count as retained.
    RELEASED = "released"
    #: Memory that a session keeps; no request holds it.
    KEPT = "kept"


class Stats(NamedTuple):
    """A pool's bytes and counts at one instant.

    Invariants: ``committed == live + retained + in_doubt + cached`` and ``committed <= capacity``. All byte
    counts are of whole blocks, rounding included. (This is a named tuple, because making a frozen dataclass
    with so many fields takes five times as long.)

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> array = pool.empty(4096, "u1")
    >>> s = pool.stats()
    >>> s.live, s.allocations, s.frees, s.committed - s.cached
    (4096, 1, 0, 4096)
    """

    #: Most bytes that are ever committed.
    capacity: int
    #: Bytes of the pool's address range (costs no memory).
    address_space: int
    #: Bytes backed by memory.
    committed: int
    #: Bytes of blocks held by an open or draining request, or by a view without a request.
    live: int
    #: Bytes of released requests that live views still keep.
    retained: int
    #: Bytes of requests with a device that is silent for longer than its lease.
    in_doubt: int
    #: Committed bytes without a holder, which can be allocated or trimmed.
    cached: int
    #: Bytes promised by ``reserve=`` and not drawn yet. Not part of ``committed``.
    reserved: int
    #: Highest sum of live, retained and in-doubt bytes so far. Exact while one thread allocates and
    #: frees; with several it may be too low, by less than 1/256 of the capacity for each thread.
    peak_live: int
    #: Highest ``committed`` so far.
    peak_committed: int
    #: Blocks allocated so far.
    allocations: int
    #: Blocks returned so far.
    frees: int
    #: Requests that the host holds.
    requests_open: int
    #: Requests that only devices hold, those in doubt included.
    requests_draining: int
    #: Requests with a device that has been silent for longer than its lease.
    requests_in_doubt: int
    #: Acks that counted.
    acks: int
    #: Acks of devices that had acknowledged before.
    duplicate_acks: int
    #: Acks of released requests.
    late_acks: int
    #: Acks that wait for work on a stream (``ack(device, stream=)``) and do not count yet.
    stream_acks: int
    #: Allocations and reservations that failed because memory ran out.
    exhaustions: int


class NumpyUsage(NamedTuple):
    """Memory of a pool held by arrays that numpy made under `numpy_handler`. Part of ``Stats.live``.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.numpy_usage(slabpool.Pool("1MiB"))
    NumpyUsage(arrays=0, nbytes=0)
    """

    #: Number of arrays that own memory; their slices and views are not counted.
    arrays: int
    #: Bytes of the arrays' blocks, rounding included.
    nbytes: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that still has bytes, as `Pool.requests` and `Pool.leaks` report it.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> pool.request("chat-42", devices=["gpu0"]).close()
    >>> (record,) = pool.leaks()
    >>> record.request_id, record.state.value, sorted(record.pending)
    ('chat-42', 'draining', ['gpu0'])
    """

    request_id: str | int | bytes
    generation: int
    state: RequestState
    #: Bytes of the blocks it holds; of a released request, of those that views retain.
    nbytes: int
    #: Seconds since the request was opened.
    age: float
    #: Devices that have not acknowledged.
    pending: frozenset[str | int]
    #: Arrays that point into its memory; an array and its slices count as one.
    live_views: int
    #: ``file:line`` that opened it.
    opened_at: str
    #: Generation of its parent request; None if it has none.
    parent: int | None
    #: Name under which the session `request_id` keeps it, or kept it until the requests that read it are
    #: released; None for a request.
    kept_as: str | None = None
    #: Those of `pending` whose ack waits for work on a stream.
    behind_stream: frozenset[str | int] = frozenset()

    def __str__(self) -> str:
        if self.kept_as is not None:
            return (
                f"session {self.request_id!r} keeps {self.kept_as!r} (generation {self.generation}, "
                f"{self.state.value}): {self.nbytes} bytes for {self.age:.1f} s, "
                f"{self.live_views} live views, kept at {self.opened_at}"
            )
        waiting = waits_for(self.pending, self.behind_stream) or "no device"
        return (
            f"request {self.request_id!r} generation {self.generation} ({self.state.value}): "
            f"{self.nbytes} bytes for {self.age:.1f} s, waits for {waiting}, "
            f"{self.live_views} live views, opened at {self.opened_at}"
        )


def waits_for(pending: frozenset[str | int], behind_stream: frozenset[str | int]) -> str:
    """Names of devices for a message; those whose ack waits for a stream are marked."""
    return ", ".join(
        sorted(f"{one} (its stream's work)" if one in behind_stream else str(one) for one in pending)
    )


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One live session, as `Pool.sessions` reports it.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> session = pool.session("chat-42", ttl=600)
    >>> turn = session.request()
    >>> (record,) = pool.sessions()
    >>> record.idle, record.requests, record.ttl
    (None, 1, 600.0)
    >>> turn.close()
    >>> pool.sessions()[0].idle >= 0
    True
    """

    session_id: str | int | bytes
    #: Bytes that the session keeps, in whole blocks.
    nbytes: int
    #: Names of the tensors that it keeps.
    names: tuple[str, ...]
    #: Seconds since the last request that used it was released, or since it was opened; None while it is in
    #: use.
    idle: float | None
    #: Requests that use it.
    requests: int
    #: Largest number of bytes that it may keep; None for no limit.
    budget: int | None
    #: Seconds after which it expires if idle, or None.
    ttl: float | None
    #: Seconds since it was opened.
    age: float
    #: ``file:line`` that opened it.
    opened_at: str

    def __str__(self) -> str:
        state = f"used by {self.requests} requests" if self.idle is None else f"idle for {self.idle:.1f} s"
        names = ", ".join(self.names) or "nothing"
        return (
            f"session {self.session_id!r}: {state}, {self.nbytes} bytes ({names}), opened at "
            f"{self.opened_at} {self.age:.1f} s ago"
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the pool's event log.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB", events=100)
    >>> pool.request("r").close()
    >>> [(event.kind, event.generation) for event in pool.events()]
    [('open', 1), ('close', 1), ('release', 1)]
    """

    #: Nanoseconds of the system's monotonic clock.
    time_ns: int
    #: The kernel's id of the thread.
    thread: int
    #: One of open, allocate, free, ack, close, lost, release, retain, exhausted, keep.
    kind: str
    #: Generation of the request; 0 for memory without a request.
    generation: int
    #: The device that acknowledged or was lost; None for other events.
    device: str | int | None
    #: Bytes allocated, freed, released, retained or kept; of an exhaustion, the bytes asked for.
    nbytes: int


@dataclass(frozen=True, slots=True)
class Corruption:
    """A write past the end of a block, found by a pool with ``debug`` on when the block was returned.

    Examples
    --------
    >>> import ctypes, slabpool
    >>> pool = slabpool.Pool("1MiB", debug=1)
    >>> array = pool.empty(100, "u1")
    >>> _ = ctypes.memset(array.ctypes.data + 100, 0, 1)  # one byte too far
    >>> del array
    >>> [(found.nbytes, found.offset) for found in pool.corruptions()]
    [(100, 0)]
    """

    #: Address of the block, and its size in bytes as requested.
    address: int
    nbytes: int
    #: Offset of the first overwritten byte from the end of the block.
    offset: int
    #: Generation of the block's request; 0 for a block without a request.
    generation: int
    #: ``file:line`` that allocated the block; "" if no line was recorded.
    allocated_at: str
