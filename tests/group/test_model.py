"""Random calls on requests with budgets inside budgets, compared with a model of what each level counts.

Tensors have one size, that of a span, and the pool is never full, so the model knows every refusal and every
promise to the byte. A level is a group or a request with a quota or a reserve.

Invariants, after every step:
    what a level uses is the sum of what is charged in it and of what the levels below count for: what is
    promised to them, and what they use beside that;
    an allocation or a reserve is refused if, and only if, some level above has no room for it;
    of each promise so much is left as was promised and is not drawn: nothing is lost or counted twice.
At the end all is given back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import slabpool
from slabpool import QuotaExceededError

RUNS = int(os.environ.get("SLABPOOL_TESTS_LIVES", "120"))
UNIT = 256 << 10
PICK = st.integers(0, 1 << 20)
QUOTA = st.one_of(st.none(), st.integers(1, 12))
RESERVE = st.one_of(st.just(0), st.integers(1, 6))


@dataclass(eq=False)
class Node:
    """A group, or a request that is not released. Sizes are in units."""

    handle: slabpool.Group | slabpool.Request
    above: Node | None
    quota: int | None
    reserve: int
    device: bool = False
    is_group: bool = False
    own: int = 0
    open: bool = True
    below: list[Node] = field(default_factory=list)
    # Of its promise.
    promised: bool = False
    left: int = 0
    extra: int = 0
    owed: int = 0
    borrowed: int = 0
    inside: int = 0  # of its reserve, taken out of the promises around it
    over_owed: int = 0  # of a promise that is over: what was drawn from it and is not those around it
    drawn: list[Node] = field(default_factory=list)  # the promise that each of its tensors came from

    @property
    def is_level(self) -> bool:
        return self.is_group or self.quota is not None or self.reserve > 0

    @property
    def used(self) -> int:
        return self.own + sum(node.counts for node in self.below)

    @property
    def used_drawn(self) -> int:
        return len(self.drawn) + sum(node.share[1] for node in self.below)

    @property
    def share(self) -> tuple[int, int]:
        return self.share_with(0, 0)

    def share_with(self, units: int, drawn: int) -> tuple[int, int]:
        """Units that it counts for above, with so many more, and how many of them promises there have."""
        used, drawn = self.used + units, self.used_drawn + drawn
        if not self.promised:
            return used, drawn - min(self.over_owed, drawn)
        within = min(drawn, self.reserve)
        return self.reserve + used - within, drawn - within + self.inside

    @property
    def counts(self) -> int:
        return self.share[0]

    def refuses(self, units: int, drawn: int) -> bool:
        """Whether this level, or one above it, has no room for more."""
        node: Node | None = self
        while node is not None and units:
            before, after = node.share, node.share_with(units, drawn)
            if node.quota is not None and after[0] > max(node.quota, before[0]):
                return True
            units, drawn = after[0] - before[0], after[1] - before[1]
            node = node.above
        return False

    def drawable(self) -> int:
        node, units = self.promise, 0
        while node is not None:
            units += node.left
            node = node.around
        return units

    @property
    def promise(self) -> Node | None:
        """The nearest open promise from here up."""
        node: Node | None = self
        while node is not None and not node.promised:
            node = node.above
        return node

    @property
    def around(self) -> Node | None:
        """The promise that this one was made in, or what that has become a part of."""
        return None if self.above is None else self.above.promise

    def put_back(self, units: int) -> None:
        owed = min(units, self.owed)
        self.owed -= owed
        units -= owed
        around = self.around
        if around is not None:
            up = min(units, self.borrowed)
            self.borrowed -= up
            units -= up
            around.put_back(up)
        self.left += units

    def top_up(self, units: int) -> None:
        around = self.around
        if self.left >= units or around is None:
            return
        missing = units - self.left
        around.top_up(missing)
        moved = min(missing, around.left)
        around.left -= moved
        self.left += moved
        self.borrowed += moved

    def start_promise(self) -> None:
        if not self.reserve:
            return
        self.promised = True
        drawable = 0 if self.above is None else self.above.drawable()
        self.extra = max(0, self.reserve - drawable)
        self.inside = self.reserve - self.extra
        self.top_up(self.reserve - self.extra)
        self.borrowed = 0
        self.left = self.reserve

    def all_below(self) -> list[Node]:
        """Descendants, each before the one it descends from."""
        return [one for node in self.below for one in [*node.all_below(), node]]


class Levels(RuleBasedStateMachine):
    """One pool, its groups and its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = slabpool.Pool("256MiB")
        self.nodes: list[Node] = []
        self.number = 0

    def _pick(self, pick: int, groups: bool = False) -> Node | None:
        known = [n for n in self.nodes if n.is_group == groups and n.open]
        return known[pick % len(known)] if known else None

    def _add(self, node: Node) -> None:
        self.nodes.append(node)
        if node.above is not None:
            node.above.below.append(node)

    @rule(quota=QUOTA, reserve=RESERVE)
    def open_group(self, quota: int | None, reserve: int) -> None:
        if quota is not None:
            reserve = min(quota, reserve)
        self.number += 1
        size = None if quota is None else quota * UNIT
        node = Node(
            self.pool.group(self.number, quota=size, reserve=reserve * UNIT),
            None,
            quota,
            reserve,
            is_group=True,
        )
        node.start_promise()
        self._add(node)

    @rule(pick=PICK, kind=st.integers(0, 3), quota=QUOTA, reserve=RESERVE, device=st.booleans())
    def open_request(self, pick: int, kind: int, quota: int | None, reserve: int, device: bool) -> None:
        above = None if kind == 0 else self._pick(pick, groups=kind == 1)
        if quota is not None:
            reserve = min(quota, reserve)
        devices = ["d"] if device and (above is None or above.is_group or above.device) else []
        size = None if quota is None else quota * UNIT
        depth, node = 0, above
        while node is not None:
            depth += node.is_level
            node = node.above
        if depth == 8 and (quota is not None or reserve):
            return
        refused = above is not None and above.refuses(reserve, min(reserve, above.drawable()))
        try:
            if above is None:
                made = self.pool.request("r", devices, quota=size, reserve=reserve * UNIT)
            elif isinstance(above.handle, slabpool.Group):
                made = above.handle.request("r", devices, quota=size, reserve=reserve * UNIT)
            else:
                made = above.handle.child(devices, quota=size, reserve=reserve * UNIT)
        except QuotaExceededError:
            assert refused
            return
        assert not refused
        opened = Node(made, above, quota, reserve, device=bool(devices))
        opened.start_promise()
        self._add(opened)

    @precondition(lambda self: self._pick(0) is not None)
    @rule(pick=PICK, count=st.integers(1, 4))
    def allocate(self, pick: int, count: int) -> None:
        node = self._pick(pick)
        assert node is not None and isinstance(node.handle, slabpool.Request)
        for _ in range(count):
            refused = node.refuses(1, min(1, node.drawable()))
            try:
                node.handle.empty(UNIT, np.uint8)
            except QuotaExceededError:
                assert refused
                return
            assert not refused
            node.own += 1
            promise = node.promise
            if promise is not None:
                promise.top_up(1)
                if promise.left:
                    promise.left -= 1
                    node.drawn.append(promise)

    def _end_promise(self, node: Node) -> None:
        node.open = False
        if not node.promised:
            return
        node.over_owed = max(0, min(node.used_drawn, node.reserve) - node.inside)
        node.promised = False
        target = node.around
        left, node.left = node.left, 0
        if target is not None:
            target.owed += node.extra + node.owed
            target.put_back(left)

    def _release(self, node: Node) -> None:
        self.nodes.remove(node)
        if node.above is not None:
            node.above.below.remove(node)
        for promise in node.drawn:
            target: Node | None = promise
            while target is not None and not target.promised:
                target = target.above
            if target is not None:
                target.put_back(1)

    @precondition(lambda self: any(not n.is_group for n in self.nodes))
    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        node = self._pick(pick)
        if node is None:
            return
        family = [*node.all_below(), node]
        assert isinstance(node.handle, slabpool.Request)
        node.handle.close()
        for one in family:
            if one.open:
                self._end_promise(one)
        self._settle()

    @rule(pick=PICK)
    def ack(self, pick: int) -> None:
        holders = [n for n in self.nodes if n.device]
        if not holders:
            return
        node = holders[pick % len(holders)]
        assert isinstance(node.handle, slabpool.Request)
        node.handle.ack("d")
        for one in [*node.all_below(), node]:
            one.device = False
        self._settle()

    def _settle(self) -> None:
        for node in [n for n in self.nodes if not n.is_group]:
            for one in [*node.all_below(), node]:
                if not one.open and not one.device and one in self.nodes and not one.is_group:
                    self._release(one)

    @rule(pick=PICK)
    def close_group(self, pick: int) -> None:
        node = self._pick(pick, groups=True)
        if node is None:
            return
        assert isinstance(node.handle, slabpool.Group)
        node.handle.close()
        node.open = False

    @invariant()
    def every_level_counts_what_is_below_it(self) -> None:
        for node in list(self.nodes):
            if node.is_group and not node.open and not node.below:
                self.nodes.remove(node)
                assert isinstance(node.handle, slabpool.Group)
                assert node.handle.stats()[1:4] == (0, node.handle.quota, 0)
        for node in self.nodes:
            if isinstance(node.handle, slabpool.Group):
                record = node.handle.stats()
                assert record.nbytes == node.used * UNIT
                assert record.requests == len(node.below)
                assert record.closed == (not node.open)
        assert len(self.pool.groups()) == sum(node.is_group for node in self.nodes)

    @invariant()
    def no_promise_is_lost(self) -> None:
        lasting = [n for n in self.nodes if n.promised]
        assert self.pool.stats().reserved == sum(n.left for n in lasting) * UNIT
        assert self.pool._verify() is None

    def teardown(self) -> None:
        for node in list(self.nodes):
            if isinstance(node.handle, slabpool.Request):
                node.handle.close()
                if node.device:
                    node.handle.ack("d")
            else:
                node.handle.close()
        assert self.pool.groups() == [] and self.pool.requests() == []
        assert self.pool.stats().live == self.pool.stats().reserved == 0
        self.pool.close()


class TestLevels(Levels.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(max_examples=RUNS, stateful_step_count=40, deadline=None)


def test_budgets_nest_up_to_eight_levels(pool: slabpool.Pool) -> None:
    group = pool.group("tenant", quota="1MiB")
    chain = [group.request("r", quota="1MiB")]
    while len(chain) < 7:
        chain.append(chain[-1].child(quota="1MiB"))
    with pytest.raises(slabpool.InvalidArgumentError, match="inside of eight requests"):
        chain[-1].child(quota="1MiB")
    with pytest.raises(slabpool.InvalidArgumentError, match="inside of eight requests"):
        chain[-1].child(reserve=4096)
    for _ in range(8):  # without a budget of their own they nest as deep as one likes
        chain.append(chain[-1].child())
    chain[-1].empty(4096, np.uint8)
    assert group.stats().nbytes == 4096
    chain[0].close()
    assert group.stats().nbytes == 0
