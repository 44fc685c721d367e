"""Random calls on a full pool: queue, groups, quotas, reserves, priorities, evictions, compared with a model.

All waiters are coroutines of one event loop with a clock of its own, which the machine runs until no
coroutine has anything left to do. So a run repeats exactly. Tensors are whole units of a size that has spans
of its own, so the model knows what is free to the byte.

Invariants, after every step:
    the pool's figures are the model's, and no quota is exceeded;
    no starvation: what the first waiter of a resource needs is not there, all allowed evictions included;
    no overtaking: no memory went past a waiter of its own or a higher priority that came earlier;
    a caller that does not wait is served if, and only if, there is room and no waiter stands before it;
    sessions are evicted only for what was served, and none too many; for a group's quota, only that group's.
At the end everything is given back, and every waiter is served.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import event, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import slabpool

RUNS = int(os.environ.get("SLABPOOL_TESTS_LIVES", "120"))
UNIT = 256 << 10
UNITS = 16
#: Units that the requests and sessions of the group may have together.
TENANT = 10
PICK = st.integers(0, 1 << 20)
SIZE = st.one_of(st.integers(1, 4), st.integers(1, UNITS))
PRIORITY = st.sampled_from([0, 0, 0, 1, -1])
#: Turns of the event loop without a change after which no coroutine has anything left to do.
QUIET = 6
#: Turns within which it must come to rest.
RESTLESS = 5000
#: Seconds after which the first waiter has looked again at what gives way without a wake-up.
LOOK = 0.1

Tensor = npt.NDArray[np.uint8]


@dataclass(eq=False)
class RequestModel:
    """A request that is not released. Sizes are in units."""

    handle: slabpool.Request
    priority: int
    reserve: int
    quota: int | None
    tenant: bool = False
    used: int = 0
    open: bool = True

    @property
    def taken(self) -> int:
        return max(self.used, self.reserve if self.open else 0)

    def beyond(self, units: int) -> int:
        """What a tensor of so many units takes from what all may have."""
        return max(0, units - max(0, self.reserve - self.used))


@dataclass(eq=False)
class SessionModel:
    """A session that keeps one tensor, and its unfinished turn."""

    session: slabpool.Session
    units: int
    tenant: bool = False
    turn: slabpool.Request | None = None


@dataclass(eq=False)
class WaiterModel:
    """A coroutine that may wait, in order of arrival."""

    number: int
    units: int
    priority: int
    request: RequestModel | None
    tenant: bool
    task: asyncio.Task[None] = field(repr=False)
    resource: str = ""  # what the pool says that it waits for; "" before its first attempt

    @property
    def order(self) -> tuple[int, int]:
        return -self.priority, self.number


@dataclass
class Step:
    """What the event loop did in one step of the machine."""

    served: list[WaiterModel] = field(default_factory=list)
    failed: list[tuple[WaiterModel, BaseException]] = field(default_factory=list)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until `now` is moved."""

    now = 0.0

    def time(self) -> float:
        return self.now


class QueueMachine(RuleBasedStateMachine):
    """One pool, one event loop, and what each of their parts should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = slabpool.Pool(UNITS * UNIT)
        self.group = self.pool.group("tenant", quota=TENANT * UNIT)
        self.loop = Loop()
        self.numbers = 0
        self.requests: list[RequestModel] = []
        self.sessions: list[SessionModel] = []
        self.tensors: list[Tensor] = []
        self.waiters: list[WaiterModel] = []
        self.step = Step()
        self.circle = False  # several wait for memory, and those that are requests may pass
        self.error: AssertionError | None = None

    # ---- the model

    @property
    def free(self) -> int:
        held = sum(tensor.nbytes for tensor in self.tensors) // UNIT
        held += sum(request.taken for request in self.requests)
        return UNITS - held - sum(session.units for session in self.sessions)

    @property
    def evictable(self) -> int:
        return sum(session.units for session in self.sessions if session.turn is None)

    @property
    def tenant_free(self) -> int:
        held = sum(request.taken for request in self.requests if request.tenant)
        return TENANT - held - sum(session.units for session in self.sessions if session.tenant)

    @property
    def tenant_evictable(self) -> int:
        return sum(s.units for s in self.sessions if s.turn is None and s.tenant)

    def _tenant_waits(self, priority: int) -> bool:
        """Whether a waiter for the group's quota stands before a caller that comes now."""
        return any(w.tenant and w.resource == "quota" and w.priority >= priority for w in self.waiters)

    def _need(self, waiter: WaiterModel) -> int:
        """Units beyond what its request was promised."""
        return waiter.units if waiter.request is None else waiter.request.beyond(waiter.units)

    def _before_memory(self, priority: int) -> bool:
        """Whether a waiter for memory stands before a caller that comes now."""
        return any(waiter.resource == "memory" and waiter.priority >= priority for waiter in self.waiters)

    # ---- the event loop

    def _start(
        self,
        units: int,
        priority: int,
        request: RequestModel | None,
        tenant: bool,
        call: Callable[[], Coroutine[Any, Any, Any]],
        served: Callable[[Any], None],
    ) -> None:
        async def work() -> None:
            try:
                result = await call()
            except slabpool.SlabpoolError as error:
                self.waiters.remove(waiter)
                self.step.failed.append((waiter, error))
            else:
                self.waiters.remove(waiter)
                try:
                    self._judge_order(waiter)
                except AssertionError as error:
                    self.error = self.error or error
                self.step.served.append(waiter)
                served(result)

        self.numbers += 1
        waiter = WaiterModel(self.numbers, units, priority, request, tenant, self.loop.create_task(work()))
        self.waiters.append(waiter)
        self._settle()

    def _judge_order(self, served: WaiterModel) -> None:
        """Call this when the waiter has just left the queue. None that stood before it waits for the same."""
        self._learn_resources()
        if self._need(served) == 0:
            return  # it was promised all
        before = [
            other for other in self.waiters if other.resource == "memory" and other.order < served.order
        ]
        if (
            before
            and served.request is not None
            and self._circle(served.request, min(before, key=lambda other: other.order))
        ):
            event("passed in a circle")
            return
        assert not before, f"{served} overtook {before}"

    def _circle(self, request: RequestModel, first: WaiterModel) -> bool:
        """Whether the requests that wait, and this one, hold so much that `first` cannot be served before.

        Such requests may pass: what they wait for would never come otherwise.
        """
        waiting = {other.request for other in self.waiters if other.resource == "memory"} | {request}
        holders = [holder for holder in waiting if holder is not None and holder.open]
        return request.taken > 0 and self._need(first) > UNITS - sum(holder.taken for holder in holders)

    def _learn_resources(self) -> list[slabpool.WaiterRecord]:
        """What each waiter waits for. One that has not made its first attempt is last, and has no record."""
        records = self.pool.waiters()
        for waiter, record in zip(self.waiters, records, strict=False):  # both in order of arrival
            assert (record.nbytes, record.priority) == (waiter.units * UNIT, waiter.priority)
            waiter.resource = record.resource
        return records

    def _settle(self) -> None:
        """Run the loop until nothing changes; then learn from the pool what each waiter waits for."""

        async def quiet() -> None:
            turns, before = 0, None
            for _ in range(RESTLESS):
                await asyncio.sleep(0)
                now = (self.pool.stats().waiting, len(self.waiters), self.pool._wakeup_count())
                turns = turns + 1 if now == before else 0
                before = now
                if turns == QUIET:
                    return
            raise AssertionError(f"waiters wake each other for ever: {self.waiters}; {self.pool.waiters()}")

        left = -1
        while left != len(self.waiters):
            left = len(self.waiters)
            self.loop.run_until_complete(quiet())
            # A return wakes the first waiter if it is enough without evictions. Otherwise the first waiter
            # looks by the clock (async_wait.py).
            self.loop.now += LOOK
            self.loop.run_until_complete(quiet())
        assert self.error is None, self.error
        records = self._learn_resources()
        assert len(records) == len(self.waiters) == self.pool.stats().waiting
        memory = [record for record in records if record.resource == "memory"]
        self.circle = len(memory) > 1 and all(record.deadlock for record in memory)
        self._judge_evictions()
        if self.step.served:
            event(f"served in one step: {min(len(self.step.served), 3)}")
        self.step = Step()

    def _judge_evictions(self, served: bool = False) -> None:
        """Call this after what was served counts in the model."""
        gone = [session for session in self.sessions if session.session.evicted]
        if not gone:
            return
        event("evicted")
        assert served or self.step.served, "evicted for nothing"
        for session in gone:
            assert session.turn is None, "evicted while in use"
            self.sessions.remove(session)
        if served or len(self.step.served) == 1:
            units = [session.units for session in gone]
            if theirs := [session.units for session in gone if session.tenant]:
                # One that went for the quota alone may be spared if others go for the memory after it.
                enough = self.free < max(units) or self.tenant_free < max(theirs)
            else:
                enough = self.free < min(units)
            assert enough, "evicted more than was needed"

    # ---- what waits

    @rule(units=SIZE, priority=PRIORITY)
    def wait_for_a_tensor(self, units: int, priority: int) -> None:
        self._start(
            units,
            priority,
            None,
            False,
            lambda: self.pool.empty_async(units * UNIT, "u1", priority=priority),
            self.tensors.append,
        )

    @rule(reserve=SIZE, more=st.one_of(st.none(), st.integers(0, 6)), priority=PRIORITY, tenant=st.booleans())
    def wait_for_a_request(self, reserve: int, more: int | None, priority: int, tenant: bool) -> None:
        if tenant:
            # Its bound is the group's: then it is clear which quota it waits for.
            reserve, more = min(reserve, TENANT), None
        quota = None if more is None else reserve + more
        opener = self.group if tenant else self.pool
        self._start(
            reserve,
            priority,
            None,
            tenant,
            lambda: opener.request_async(
                self.numbers,
                ["d"],
                reserve=reserve * UNIT,
                quota=None if quota is None else quota * UNIT,
                priority=priority,
            ),
            lambda handle: self.requests.append(RequestModel(handle, priority, reserve, quota, tenant)),
        )

    @rule(reserve=st.integers(TENANT + 1, UNITS))
    def ask_for_more_than_the_group_has(self, reserve: int) -> None:
        with pytest.raises(slabpool.QuotaExceededError, match="tenant"):
            self.group.request(0, ["d"], reserve=reserve * UNIT, timeout=600)

    def _open(self, pick: int) -> RequestModel:
        some = [request for request in self.requests if request.open]
        return some[pick % len(some)]

    @precondition(lambda self: any(request.open for request in self.requests))
    @rule(pick=PICK, units=SIZE)
    def wait_in_a_request(self, pick: int, units: int) -> None:
        request = self._open(pick)
        if request.tenant:
            units = min(units, TENANT)

        def served(array: Tensor) -> None:
            request.used += units

        def call() -> Coroutine[Any, Any, Tensor]:
            return request.handle.empty_async(units * UNIT, "u1")

        if request.quota is not None and units > request.quota:
            with pytest.raises(slabpool.QuotaExceededError):
                self.loop.run_until_complete(call())  # it does not wait for what cannot come
            return
        self._start(units, request.priority, request, request.tenant, call, served)

    # ---- what does not wait

    @rule(units=SIZE, priority=PRIORITY)
    def take_a_tensor(self, units: int, priority: int) -> None:
        may = not self._before_memory(priority) and units <= self.free + self.evictable
        try:
            self.tensors.append(self.pool.empty(units * UNIT, "u1", priority=priority))
        except slabpool.PoolExhausted:
            assert not may, "refused although there is room and nothing stands before it"
            self._judge_evictions()
        else:
            assert may, "served past a waiter, or more than is free"
            self._judge_evictions(served=True)
        self._settle()  # a session that went may have made room in the group's quota

    @precondition(lambda self: any(request.open for request in self.requests))
    @rule(pick=PICK, units=SIZE)
    def take_in_a_request(self, pick: int, units: int) -> None:
        request = self._open(pick)
        need = request.beyond(units)
        room = need <= self.free + self.evictable
        right = request.quota is None or request.used + units <= request.quota
        if request.tenant:
            right = need <= self.tenant_free + self.tenant_evictable
        # What was promised needs no turn. Nor does a quota that only this request can give back: the first
        # waiter for it cannot be served while the request holds what it holds.
        passes = self.circle and request.taken > 0
        turn = need == 0 or passes or not self._before_memory(request.priority)
        # Of waiters for the group's quota it may pass those that need what it holds, and no others.
        unsure = request.tenant and need != 0 and self._tenant_waits(request.priority)
        try:
            request.handle.empty(units * UNIT, "u1")
        except (slabpool.PoolExhausted, slabpool.QuotaExceededError):
            assert unsure or not (room and right and turn), (
                "refused although there is room and nothing stands before it"
            )
            self._judge_evictions()
        else:
            state = f"room {room}, quota {right}, turn {turn}: {request}; waiters {self.waiters}"
            assert room and right and turn, state
            request.used += units
            self._judge_evictions(served=True)
        self._settle()

    # ---- sessions

    @rule(units=st.integers(1, 5), priority=PRIORITY, tenant=st.booleans())
    def keep_a_tensor(self, units: int, priority: int, tenant: bool) -> None:
        self.numbers += 1
        opener = self.group if tenant else self.pool
        session = opener.session(self.numbers, priority=priority)
        with session.request() as turn:
            turn_has_come = not self._before_memory(0)  # the turn holds nothing yet
            may = turn_has_come and units <= self.free + self.evictable
            if tenant:
                may = may and units <= self.tenant_free + self.tenant_evictable and not self._tenant_waits(0)
            try:
                session.keep("kv", turn.empty(units * UNIT, "u1"))
            except (slabpool.PoolExhausted, slabpool.QuotaExceededError):
                assert not may
            else:
                assert may
                self.sessions.append(SessionModel(session, units, tenant))
        if self.sessions and self.sessions[-1].session is session:
            self._judge_evictions(served=True)
        else:
            self._judge_evictions()
            session.close()
        self._settle()  # the session is idle

    @precondition(lambda self: any(session.turn is None for session in self.sessions))
    @rule(pick=PICK)
    def begin_a_turn(self, pick: int) -> None:
        idle = [session for session in self.sessions if session.turn is None]
        session = idle[pick % len(idle)]
        session.turn = session.session.request(["d"])

    @precondition(lambda self: any(session.turn is not None for session in self.sessions))
    @rule(pick=PICK)
    def end_a_turn(self, pick: int) -> None:
        busy = [session for session in self.sessions if session.turn is not None]
        session = busy[pick % len(busy)]
        assert session.turn is not None
        turn, session.turn = session.turn, None
        turn.close()
        turn.ack("d")
        self._settle()

    @precondition(lambda self: any(session.turn is None for session in self.sessions))
    @rule(pick=PICK)
    def close_a_session(self, pick: int) -> None:
        idle = [session for session in self.sessions if session.turn is None]
        session = idle[pick % len(idle)]
        self.sessions.remove(session)
        session.session.close()
        self._settle()

    # ---- what comes back, and who leaves

    @precondition(lambda self: self.tensors)
    @rule(pick=PICK)
    def drop_a_tensor(self, pick: int) -> None:
        del self.tensors[pick % len(self.tensors)]
        self._settle()

    @precondition(lambda self: any(request.open for request in self.requests))
    @rule(pick=PICK, cancel=st.booleans())
    def close_a_request(self, pick: int, cancel: bool) -> None:
        self._close(self._open(pick), cancel)

    def _close(self, request: RequestModel, cancel: bool = False) -> None:
        own = [waiter for waiter in self.waiters if waiter.request is request]
        request.open = False
        if cancel:
            request.handle.cancel()
        else:
            request.handle.close()
        step = self.step
        self._settle()
        assert [waiter for waiter, _ in step.failed] == own, "a waiter outlives its request"
        assert all(isinstance(error, slabpool.RequestClosedError) for _, error in step.failed)

    @precondition(lambda self: any(not request.open for request in self.requests))
    @rule(pick=PICK)
    def acknowledge(self, pick: int) -> None:
        some = [request for request in self.requests if not request.open]
        request = some[pick % len(some)]
        self.requests.remove(request)
        assert request.handle.ack("d") is slabpool.Ack.RELEASED
        self._settle()

    @precondition(lambda self: self.waiters)
    @rule(pick=PICK)
    def give_up(self, pick: int) -> None:
        waiter = self.waiters.pop(pick % len(self.waiters))
        waiter.task.cancel()
        self._settle()
        assert waiter.task.cancelled()

    # ---- the laws

    @invariant()
    def figures(self) -> None:
        stats = self.pool.stats()
        assert stats.live + stats.reserved == (UNITS - self.free) * UNIT
        assert self.free >= 0
        assert self.tenant_free >= 0
        assert self.group.stats().nbytes == (TENANT - self.tenant_free) * UNIT
        assert stats.committed <= stats.capacity
        for request in self.requests:
            assert request.handle.nbytes == request.used * UNIT
            assert request.quota is None or request.used <= request.quota
        assert self.pool._verify() is None

    @invariant()
    def no_starvation(self) -> None:
        """What the first waiter needs is not there."""
        order = sorted(self.waiters, key=lambda waiter: waiter.order)
        first = next((waiter for waiter in order if waiter.resource == "memory"), None)
        assert first is None or self._need(first) > self.free + self.evictable, f"{first} starves"
        quotas: set[RequestModel | None] = set()  # None: the group's
        for waiter in order:
            quota = None if waiter.tenant else waiter.request
            if waiter.resource != "quota" or quota in quotas:
                continue
            quotas.add(quota)
            if quota is None:
                assert waiter.tenant
                need = self._need(waiter)
                assert need > self.tenant_free, f"{waiter} starves"
                # Sessions of the group give way for its quota if the memory can be had then.
                may_evict = need <= self.free + self.evictable and not any(
                    w.resource == "memory" and w.order < waiter.order for w in order
                )
                assert not may_evict or need > self.tenant_free + self.tenant_evictable, f"{waiter} starves"
            else:
                assert quota.quota is not None
                assert quota.used + waiter.units > quota.quota, f"{waiter} starves"
        assert {waiter.resource for waiter in self.waiters} <= {"memory", "quota"}

    def teardown(self) -> None:
        """Give everything back, again and again: every waiter is served."""
        for session in self.sessions:
            if session.turn is not None:
                session.turn.close()
                session.turn.ack("d")
                session.turn = None
        try:
            self._settle()
            while self.waiters or self.requests or self.tensors:
                before = len(self.waiters), len(self.requests), len(self.tensors)
                if self.tensors:
                    self.drop_a_tensor(0)
                for request in list(self.requests):
                    if request.open:
                        self._close(request)
                    self.requests.remove(request)
                    request.handle.ack("d")
                    self._settle()
                after = len(self.waiters), len(self.requests), len(self.tensors)
                assert before != after, "some wait although everything was given back"
                self.figures()
                self.no_starvation()
            for session in self.sessions:
                session.session.close()
            self.group.close()
            self.pool.close()
            assert self.pool.stats().committed == 0
        finally:
            for waiter in self.waiters:
                waiter.task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # from requests in a run that was cut short
def test_random_calls_on_a_full_pool() -> None:
    case = QueueMachine.TestCase
    case.settings = settings(max_examples=RUNS, stateful_step_count=50, deadline=None)
    case("runTest").runTest()


def test_a_request_of_low_priority_overtakes_no_waiter_of_its_own() -> None:
    async def main() -> None:
        pool = slabpool.Pool(UNITS * UNIT)
        with pool.request("low", priority=-1) as request:
            blocker = pool.empty(8 * UNIT, "u1")
            waiter = asyncio.create_task(pool.empty_async(10 * UNIT, "u1", priority=-1))
            while pool.stats().waiting != 1:
                await asyncio.sleep(0)
            try:
                with pytest.raises(slabpool.PoolExhausted, match="1 waiter ahead"):
                    request.empty(4 * UNIT, "u1")
            finally:
                waiter.cancel()
        del blocker

    asyncio.run(main())
