"""One pool, its model, and the laws that must hold after every step: the base of the random tests.

The rules are in `rules_memory`, `rules_holders`, `rules_sessions` and `rules_moving`. Every rule makes one
call on the pool and the same step in the model, and compares the answers; `laws` then compares everything
that the pool reports.
"""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import slabpool
from slabpool import Pool
from tests.laws.model import PoolModel, RequestModel, TensorsModel, View, pages

CAPACITY = 4 << 20
IDS = st.sampled_from(["r", "r", 7, "7", b"r"])
DEVICES = ["d0", "d1", "d2", 3, "3"]
DEVICE = st.sampled_from(DEVICES)
DEVICES_OF_ONE = st.lists(DEVICE, min_size=1, max_size=4, unique=True)
PICK = st.integers(0, 1 << 30)
MOSTLY = st.sampled_from([True, True, True, True, False])


class Machine(RuleBasedStateMachine):
    """One pool with its options, its model, and the arrays the test keeps."""

    options: dict[str, object] = {}

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(CAPACITY, **self.options)  # type: ignore[arg-type]
        self.model = PoolModel(CAPACITY)
        self.views: list[View] = []
        self.layouts: list[TensorsModel] = []
        self.guard = 64 if self.options.get("debug") else 0
        self.scrubbed = self.options.get("scrub") == "release"
        self.peak_committed = 0

    # ---- opening

    @initialize(devices=st.lists(DEVICES_OF_ONE, min_size=1, max_size=3))
    def first(self, devices: list[list[str | int]]) -> None:
        for some in devices:
            self._open("r", some, None, None, False)

    @rule(id=IDS, devices=DEVICES_OF_ONE, leased=st.sampled_from([False, False, True]))
    def open(self, id: str | int | bytes, devices: list[str | int], leased: bool) -> None:
        self._open(id, devices, None, None, leased)

    @rule(
        devices=DEVICES_OF_ONE,
        reserve=st.one_of(
            st.none(), st.sampled_from([0, 1, 300_000, CAPACITY // 4]), st.integers(0, CAPACITY // 2)
        ),
        more=st.one_of(st.none(), st.integers(-1, CAPACITY // 2)),
    )
    def open_with_budget(self, devices: list[str | int], reserve: int | None, more: int | None) -> None:
        quota = None if more is None else max((reserve or 0) + more, 1)
        self._open("budget", devices, reserve, quota, False)

    @rule(devices=st.lists(DEVICE, max_size=4), reserve=st.sampled_from([None, CAPACITY, CAPACITY + 1]))
    def open_at_the_edge(self, devices: list[str | int], reserve: int | None) -> None:
        self._open("edge", devices, reserve, None, False)

    def _open(self, id: str | int | bytes, devices: list[str | int], reserve: int | None, quota: int | None,
              leased: bool) -> None:  # fmt: skip
        model = self.model
        before = self.pool.stats()
        model.known_devices.update(devices)
        lease = 1e-9 if leased else 1e6
        try:
            try:
                handle = self.pool.request(id, devices, reserve=reserve, quota=quota, lease=lease)
            except slabpool.SlabpoolError:
                model.learn_evictions(refused=True)
                raise
            model.learn_evictions()
        except slabpool.TensorTooLargeError:
            assert reserve is not None and reserve > CAPACITY
        except slabpool.PoolExhausted:
            held = model.pinned(without_idle=True) + before.reserved
            assert reserve and held + pages(reserve) > CAPACITY, "a reserve that fits"
            model.exhaustions += 1
        except slabpool.DuplicateDeviceError:
            assert len(set(devices)) < len(devices)
        except slabpool.InvalidArgumentError:
            assert reserve is not None and quota is not None and reserve > quota
        else:
            assert len(set(devices)) == len(devices)
            assert reserve is None or (reserve <= CAPACITY and (quota is None or reserve <= quota))
            assert handle.id == id
            assert handle.generation > max((r.generation for r in model.requests), default=0)
            model.requests.append(
                RequestModel(
                    id,
                    handle.generation,
                    None,
                    set(devices),
                    set(devices),
                    leased,
                    handle,
                    quota,
                    reserve or 0,
                    pages(reserve or 0),
                )
            )

    def _request(self, pick: int, alive: bool, host: bool = False) -> RequestModel | None:
        """A request with a handle; with `alive` one that is not over, with `host` one that the host holds."""
        some = [r for r in self.model.requests if r.handle is not None]
        living = [r for r in some if (r.host if host else not r.over)]
        some = living if alive and living else some
        return some[pick % len(some)] if some else None

    # ---- the pool

    @rule()
    def trim(self) -> None:
        before = self.pool.stats()
        given = self.pool.trim()
        after = self.pool.stats()
        assert given == before.committed - after.committed
        assert after.committed <= self.model.pinned() + after.reserved

    @precondition(lambda self: self.model.live_requests or self.views)
    @rule()
    def close_while_busy(self) -> None:
        with pytest.raises(slabpool.PoolBusyError):
            self.pool.close()
        assert not self.pool.closed

    # ---- the laws

    @invariant()
    def laws(self) -> None:
        s = self.pool.stats()
        self.model.check_figures(s)
        self.model.check_requests(self.pool)
        self.model.check_sessions(self.pool)
        assert s.peak_committed >= self.peak_committed
        self.peak_committed = s.peak_committed
        assert all(view.intact() for view in self.views), "bytes changed while they were held"
        assert self.pool._verify() is None
        assert self.pool.corruptions() == []

    def _forget_growing(self) -> None:
        """Drop the growing tensors; arrays of them stay."""
        for view in self.views:
            if view.growing is not None:
                view.growing = None
                view.block.views -= not view.arrays

    def teardown(self) -> None:
        """Half of the runs end in order, half by force with views that outlive everything."""
        model = self.model
        if len(model.requests) % 2:
            for session in list(model.sessions):
                session.session.close()
                model.end_session(session)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                self._forget_growing()  # because they keep their handles
                for request in model.requests:
                    request.handle = None
            for request in model.live_requests:
                for device in list(request.pending):
                    self.pool.ack(request.id, device, generation=request.generation)
        else:
            self.pool.close(force=True)
            assert self.pool.closed
            assert all(view.intact() for view in self.views)
        self._forget_growing()
        s = self.pool.stats()
        for request in model.requests:  # all are over now
            for block in request.lent:
                block.views -= 1
        in_views = sum(b.size for b in model.blocks if b.views)
        assert s.live + s.retained == in_views
        assert s.requests_open + s.requests_draining + s.in_doubt + s.reserved == 0
        self.views.clear()
        s = self.pool.stats()
        assert (s.live, s.retained, s.allocations) == (0, 0, s.frees)
        assert self.pool.requests() == []
        assert self.pool._verify() is None
        if not self.pool.closed:
            self.pool.close()
        assert self.pool.stats().committed == 0, "a closed pool without holders keeps memory"
