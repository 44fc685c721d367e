"""Records of groups, sessions and waiters.

Without ``annotations`` from ``__future__``: see the package.
"""

from typing import NamedTuple

from slabpool.arguments.sizes import show_size
from slabpool.arguments.texts import few, short, show
from slabpool.records.requests import of_group


class GroupRecord(NamedTuple):
    """One group of requests and sessions, as `Pool.groups` reports it.

    Attributes
    ----------
    group_id : str, int or bytes
        As given to `Pool.group`.
    nbytes : int
        Bytes that count in its quota: what its requests hold, or are promised by a reserve of their own
        if that is more, and what its sessions keep.
    quota : int or None
        Most bytes of these; None for no limit.
    reserve : int
        Bytes that its ``reserve=`` promises.
    reserved : int
        Bytes that are left of its reserve: neither drawn nor promised to a request under it.
    requests : int
        Requests under it that are not released; children are not counted.
    sessions : int
        Sessions under it.
    priority : int
        Of requests under it that wait, unless a call names another.
    closed : bool
        Whether it was closed, and ends with the last request under it.
    age : float
        Seconds since it was opened.
    opened_at : str
        ``file:line`` that opened it; empty once it is over.

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
    nbytes: int
    quota: int | None
    reserve: int
    reserved: int
    requests: int
    sessions: int
    priority: int
    closed: bool
    age: float
    opened_at: str

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={short(show(value), 100)}" for name, value in self._asdict().items())
        return f"GroupRecord({fields})"

    def __str__(self) -> str:
        bound = "" if self.quota is None else f" of a quota of {show_size(self.quota)}"
        left = f", {show_size(self.reserved)} of its reserve left" if self.reserved else ""
        if not self.opened_at:
            return f"group {show(self.group_id)}: over"
        state = " (closed)" if self.closed else ""
        return (
            f"group {show(self.group_id)}{state}: {show_size(self.nbytes)} used{bound}{left}, "
            f"{self.requests} requests, {self.sessions} sessions, priority {self.priority}, opened at "
            f"{short(self.opened_at, 100)} {self.age:.1f} s ago"
        )


class SessionRecord(NamedTuple):
    """One open session, as `Pool.sessions` reports it.

    Attributes
    ----------
    session_id : str, int or bytes
        As given when it was opened.
    nbytes : int
        Bytes that the session keeps, in whole blocks.
    names : tuple of str
        Names of the tensors that it keeps.
    idle : float or None
        Seconds since its last request was released, or since it was opened; None while a request uses it.
    requests : int
        Number of unreleased requests that use it.
    budget : int or None
        Largest number of bytes that it may keep; None for no limit.
    ttl : float or None
        Seconds of idle time after which it expires; None for never.
    priority : int
        Sessions of a lower priority are evicted first.
    pinned : bool
        Whether it is pinned: neither evicted nor expired.
    age : float
        Seconds since it was opened.
    opened_at : str
        ``file:line`` that opened it.
    group : str, int, bytes or None
        Id of the group that it is under; None without one.

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
    nbytes: int
    names: tuple[str, ...]
    idle: float | None
    requests: int
    budget: int | None
    ttl: float | None
    priority: int
    pinned: bool
    age: float
    opened_at: str
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
            f"session {show(self.session_id)}{of_group(self.group)}: {state}, {show_size(self.nbytes)} "
            f"({names}), opened at {short(self.opened_at, 100)} {self.age:.1f} s ago"
        )


class SessionStats(NamedTuple):
    """How often a pool's sessions were found, and why they were evicted, since the pool was made.

    Attributes
    ----------
    hits : int
        Calls of `Pool.session` that found the session of the id alive.
    misses : int
        Calls of `Pool.session` that made a new one.
    evicted_for_bytes : int
        Sessions evicted because an allocation, a reserve or a growing tensor found no memory.
    evicted_for_addresses : int
        Sessions evicted because no run of free addresses was long enough for a growing tensor.
    evicted_for_slots : int
        Sessions evicted because every request slot was taken.
    evicted_for_budget : int
        Sessions evicted to stay within `Pool.session_budget`.
    evicted_for_quota : int
        Sessions evicted to stay within a quota that they counted in.
    expired : int
        Sessions that ended because no request used them for their ttl.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> session, same = pool.session("chat-42"), pool.session("chat-42")
    >>> stats = pool.session_stats()
    >>> stats.hits, stats.misses, stats.evicted
    (1, 1, 0)
    """

    hits: int
    misses: int
    evicted_for_bytes: int
    evicted_for_addresses: int
    evicted_for_slots: int
    evicted_for_budget: int
    evicted_for_quota: int
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

    Attributes
    ----------
    request_id : str, int, bytes or None
        The request that is being opened, or in which the caller allocates; None for memory without a
        request.
    nbytes : int
        Bytes that it wants.
    priority : int
        Higher priorities are served first.
    waited : float
        Seconds that it has waited.
    resource : str
        What it waits for: "memory", "addresses", "requests" (one of the pool's request slots), "quota" or
        "session budget".
    where : str
        ``file:line`` that waits; "" if it is not known.
    deadlock : bool
        It waits for memory, and the requests that wait for memory hold so much that the first of them
        cannot be served before one of them lets go.
    generation : int or None
        Generation of that request; None while it is being opened, and without one.
    group : str, int, bytes or None
        Id of the group that the request is under, or is to be; None without one.
    quota_of : tuple or None
        What has the quota that it waits for: ("group" or "request", its id, its generation). None for
        other resources.

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

    request_id: str | int | bytes | None
    nbytes: int
    priority: int
    waited: float
    resource: str
    where: str
    deadlock: bool = False
    generation: int | None = None
    group: str | int | bytes | None = None
    quota_of: tuple[str, str | int | bytes, int] | None = None

    def __repr__(self) -> str:
        return (
            f"WaiterRecord(request_id={show(self.request_id)}, nbytes={self.nbytes}, "
            f"priority={self.priority}, waited={self.waited!r}, resource={self.resource!r}, "
            f"where={short(repr(self.where), 100)}, deadlock={self.deadlock}, generation={self.generation}, "
            f"group={show(self.group)}, quota_of={show(self.quota_of)})"
        )

    def __str__(self) -> str:
        name = "memory without a request" if self.request_id is None else f"request {show(self.request_id)}"
        generation = "" if self.generation is None else f" generation {self.generation}"
        where = f", at {short(self.where, 100)}" if self.where else ""
        return (
            f"{name}{generation}{of_group(self.group)} waits for {self._what()}: {show_size(self.nbytes)}, "
            f"priority {self.priority}, for {self.waited:.1f} s{where}"
        )

    def _what(self) -> str:
        if self.quota_of is None:
            return self.resource
        kind, id, generation = self.quota_of
        if kind == "group":
            return f"the quota of group {show(id)}"
        return "its quota" if generation == self.generation else f"the quota of generation {generation}"
