"""The sessions of one pool: what each keeps, for how long, and which is evicted first.

Invariants: one lock guards the registry, and tensors are kept, pinned, dropped and evicted only while it is
held. So a session that is found idle stays idle until it has ended. A thread that holds the lock waits for
nothing and calls no code of users: callbacks of sessions that leave are called after its release. The core
knows when the last request that used a session was released; the registry asks it each time. The registry
does not keep the `Pool` alive.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from slabpool._core.core import FREED, NOTHING, ROOM, Site, StatusCode
from slabpool._core.session import (
    Kept,
    Shelf,
    bytes_not_kept,
    gone_idle,
    is_under,
    kept_bytes,
    key_of,
    open_shelf,
    over_quota,
    plan_return,
    report,
    set_limit,
)
from slabpool.arguments.names import plain_name
from slabpool.arguments.sizes import parse_size
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidTypeError, RequestClosedError
from slabpool.messages import sessions as messages
from slabpool.records import SessionRecord, SessionStats
from slabpool.sessions.expiry import start
from slabpool.sessions.idle import Idle, fewest
from slabpool.sessions.session import Session
from slabpool.sessions.state import (
    CLOSED_BY_USER,
    CLOSED_WITH_GROUP,
    EVICTED,
    EXPIRED,
    FOR_ADDRESSES,
    FOR_BUDGET,
    FOR_BYTES,
    FOR_QUOTA,
    FOR_SLOTS,
    POOL_CLOSED,
    Block,
    Keeper,
    Lock,
    Options,
    Queue,
    State,
    parse_priority,
    parse_ttl,
)

if TYPE_CHECKING:
    from slabpool._core.pool import Pool
    from slabpool._core.request import GroupHold, Request


_REASONS: dict[int, str] = {
    StatusCode.EXHAUSTED: FOR_BYTES,
    StatusCode.SYSTEM_REFUSED: FOR_BYTES,
    StatusCode.NO_ADDRESSES: FOR_ADDRESSES,
    StatusCode.TOO_MANY_REQUESTS: FOR_SLOTS,
    StatusCode.QUOTA_EXCEEDED: FOR_QUOTA,
}

#: What is to give way, and what the caller is to do.
Plan = tuple[int, list[State]]


class Sessions:
    """The sessions of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)
        self.budget: int | None = None
        self._lock = Lock(self._let_go)
        self._live: dict[bytes, State] = {}
        self._roots: dict[int, State] = {}  # the same by the generation that the core knows each by
        self._blocks: dict[int, Block] = {}  # by the generation of what keeps them
        self._idle = Idle()
        # Each session with a ttl by an instant before which it does not expire.
        self._deadlines: Queue[int] = Queue()
        # By thread: sessions whose callbacks it has yet to call. Each thread uses only its own entry.
        self._calling: dict[int, deque[State]] = {}
        self._hits = self._misses = 0
        self._ended: Counter[str] = Counter()  # evictions by reason, and expirations
        self._news = threading.Event()  # set for an earlier deadline, and at the end
        self._thread: threading.Thread | None = None
        self._stopped = False

    # ---- opening

    def open(
        self,
        session_id: str | int | bytes,
        budget: object,
        ttl: object,
        priority: object,
        where: Site,
        group: GroupHold | None = None,
    ) -> Session:
        """The live session of the id, or a new one."""
        most = None if budget is None else parse_size(budget, "budget", least=1, most=1 << 60)
        seconds = None if ttl is None else parse_ttl(ttl)
        rank = None if priority is None else parse_priority(priority)
        pool = self._pool_here()
        session_id = plain_name(session_id)
        key = key_of(session_id, group)
        while True:
            with self._lock:
                state = self._live.get(key)
                if state is not None and not self._has_expired(state):
                    self._hits += 1
                    self._change(state, most, seconds, rank)
                    return Session._of(pool, self, state)
                if self._calls_back():
                    messages.calls_back(session_id)
                shelf = open_shelf(pool, session_id, most, where, group)
                if shelf is not None:
                    self._misses += 1
                    born = time.monotonic_ns()
                    state = State(session_id, key, shelf, seconds, rank or 0, where, born, group)
                    self._live[key] = self._roots[shelf.generation] = state
                    self._idle.push(state)
                    self._watch(state)
                    return Session._of(pool, self, state)
                if self._evict(self._plan_slot(pool), FOR_SLOTS) == NOTHING:
                    messages.no_slot(pool, session_id)

    def _change(self, state: State, budget: int | None, ttl: float | None, priority: int | None) -> None:
        if budget is not None and not state.shelf.set_budget(budget):
            messages.budget_below(state, budget)
        if ttl is not None:
            state.ttl = ttl
            self._watch(state)
        if priority is not None and priority != state.priority:
            state.priority = priority
            self._idle.push(state)

    def open_turn(self, state: State, options: Options, where: Site) -> Request:
        """Opens a request that uses the session until it is released."""
        pool = self._pool_here()
        with self.turn_opens(state):
            request = pool._open_turn(state.id, *options, where, state.group)
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
                self._touch(state)  # that it was wanted counts as a use
            if isinstance(error, RequestClosedError) and state.lost is not None:
                messages.lost(state)
            raise

    def _touch(self, state: State) -> None:
        """The session was used until now, although no request was."""
        if state.lost is None:
            state.touched_ns = time.monotonic_ns()
            self._idle.push(state)

    def turn_opened(self, state: State, request: Request) -> Request:
        """Everything that the session keeps stays until this request is released."""
        try:
            with self._lock:
                state.opening -= 1
                if state.lost is None and state.shelf.pin(request, [block.kept for block in state.blocks()]):
                    return request
        except BaseException:  # no memory
            state.shelf.discard(request)
            with self._lock:
                self._touch(state)
            raise
        # The session was closed meanwhile. No caller has the request yet, so no device would acknowledge it.
        state.shelf.discard(request)
        return messages.lost(state)

    # ---- keeping

    def keep(self, state: State, name: str, tensor: object, where: Site) -> None:
        """The session keeps the tensor's block from now on, under this name."""
        if not isinstance(name, str):
            raise InvalidTypeError(f"a kept tensor's name must be a str, got {show_typed(name)}")
        pool = self._pool_here()
        while True:
            with self._lock:
                self._check(state)
                if self._calls_back():
                    messages.calls_back(state.id)
                plan = self._keep(pool, state, name, tensor, where)
                if plan is None:
                    return
                self._evict(*plan)

    def _keep(
        self, pool: Pool, state: State, name: str, tensor: object, where: Site
    ) -> tuple[Plan, str] | None:
        """None once it is kept; otherwise what has to give way first, and why."""
        found = state.shelf.locate(tensor)
        if found is None:
            messages.nothing_to_keep(pool, state, name, tensor)
        owner, form, nbytes = found
        old = state.tensors.get(name)
        block = self._blocks.get(owner)
        if block is None:
            moved = self._move(pool, state, name, tensor, nbytes, where, None if old is None else old[0])
            if not isinstance(moved, Block):
                return moved
            block = moved
        elif block.shelf is not state.shelf:
            other = next(other for other in self._live.values() if other.shelf is block.shelf)
            messages.kept_elsewhere(state, name, other)
        else:
            block.kept.adopt(tensor, Keeper(self, state, name))
        block.names += 1
        state.tensors[name] = block, form
        if old is not None:
            self._forget(old[0])
        return None

    def _move(
        self,
        pool: Pool,
        state: State,
        name: str,
        tensor: Any,
        nbytes: int,
        where: Site,
        old: Block | None,
    ) -> Block | tuple[Plan, str]:
        instead = old.kept if old is not None and old.names == 1 else None
        kept = state.shelf.keep(tensor, name, where, instead, Keeper(self, state, name))
        if isinstance(kept, Kept):
            block = Block(kept, state.shelf)
            self._blocks[kept.generation] = block
            return block
        if kept == StatusCode.EXHAUSTED:
            more = nbytes - (0 if instead is None else instead.nbytes)
            plan = self._plan_budget(pool, more, state)
            if plan[0] == NOTHING:
                messages.session_budget_exceeded(pool, state, name, nbytes, self.budget or 0)
            return plan, FOR_BUDGET
        if kept == StatusCode.TOO_MANY_REQUESTS:
            plan = self._plan_slot(pool, state)
            if plan[0] == NOTHING:
                messages.no_slot(pool, state.id)
            return plan, FOR_SLOTS
        if kept == StatusCode.QUOTA_EXCEEDED:
            return self._plan_kept(pool, state, name, nbytes, instead), FOR_QUOTA
        if kept == StatusCode.WAITERS_AHEAD:
            messages.waits_for_others(pool, state, name, nbytes)
        if kept in (StatusCode.REQUEST_CLOSED, StatusCode.INVALID_ARGUMENT):
            messages.not_kept(state, name, closed=kept == StatusCode.REQUEST_CLOSED)
        return messages.system_refuses(pool, state, name)

    def _plan_kept(self, pool: Pool, state: State, name: str, nbytes: int, instead: Kept | None) -> Plan:
        """The budget of the session, or its group, has no room for a tensor from outside of the group."""
        figures = state.shelf.figures()
        back = 0 if instead is None else instead.nbytes
        if figures is not None and (figures[1] is None or figures[0] - back + nbytes <= figures[1]):
            need, level = state.shelf.over_quota(nbytes - back)
            if need <= 0:  # another thread has made room
                return ROOM, []
            plan = self._plan_level(pool, level, need, state, outside=True)
            if plan[0] != NOTHING:
                return plan
            messages.group_exceeded(pool, state, name, nbytes)
        return messages.budget_exceeded(state, name, nbytes)

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

    def get(self, state: State, name: str, writable: bool) -> Any:
        """A view of what is kept under a name."""
        self._pool_here()
        with self._lock:
            self._check_readable(state)
            block, form = state.tensors[name]
            view = block.kept.view(form, writable)
            if view is None:  # the pool was closed by force
                messages.lost(state)
            return view

    def names(self, state: State) -> tuple[str, ...]:
        """The names, in the order in which they were first kept."""
        self._pool_here()
        with self._lock:
            self._check_readable(state)
            return tuple(state.tensors)

    def look(self, state: State) -> None:
        """Ends the session if its ttl has passed."""
        self._pool_here()
        with self._lock:
            if state.lost is None:
                self._has_expired(state)

    def growth_refused(
        self,
        shelf: Shelf,
        session_id: str | int | bytes,
        key: bytes,
        name: str,
        status: StatusCode,
        nbytes: int,
    ) -> None:
        """A kept tensor could not grow by so many bytes: raises if its session or a budget is the reason."""
        pool = self._pool_here()
        with self._lock:
            state = self._live.get(key)
            if state is None or state.shelf is not shelf or status == StatusCode.REQUEST_CLOSED:
                messages.growth_of_the_dropped(session_id, name)
            if status != StatusCode.QUOTA_EXCEEDED:
                return
            figures = shelf.figures()
            over = figures is None or (figures[1] is not None and figures[0] + nbytes > figures[1])
            if not over:
                messages.group_exceeded(pool, state, name, nbytes)
            if over or self.budget is None:
                messages.budget_exceeded(state, name, nbytes)
            messages.session_budget_exceeded(pool, state, name, nbytes, self.budget)

    # ---- ending

    def close(self, state: State) -> None:
        """Ends a session for its user. Calling it again does nothing."""
        self._pool_here()
        with self._lock:
            if state.lost is None:
                self._end(state, CLOSED_BY_USER)

    def close_group(self, group: GroupHold) -> None:
        """Ends the sessions of a group that is closed."""
        with self._lock:
            for state in list(self._live.values()):
                if is_under(state.group, group):
                    self._end(state, CLOSED_WITH_GROUP)

    def _end(self, state: State, how: str) -> None:
        state.lost = how
        state.lost_ns = time.monotonic_ns()
        del self._live[state.key]
        del self._roots[state.shelf.generation]
        for block in state.blocks():
            del self._blocks[block.kept.generation]
        self._idle.discard(state)
        self._deadlines.discard(state)
        if state.on_evict is not None and how in (EVICTED, EXPIRED):
            state.leaving = True
            self._lock.leaving.append(state)
        else:
            self._clear(state)

    def _clear(self, state: State) -> None:
        """Gives back what an ended session kept."""
        state.leaving = False
        state.on_evict = None
        state.tensors.clear()
        state.shelf.close()  # with everything on it

    def _check(self, state: State) -> None:
        if state.lost is not None or self._has_expired(state):
            messages.lost(state)

    def _check_readable(self, state: State) -> None:
        """As _check(), but what leaves can be read by its callback."""
        if not state.leaving:
            self._check(state)

    # ---- callbacks

    def on_evict(self, state: State, callback: Callable[[Session], object] | None) -> None:
        """What is called before the session's memory goes."""
        if callback is not None and not callable(callback):
            raise InvalidTypeError(f"on_evict takes a callable or None, got {show_typed(callback)}")
        import inspect  # not loaded with the package

        if inspect.iscoroutinefunction(callback):
            raise InvalidTypeError(
                f"on_evict takes a plain function, got the coroutine function {show(callback)}: its "
                "coroutine would not run. Pass a function that starts a task"
            )
        self._pool_here()
        with self._lock:
            self._check(state)
            state.on_evict = callback

    def _calls_back(self) -> bool:
        """Whether this thread is in a callback of a session that leaves."""
        return threading.get_ident() in self._calling

    def _let_go(self, leaving: list[State]) -> None:
        """Calls the callbacks of ended sessions, and gives back their memory. Without the lock."""
        thread = threading.get_ident()
        if (
            thread in self._calling
        ):  # in a callback: the call below that made it goes on with these, without recursion
            self._calling[thread].extend(leaving)
            return
        calls = self._calling[thread] = deque(leaving)
        stop: BaseException | None = None
        try:
            while calls:
                state = calls.popleft()
                try:
                    self._call(state)
                except BaseException as error:  # KeyboardInterrupt and the like: the others still go
                    stop = error
                with self._lock:
                    self._clear(state)
        finally:
            del self._calling[thread]
        if stop is not None:
            raise stop

    def _call(self, state: State) -> None:
        callback, pool = state.on_evict, self._pool()
        if callback is None or pool is None:
            return
        try:
            callback(Session._of(pool, self, state))
        except Exception as error:
            report(error, callback)

    # ---- pins

    def pin(self, state: State) -> None:
        """The session is neither evicted nor expires until it is unpinned as often."""
        self._pool_here()
        with self._lock:
            self._check(state)
            state.pins += 1

    def unpin(self, state: State) -> None:
        """Takes back one pin(). Of a session that is over: nothing."""
        self._pool_here()
        with self._lock:
            if state.pins == 0:
                messages.not_pinned(state)
            state.pins -= 1
            self._touch(state)

    # ---- eviction

    def make_room(self, status: int, nbytes: int, root: tuple[int, int, int] | None, pages: bool) -> int:
        """Evicts as many idle sessions as an attempt of this thread lacks; none if they would not do.

        Returns
        -------
        int
            FREED, ROOM or NOTHING.
        """
        # Not inside a call of this registry (a finaliser), and not in a callback, where evictions could go on
        # for ever.
        if not self._live or self._lock.mine() or self._calls_back():
            return NOTHING
        pool = self._pool()
        if pool is None:
            return NOTHING
        with self._lock:
            slot, generation, memory = root or (0, 0, 0)
            if status == StatusCode.TOO_MANY_REQUESTS:
                plan = self._plan_slot(pool)
            elif status == StatusCode.QUOTA_EXCEEDED:
                plan = self._plan_quota(pool, (slot, generation), nbytes, memory, pages)
            else:
                plan = self._plan_memory(pool, status, nbytes, pages, (slot, generation))
            return self._evict(plan, _REASONS[status])

    def make_room_for_a_move(self, level: tuple[int, int], need: int) -> bool:
        """Evicts idle sessions of a group, so that its quota has so much room for memory from outside."""
        if not self._live or self._lock.mine() or self._calls_back():
            return False
        pool = self._pool()
        if pool is None:
            return False
        with self._lock:
            return self._evict(self._plan_level(pool, level, need, None, outside=True), FOR_QUOTA) == FREED

    def _evict(self, plan: Plan, reason: str) -> int:
        answer, states = plan
        for state in states:
            state.lost_for = reason
            self._ended[reason] += 1
            self._end(state, EVICTED)
        return answer

    def _candidates(
        self, pool: Pool, spare: State | None = None
    ) -> Generator[tuple[State, list[Kept]], None, None]:
        """Sessions that may be evicted and what each keeps, the least valuable first. To be closed."""
        for generation in gone_idle(pool):
            state = self._roots.get(generation)
            if state is not None:
                self._idle.push(state)
        with closing(self._idle.walk()) as walk:
            for state in walk:
                if state is spare:
                    continue
                kept = state.kept()
                if kept is not None:
                    yield state, kept

    def _plan_slot(self, pool: Pool, spare: State | None = None) -> Plan:
        """Every session has a request slot."""
        with closing(self._candidates(pool, spare)) as candidates:
            for state, _ in candidates:
                return FREED, [state]
        return NOTHING, []

    def _plan_budget(self, pool: Pool, more: int, spare: State | None) -> Plan:
        """Makes room for so many bytes in the budget of all sessions."""
        need = kept_bytes(pool) + more - (self.budget or 0)
        if need <= 0:
            return ROOM, []
        if need > kept_bytes(pool):
            return NOTHING, []
        with closing(self._candidates(pool, spare)) as candidates:
            states = fewest(((state, state.nbytes) for state, _ in candidates), need)
        return (FREED if states else NOTHING), states

    def _plan_quota(self, pool: Pool, request: tuple[int, int], more: int, memory: int, pages: bool) -> Plan:
        """Makes room for so many bytes in a request's quota, or in the budget of all sessions.

        None goes if there would not be so much memory then. Sessions of a group that must go for the memory
        make room in its quota too, and are enough if they suffice for that.
        """
        need, root = over_quota(pool, request, more)
        if need <= 0:
            if request[1] in self._blocks and self.budget is not None:
                shelf = self._blocks[request[1]].shelf
                return self._plan_budget(pool, more, self._roots.get(shelf.generation))
            return NOTHING, []
        plan = self._plan_level(pool, root, need, None)
        if plan[0] == NOTHING:
            # What they keep may hold more of the reserve than its own bytes: free pages before it.
            plan = self._plan_memory(pool, StatusCode.SYSTEM_REFUSED, need, True, request, root)
        if not plan[1] or not memory:
            return plan
        room, states = self._plan_memory(pool, StatusCode.EXHAUSTED, memory, pages, request)
        if room == NOTHING:
            return NOTHING, []
        theirs = sum(state.nbytes for state in states if state.shelf.counts_in(root))
        return (FREED, states) if theirs >= need else plan

    def _plan_level(
        self, pool: Pool, level: tuple[int, int], need: int, spare: State | None, outside: bool = False
    ) -> Plan:
        """Makes room for so many bytes in the quota of a group: by sessions of this group.

        What they drew from its reserve makes room for what can draw on that, and not for memory that comes
        from outside.
        """
        if need > kept_bytes(pool):
            return NOTHING, []
        with closing(self._candidates(pool, spare)) as candidates:
            brings = (
                (state, state.nbytes - (state.shelf.drawn() if outside else 0))
                for state, _ in candidates
                if state.shelf.counts_in(level)
            )
            states = fewest(brings, need)
        return (FREED if states else NOTHING), states

    def _plan_memory(
        self,
        pool: Pool,
        status: int,
        nbytes: int,
        pages: bool,
        request: tuple[int, int],
        level: tuple[int, int] | None = None,
    ) -> Plan:
        """By sessions that count in a level, or by all.

        The core knows which blocks make whole pages, or addresses in a row, together.
        """
        if (
            level is None
            and status != StatusCode.NO_ADDRESSES
            and bytes_not_kept(pool) + nbytes > pool.capacity
        ):
            return NOTHING, []
        states: list[State] = []
        groups: list[list[Kept]] = []
        most = 4
        with closing(self._candidates(pool)) as candidates:
            for state, kept in candidates:
                if kept and (level is None or state.shelf.counts_in(level)):
                    states.append(state)
                    groups.append(kept)
                if len(groups) == most:  # so that a plan costs what it evicts
                    chosen = plan_return(pool, status, nbytes, pages, request, groups)
                    if chosen is not None:
                        break
                    most *= 4
            else:
                chosen = plan_return(pool, status, nbytes, pages, request, groups)
        if chosen is None:
            return NOTHING, []
        return (FREED if chosen else ROOM), [states[i] for i in chosen]

    def set_budget(self, budget: object) -> None:
        """Sets the budget of all sessions together."""
        most = None if budget is None else parse_size(budget, "session_budget", least=0, most=1 << 60)
        pool = self._pool_here()
        with self._lock:
            self.budget = most
            set_limit(pool, most)
            if most is None:
                return
            answer, states = self._plan_budget(pool, 0, None)
            if answer == NOTHING:  # all that may go, although more than the budget stays in use
                with closing(self._candidates(pool)) as candidates:
                    states = [state for state, kept in candidates if kept]
            self._evict((FREED, states), FOR_BUDGET)

    # ---- expiring

    def _has_expired(self, state: State) -> bool:
        if state.ttl is None or state.pins:
            return False
        since = state.idle_since()
        if since is None or time.monotonic_ns() < since + int(state.ttl * 1e9):
            return False
        self._expire(state)
        return True

    def _expire(self, state: State) -> None:
        self._ended[EXPIRED] += 1
        self._end(state, EXPIRED)

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
                since = None if state.pins else state.idle_since()
                # A session in use expires a ttl after the release of its last request, which is still to
                # come; one that is pinned a ttl after the end of its last pin.
                at = (now if since is None else since) + int((state.ttl or 0) * 1e9)
                if since is not None and at <= now:
                    self._expire(state)
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

    def stats(self) -> SessionStats:
        """Figures since the pool was made."""
        self._pool_here()
        with self._lock:
            return SessionStats(
                hits=self._hits,
                misses=self._misses,
                evicted_for_bytes=self._ended[FOR_BYTES],
                evicted_for_addresses=self._ended[FOR_ADDRESSES],
                evicted_for_slots=self._ended[FOR_SLOTS],
                evicted_for_budget=self._ended[FOR_BUDGET],
                evicted_for_quota=self._ended[FOR_QUOTA],
                expired=self._ended[EXPIRED],
            )

    def records(self) -> list[SessionRecord]:
        """A record of each live session: the longest idle first, those in use last."""
        self._pool_here()
        now = time.monotonic_ns()
        with self._lock:
            states = [state for state in list(self._live.values()) if not self._has_expired(state)]
            found = [record for state in states if (record := state.record(now)) is not None]
        return sorted(found, key=lambda record: -1.0 if record.idle is None else record.idle, reverse=True)
