"""Which session keeps what, for how long, and which gives way: the sessions of one pool.

What must stay true: one lock guards all of it, and only under it is anything kept, pinned, given up or evicted,
so a session that is found idle stays idle until it is gone. Nothing waits while the lock is held, and what
holds it calls nothing of the user's. The core knows when the last request that used a session was over; here
that is looked up, never guessed. Nothing here keeps the `Pool`.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slabpool import _report_sessions as _report
from slabpool._core.session import (
    CLOSED,
    EXHAUSTED,
    NO_SLOT,
    QUOTA,
    Form,
    Kept,
    Shelf,
    kept_bytes,
    open_shelf,
    set_limit,
)
from slabpool._sizes import parse_size
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.records import SessionRecord

if TYPE_CHECKING:
    from slabpool._core.pool import Pool
    from slabpool._core.request import Request

CLOSED_BY_USER = "closed"
EXPIRED = "expired"
EVICTED = "evicted"
POOL_CLOSED = "closed with its pool"

_Where = tuple[str, int]


class _Lock:
    """A lock that its thread may take again, and that says whether this thread has it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._owner = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        self._owner = threading.get_ident()

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
        self._lock.release()

    def mine(self) -> bool:
        """Whether the calling thread has it."""
        return self._owner == threading.get_ident()


@dataclass(eq=False, slots=True)
class Block:
    """A block that a session keeps, under one name or more."""

    kept: Kept
    shelf: Shelf  # and not the State, which leads here
    names: int = 0


@dataclass(eq=False, slots=True)
class State:
    """One session: living until `lost` says how it ended."""

    id: str | int | bytes
    shelf: Shelf
    ttl: float | None
    opened_at: _Where
    born_ns: int
    tensors: dict[str, tuple[Block, Form]] = field(default_factory=dict)
    opening: int = 0  # requests that are being opened: they use it already
    lost: str | None = None
    lost_ns: int = 0
    ticket: int = 0  # of its entry among the deadlines; others of it are void
    face: weakref.ref[Any] | None = None  # the Session that users have, if they do

    def blocks(self) -> list[Block]:
        """Each once."""
        return list({id(block): block for block, _ in self.tensors.values()}.values())

    def idle_since(self) -> int | None:
        """Monotonic ns; None while a request is using it, or once the pool has cut it loose."""
        told = self.shelf.told()
        return None if told is None or told[2] or self.opening else told[3]

    @property
    def nbytes(self) -> int:
        told = self.shelf.told()
        return 0 if told is None else told[0]


class Sessions:
    """The sessions of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)
        self.budget: int | None = None
        self._lock = _Lock()
        self._living: dict[tuple[type, str | int | bytes], State] = {}
        self._blocks: dict[int, Block] = {}  # by the generation of what keeps them
        self._order = itertools.count()  # breaks ties in the two heaps
        # One entry for each living session: an instant before which it has not become idle.
        self._idle: list[tuple[int, int, State]] = []
        # One valid entry for each with a ttl: an instant before which it does not expire.
        self._deadlines: list[tuple[int, int, State]] = []
        self._news = threading.Event()  # an earlier deadline, or the end
        self._thread: threading.Thread | None = None
        self._stopped = False

    # ---- opening

    def open(self, session_id: str | int | bytes, budget: object, ttl: object, where: _Where) -> State:
        """The living session of the id, or a new one."""
        most = None if budget is None else parse_size(budget, "budget", least=1, most=1 << 60)
        seconds = None if ttl is None else _seconds(ttl)
        pool = self._pool_here()
        key = (type(session_id), session_id)
        with self._lock:
            state = self._living.get(key)
            if state is None or self._has_expired(state):
                return self._new(pool, session_id, most, seconds, where)
            if most is not None and not state.shelf.set_budget(most):
                _report.budget_below(state, most)
            if seconds is not None:
                state.ttl = seconds
                self._watch(state)
            return state

    def _new(
        self, pool: Pool, session_id: str | int | bytes, budget: int | None, ttl: float | None, where: _Where
    ) -> State:
        shelf = open_shelf(pool, session_id, budget, where)
        while not isinstance(shelf, Shelf):
            if not self._evict(slots=True):
                _report.no_slot(pool, session_id)
            shelf = open_shelf(pool, session_id, budget, where)
        state = State(session_id, shelf, ttl, where, time.monotonic_ns())
        self._living[type(session_id), session_id] = state
        heapq.heappush(self._idle, (state.born_ns, next(self._order), state))
        self._watch(state)
        return state

    def open_turn(self, state: State, options: tuple[Any, ...], where: _Where) -> Request:
        """A request that uses the session until it is over."""
        pool = self._pool_here()
        self.begin_turn(state)
        try:
            request = pool._open_turn(state.id, *options, where)
        except BaseException:
            self.no_turn(state)
            raise
        return self.turn_opened(state, request)

    def begin_turn(self, state: State) -> None:
        """The session is in use from here on, although the request may still wait for memory."""
        self._pool_here()
        with self._lock:
            self._check(state)
            state.opening += 1

    def no_turn(self, state: State) -> None:
        """The request could not be opened."""
        with self._lock:
            state.opening -= 1

    def turn_opened(self, state: State, request: Request) -> Request:
        """All that the session keeps stays there until this request is over."""
        with self._lock:
            state.opening -= 1
            if state.lost is None and state.shelf.pin(request, [block.kept for block in state.blocks()]):
                return request
        # Closed meanwhile. Nobody else knows of the request yet.
        for device in request.pending:
            request.ack(device)
        request.close()
        _report.lost(state)

    # ---- keeping

    def keep(self, state: State, name: str, tensor: object, where: _Where) -> None:
        """The tensor's block is the session's from here on, under this name."""
        if not isinstance(name, str):
            raise InvalidTypeError(
                f"a kept tensor's name must be a str, got {name!r} of type {type(name).__name__}"
            )
        pool = self._pool_here()
        with self._lock:
            self._check(state)
            found = state.shelf.locate(tensor)
            if found is None:
                _report.nothing_to_keep(pool, state, name, tensor)
            owner, form, nbytes = found
            old = state.tensors.get(name)
            block = self._blocks.get(owner)
            if block is None:
                block = self._move(pool, state, name, tensor, nbytes, where, None if old is None else old[0])
            elif block.shelf is not state.shelf:
                other = next(other for other in self._living.values() if other.shelf is block.shelf)
                _report.kept_elsewhere(state, name, other)
            block.names += 1
            state.tensors[name] = block, form
            if old is not None:
                self._forget(old[0])

    def _move(
        self,
        pool: Pool,
        state: State,
        name: str,
        tensor: Any,
        nbytes: int,
        where: _Where,
        old: Block | None,
    ) -> Block:
        instead = old.kept if old is not None and old.names == 1 else None
        while True:
            kept = state.shelf.keep(tensor, name, where, instead, _Keeper(self, state, name))
            if isinstance(kept, Kept):
                block = Block(kept, state.shelf)
                self._blocks[kept.generation] = block
                return block
            if kept == EXHAUSTED:
                more = kept_bytes(pool) - (0 if instead is None else instead.nbytes)
                if self._evict_bytes(more + nbytes - (self.budget or 0), state):
                    continue
                _report.session_budget_exceeded(pool, state, name, nbytes, self.budget or 0)
            if kept == NO_SLOT and self._evict(slots=True, spare=state):
                continue
            if kept == NO_SLOT:
                _report.no_slot(pool, state.id)
            if kept == QUOTA:
                _report.budget_exceeded(state, name, nbytes)
            _report.not_kept(state, name, closed=kept == CLOSED)

    def _forget(self, block: Block) -> None:
        block.names -= 1
        if block.names == 0:
            del self._blocks[block.kept.generation]
            block.kept.close()

    def drop(self, state: State, name: str) -> None:
        """The session keeps this no longer; the memory goes once no request that could see it is left."""
        self._pool_here()
        with self._lock:
            self._check(state)
            self._forget(state.tensors.pop(name)[0])

    def get(self, state: State, name: str) -> Any:
        """A view of what is kept under a name."""
        self._pool_here()
        with self._lock:
            self._check(state)
            block, form = state.tensors[name]
            view = block.kept.view(form)
            if view is None:  # the pool was closed by force
                _report.lost(state)
            return view

    def names(self, state: State) -> tuple[str, ...]:
        """In the order in which they were first kept."""
        self._pool_here()
        with self._lock:
            self._check(state)
            return tuple(state.tensors)

    def look(self, state: State) -> None:
        """Ends the session if its time is over."""
        self._pool_here()
        with self._lock:
            if state.lost is None:
                self._has_expired(state)

    def growth_refused(
        self, shelf: Shelf, session_id: str | int | bytes, name: str, status: int, nbytes: int
    ) -> bool:
        """A kept tensor could not grow by so many bytes: True if there is room now."""
        pool = self._pool_here()
        with self._lock:
            state = self._living.get((type(session_id), session_id))
            if state is None or state.shelf is not shelf or status == CLOSED:
                _report.growth_of_the_dropped(session_id, name)
            if status != QUOTA:
                return False
            told = shelf.told()
            if told is None or (told[1] is not None and told[0] + nbytes > told[1]):
                _report.budget_exceeded(state, name, nbytes)
            if self._evict_bytes(kept_bytes(pool) + nbytes - (self.budget or 0), state):
                return True
            _report.session_budget_exceeded(pool, state, name, nbytes, self.budget or 0)

    # ---- ending

    def close(self, state: State) -> None:
        """By the user. Again: nothing happens."""
        self._pool_here()
        with self._lock:
            if state.lost is None:
                self._end(state, CLOSED_BY_USER)

    def _end(self, state: State, how: str) -> None:
        state.lost = how
        state.lost_ns = time.monotonic_ns()
        del self._living[type(state.id), state.id]
        for block in state.blocks():
            del self._blocks[block.kept.generation]
        state.tensors.clear()
        state.shelf.close()  # and all that is on it

    def _check(self, state: State) -> None:
        if state.lost is not None or self._has_expired(state):
            _report.lost(state)

    # ---- giving way

    def _oldest_idle(self) -> Generator[State, None, None]:
        """Idle sessions, the longest idle first. Exact, although nobody says when one becomes idle: its entry
        is never too late, so an entry that is right is the first of all.
        """
        looked_at: list[tuple[int, State]] = []
        try:
            while self._idle:
                since, _, state = heapq.heappop(self._idle)
                if state.lost is not None:
                    continue
                idle_since = state.idle_since()
                if idle_since is None:
                    looked_at.append((time.monotonic_ns(), state))
                elif idle_since > since:
                    heapq.heappush(self._idle, (idle_since, next(self._order), state))
                else:
                    looked_at.append((since, state))
                    yield state
        finally:
            for since, state in looked_at:
                if state.lost is None:
                    heapq.heappush(self._idle, (since, next(self._order), state))

    def give_way(self, slots: bool) -> bool:
        """Evicts the session that has been idle longest, for an allocation or a request that finds no room
        (or, with `slots`, no place among the requests). False if there is none whose end would help.
        """
        if self._lock.mine():  # a finaliser, in the middle of something here
            return False
        with self._lock:
            return self._evict(slots)

    def _evict(self, slots: bool, spare: State | None = None) -> bool:
        with closing(self._oldest_idle()) as idle:
            for state in idle:
                # Memory that somebody looks at would not come back.
                if state is not spare and (slots or _frees(state)):
                    self._end(state, EVICTED)
                    return True
        return False

    def _evict_bytes(self, nbytes: int, spare: State) -> bool:
        """Evicts as many as it takes for so many bytes, oldest first; none if all together are too few."""
        victims: list[State] = []
        with closing(self._oldest_idle()) as idle:
            for state in idle:
                if nbytes <= 0:
                    break
                if state is not spare and (size := state.nbytes):
                    victims.append(state)
                    nbytes -= size
        if nbytes > 0:
            return False
        for state in victims:
            self._end(state, EVICTED)
        return bool(victims)

    def set_budget(self, budget: object) -> None:
        """Of all sessions together."""
        most = None if budget is None else parse_size(budget, "session_budget", least=0, most=1 << 60)
        pool = self._pool_here()
        with self._lock:
            self.budget = most
            set_limit(pool, most)
            if most is None:
                return
            with closing(self._oldest_idle()) as idle:
                for state in idle:
                    if kept_bytes(pool) <= most:
                        break
                    if state.nbytes:
                        self._end(state, EVICTED)

    # ---- expiring

    def _has_expired(self, state: State) -> bool:
        if state.ttl is None:
            return False
        since = state.idle_since()
        if since is None or time.monotonic_ns() < since + int(state.ttl * 1e9):
            return False
        self._end(state, EXPIRED)
        return True

    def _watch(self, state: State) -> None:
        if state.ttl is None or self._stopped:
            return
        state.ticket = next(self._order)
        first = self._deadlines[0][0] if self._deadlines else None
        at = time.monotonic_ns() + int(state.ttl * 1e9)
        since = state.idle_since()
        if since is not None:
            at = since + int(state.ttl * 1e9)
        heapq.heappush(self._deadlines, (at, state.ticket, state))
        if self._thread is None:
            pool = self._pool_here()
            self._thread = threading.Thread(
                target=_expire,
                args=(weakref.ref(self), self._news),
                name=f"slabpool-sessions-{pool.name}",
                daemon=True,
            )
            # Its end if nobody closes the pool. Not in a fork, where the event's lock may be anybody's.
            weakref.finalize(self, _wake, self._news, os.getpid()).atexit = False
            self._thread.start()
        elif first is None or at < first:
            self._news.set()

    def expire_due(self) -> float | None:
        """Ends what has expired. Seconds until the next may; None if there is nothing to wait for any more."""
        with self._lock:
            if self._stopped:
                return None
            now = time.monotonic_ns()
            while self._deadlines and self._deadlines[0][0] <= now:
                _, ticket, state = heapq.heappop(self._deadlines)
                if state.lost is not None or state.ttl is None or ticket != state.ticket:
                    continue
                since = state.idle_since()
                # One in use expires a ttl after its last request's end, which is yet to come.
                at = (now if since is None else since) + int(state.ttl * 1e9)
                if since is not None and at <= now:
                    self._end(state, EXPIRED)
                else:
                    heapq.heappush(self._deadlines, (at, ticket, state))
            return (self._deadlines[0][0] - now) / 1e9 if self._deadlines else threading.TIMEOUT_MAX

    # ---- the pool

    def _pool_here(self) -> Pool:
        """The pool, unless it is gone or the parent process's; before the lock is asked for."""
        pool = self._pool()
        if pool is None:
            _report.pool_gone()
        pool._check_here()
        return pool

    def pool_closes(self, force: bool) -> None:
        """Idle sessions give way to the end of the pool, unless somebody else is in its way too."""
        pool = self._pool_here()
        with self._lock:
            if force or not self._living:
                return
            states = list(self._living.values())
            stats = pool.stats()
            held = stats.live + stats.retained + stats.in_doubt
            if stats.requests_open or stats.requests_draining or held != kept_bytes(pool):
                return
            if any(state.idle_since() is None or _viewed(state) for state in states):
                return
            for state in states:
                self._end(state, POOL_CLOSED)

    def stop(self) -> None:
        """The pool is closed."""
        with self._lock:
            self._stopped = True
            for state in list(self._living.values()):
                self._end(state, POOL_CLOSED)
            thread = self._thread
        self._news.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def records(self) -> list[SessionRecord]:
        """The longest idle first, those in use last."""
        self._pool_here()
        now = time.monotonic_ns()
        found = []
        with self._lock:
            for state in list(self._living.values()):
                if self._has_expired(state) or (told := state.shelf.told()) is None:
                    continue
                nbytes, budget, pins, since = told
                found.append(
                    SessionRecord(
                        session_id=state.id,
                        nbytes=nbytes,
                        names=tuple(state.tensors),
                        idle=None if pins or state.opening else max(now - since, 0) / 1e9,
                        requests=pins,
                        budget=budget,
                        ttl=state.ttl,
                        age=(now - state.born_ns) / 1e9,
                        opened_at=f"{state.opened_at[0]}:{state.opened_at[1]}",
                    )
                )
        return sorted(found, key=lambda record: -1.0 if record.idle is None else record.idle, reverse=True)


class _Keeper:
    """Whom a kept tensor that cannot grow turns to. Keeps neither the sessions nor the session."""

    def __init__(self, sessions: Sessions, state: State, name: str) -> None:
        self._sessions = weakref.ref(sessions)
        self._shelf = state.shelf
        self._id = state.id
        self._name = name

    def __call__(self, status: int, nbytes: int) -> bool:
        sessions = self._sessions()
        if sessions is None:
            _report.pool_gone()
        return sessions.growth_refused(self._shelf, self._id, self._name, status, nbytes)


def _viewed(state: State) -> bool:
    return any(block.kept.live_views for block in state.blocks())


def _frees(state: State) -> bool:
    return state.nbytes > 0 and any(not block.kept.live_views for block in state.blocks())


def _seconds(ttl: object) -> float:
    try:
        seconds = float(ttl)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidTypeError(f"ttl must be seconds, got {ttl!r}") from None
    if not 0 < seconds <= 1e9:
        raise InvalidArgumentError(f"ttl must be more than 0 seconds and at most 1e9, got {ttl!r}")
    return seconds


def _wake(news: threading.Event, pid: int) -> None:
    if os.getpid() == pid:
        news.set()


def _expire(sessions_of: weakref.ref[Sessions], news: threading.Event) -> None:
    """The thread of a pool that has sessions with a ttl: sleeps until one may expire, or there is news."""
    while True:
        news.clear()  # before looking: what comes after the look wakes
        sessions = sessions_of()
        wait = None if sessions is None else sessions.expire_due()
        del sessions
        if wait is None:
            return
        news.wait(min(wait, threading.TIMEOUT_MAX))
