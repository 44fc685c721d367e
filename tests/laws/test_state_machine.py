"""Random lives of a pool, step by step against a plain model of who holds what.

After every step all the laws that can be observed must hold: bytes add up and equal the model's, every
count is exact, nobody's bytes changed while held (each array bears a stamp of its own), every answer is the
one the model gives, and what the model says must fit was served. Wrong calls must leave all that as it was.
"""

from __future__ import annotations

import os
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import slabpool
from slabpool import Ack, Layout, Pool
from tests.laws.model import (
    SMALL,
    Block,
    PoolModel,
    RequestModel,
    TensorsModel,
    View,
    block_bound,
    flat,
    pages,
    stamped,
)

CAPACITY = 4 << 20
IDS = st.sampled_from(["r", "r", 7, "7", b"r"])
DEVICES = ["d0", "d1", "d2", 3, "3"]
DEVICE = st.sampled_from(DEVICES)
DEVICES_OF_ONE = st.lists(DEVICE, min_size=1, max_size=4, unique=True)
NBYTES = st.one_of(
    st.sampled_from([1000, 4096, 300_000]),  # often the same, so that blocks come back
    st.sampled_from([0, 1, 63, 64, 65, 1000, 1024, 1025, 4096, 20000, SMALL, SMALL + 1]),
    st.integers(0, 8192),
    st.integers(SMALL, CAPACITY // 2),
)
KINDS = st.sampled_from(["empty", "zeros", "full", "copy"])
ALIGNS = st.sampled_from([None, None, None, 1, 64, 256, 4096, 65536])
PICK = st.integers(0, 1 << 30)
MOSTLY = st.sampled_from([True, True, True, True, False])
LAYOUTS = [
    Layout({"x": (1000, "u1")}),
    Layout(
        {
            "k": ((2, 3, 40), "f2"),
            "none": ((0, 4), "f8"),
            "v": ((), "f8"),
            "s": (5, [("a", "i4"), ("b", "f8")]),
        }
    ),
    Layout({"big": ((300, 1000), "u1"), "small": (7, "u4")}),
]
# Dtype and trailing shape that tensors are made in, to see that bytes alone matter.
FORMS: list[tuple[object, int, tuple[int, ...]]] = [
    ("u1", 1, ()),
    ("f4", 4, ()),
    ([("a", "i4"), ("b", "f8")], 12, ()),
    ("f2", 6, (3,)),
]


class PoolMachine(RuleBasedStateMachine):
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
            handle = self.pool.request(id, devices, reserve=reserve, quota=quota, lease=lease)
        except slabpool.TensorTooLargeError:
            assert reserve is not None and reserve > CAPACITY
        except slabpool.PoolExhausted:
            assert reserve and model.pinned() + before.set_aside + reserve > CAPACITY, "a reserve that fits"
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
                    reserve or 0,
                )
            )

    def _request(self, pick: int, alive: bool, host: bool = False) -> RequestModel | None:
        """One of the requests with a handle; one that is not over, or that the host holds, if asked for."""
        some = [r for r in self.model.requests if r.handle is not None]
        living = [r for r in some if (r.host if host else not r.over)]
        some = living if alive and living else some
        return some[pick % len(some)] if some else None

    @precondition(lambda self: self.model.requests)
    @rule(
        pick=PICK,
        devices=st.lists(DEVICE, max_size=3, unique=True),
        alive=MOSTLY,
        subset=MOSTLY,
        nbytes=NBYTES,
    )
    def child(self, pick: int, devices: list[str | int], alive: bool, subset: bool, nbytes: int) -> None:
        if (parent := self._request(pick, alive, host=True)) is None:
            return
        if subset:
            devices = [device for device in devices if device in parent.pending]
        handle = parent.handle
        assert handle is not None
        try:
            child = handle.child(devices)
        except slabpool.RequestClosedError:
            assert not parent.host
        except slabpool.UnknownDeviceError:
            assert not set(devices) <= parent.pending
        else:
            assert parent.host and set(devices) <= parent.pending
            assert (child.id, child.parent) == (parent.id, parent.generation)
            made = RequestModel(
                parent.id, child.generation, parent, set(devices), set(devices), parent.leased, child
            )
            parent.children.append(made)
            self.model.requests.append(made)
            self._new_array(made, "empty", nbytes, 0, None)

    # ---- memory

    def _must_fit(self, request: RequestModel | None, nbytes: int, align: int) -> bool:
        """Whether the pool has no excuse: even if every held block pins the most it can."""
        fresh = pages(block_bound(nbytes, align))
        own = 0 if request is None else min(request.root.reserve_left, fresh)
        if own == fresh:
            return True  # what was set aside is there, whatever else is
        return self.model.pinned() + fresh + self.model.set_aside() - own <= CAPACITY

    def _allocated(self, request: RequestModel | None, held_before: int, nbytes: int, align: int) -> Block:
        s = self.pool.stats()
        size = s.live + s.retained + s.in_doubt - held_before
        assert max(nbytes, 1) <= size <= block_bound(nbytes + self.guard, align)
        if request is not None and request.root.quota is not None:
            assert request.root.used + size <= request.root.quota
        return self.model.allocated(request, size, s.set_aside)

    def _refused(self, error: Exception, request: RequestModel | None, nbytes: int, align: int) -> None:
        """Whether that was a right answer."""
        nbytes += self.guard
        if isinstance(error, slabpool.RequestClosedError):
            assert request is not None and not request.host
        elif isinstance(error, slabpool.QuotaExceededError):
            assert request is not None and request.root.quota is not None
            assert request.root.used + block_bound(nbytes, align) > request.root.quota
        elif isinstance(error, slabpool.TensorTooLargeError):
            assert block_bound(nbytes, align) > CAPACITY
        else:
            assert isinstance(error, slabpool.PoolExhausted), error
            assert not self._must_fit(request, nbytes, align), "refused what must fit"
            self.model.exhaustions += 1

    def _new_array(
        self, request: RequestModel | None, kind: str, nbytes: int, form: int, align: int | None
    ) -> None:
        dtype, unit, tail = FORMS[form]
        shape = (nbytes // unit, *tail)
        nbytes = nbytes // unit * unit
        maker = self.pool if request is None else request.handle
        assert maker is not None
        held = self.model.held()
        source = stamped(0xABCDEF0123456789, 0, nbytes).view(np.dtype(dtype)).reshape(shape)
        try:
            if kind == "full":
                array = maker.full(shape, 7, dtype, align=align)
            elif kind == "copy":
                array = maker.copy(source, align=align)
            else:
                array = getattr(maker, kind)(shape, dtype, align=align)
        except slabpool.SlabpoolError as error:
            self._refused(error, request, nbytes, align or 64)
            return
        block = self._allocated(request, held, nbytes, align or 64)
        assert type(array) is np.ndarray and array.shape == shape and array.dtype == np.dtype(dtype)
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % (align or 64) == 0
        if kind == "zeros" or (kind == "empty" and self.scrubbed):
            assert not flat(array).any(), "bytes of somebody else"
        if kind == "full":
            assert np.array_equal(array, np.full(shape, 7, dtype))
        if kind == "copy":
            assert np.array_equal(flat(array), flat(source))
        stamp = self.model.new_stamp()
        flat(array)[...] = stamped(stamp, 0, nbytes)
        block.views += 1
        self.views.append(View(block, stamp, [(array, 0)]))

    @rule(kind=KINDS, nbytes=NBYTES, form=st.integers(0, len(FORMS) - 1), align=ALIGNS)
    def plain_array(self, kind: str, nbytes: int, form: int, align: int | None) -> None:
        self._new_array(None, kind, nbytes, form, align)

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, kind=KINDS, nbytes=NBYTES, form=st.integers(0, len(FORMS) - 1), align=ALIGNS,
          keep=MOSTLY, alive=MOSTLY)  # fmt: skip
    def request_array(self, pick: int, kind: str, nbytes: int, form: int, align: int | None, keep: bool,
                      alive: bool) -> None:  # fmt: skip
        if (request := self._request(pick, alive, host=True)) is None:
            return
        before = len(self.views)
        self._new_array(request, kind, nbytes, form, align)
        if not keep and len(self.views) > before:
            self._drop(self.views[-1], 0)

    @precondition(lambda self: any(r.reserve or r.quota for r in self.model.live_requests))
    @rule(pick=PICK, nbytes=NBYTES)
    def array_of_a_budget(self, pick: int, nbytes: int) -> None:
        some = [
            r for r in self.model.live_requests if r.handle is not None and (r.root.reserve or r.root.quota)
        ]
        if some:
            self._new_array(some[pick % len(some)], "empty", nbytes, 0, None)

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, which=st.integers(0, len(LAYOUTS) - 1), zero=st.booleans())
    def allocate_layout(self, pick: int, which: int, zero: bool) -> None:
        if (request := self._request(pick, alive=True, host=True)) is None:
            return
        layout = LAYOUTS[which]
        held = self.model.held()
        assert request.handle is not None
        try:
            tensors = request.handle.allocate(layout, zero=zero)
        except slabpool.SlabpoolError as error:
            self._refused(error, request, layout.nbytes, 64)
            return
        block = self._allocated(request, held, layout.nbytes, 64)
        if zero:
            assert not any(flat(array).any() for array in tensors.values())
        made = TensorsModel(tensors, layout, block)
        for name in layout.names:
            stamp = made.stamps[name] = self.model.new_stamp()
            array = flat(tensors[name])
            array[...] = stamped(stamp, 0, array.nbytes)
        self.layouts.append(made)

    @precondition(lambda self: self.layouts)
    @rule(pick=PICK, field=PICK)
    def view_of_layout(self, pick: int, field: int) -> None:
        made = self.layouts[pick % len(self.layouts)]
        name = made.layout.names[field % len(made.layout.names)]
        request = made.block.request
        assert request is not None
        try:
            array = made.tensors[name]
        except slabpool.RequestClosedError:
            assert request.over
            return
        assert not request.over, "a view of a request that is over"
        made.block.views += 1
        self.views.append(View(made.block, made.stamps[name], [(array, 0)]))

    @precondition(lambda self: self.views)
    @rule(pick=PICK, start=PICK, length=PICK)
    def slice_view(self, pick: int, start: int, length: int) -> None:
        view = self.views[pick % len(self.views)]
        array, offset = view.arrays[start % len(view.arrays)]
        start %= array.nbytes + 1
        view.arrays.append((flat(array)[start : start + length % 5000], offset + start))

    def _drop(self, view: View, index: int) -> None:
        del view.arrays[index % len(view.arrays)]
        if not view.arrays:
            self.views.remove(view)
            view.block.views -= 1
            self.model.let_go(view.block)

    @precondition(lambda self: self.views)
    @rule(pick=PICK, index=PICK)
    def drop_view(self, pick: int, index: int) -> None:
        self._drop(self.views[pick % len(self.views)], index)

    # ---- holders

    def _pending(self, pick: int, device: int) -> tuple[RequestModel, str | int] | None:
        """A request that is not over, and a device that it waits for."""
        some = [r for r in self.model.live_requests if r.pending]
        if not some:
            return None
        request = some[pick % len(some)]
        pending = sorted(request.pending, key=repr)
        return request, pending[device % len(pending)]

    @rule(pick=PICK, device=PICK)
    def ack_one_that_waits(self, pick: int, device: int) -> None:
        if (found := self._pending(pick, device)) is not None and found[0].handle is not None:
            self._compare_ack(*found, found[0].handle.ack, found[1])

    @rule(pick=PICK, device=PICK, generation=st.booleans())
    def ack_one_that_waits_by_id(self, pick: int, device: int, generation: bool) -> None:
        if (found := self._pending(pick, device)) is None:
            return
        if generation:
            self._compare_ack(*found, self.pool.ack, found[0].id, found[1], generation=found[0].generation)
        else:
            self._ack_by_id(found[0].id, found[1])

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=PICK)
    def ack_again(self, pick: int, device: int) -> None:
        some = [r for r in self.model.requests if r.handle is not None and r.named - r.pending]
        if some:
            request = some[pick % len(some)]
            acked = sorted(request.named - request.pending, key=repr)
            assert request.handle is not None
            self._compare_ack(request, again := acked[device % len(acked)], request.handle.ack, again)

    @precondition(lambda self: self.model.live_requests)
    @rule(pick=PICK, close_last=st.booleans())
    def serve_to_the_end(self, pick: int, close_last: bool) -> None:
        if (request := self._request(pick, alive=True)) is None or (handle := request.handle) is None:
            return
        steps = [(handle.ack, device) for device in sorted(request.pending, key=repr)]
        for call, device in steps[:-1] if close_last else []:
            self._compare_ack(request, device, call, device)
        handle.close()
        self.model.host_leaves(request, False)
        for call, device in steps[-1:] if close_last else steps:
            self._compare_ack(request, device, call, device)
        assert request.over and handle.wait(0)

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=st.sampled_from([*DEVICES, "nobody"]), alive=st.booleans(), remove=st.booleans())
    def ack_any(self, pick: int, device: str | int, alive: bool, remove: bool) -> None:
        if (request := self._request(pick, alive)) is None or request.handle is None:
            return
        self._compare_ack(
            request, device, request.handle.remove_device if remove else request.handle.ack, device
        )

    def _compare_ack(
        self, request: RequestModel, device: str | int, call: object, *args: object, **kw: object
    ) -> None:
        assert callable(call)
        expected = self.model.ack(request, device)
        if expected is None:
            with pytest.raises(slabpool.UnknownDeviceError):
                call(*args, **kw)
        else:
            assert call(*args, **kw) is expected

    @rule(id=IDS, device=st.sampled_from([*DEVICES, "nobody"]))
    def ack_any_by_id(self, id: str | int | bytes, device: str | int) -> None:
        self._ack_by_id(id, device)

    def _ack_by_id(self, id: str | int | bytes, device: str | int) -> None:
        live, waiting = self.model.waiting(id, device)
        if device not in self.model.known_devices:
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.ack(id, device)
        elif len(waiting) > 1:
            with pytest.raises(slabpool.AmbiguousRequestError):
                self.pool.ack(id, device)
        elif waiting:
            self._compare_ack(waiting[0], device, self.pool.ack, id, device)
        elif live and not any(device in r.named for r in live):
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.ack(id, device)
        else:
            assert self.pool.ack(id, device) is Ack.LATE
            self.model.lates += 1

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=DEVICE, alive=st.booleans(), id=st.one_of(st.none(), IDS))
    def ack_any_by_generation(
        self, pick: int, device: str | int, alive: bool, id: str | int | bytes | None
    ) -> None:
        living = self.model.live_requests
        some = living if alive and living else self.model.requests
        request = some[pick % len(some)]
        id = request.id if id is None else id
        if device not in self.model.known_devices:
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.ack(id, device, generation=request.generation)
        elif request.over or (id, type(id)) != (request.id, type(request.id)):
            assert self.pool.ack(id, device, generation=request.generation) is Ack.LATE
            self.model.lates += 1
        else:
            self._compare_ack(request, device, self.pool.ack, id, device, generation=request.generation)

    @rule(device=st.sampled_from([*DEVICES, "nobody"]))
    def device_lost(self, device: str | int) -> None:
        if device not in self.model.known_devices:
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.device_lost(device)
            with pytest.raises(slabpool.UnknownDeviceError):
                self.pool.heartbeat(device)
        else:
            if (
                sum(
                    r.parent is None and r.reserve > 0 and device in r.pending
                    for r in self.model.live_requests
                )
                > 1
            ):
                return  # what came back to which reserve could not be told apart
            self.pool.heartbeat(device)  # the leases are too short for it to matter
            assert self.pool.device_lost(device) == self.model.device_lost(device)

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, device=DEVICE, alive=MOSTLY)
    def add_device(self, pick: int, device: str | int, alive: bool) -> None:
        if (request := self._request(pick, alive, host=True)) is None or request.handle is None:
            return
        self.model.known_devices.add(device)
        try:
            request.handle.add_device(device)
        except slabpool.RequestClosedError:
            assert not request.host
        except slabpool.DuplicateDeviceError:
            assert device in request.pending
        except slabpool.UnknownDeviceError:
            assert request.parent is not None and device not in request.parent.pending
        else:
            assert request.host and device not in request.pending
            assert request.parent is None or device in request.parent.pending, (
                "a holder that its parent has not"
            )
            request.pending.add(device)
            request.named.add(device)

    @precondition(lambda self: self.model.live_requests)
    @rule(pick=PICK, cancel=st.booleans(), alive=MOSTLY)
    def close_request(self, pick: int, cancel: bool, alive: bool) -> None:
        if (request := self._request(pick, alive, host=True)) is None or request.handle is None:
            return
        if cancel:
            request.gave_up = request.gave_up or request.host
            request.handle.cancel()
        else:
            request.handle.close()
        self.model.host_leaves(request, cancel)
        assert request.handle.wait(0) is request.over

    @precondition(lambda self: self.model.live_requests)
    @rule(pick=PICK)
    def drop_handle(self, pick: int) -> None:
        if (request := self._request(pick, alive=True)) is None:
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            request.handle = None
        assert [w.category for w in caught] == [ResourceWarning] * request.host
        self.model.host_leaves(request, False)

    # ---- the pool

    @rule()
    def trim(self) -> None:
        before = self.pool.stats()
        given = self.pool.trim()
        after = self.pool.stats()
        assert given == before.committed - after.committed
        assert after.committed <= self.model.pinned()

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
        assert s.peak_committed >= self.peak_committed
        self.peak_committed = s.peak_committed
        assert all(view.intact() for view in self.views), "bytes changed while they were held"
        assert self.pool._verify() is None
        assert self.pool.corruptions() == []

    def teardown(self) -> None:
        """Half the lives end in order, half by force with views that outlive everything."""
        model = self.model
        if len(model.requests) % 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                for request in model.requests:
                    request.handle = None
            for request in model.live_requests:
                for device in list(request.pending):
                    self.pool.ack(request.id, device, generation=request.generation)
        else:
            self.pool.close(force=True)
            assert self.pool.closed
            assert all(view.intact() for view in self.views)
        s = self.pool.stats()
        in_views = sum(b.size for b in model.blocks if b.views)
        assert s.live + s.retained == in_views
        assert s.requests_open + s.requests_draining + s.in_doubt + s.set_aside == 0
        self.views.clear()
        s = self.pool.stats()
        assert (s.live, s.retained, s.allocations) == (0, 0, s.frees)
        assert self.pool.requests() == []
        assert self.pool._verify() is None
        if not self.pool.closed:
            self.pool.close()
        assert self.pool.stats().committed == 0, "a closed pool that nobody holds keeps memory"


MODES: dict[str, dict[str, object]] = {
    "plain": {},
    "scrub": {"scrub": "release", "events": 64},
    "debug": {"debug": 2},
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of requests in a life that fell short
@pytest.mark.parametrize("mode", MODES)
def test_random_lives(mode: str) -> None:
    """No sequence of calls, right or wrong, breaks a law."""
    machine = type(f"PoolMachine_{mode}", (PoolMachine,), {"options": MODES[mode]})
    case = machine.TestCase
    case.settings = settings(
        max_examples=int(os.environ.get("SLABPOOL_TESTS_LIVES", "120")), stateful_step_count=60
    )
    case("runTest").runTest()
