"""Evictions suffice and none is more than needed; a request that they cannot satisfy evicts nothing.

The oracle is a second pool in the same state, in which the test itself closes the sessions in question and
pins all others: what is refused there needed more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import event, given

import slabpool
from slabpool import Pool, Session

CAPACITY = 1 << 20
PAGE = 4 << 10
FREE, IN_USE, VIEWED, PINNED = "free", "in use", "viewed", "pinned"


@dataclass(frozen=True)
class Plan:
    """One session: the tensors that it keeps, its priority, and what keeps it from being evicted."""

    tensors: tuple[tuple[str, int], ...]
    priority: int
    hold: str


@dataclass
class Built:
    """A pool with sessions, the longest idle first, and what holds some of them."""

    pool: Pool
    sessions: list[Session] = field(default_factory=list)
    held: list[object] = field(default_factory=list)

    def evicted(self) -> list[int]:
        return [i for i, session in enumerate(self.sessions) if session.evicted]


Ask = Callable[[Built], object]


def make(turn: slabpool.Request, kind: str, nbytes: int) -> Any:
    """A tensor to keep: of a slab or a span, of several arrays, or one that grows."""
    if kind == "layout":
        return turn.allocate(slabpool.Layout({"k": (nbytes // 2, "u1"), "v": (nbytes // 2, "u1")}))
    if kind == "grows":
        return turn.growable(nbytes, "u1", limit=CAPACITY)
    return turn.empty(nbytes, "u1")


def build(plans: Iterable[Plan], filled: int = 0) -> Built:
    """The same state each time. `filled`: bytes of other tensors, as far as they fit."""
    built = Built(Pool(CAPACITY))
    pool = built.pool
    for number, plan in enumerate(plans):
        session = pool.session(number, priority=plan.priority)
        session.pin()  # while the pool is being filled, all that it has so far stays
        built.sessions.append(session)
        promised = PAGE * 2 if any(kind == "promised" for kind, _ in plan.tensors) else None
        try:
            turn = session.request(["gpu0"], reserve=promised)
        except slabpool.PoolExhausted:
            continue
        for name, (kind, nbytes) in enumerate(plan.tensors):
            try:
                session.keep(str(name), make(turn, kind, nbytes))
            except slabpool.PoolExhausted:
                break
        turn.close()
        if plan.hold != IN_USE:
            turn.ack("gpu0")
        if plan.hold == VIEWED and len(session):
            shown = session[next(iter(session))]
            built.held.append(shown.k if isinstance(shown, slabpool.Tensors) else shown)
    while filled > 0:
        try:
            built.held.append(pool.empty(min(filled, 200_000), "u1"))
        except slabpool.PoolExhausted:
            break
        filled -= 200_000
    for session, plan in zip(built.sessions, plans, strict=True):
        if plan.hold != PINNED:
            session.unpin()
    idle = [record.session_id for record in pool.sessions() if record.idle is not None and not record.pinned]
    assert idle == sorted(idle), "they are not used in their order"
    return built


def served(built: Built, ask: Ask) -> bool:
    try:
        built.held.append(ask(built))
    except (slabpool.PoolExhausted, slabpool.QuotaExceededError):
        return False
    return True


def value(plans: list[Plan], number: int) -> tuple[int, int]:
    return plans[number].priority, number


def check(plans: list[Plan], make: Callable[[], Built], ask: Ask) -> None:
    """All claims about one request in one state."""

    def served_without(closed: Iterable[int]) -> bool:
        """Whether the request is served if these sessions are gone, and all others have to stay."""
        other = make()
        for number, session in enumerate(other.sessions):
            if number in closed:
                session.close()
            else:
                session.pin()
        return served(other, ask)

    built = make()
    may_go = [n for n, plan in enumerate(plans) if plan.hold == FREE]
    if served(built, ask):
        gone = built.evicted()
        event(f"served after {min(len(gone), 3)} evictions")
        assert set(gone) <= set(may_go), "it was not idle"
        for number in gone:
            assert not served_without(set(gone) - {number}), f"{number} of {gone} was evicted for nothing"
        if gone:
            last = max(value(plans, number) for number in gone)
            before = {number for number in may_go if value(plans, number) < last}
            assert not served_without(before), f"the less valuable {before} would have sufficed, not {gone}"
    else:
        event("refused")
        assert built.evicted() == []
        assert not served_without(may_go), "refused although idle sessions could give way"
    assert built.pool._verify() is None


SIZES = st.one_of(st.integers(1, 300), st.integers(300, 40_000), st.integers(40_000, 300_000))
TENSORS = st.tuples(st.sampled_from(["array", "array", "layout", "grows", "promised"]), SIZES)
PLANS = st.lists(
    st.builds(
        Plan,
        st.lists(TENSORS, max_size=4).map(tuple),
        st.sampled_from([0, 0, 0, 1, -5]),
        st.sampled_from([FREE, FREE, FREE, FREE, IN_USE, VIEWED, PINNED]),
    ),
    max_size=8,
)
ASKS = st.sampled_from(["empty", "zeros", "layout", "reserve", "grows", "extend"])


@given(PLANS, st.integers(0, CAPACITY), ASKS, st.one_of(SIZES, st.integers(1, CAPACITY)))
def test_memory(plans: list[Plan], filled: int, kind: str, nbytes: int) -> None:
    def ask(built: Built) -> object:
        if kind == "reserve":
            return built.pool.request("asks", reserve=nbytes)
        request = built.pool.request("asks")
        built.held.append(request)
        if kind == "layout":
            return request.allocate(slabpool.Layout({"x": (nbytes, "u1")}))
        if kind == "grows":
            return request.growable(nbytes, "u1", limit=CAPACITY)
        if kind == "extend":
            tensor = request.growable(0, "u1", limit=CAPACITY)
            built.held.append(tensor)
            return tensor.extend(nbytes)
        return getattr(request, kind)(nbytes, "u1")

    check(plans, lambda: build(plans, filled), ask)


def one_of(kind: str, *sizes: int) -> list[Plan]:
    return [Plan(((kind, size),), 0, FREE) for size in sizes]


@pytest.mark.parametrize(
    ("plans", "nbytes", "gone"),
    [
        # One large session makes the older small ones unnecessary.
        (one_of("array", 200_000, 150_000, 600_000), 500_000, [2]),
        # Blocks of 64 KiB share a slab: its pages come back together.
        (one_of("array", *[65_536] * 16), 65_536, [0]),
        # A block of the same size does for a small tensor.
        (one_of("array", *[1 << 14] * 64), 1 << 14, [0]),
    ],
)
def test_what_goes(plans: list[Plan], nbytes: int, gone: list[int]) -> None:
    built = build(plans, CAPACITY)
    assert served(built, lambda built: built.pool.empty(nbytes, "u1"))
    assert built.evicted() == gone


# ---- addresses

PARTS = 16  # of the address range


def addresses(units: list[tuple[int, str]]) -> Built:
    """Sessions whose growing tensors take so many parts of the addresses each; a request takes the rest."""
    built = Built(Pool(CAPACITY))
    part = built.pool.stats().address_space // PARTS
    for number, (parts, hold) in enumerate(units):
        session = built.pool.session(number)
        session.pin()
        built.sessions.append(session)
        with session.request() as turn:
            tensor = turn.growable(1 + PAGE * (number % 2), "u1", limit=parts * part)
            session.keep("kv", tensor)
            del tensor
        if hold == VIEWED:
            built.held.append(session["kv"])
        elif hold == IN_USE:
            built.held.append(session.request(["gpu0"]))
    rest = built.pool.request("rest")
    built.held.append(rest)
    left = part * PARTS
    while left >= PAGE:  # by halves, so that what is left over is less than a page
        try:
            built.held.append(rest.growable(0, "u1", limit=left))
        except slabpool.PoolExhausted:
            left //= 2
    for session, (_, hold) in zip(built.sessions, units, strict=True):
        if hold != PINNED:
            session.unpin()
    return built


def fitting(units: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """As many as fit in the range together."""
    kept: list[tuple[int, str]] = []
    for parts, hold in units:
        if sum(p for p, _ in kept) + parts < PARTS:
            kept.append((parts, hold))
    return kept


UNITS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([FREE, FREE, FREE, VIEWED, PINNED, IN_USE])), max_size=9
).map(fitting)


@given(UNITS, st.integers(1, 8))
def test_addresses(units: list[tuple[int, str]], parts: int) -> None:
    plans = [Plan((), 0, hold) for _, hold in units]

    def ask(built: Built) -> object:
        limit = parts * (built.pool.stats().address_space // PARTS) - PAGE
        return built.pool.request("asks").growable(0, "u1", limit=limit)

    check(plans, lambda: addresses(units), ask)


# ---- the budget of all sessions


@given(
    st.lists(
        st.builds(
            Plan,
            st.lists(st.tuples(st.just("array"), st.integers(1, 30_000)), max_size=3).map(tuple),
            st.sampled_from([0, 0, 1]),
            st.sampled_from([FREE, FREE, FREE, IN_USE, VIEWED, PINNED]),
        ),
        max_size=7,
    ),
    st.integers(0, 20_000),
    st.integers(1, 60_000),
    st.sampled_from(["keep", "extend"]),
)
def test_the_budget_of_all_sessions(plans: list[Plan], slack: int, nbytes: int, how: str) -> None:
    def make() -> Built:
        built = build(plans)
        built.pool.session_budget = sum(session.nbytes for session in built.sessions) + slack
        return built

    def ask(built: Built) -> object:
        session = built.pool.session("asks")
        turn = session.request(["gpu0"])
        built.held.append(turn)
        if how == "keep":
            session.keep("kv", turn.empty(nbytes, "u1"))
            return session
        tensor = turn.growable(0, "u1", limit=CAPACITY)
        session.keep("kv", tensor)
        return tensor.extend(nbytes)

    check(plans, make, ask)
    for record in (built := make()).pool.sessions():
        assert record.nbytes <= built.pool.session_budget  # type: ignore[operator]
