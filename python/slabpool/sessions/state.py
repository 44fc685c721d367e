"""The state of a session: plain values, which only `slabpool.sessions.registry` changes."""

from __future__ import annotations

import heapq
import itertools
import operator
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from slabpool._core.core import Site, StatusCode
from slabpool._core.session import Form, Kept, Shelf
from slabpool.arguments.seconds import some_seconds
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.messages import sessions as messages
from slabpool.records import SessionRecord

if TYPE_CHECKING:
    from slabpool._core.request import GroupHold
    from slabpool.sessions.registry import Sessions

#: How a session ended.
CLOSED_BY_USER = "closed"
CLOSED_WITH_GROUP = "closed with its group"
EXPIRED = "expired"
EVICTED = "evicted"
POOL_CLOSED = "closed with its pool"

#: Why a session was evicted.
FOR_BYTES = "bytes"
FOR_ADDRESSES = "addresses"
FOR_SLOTS = "request slots"
FOR_BUDGET = "budget"
FOR_QUOTA = "quota"

#: The arguments of a turn's request: devices, reserve, quota, lease, timeout.
Options = tuple[Any, Any, Any, Any, Any]


class Lock:
    """A recursive lock that knows whether the calling thread holds it.

    It has a list of sessions that leave, for what is called after its release.
    """

    def __init__(self, after: Callable[[list[State]], None]) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._owner = 0
        # A weak reference, because the caller owns the lock.
        self._after = weakref.WeakMethod(after)
        #: What `after` is called with, if not empty, by the thread that releases the lock: added to with the
        #: lock held.
        self.leaving: list[State] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self._owner = threading.get_ident()

    def __exit__(self, *exc: object) -> None:
        leaving: list[State] = []
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
            if self.leaving:
                leaving, self.leaving = self.leaving, leaving
        self._lock.release()
        if leaving:
            after = self._after()
            if after is not None:
                after(leaving)

    def mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self._owner == threading.get_ident()


class Block:
    """A block that a session keeps, under one name or more."""

    __slots__ = ("kept", "names", "shelf")

    def __init__(self, kept: Kept, shelf: Shelf) -> None:
        self.kept = kept
        self.shelf = shelf  # the Shelf and not the State, which refers to this block (a cycle)
        self.names = 0


class State:
    """One session: living until `lost` says how it ended. While it is `leaving` its tensors can be read."""

    __slots__ = (
        "born_ns", "face", "group", "id", "key", "leaving", "lost", "lost_for", "lost_ns", "on_evict",
        "opened_at", "opening", "pins", "priority", "shelf", "tensors", "touched_ns", "ttl",
    )  # fmt: skip

    def __init__(
        self,
        id: str | int | bytes,
        key: bytes,  # the id as the core knows it
        shelf: Shelf,
        ttl: float | None,
        priority: int,
        opened_at: Site,
        born_ns: int,
        group: GroupHold | None,
    ) -> None:
        self.id = id
        self.group = group
        self.key = key
        self.shelf = shelf
        self.ttl = ttl
        self.priority = priority
        self.opened_at = opened_at
        self.born_ns = born_ns
        self.tensors: dict[str, tuple[Block, Form]] = {}
        self.opening = 0  # requests that are being opened, which count as uses
        self.pins = 0  # by the user
        self.touched_ns = 0  # the last use that opened no request: one that was refused, or the end of a pin
        self.on_evict: Callable[[Any], object] | None = None
        self.lost: str | None = None
        self.lost_ns = 0
        self.lost_for = ""  # why it was evicted
        self.leaving = False
        self.face: weakref.ref[Any] | None = None  # the Session object that users have, if any

    def blocks(self) -> list[Block]:
        """The blocks that it keeps, each once."""
        return list({id(block): block for block, _ in self.tensors.values()}.values())

    def idle_since(self) -> int | None:
        """Monotonic ns; None while a request uses it, and after the pool was closed by force."""
        figures = self.shelf.figures()
        return None if figures is None or figures[2] or self.opening else max(figures[3], self.touched_ns)

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps."""
        figures = self.shelf.figures()
        return 0 if figures is None else figures[0]

    def viewed(self) -> bool:
        """Whether any live view is of memory that it keeps."""
        return any(block.kept.live_views for block in self.blocks())

    def kept(self) -> list[Kept] | None:
        """What its end would return; None if it may not be evicted: it is pinned, or memory has views."""
        if self.pins:
            return None
        kept = [block.kept for block in self.blocks()]
        return None if any(one.live_views for one in kept) else kept

    def record(self, now_ns: int) -> SessionRecord | None:
        """The record for users; None after the pool was closed by force."""
        figures = self.shelf.figures()
        if figures is None:
            return None
        nbytes, budget, pins, since = figures
        return SessionRecord(
            session_id=self.id,
            nbytes=nbytes,
            names=tuple(self.tensors),
            idle=None if pins or self.opening else max(now_ns - max(since, self.touched_ns), 0) / 1e9,
            requests=pins,
            budget=budget,
            ttl=self.ttl,
            priority=self.priority,
            pinned=self.pins > 0,
            age=(now_ns - self.born_ns) / 1e9,
            opened_at=str(self.opened_at),
            group=None if self.group is None else self.group.id,
        )


Key = TypeVar("Key", int, tuple[int, int])


class Queue(Generic[Key]):
    """Sessions, each with a key; the least key first. Pushing a session again moves it."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, State]] = []
        self._tickets = itertools.count()
        self._valid: dict[State, int] = {}

    def push(self, key: Key, state: State) -> None:
        """Enters or moves a session."""
        ticket = self._valid[state] = next(self._tickets)
        heapq.heappush(self._heap, (key, ticket, state))
        if len(self._heap) > 2 * len(self._valid) + 64:  # most entries are stale
            self._heap = [entry for entry in self._heap if self._valid.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, state: State) -> None:
        """Removes a session, if it is in the queue."""
        self._valid.pop(state, None)

    def first(self) -> Key | None:
        """The least key."""
        while self._heap:
            key, ticket, state = self._heap[0]
            if self._valid.get(state) == ticket:
                return key
            heapq.heappop(self._heap)
        return None

    def pop(self) -> tuple[Key, State]:
        """Removes the first entry. There must be one: call first() before."""
        key, _, state = heapq.heappop(self._heap)
        del self._valid[state]
        return key, state


class Keeper:
    """Called when a kept tensor cannot grow. Keeps neither the registry nor the session alive."""

    def __init__(self, sessions: Sessions, state: State, name: str) -> None:
        self._sessions = weakref.ref(sessions)
        self._shelf = state.shelf
        self._id = state.id
        self._key = state.key
        self._name = name

    def __call__(self, status: StatusCode, nbytes: int) -> None:
        sessions = self._sessions()
        if sessions is None:
            messages.pool_gone()
        sessions.growth_refused(self._shelf, self._id, self._key, self._name, status, nbytes)


def parse_ttl(ttl: object) -> float:
    """Seconds, checked."""
    return some_seconds(ttl, "ttl")


def parse_priority(priority: object) -> int:
    """An int, checked."""
    try:
        number = operator.index(priority)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTypeError(f"priority must be an int, got {show_typed(priority)}") from None
    if not -(1 << 31) <= number < 1 << 31:
        raise InvalidArgumentError(f"priority must be from -2**31 to 2**31 - 1, got {show(number)}")
    return number
