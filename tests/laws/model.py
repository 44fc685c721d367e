"""A plain model of the holders and their memory, with which the pool is compared.

It knows the laws and the terms of the contract (holders, generations, children, quota, reserve), not how the
pool is built: it learns the size of a block from the pool when the block is handed out, and checks it against
the promised rounding. Invariant: every call on the pool has its step here, and after each step the pool's own
figures equal these.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from slabpool import Ack, GrowableTensor, Layout, Pool, Request, RequestState, Session, Stats, Tensors

PAGE = 4 << 10
SMALL = 128 << 10  # blocks of up to this size share slabs
Bytes = npt.NDArray[np.uint8]


def pages(nbytes: int) -> int:
    """Bytes, rounded up to whole pages."""
    return -(-nbytes // PAGE) * PAGE


def pinned_bytes(block: int) -> int:
    """Most bytes of pages that one block can pin: every page that it lies on."""
    return block if block > SMALL else pages(block) + (0 if block % PAGE == 0 else PAGE)


def block_bound(nbytes: int, align: int) -> int:
    """Most bytes that the block of a tensor may have: 1/8 of waste above 1 KiB, a step of 64 bytes below."""
    need = -(-max(nbytes, 1) // max(align, 64)) * max(align, 64)
    return max(need + need // 8, need + 63, align)


@dataclass(eq=False)
class Block:
    """One block and its holds: one by its request until that is over, and one by each array made over it."""

    size: int
    request: RequestModel | None
    views: int = 0
    outside: int = 0  # most bytes of pages that it pins beyond its request's reserve
    origin: RequestModel | None = None  # root of the request that made it; it may draw on the root's reserve

    @property
    def held(self) -> bool:
        return self.views > 0 or (self.request is not None and not self.request.over)


@dataclass(eq=False)
class View:
    """One numpy array of the pool with its slices, and the stamp that its bytes must keep."""

    block: Block
    stamp: int
    arrays: list[tuple[npt.NDArray[np.generic], int]]  # each with the offset of its first byte in the tensor
    growing: GrowableTensor | None = None  # keeps the block too
    grower: RequestModel | None = None  # the request it grows for

    def intact(self) -> bool:
        """Whether every byte still has the value that was written."""
        return all(np.array_equal(flat(a), stamped(self.stamp, start, a.nbytes)) for a, start in self.arrays)


@dataclass(eq=False)
class TensorsModel:
    """A layout that was allocated: its block, and the stamps written to its tensors."""

    tensors: Tensors
    layout: Layout
    block: Block
    request: RequestModel  # the request for which views are made
    stamps: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class RequestModel:
    """One generation of a request."""

    id: str | int | bytes
    generation: int
    parent: RequestModel | None
    pending: set[str | int]
    named: set[str | int]
    leased: bool  # with a lease so short that it has expired
    handle: Request | None
    quota: int | None = None
    reserve: int = 0
    reserve_left: int = 0  # bytes of the reserved pages that were not drawn yet
    tidy: bool = True  # no block came back and none was aligned, so blocks are adjacent
    used: int = 0  # by itself and its children, for the quota; only the root counts
    charged: int = 0
    host: bool = True
    over: bool = False
    cancelled: bool = False
    gave_up: bool = False  # by its own cancel(), not by its parent's
    blocks: list[Block] = field(default_factory=list)
    lent: list[Block] = field(
        default_factory=list
    )  # that moved from here, each with a view until this is over
    children: list[RequestModel] = field(default_factory=list)
    kept_as: str | None = None  # the name under which a session keeps it
    pins: set[RequestModel] = field(default_factory=set)  # live requests that may read what is kept here
    pinned: list[RequestModel | SessionModel] = field(default_factory=list)

    @property
    def root(self) -> RequestModel:
        return self if self.parent is None else self.parent.root

    @property
    def promised(self) -> bool:
        """Whether bytes of its reserve may still be drawn: the host, and so a child's, holds it."""
        return self.reserve > 0 and self.host

    @property
    def nbytes(self) -> int:
        return sum(b.size for b in self.blocks if b.held)

    @property
    def live_views(self) -> int:
        return sum(b.views for b in self.blocks)

    @property
    def state(self) -> RequestState:
        if self.over:
            return RequestState.RELEASED
        if self.kept_as is not None and self.host:
            return RequestState.KEPT
        if self.leased and self.pending:
            return RequestState.IN_DOUBT
        return RequestState.OPEN if self.host else RequestState.DRAINING


@dataclass(eq=False)
class KeptModel:
    """What a session keeps under a name: part of a tensor that bears a stamp, or a layout."""

    keeper: RequestModel
    stamp: int = 0
    start: int = 0
    nbytes: int = 0
    tensors: TensorsModel | None = None
    grows: bool = False


@dataclass(eq=False)
class SessionModel:
    """One session, until it is closed or evicted."""

    id: str | int | bytes
    session: Session
    budget: int | None
    names: dict[str, KeptModel] = field(default_factory=dict)
    pins: set[RequestModel] = field(default_factory=set)
    idle_since: int = 0  # step of the model

    @property
    def keepers(self) -> set[RequestModel]:
        return {kept.keeper for kept in self.names.values()}

    @property
    def nbytes(self) -> int:
        return sum(keeper.nbytes for keeper in self.keepers)

    @property
    def evictable(self) -> bool:
        return not self.pins and not any(keeper.live_views for keeper in self.keepers)


class PoolModel:
    """All of one pool: the figures that it must report."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.requests: list[RequestModel] = []
        self.blocks: list[Block] = []  # those that are held
        self.known_devices: set[str | int] = set()
        self.allocations = self.frees = self.peak = 0
        self.acks = self.duplicates = self.lates = self.exhaustions = 0
        # Requests to which blocks came back in this step: their reserve may grow by as much; the pool says by
        # how much.
        self.gaining: list[RequestModel] = []
        self._stamps = itertools.count(1)
        self.sessions: list[SessionModel] = []  # those that are neither closed nor evicted
        self._steps = itertools.count(1)

    # ---- figures

    @property
    def live_requests(self) -> list[RequestModel]:
        return [r for r in self.requests if not r.over and r.kept_as is None]

    def held(self) -> int:
        return sum(b.size for b in self.blocks)

    def pinned(self, without_idle: bool = False) -> int:
        """Most bytes of pages that other requests cannot use because of held blocks and drawn reserves.

        `without_idle`: as if every session were evicted that may be.
        """
        drawn = sum(pages(r.reserve) - r.reserve_left for r in self.live_requests if r.promised)
        going: set[RequestModel] = set()
        if without_idle:
            going.update(keeper for s in self.sessions if s.evictable for keeper in s.keepers)
        return drawn + sum(b.outside for b in self.blocks if b.request not in going)

    def retained(self) -> int:
        return sum(b.size for b in self.blocks if b.request is not None and b.request.over)

    def in_doubt(self) -> int:
        return sum(r.nbytes for r in self.requests if r.state is RequestState.IN_DOUBT)

    def set_aside(self) -> int:
        return sum(r.reserve_left for r in self.live_requests)

    # ---- blocks

    def new_stamp(self) -> int:
        return next(self._stamps) * 0x9E3779B97F4A7C15 % (1 << 64)

    def allocated(self, request: RequestModel | None, size: int, aligned: int, set_aside: int) -> Block:
        """The pool handed out a block of `size` bytes, and has `set_aside` reserved bytes now."""
        drawn = self.set_aside() - set_aside
        block = Block(size, request, origin=None if request is None else request.root)
        self.blocks.append(block)
        self.allocations += 1
        self.peak = max(self.peak, self.held())
        block.outside = pinned_bytes(size)
        if request is None or not request.root.reserve:
            assert drawn == 0, "reserved bytes went to another request"
        if request is not None:
            request.blocks.append(block)
            request.charged += size
            root = request.root
            root.used += size
            root.tidy &= aligned <= 64
            assert 0 <= drawn <= root.reserve_left
            if size > SMALL:
                assert drawn == min(root.reserve_left, size)
                block.outside = size - drawn
            elif root.reserve_left >= pages(size):
                # The block begins where the last one ended, which may be anywhere in a page.
                assert drawn <= pages(size) + (0 if aligned <= 64 else PAGE)
                block.outside = 0
            root.reserve_left -= drawn
            if root.tidy:
                assert pages(root.used) + root.reserve_left >= pages(root.reserve), "drawn but not used"
        return block

    def open_growing(self, request: RequestModel) -> Block:
        block = Block(0, request, origin=request.root)
        self.blocks.append(block)
        request.blocks.append(block)
        self.allocations += 1
        return block

    def grown(self, block: Block, size: int, set_aside: int) -> None:
        """A block has grown to `size` bytes."""
        request = block.request
        assert request is not None and block.size <= size == pages(size)
        drawn = self.set_aside() - set_aside
        more = size - block.size
        block.size = size
        self.peak = max(self.peak, self.held())
        root = request.root
        assert drawn == min(root.reserve_left, more)
        request.charged += more
        root.used += more
        block.outside += more - drawn
        root.reserve_left -= drawn

    def let_go(self, block: Block) -> None:
        """A hold on the block has gone: the block may be free now."""
        if not block.held:
            self.blocks.remove(block)
            self.frees += 1
            root = block.origin
            if root is not None and root.promised:
                root.tidy = False
                self.gaining.append(root)

    # ---- holders

    def device_leaves(self, request: RequestModel, device: str | int) -> None:
        for child in request.children:
            if not child.over:
                self.device_leaves(child, device)
        request.pending.discard(device)
        self._end_if_left(request)

    def host_leaves(self, request: RequestModel, cancel: bool) -> None:
        if request.over or not request.host:
            return
        for child in request.children:
            self.host_leaves(child, cancel)
        request.host = False
        request.cancelled = cancel
        if request.root is request and request.reserve:
            request.reserve_left = 0
            for block in self.blocks:
                if block.origin is request and block.held:
                    # It keeps whole pages, which no other block can give back.
                    block.outside = max(block.outside, pages(block.size) + PAGE)
        self._end_if_left(request)

    def _end_if_left(self, request: RequestModel) -> None:
        if request.over or request.host or request.pending or request.pins:
            return
        assert all(child.over for child in request.children), "a child outlives its parent"
        held = [b for b in request.blocks if b.held]
        request.over = True
        for block in held:
            self.let_go(block)
        for block in request.lent:
            block.views -= 1
            self.let_go(block)
        request.lent.clear()
        request.root.used -= request.charged
        if request.root is not request and request.charged:
            request.root.tidy = False  # views may keep memory that is no longer charged to it
        step = next(self._steps)
        for pinned in request.pinned:
            pinned.pins.discard(request)
            if isinstance(pinned, SessionModel):
                pinned.idle_since = step if not pinned.pins else 0
            else:
                self._end_if_left(pinned)

    # ---- moves

    def adopt(self, block: Block, target: RequestModel) -> None:
        """The block moved. If a device holds the request that had it, that has a view until it is over."""
        source = block.request
        assert source is not None
        for request, size in ((source, -block.size), (target, block.size)):
            request.charged += size
            request.root.used += size
        source.blocks.remove(block)
        target.blocks.append(block)
        block.request = target
        if block in target.lent:
            target.lent.remove(block)
            block.views -= 1
        if source.pending:
            source.lent.append(block)
            block.views += 1

    # ---- sessions

    def keep(self, session: SessionModel, name: str, generation: int, block: Block, what: KeptModel) -> None:
        """The block moved to the session; `what` gets the request that keeps it."""
        request = block.request
        assert request is not None
        request.blocks.remove(block)
        request.charged -= block.size
        request.root.used -= block.size
        keeper = RequestModel(session.id, generation, None, set(), set(), False, None, kept_as=name)
        keeper.blocks.append(block)
        block.request = keeper
        self.requests.append(keeper)
        self.pin(request, session, keeper)
        what.keeper = keeper
        self.name(session, name, what)

    def pin(self, request: RequestModel, *pinned: SessionModel | RequestModel) -> None:
        """All of these stay until the request is over."""
        for one in pinned:
            one.pins.add(request)
            request.pinned.append(one)

    def name(self, session: SessionModel, name: str, what: KeptModel) -> None:
        """Store `what` under the name; the tensor stored before goes, if no other name has it."""
        old = session.names.get(name)
        session.names[name] = what
        if old is not None:
            self.unname(session, old)

    def unname(self, session: SessionModel, old: KeptModel) -> None:
        if old.keeper not in session.keepers:
            self.host_leaves(old.keeper, False)

    def end_session(self, session: SessionModel) -> None:
        self.sessions.remove(session)
        for keeper in session.keepers:
            self.host_leaves(keeper, False)

    def learn_evictions(self, refused: bool = False) -> None:
        """The pool decides which sessions it evicts; whether it may is checked.

        `tests/session/test_plan.py` checks which go first, and that none of them could have been left out.
        """
        gone = [s for s in self.sessions if s.session.evicted]
        assert not (refused and gone), "evicted for nothing"
        for session in gone:
            assert session.evictable, "evicted while in use, or while views kept its memory"
            assert session.keepers, "evicted although it kept nothing"
            self.end_session(session)

    def ack(self, request: RequestModel, device: str | int) -> Ack | None:
        """The answer that an ack must have, None for an unknown device; applies its effect."""
        if device not in request.named:
            return None
        if request.over:
            self.lates += 1
            return Ack.LATE
        if device not in request.pending:
            self.duplicates += 1
            return Ack.DUPLICATE
        self.acks += 1
        self.device_leaves(request, device)
        return Ack.RELEASED if request.over else Ack.PENDING

    def waiting(
        self, id: str | int | bytes, device: str | int
    ) -> tuple[list[RequestModel], list[RequestModel]]:
        """Live requests of an id that are not children, and those of them that wait for the device."""
        live = [r for r in self.live_requests if r.parent is None and r.id == id and type(r.id) is type(id)]
        return live, [r for r in live if device in r.pending]

    def device_lost(self, device: str | int) -> int:
        held = [r for r in self.live_requests if device in r.pending]
        for request in held:
            if not request.over:
                self.device_leaves(request, device)
        return len(held)

    # ---- comparison with the pool

    def check_figures(self, s: Stats) -> None:
        """The laws on bytes and counts."""
        assert s.committed == s.live + s.retained + s.in_doubt + s.cached
        assert s.committed <= s.capacity == self.capacity
        assert min(s.live, s.retained, s.in_doubt, s.cached, s.reserved) >= 0
        retained, in_doubt = self.retained(), self.in_doubt()
        assert (s.live, s.retained, s.in_doubt) == (self.held() - retained - in_doubt, retained, in_doubt)
        assert s.live + s.retained + s.in_doubt + s.reserved <= s.capacity
        assert s.peak_live == self.peak
        assert s.peak_committed >= s.committed
        assert (s.allocations, s.frees) == (self.allocations, self.frees)
        assert (s.acks, s.duplicate_acks, s.late_acks) == (self.acks, self.duplicates, self.lates)
        assert s.exhaustions == self.exhaustions
        live = self.live_requests
        assert s.requests_open == sum(r.host for r in live)
        assert s.requests_draining == sum(not r.host for r in live)
        assert s.requests_in_doubt == sum(r.state is RequestState.IN_DOUBT for r in live)
        self._check_set_aside(s.reserved)

    def _check_set_aside(self, set_aside: int) -> None:
        """Exact, except for the pages that become empty when blocks return to a reserve: the pool says how
        many."""
        back = set_aside - self.set_aside()
        gaining = [r for r in set(self.gaining) if r.promised]
        self.gaining.clear()
        if not gaining:
            assert back == 0
            return
        assert len(gaining) == 1, "children of several reserves ended in one step"
        gaining[0].reserve_left += back
        assert back >= 0
        assert gaining[0].reserve_left <= pages(gaining[0].reserve)
        if not any(b.origin is gaining[0] for b in self.blocks):
            assert gaining[0].reserve_left == pages(gaining[0].reserve), (
                "all blocks came back, but not to the reserve"
            )

    def check_sessions(self, pool: Pool) -> None:
        """What the pool reports about each session."""
        listed = {(type(s.session_id), s.session_id): s for s in pool.sessions()}
        assert len(listed) == len(self.sessions)
        for session in self.sessions:
            record = listed[type(session.id), session.id]
            assert (record.names, record.nbytes) == (tuple(session.names), session.nbytes)
            assert (record.requests, record.budget) == (len(session.pins), session.budget)
            assert (record.idle is None) == bool(session.pins) == session.session.in_use

    def check_requests(self, pool: Pool) -> None:
        """What the pool reports about each request, in its list and through the handles."""
        kept = (r for r in self.requests if not r.over or any(b.held for b in r.blocks))
        kept = sorted(kept, key=lambda r: r.generation)
        listed = pool.requests()
        assert [r.generation for r in listed] == [r.generation for r in kept]
        for record, request in zip(listed, kept, strict=True):
            assert (record.request_id, type(record.request_id)) == (request.id, type(request.id))
            assert record.state is request.state
            assert record.pending == request.pending
            assert record.nbytes == request.nbytes
            assert record.live_views == request.live_views
            assert record.parent == (request.parent.generation if request.parent else None)
            assert record.kept_as == request.kept_as
            if (handle := request.handle) is not None:
                assert (handle.state, handle.pending) == (record.state, record.pending)
                assert (handle.nbytes, handle.live_views) == (record.nbytes, record.live_views)
        for request in self.requests:
            if request.handle is not None:
                if not request.gave_up and request.over:  # a later request may have taken its place
                    assert request.handle.cancelled <= request.cancelled
                else:
                    assert request.handle.cancelled == (request.gave_up or request.cancelled)
                if request.over:
                    assert request.handle.state is RequestState.RELEASED
                    assert request.handle.nbytes == request.nbytes


def flat(array: npt.NDArray[np.generic]) -> Bytes:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8)


def stamped(stamp: int, start: int, nbytes: int) -> Bytes:
    """`nbytes` bytes of a stamp's pattern, from byte `start` of the tensor with that stamp."""
    words = np.full((start % 8 + nbytes) // 8 + 1, stamp, np.uint64)
    return words.view(np.uint8)[start % 8 : start % 8 + nbytes]
