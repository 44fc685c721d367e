"""Which session keeps what, for how long, and which gives way: the sessions of one pool.

What must stay true: one lock guards all of it, and only under it is anything kept, pinned, given up or
evicted, so a session that is found idle stays idle until it is gone. Nothing waits while the lock is held,
and what holds it calls nothing of the user's. The core knows when the last request that used a session was
over; here that is looked up, never guessed. Nothing here keeps the `Pool`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from slabpool._core.session import (
    CLOSED,
    EXHAUSTED,
    INVALID,
    NO_SLOT,
    QUOTA,
    Kept,
    Shelf,
    kept_bytes,
    key_of,
    open_shelf,
    set_limit,
)
from slabpool.arguments.sizes import parse_size
from slabpool.errors import InvalidTypeError
from slabpool.messages import sessions as _report
from slabpool.records import SessionRecord
from slabpool.sessions.expiry import start
from slabpool.sessions.state import (
    CLOSED_BY_USER,
    EVICTED,
    EXPIRED,
    POOL_CLOSED,
    Block,
    Keeper,
    Lock,
    Options,
    Queue,
    State,
    Where,
    parse_ttl,
)

if TYPE_CHECKING:
    from slabpool._core.pool import Pool
    from slabpool._core.request import Request


class Sessions:
    """The sessions of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)
        self.budget: int | None = None
        self._lock = Lock()
        self._living: dict[bytes, State] = {}
        self._blocks: dict[int, Block] = {}  # by the generation of what keeps them
        # Each living session by an instant before which it has not become idle.
        self._idle = Queue()
        # Each with a ttl by an instant before which it does not expire.
        self._deadlines = Queue()
        self._news = threading.Event()  # an earlier deadline, or the end
        self._thread: threading.Thread | None = None
        self._stopped = False

    # ---- opening

    def open(self, session_id: str | int | bytes, budget: object, ttl: object, where: Where) -> State:
        """The living session of the id, or a new one."""
        most = None if budget is None else parse_size(budget, "budget", least=1, most=1 << 60)
        seconds = None if ttl is None else parse_ttl(ttl)
        pool = self._pool_here()
        key = key_of(session_id)
        with self._lock:
            state = self._living.get(key)
            if state is None or self._has_expired(state):
                return self._new(pool, session_id, key, most, seconds, where)
            if most is not None and not state.shelf.set_budget(most):
                _report.budget_below(state, most)
            if seconds is not None:
                state.ttl = seconds
                self._watch(state)
            return state

    def _new(
        self,
        pool: Pool,
        session_id: str | int | bytes,
        key: bytes,
        budget: int | None,
        ttl: float | None,
        where: Where,
    ) -> State:
        shelf = open_shelf(pool, session_id, budget, where)
        while not isinstance(shelf, Shelf):
            if not self._evict(slots=True):
                _report.no_slot(pool, session_id)
            shelf = open_shelf(pool, session_id, budget, where)
        state = State(session_id, key, shelf, ttl, where, time.monotonic_ns())
        self._living[key] = state
        self._idle.push(state.born_ns, state)
        self._watch(state)
        return state

    def open_turn(self, state: State, options: Options, where: Where) -> Request:
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
        return _report.lost(state)

    # ---- keeping

    def keep(self, state: State, name: str, tensor: object, where: Where) -> None:
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
            else:
                block.kept.adopt(tensor, Keeper(self, state, name))
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
        where: Where,
        old: Block | None,
    ) -> Block:
        instead = old.kept if old is not None and old.names == 1 else None
        while True:
            kept = state.shelf.keep(tensor, name, where, instead, Keeper(self, state, name))
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
            if kept in (CLOSED, INVALID):
                _report.not_kept(state, name, closed=kept == CLOSED)
            _report.system_refuses(pool, state, name)

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
            state = self._living.get(key_of(session_id))
            if state is None or state.shelf is not shelf or status == CLOSED:
                _report.growth_of_the_dropped(session_id, name)
            if status != QUOTA:
                return False
            told = shelf.told()
            if told is None or (told[1] is not None and told[0] + nbytes > told[1]):
                _report.budget_exceeded(state, name, nbytes)
            if self._evict_bytes(kept_bytes(pool) + nbytes - (self.budget or 0), state):
                return True
            return _report.session_budget_exceeded(pool, state, name, nbytes, self.budget or 0)

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
        del self._living[state.key]
        for block in state.blocks():
            del self._blocks[block.kept.generation]
        state.tensors.clear()
        self._idle.discard(state)
        self._deadlines.discard(state)
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
            while self._idle.first() is not None:
                since, state = self._idle.pop()
                idle_since = state.idle_since()
                if idle_since is None:
                    looked_at.append((time.monotonic_ns(), state))
                elif idle_since > since:
                    self._idle.push(idle_since, state)
                else:
                    looked_at.append((since, state))
                    yield state
        finally:
            for since, state in looked_at:
                if state.lost is None:
                    self._idle.push(since, state)

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
                if state is not spare and (slots or state.frees()):
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
        since = state.idle_since()
        at = (time.monotonic_ns() if since is None else since) + int(state.ttl * 1e9)
        first = self._deadlines.first()
        self._deadlines.push(at, state)
        if self._thread is None:
            self._thread = start(self, f"slabpool-sessions-{self._pool_here().name}", self._news)
        elif first is None or at < first:
            self._news.set()

    def expire_due(self) -> float | None:
        """Ends what has expired. Seconds until the next may; None if there is nothing more to wait for."""
        with self._lock:
            if self._stopped:
                return None
            now = time.monotonic_ns()
            while (first := self._deadlines.first()) is not None and first <= now:
                _, state = self._deadlines.pop()
                since = state.idle_since()
                # One in use expires a ttl after its last request's end, which is yet to come.
                at = (now if since is None else since) + int((state.ttl or 0) * 1e9)
                if since is not None and at <= now:
                    self._end(state, EXPIRED)
                else:
                    self._deadlines.push(at, state)
            return threading.TIMEOUT_MAX if first is None else (first - now) / 1e9

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
            if any(state.idle_since() is None or state.viewed() for state in states):
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
        with self._lock:
            states = [state for state in list(self._living.values()) if not self._has_expired(state)]
            found = [record for state in states if (record := state.record(now)) is not None]
        return sorted(found, key=lambda record: -1.0 if record.idle is None else record.idle, reverse=True)
