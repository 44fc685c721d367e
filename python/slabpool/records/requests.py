"""Records of requests, and what an ack answers.

Without ``annotations`` from ``__future__``: see the package.
"""

import enum
from typing import NamedTuple

from slabpool.arguments.sizes import show_size
from slabpool.arguments.texts import few, short, show


class Ack(enum.Enum):
    """The answer to an acknowledgement.

    Attributes
    ----------
    PENDING
        It counted, or will once the work on its stream is done. The host or a device still holds the request.
    RELEASED
        It counted and ended the last hold: the memory is back.
    DUPLICATE
        The device had already acknowledged this request, which is not released; nothing changed.
    LATE
        The request is already released; nothing changed. `Pool.ack` without a generation answers so whenever
        no request of the id waits for the device.

    Examples
    --------
    >>> import slabpool
    >>> with slabpool.Pool("1MiB") as pool:
    ...     req = pool.request("r", devices=["gpu0"])
    ...     req.close()
    ...     req.ack("gpu0"), req.ack("gpu0")
    (<Ack.RELEASED: 'released'>, <Ack.LATE: 'late'>)
    """

    PENDING = "pending"
    RELEASED = "released"
    DUPLICATE = "duplicate"
    LATE = "late"


class RequestState(enum.Enum):
    """The state of a request.

    Attributes
    ----------
    OPEN
        The host holds it, so it can still allocate memory.
    DRAINING
        The host has closed it; some devices have not yet acknowledged.
    IN_DOUBT
        A device that has not acknowledged has been silent for longer than its lease.
    RELEASED
        It has no holder. If live views keep some of its bytes, these count as retained.
    KEPT
        Its request is over; a session keeps the memory for the next request.

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

    OPEN = "open"
    DRAINING = "draining"
    IN_DOUBT = "in_doubt"
    RELEASED = "released"
    KEPT = "kept"


class RequestRecord(NamedTuple):
    """One request that still has bytes, as `Pool.requests` and `Pool.leaks` report it.

    Attributes
    ----------
    request_id : str, int or bytes
        As given when it was opened; of what a session keeps, the id of the session.
    generation : int
        Distinguishes requests of the same id; larger is later.
    state : RequestState
    nbytes : int
        Bytes of the request, in whole blocks. For a released request: the bytes that views retain.
    age : float
        Seconds since the request was opened.
    pending : frozenset of str or int
        Devices that have not acknowledged.
    live_views : int
        Arrays that still point into its memory. An array and its slices count as one.
    opened_at : str
        ``file:line`` that opened it.
    parent : int or None
        Generation of its parent request; None if it has none.
    kept_as : str or None
        For memory that a session keeps: its name in the session `request_id`. (A tensor that the session
        has dropped is listed until the requests that read it are over.) None for a request.
    behind_stream : frozenset of str or int
        Devices in `pending` that have acknowledged, but whose ack waits for work on a stream.
    reserved : int
        Bytes that are left of its ``reserve=``: neither it nor its children have drawn them. They go back to
        the pool when the host closes it.
    group : str, int, bytes or None
        Id of the group that it is under; None without one.

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
    nbytes: int
    age: float
    pending: frozenset[str | int]
    live_views: int
    opened_at: str
    parent: int | None
    kept_as: str | None = None
    behind_stream: frozenset[str | int] = frozenset()
    reserved: int = 0
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
                f"(generation {self.generation}, {self.state.value}): {show_size(self.nbytes)} for "
                f"{self.age:.1f} s, {self.live_views} live views, kept at {short(self.opened_at, 100)}"
            )
        waiting = waits_for(self.pending, self.behind_stream) or "no device"
        return (
            f"request {show(self.request_id)} generation {self.generation}{of_group(self.group)} "
            f"({self.state.value}): "
            f"{show_size(self.nbytes)}{left_of_reserve(self.reserved)} for {self.age:.1f} s, waits for "
            f"{waiting}, {self.live_views} live views, opened at {short(self.opened_at, 100)}"
        )


def of_group(group: object) -> str:
    """The group of a request, for a message; empty without one."""
    return "" if group is None else f" of group {show(group)}"


def left_of_reserve(reserved: int) -> str:
    """What is left of a reserve, for a message; empty if nothing."""
    return f" and {show_size(reserved)} of its reserve left," if reserved else ""


def waits_for(pending: frozenset[str | int], behind_stream: frozenset[str | int]) -> str:
    """List devices for a message; mark those whose ack waits for work on a stream."""
    return few(
        f"{short(name, 20)} (its stream's work)" if behind else name
        for name, behind in sorted((str(one), one in behind_stream) for one in pending)
    )


def _few_names(devices: frozenset[str | int]) -> str:
    """A set of devices for a repr."""
    return f"frozenset({{{few(sorted(map(repr, devices)))}}})" if devices else "frozenset()"
