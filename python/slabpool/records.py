"""The pool's reports: plain, immutable records.

They are copies of the pool's state at one instant. They keep no memory alive. They are named tuples, because
making a dataclass for each would cost a third of the time of importing slabpool. This module does not import
``annotations`` from ``__future__``: typing compiles every annotation of a named tuple that is a string.
"""

import enum
from typing import NamedTuple

from slabpool.arguments.sizes import show_size
from slabpool.arguments.texts import few, short, show


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

    #: It counted; the host or other devices still hold the request.
    PENDING = "pending"
    #: It counted and ended the last hold: the memory is back.
    RELEASED = "released"
    #: The device had already acknowledged; nothing changed.
    DUPLICATE = "duplicate"
    #: The request is already released; nothing changed.
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

    #: The host holds it, so it can still allocate memory.
    OPEN = "open"
    #: The host has closed it; some devices have not yet acknowledged.
    DRAINING = "draining"
    #: A device that has not acknowledged has been silent for longer than its lease.
    IN_DOUBT = "in_doubt"
    #: It has no holder. If live views keep some of its bytes, these count as retained.
    RELEASED = "released"
    #: Its request is over; a session keeps the memory for the next request.
    KEPT = "kept"


class Stats(NamedTuple):
    """A pool's bytes and counts at one instant.

    Invariants: ``committed == live + retained + in_doubt + cached`` and ``committed <= capacity``. All byte
    counts are of whole blocks, rounding included.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> array = pool.empty(4096, "u1")
    >>> s = pool.stats()
    >>> s.live, s.allocations, s.frees, s.committed - s.cached
    (4096, 1, 0, 4096)
    """

    #: Limit of ``committed``, in bytes.
    capacity: int
    #: Bytes of the pool's address range. They cost no memory.
    address_space: int
    #: Bytes of memory that the pool has from the memory resource.
    committed: int
    #: Bytes of blocks held by an open or draining request, or by a view without a request.
    live: int
    #: Bytes of released requests that live views still keep.
    retained: int
    #: Bytes of requests with a device that has been silent for longer than its lease.
    in_doubt: int
    #: Committed bytes without a holder. They can be allocated or trimmed.
    cached: int
    #: Bytes promised by ``reserve=`` and not yet allocated. They are not part of ``committed``.
    reserved: int
    #: Highest sum of live, retained and in-doubt bytes so far. It is exact while only one thread allocates
    #: and frees. With several threads it may be too low, by less than 1/256 of the capacity for each thread.
    peak_live: int
    #: Highest ``committed`` so far.
    peak_committed: int
    #: Blocks allocated so far.
    allocations: int
    #: Blocks freed so far.
    frees: int
    #: Requests that the host holds.
    requests_open: int
    #: Requests that the host has closed and some device still holds (those in doubt included).
    requests_draining: int
    #: Requests with a device that has been silent for longer than its lease.
    requests_in_doubt: int
    #: Acknowledgements that counted.
    acks: int
    #: Acknowledgements by a device that had already acknowledged the request.
    duplicate_acks: int
    #: Acknowledgements of a request that was already released.
    late_acks: int
    #: Acknowledgements that wait for work on a stream (``ack(device, stream=)``) and do not count yet.
    stream_acks: int
    #: Allocations and reservations that failed for lack of memory.
    exhaustions: int
    #: The part of ``cached`` that is out of use, because the system refused to commit or to decommit it. The
    #: pool tries it again when it trims or needs room.
    quarantined: int
    #: Bytes that the system keeps for the memory of a shared pool (host memory); 0 for other pools. More
    #: than ``committed`` if a device wrote or read outside of what it was given. `Pool.trim` gives those
    #: bytes back.
    file_bytes: int
    #: The part of ``cached`` that no tensor of a page (4 KiB) or more can have now: free bytes between blocks
    #: on partly used pages, and quarantined bytes. Of a GPU's memory, and of pinned memory, only whole
    #: granules serve another size; free pages in granules that are partly used are not counted here.
    fragmented: int
    #: Bytes of the pool's own records and tables. They are not part of ``committed`` or the capacity.
    metadata: int
    #: Callers that wait for memory, addresses, a free request or a quota: see `Pool.waiters`.
    waiting: int


class NumpyUsage(NamedTuple):
    """Memory of a pool in arrays that numpy made under `numpy_handler`. It is part of ``Stats.live``.

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


class RequestRecord(NamedTuple):
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
    #: Bytes of the request, in whole blocks. For a released request: the bytes that views retain.
    nbytes: int
    #: Seconds since the request was opened.
    age: float
    #: Devices that have not acknowledged.
    pending: frozenset[str | int]
    #: Arrays that still point into its memory. An array and its slices count as one.
    live_views: int
    #: ``file:line`` that opened it.
    opened_at: str
    #: Generation of its parent request; None if it has none.
    parent: int | None
    #: For memory that a session keeps: its name in the session `request_id`. (A tensor that the session has
    #: dropped is listed until the requests that read it are over.) None for a request.
    kept_as: str | None = None
    #: Devices in `pending` that have acknowledged, but whose ack waits for work on a stream.
    behind_stream: frozenset[str | int] = frozenset()
    #: Bytes that its ``reserve=`` sets aside and that neither it nor its children have drawn. They go back to
    #: the pool when the host closes it.
    reserved: int = 0
    #: Id of the group that it is under; None without one.
    group: str | int | bytes | None = None

    def __repr__(self) -> str:
        return (
            f"RequestRecord(request_id={show(self.request_id)}, generation={self.generation}, "
            f"state={self.state!r}, nbytes={self.nbytes}, age={self.age!r}, "
            f"pending={_few_names(self.pending)}, live_views={self.live_views}, "
            f"opened_at={short(repr(self.opened_at), 100)}, parent={self.parent}, "
            f"kept_as={None if self.kept_as is None else show(self.kept_as)}, "
            f"behind_stream={_few_names(self.behind_stream)}, reserved={self.reserved}, "
            f"group={show(self.group)})"
        )

    def __str__(self) -> str:
        if self.kept_as is not None:
            return (
                f"session {show(self.request_id)}{of_group(self.group)} keeps {show(self.kept_as)} "
                f"(generation {self.generation}, {self.state.value}): {self.nbytes} bytes for "
                f"{self.age:.1f} s, {self.live_views} live views, kept at {short(self.opened_at, 100)}"
            )
        waiting = waits_for(self.pending, self.behind_stream) or "no device"
        return (
            f"request {show(self.request_id)} generation {self.generation}{of_group(self.group)} "
            f"({self.state.value}): "
            f"{self.nbytes} bytes{set_aside(self.reserved)} for {self.age:.1f} s, waits for {waiting}, "
            f"{self.live_views} live views, opened at {short(self.opened_at, 100)}"
        )


def of_group(group: object) -> str:
    """The group of a request, for a message; empty without one."""
    return "" if group is None else f" of group {show(group)}"


def set_aside(reserved: int) -> str:
    """What a request's reserve sets aside, for a message; empty if nothing."""
    return f" + {show_size(reserved)} set aside" if reserved else ""


def waits_for(pending: frozenset[str | int], behind_stream: frozenset[str | int]) -> str:
    """List devices for a message; mark those whose ack waits for work on a stream."""
    return few(
        f"{short(name, 20)} (its stream's work)" if behind else name
        for name, behind in sorted((str(one), one in behind_stream) for one in pending)
    )


def _few_names(devices: frozenset[str | int]) -> str:
    """A set of devices for a repr."""
    return f"frozenset({{{few(sorted(map(repr, devices)))}}})" if devices else "frozenset()"


class SessionRecord(NamedTuple):
    """One open session, as `Pool.sessions` reports it.

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
    #: Seconds since its last request was released, or since it was opened; None while a request uses it.
    idle: float | None
    #: Number of unreleased requests that use it.
    requests: int
    #: Largest number of bytes that it may keep; None for no limit.
    budget: int | None
    #: Seconds of idle time after which it expires; None for never.
    ttl: float | None
    #: Sessions of a lower priority are evicted first.
    priority: int
    #: Whether it is pinned: neither evicted nor expired.
    pinned: bool
    #: Seconds since it was opened.
    age: float
    #: ``file:line`` that opened it.
    opened_at: str
    #: Id of the group that it is under; None without one.
    group: str | int | bytes | None = None

    def __repr__(self) -> str:
        names = few(map(repr, self.names)) + ("," if len(self.names) == 1 else "")
        return (
            f"SessionRecord(session_id={show(self.session_id)}, nbytes={self.nbytes}, "
            f"names=({names}), idle={self.idle!r}, requests={self.requests}, "
            f"budget={self.budget}, ttl={self.ttl!r}, priority={self.priority}, pinned={self.pinned}, "
            f"age={self.age!r}, "
            f"opened_at={short(repr(self.opened_at), 100)}, group={show(self.group)})"
        )

    def __str__(self) -> str:
        state = f"used by {self.requests} requests" if self.idle is None else f"idle for {self.idle:.1f} s"
        names = few(self.names) or "nothing"
        if self.pinned:
            state += ", pinned"
        return (
            f"session {show(self.session_id)}{of_group(self.group)}: {state}, {self.nbytes} bytes ({names}), "
            f"opened at {short(self.opened_at, 100)} {self.age:.1f} s ago"
        )


class GroupRecord(NamedTuple):
    """One group of requests and sessions, as `Pool.groups` reports it.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> tenant = pool.group("tenant-a", quota="512KiB", reserve="64KiB")
    >>> request = tenant.request("r")
    >>> array = request.zeros(4096, "u1")
    >>> (record,) = pool.groups()
    >>> record.group_id, record.nbytes, record.reserved, record.requests
    ('tenant-a', 4096, 61440, 1)
    >>> request.close()
    """

    group_id: str | int | bytes
    #: Bytes that count in its quota: what its requests hold, or are promised by a reserve of their own if
    #: that is more, and what its sessions keep.
    nbytes: int
    #: Most bytes of these; None for no limit.
    quota: int | None
    #: Bytes that its ``reserve=`` promises.
    reserve: int
    #: The part of these that is neither drawn nor promised to a request under it.
    reserved: int
    #: Requests under it that are not released; children are not counted.
    requests: int
    #: Sessions under it.
    sessions: int
    #: Of requests under it that wait.
    priority: int
    #: Whether it was closed, and ends with the last request under it.
    closed: bool
    #: Seconds since it was opened.
    age: float
    #: ``file:line`` that opened it.
    opened_at: str

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={short(show(value), 100)}" for name, value in self._asdict().items())
        return f"GroupRecord({fields})"

    def __str__(self) -> str:
        bound = "" if self.quota is None else f" of {show_size(self.quota)}"
        state = " (closed)" if self.closed else ""
        return (
            f"group {show(self.group_id)}{state}: {self.nbytes} bytes{bound}{set_aside(self.reserved)}, "
            f"{self.requests} requests, {self.sessions} sessions, priority {self.priority}, opened at "
            f"{short(self.opened_at, 100)} {self.age:.1f} s ago"
        )


class SessionStats(NamedTuple):
    """How often a pool's sessions were found, and why they were evicted, since the pool was made.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> session, same = pool.session("chat-42"), pool.session("chat-42")
    >>> stats = pool.session_stats()
    >>> stats.hits, stats.misses, stats.evicted
    (1, 1, 0)
    """

    #: Calls of `Pool.session` that found the session of the id alive.
    hits: int
    #: Calls of `Pool.session` that made a new one.
    misses: int
    #: Sessions evicted because an allocation, a reserve or a growing tensor found no memory.
    evicted_for_bytes: int
    #: Sessions evicted because no run of free addresses was long enough for a growing tensor.
    evicted_for_addresses: int
    #: Sessions evicted because every request slot was taken.
    evicted_for_slots: int
    #: Sessions evicted to stay within `Pool.session_budget`.
    evicted_for_budget: int
    #: Sessions evicted to stay within a quota that they counted in.
    evicted_for_quota: int
    #: Sessions that ended because no request used them for their ttl.
    expired: int

    @property
    def evicted(self) -> int:
        """Sessions evicted for whatever reason; those that expired are not among them."""
        return (
            self.evicted_for_bytes
            + self.evicted_for_addresses
            + self.evicted_for_slots
            + self.evicted_for_budget
            + self.evicted_for_quota
        )


class WaiterRecord(NamedTuple):
    """One caller that waits, as `Pool.waiters` reports it.

    Examples
    --------
    >>> import threading, slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> array = pool.empty(1 << 20, "u1")
    >>> thread = threading.Thread(target=lambda: pool.request("r", reserve="64KiB", timeout=60).close())
    >>> thread.start()
    >>> while not pool.waiters():
    ...     pass
    >>> (record,) = pool.waiters()
    >>> record.request_id, record.nbytes, record.priority, record.resource
    ('r', 65536, 0, 'memory')
    >>> del array
    >>> thread.join()
    """

    #: The request that is being opened, or in which the caller allocates; None for memory without a request.
    request_id: str | int | bytes | None
    #: Bytes that it wants.
    nbytes: int
    #: Higher priorities are served first.
    priority: int
    #: Seconds that it has waited.
    waited: float
    #: What it waits for: "memory", "addresses", "requests" (one of the pool's request slots), "quota" or
    #: "session budget".
    resource: str
    #: ``file:line`` that waits; "" if it is not known.
    where: str
    #: It waits for memory, and the requests that wait for memory hold so much that the first of them cannot
    #: be served before one of them lets go.
    deadlock: bool = False

    def __repr__(self) -> str:
        return (
            f"WaiterRecord(request_id={show(self.request_id)}, nbytes={self.nbytes}, "
            f"priority={self.priority}, waited={self.waited!r}, resource={self.resource!r}, "
            f"where={short(repr(self.where), 100)}, deadlock={self.deadlock})"
        )

    def __str__(self) -> str:
        name = "memory without a request" if self.request_id is None else f"request {show(self.request_id)}"
        where = f", at {short(self.where, 100)}" if self.where else ""
        return (
            f"{name} waits for {self.resource}: {self.nbytes} bytes, priority {self.priority}, for "
            f"{self.waited:.1f} s{where}"
        )


class Event(NamedTuple):
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
    #: The system's id of the thread.
    thread: int
    #: One of open, allocate, free, ack, close, lost, release, retain, exhausted, keep.
    kind: str
    #: Generation of the request; 0 for memory without a request.
    generation: int
    #: The device that acknowledged or was lost; None for other events.
    device: str | int | None
    #: Bytes that were allocated, freed, released, retained or kept, or whose allocation failed.
    nbytes: int

    def __repr__(self) -> str:
        return (
            f"Event(time_ns={self.time_ns}, thread={self.thread}, kind={self.kind!r}, "
            f"generation={self.generation}, device={show(self.device)}, nbytes={self.nbytes})"
        )


class Corruption(NamedTuple):
    """A write past the end of a block. A pool with ``debug`` on finds it when the block is freed.

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

    def __repr__(self) -> str:
        return (
            f"Corruption(address={self.address}, nbytes={self.nbytes}, offset={self.offset}, "
            f"generation={self.generation}, allocated_at={show(self.allocated_at)})"
        )
