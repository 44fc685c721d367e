"""The sessions of one pool: what each keeps, for how long, and which is evicted first.

Invariants: one lock guards the registry, and tensors are kept, pinned, dropped and evicted only while it is
held. So a session that is found idle stays idle until it has ended. A thread that holds the lock waits for
nothing and calls no code of users. The core knows when the last request that used a session was released; the
registry asks it each time. The registry does not keep the `Pool` alive.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from slabpool._core.core import StatusCode
from slabpool._core.session import (
    Kept,
    Shelf,
    kept_bytes,
    key_of,
    open_shelf,
    set_limit,
)
from slabpool.arguments.names import plain_name
from slabpool.arguments.sizes import parse_size
from slabpool.arguments.texts import show_typed
from slabpool.errors import InvalidTypeError, RequestClosedError
from slabpool.messages import sessions as messages
from slabpool.records import SessionRecord
from slabpool.sessions.expiry import start
from slabpool.sessions.session import Session
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
        self._live: dict[bytes, State] = {}
        self._blocks: dict[int, Block] = {}  # by the generation of what keeps them
        # Live sessions by a time that is not later than the time since which each is idle; see _oldest_idle.
        self._idle = Queue()
        # Each session with a ttl by an instant before which it does not expire.
        self._deadlines = Queue()
        self._news = threading.Event()  # set for an earlier deadline, and at the end
        self._thread: threading.Thread | None = None
        self._stopped = False

    # ---- opening

    def open(self, session_id: str | int | bytes, budget: object, ttl: object, where: Where) -> Session:
        """The live session of the id, or a new one."""
        most = None if budget is None else parse_size(budget, "budget", least=1, most=1 << 60)
        seconds = None if ttl is None else parse_ttl(ttl)
        pool = self._pool_here()
        session_id = plain_name(session_id)
        key = key_of(session_id)
        with self._lock:
            state = self._live.get(key)
            if state is None or self._has_expired(state):
                state = self._new(pool, session_id, key, most, seconds, where)
                return Session._of(pool, self, state)
            if most is not None and not state.shelf.set_budget(most):
                messages.budget_below(state, most)
            if seconds is not None:
                state.ttl = seconds
                self._watch(state)
            return Session._of(pool, self, state)

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
        while shelf is None:
            if not self._evict(slots=True):
                messages.no_slot(pool, session_id)
            shelf = open_shelf(pool, session_id, budget, where)
        state = State(session_id, key, shelf, ttl, where, time.monotonic_ns())
        self._live[key] = state
        self._idle.push(state.born_ns, state)
        self._watch(state)
        return state

    def open_turn(self, state: State, options: Options, where: Where) -> Request:
        """Opens a request that uses the session until it is released."""
        pool = self._pool_here()
        with self.turn_opens(state):
            request = pool._open_turn(state.id, *options, where)
        return self.turn_opened(state, request)

    @contextmanager
    def turn_opens(self, state: State) -> Generator[None, None, None]:
        """The session is in use from now on, while the request may still wait. turn_opened() ends that."""
        self._pool_here()
        with self._lock:
            self._check(state)
            state.opening += 1
        try:
            yield
        except BaseException as error:
            with self._lock:
                state.opening -= 1
            if isinstance(error, RequestClosedError) and state.lost is not None:
                messages.lost(state)
            raise

    def turn_opened(self, state: State, request: Request) -> Request:
        """Everything that the session keeps stays until this request is released."""
        try:
            with self._lock:
                state.opening -= 1
                if state.lost is None and state.shelf.pin(request, [block.kept for block in state.blocks()]):
                    return request
        except BaseException:  # no memory
            state.shelf.discard(request)
            raise
        # The session was closed meanwhile. No caller has the request yet, so no device would acknowledge it.
        state.shelf.discard(request)
        return messages.lost(state)

    # ---- keeping

    def keep(self, state: State, name: str, tensor: object, where: Where) -> None:
        """The session keeps the tensor's block from now on, under this name."""
        if not isinstance(name, str):
            raise InvalidTypeError(f"a kept tensor's name must be a str, got {show_typed(name)}")
        pool = self._pool_here()
        with self._lock:
            self._check(state)
            found = state.shelf.locate(tensor)
            if found is None:
                messages.nothing_to_keep(pool, state, name, tensor)
            owner, form, nbytes = found
            old = state.tensors.get(name)
            block = self._blocks.get(owner)
            if block is None:
                block = self._move(pool, state, name, tensor, nbytes, where, None if old is None else old[0])
            elif block.shelf is not state.shelf:
                other = next(other for other in self._live.values() if other.shelf is block.shelf)
                messages.kept_elsewhere(state, name, other)
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
            if kept == StatusCode.EXHAUSTED:
                more = kept_bytes(pool) - (0 if instead is None else instead.nbytes)
                if self._evict_bytes(more + nbytes - (self.budget or 0), state):
                    continue
                messages.session_budget_exceeded(pool, state, name, nbytes, self.budget or 0)
            if kept == StatusCode.TOO_MANY_REQUESTS and self._evict(slots=True, spare=state):
                continue
            if kept == StatusCode.TOO_MANY_REQUESTS:
                messages.no_slot(pool, state.id)
            if kept == StatusCode.QUOTA_EXCEEDED:
                messages.budget_exceeded(state, name, nbytes)
            if kept in (StatusCode.REQUEST_CLOSED, StatusCode.INVALID_ARGUMENT):
                messages.not_kept(state, name, closed=kept == StatusCode.REQUEST_CLOSED)
            messages.system_refuses(pool, state, name)

    def _forget(self, block: Block) -> None:
        block.names -= 1
        if block.names == 0:
            del self._blocks[block.kept.generation]
            block.kept.close()

    def drop(self, state: State, name: str) -> None:
        """Drops a tensor; its memory is returned once the requests that could read it are released."""
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
                messages.lost(state)
            return view

    def names(self, state: State) -> tuple[str, ...]:
        """The names, in the order in which they were first kept."""
        self._pool_here()
        with self._lock:
            self._check(state)
            return tuple(state.tensors)

    def look(self, state: State) -> None:
        """Ends the session if its ttl has passed."""
        self._pool_here()
        with self._lock:
            if state.lost is None:
                self._has_expired(state)

    def growth_refused(
        self, shelf: Shelf, session_id: str | int | bytes, name: str, status: StatusCode, nbytes: int
    ) -> bool:
        """A kept tensor could not grow by so many bytes. True after making room within the budgets."""
        pool = self._pool_here()
        with self._lock:
            state = self._live.get(key_of(session_id))
            if state is None or state.shelf is not shelf or status == StatusCode.REQUEST_CLOSED:
                messages.growth_of_the_dropped(session_id, name)
            if status != StatusCode.QUOTA_EXCEEDED:
                return False
            figures = shelf.figures()
            if figures is None or (figures[1] is not None and figures[0] + nbytes > figures[1]):
                messages.budget_exceeded(state, name, nbytes)
            if self._evict_bytes(kept_bytes(pool) + nbytes - (self.budget or 0), state):
                return True
            return messages.session_budget_exceeded(pool, state, name, nbytes, self.budget or 0)

    # ---- ending

    def close(self, state: State) -> None:
        """Ends a session for its user. Calling it again does nothing."""
        self._pool_here()
        with self._lock:
            if state.lost is None:
                self._end(state, CLOSED_BY_USER)

    def _end(self, state: State, how: str) -> None:
        state.lost = how
        state.lost_ns = time.monotonic_ns()
        del self._live[state.key]
        for block in state.blocks():
            del self._blocks[block.kept.generation]
        state.tensors.clear()
        self._idle.discard(state)
        self._deadlines.discard(state)
        state.shelf.close()  # with everything on it

    def _check(self, state: State) -> None:
        if state.lost is not None or self._has_expired(state):
            messages.lost(state)

    # ---- eviction

    def _oldest_idle(self) -> Generator[State, None, None]:
        """Idle sessions, the longest idle first.

        The order is exact although no event says when a session becomes idle: the instant of an entry is
        never too late, so the first entry whose instant is right is the longest idle session.
        """
        seen: list[tuple[int, State]] = []
        try:
            while self._idle.first() is not None:
                since, state = self._idle.pop()
                idle_since = state.idle_since()
                if idle_since is None:
                    seen.append((time.monotonic_ns(), state))
                elif idle_since > since:
                    self._idle.push(idle_since, state)
                else:
                    seen.append((since, state))
                    yield state
        finally:
            for since, state in seen:
                if state.lost is None:
                    self._idle.push(since, state)

    def evict_longest_idle(self, needs_slot: bool) -> bool:
        """Evicts the longest idle session whose end frees memory, or a request slot. False if none."""
        if self._lock.mine():  # a finaliser that runs inside a call of this registry
            return False
        with self._lock:
            return self._evict(needs_slot)

    def _evict(self, slots: bool, spare: State | None = None) -> bool:
        with closing(self._oldest_idle()) as idle:
            for state in idle:
                # Blocks with live views would not be returned.
                if state is not spare and (slots or state.frees()):
                    self._end(state, EVICTED)
                    return True
        return False

    def _evict_bytes(self, nbytes: int, spare: State) -> bool:
        """Evicts the longest idle sessions until so many bytes are freed; none if all together keep less."""
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
        """Sets the budget of all sessions together."""
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
        """Ends expired sessions. Returns seconds until the next may expire; None once the pool is closed."""
        with self._lock:
            if self._stopped:
                return None
            now = time.monotonic_ns()
            while (first := self._deadlines.first()) is not None and first <= now:
                _, state = self._deadlines.pop()
                since = state.idle_since()
                # A session in use expires a ttl after the release of its last request, which is still to
                # come.
                at = (now if since is None else since) + int((state.ttl or 0) * 1e9)
                if since is not None and at <= now:
                    self._end(state, EXPIRED)
                else:
                    self._deadlines.push(at, state)
            return threading.TIMEOUT_MAX if first is None else (first - now) / 1e9

    # ---- the pool

    def _pool_here(self) -> Pool:
        """The pool. Raises if it is gone, or was inherited through fork; called before the lock is taken."""
        pool = self._pool()
        if pool is None:
            messages.pool_gone()
        pool._check_here()
        return pool

    def pool_closes(self, force: bool) -> None:
        """Ends idle sessions, so that the pool can close; none if other memory keeps it from closing."""
        pool = self._pool_here()
        with self._lock:
            if force or not self._live:
                return
            states = list(self._live.values())
            stats = pool.stats()
            held = stats.live + stats.retained + stats.in_doubt
            if stats.requests_open or stats.requests_draining or held != kept_bytes(pool):
                return
            if any(state.idle_since() is None or state.viewed() for state in states):
                return
            for state in states:
                self._end(state, POOL_CLOSED)

    def stop(self) -> None:
        """The pool is closed: ends all sessions, and the thread."""
        with self._lock:
            self._stopped = True
            for state in list(self._live.values()):
                self._end(state, POOL_CLOSED)
            thread = self._thread
        self._news.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def records(self) -> list[SessionRecord]:
        """A record of each live session: the longest idle first, those in use last."""
        self._pool_here()
        now = time.monotonic_ns()
        with self._lock:
            states = [state for state in list(self._live.values()) if not self._has_expired(state)]
            found = [record for state in states if (record := state.record(now)) is not None]
        return sorted(found, key=lambda record: -1.0 if record.idle is None else record.idle, reverse=True)
