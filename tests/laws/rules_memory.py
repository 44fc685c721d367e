"""Rules that ask for memory and drop views: arrays, layouts, children with memory of their own.

Each new array is checked (shape, alignment, zeros, no byte of another array) and then filled with its own
stamp, which every later check must find. A refusal must be one that the model allows.
"""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis.stateful import precondition, rule

import slabpool
from slabpool import Layout
from tests.laws.machine import CAPACITY, DEVICE, MOSTLY, PICK, Machine
from tests.laws.model import (
    SMALL,
    Block,
    RequestModel,
    TensorsModel,
    View,
    block_bound,
    flat,
    pages,
    stamped,
)

NBYTES = st.one_of(
    st.sampled_from([1000, 4096, 300_000]),  # repeated sizes, so that blocks are reused
    st.sampled_from([0, 1, 63, 64, 65, 1000, 1024, 1025, 4096, 20000, SMALL, SMALL + 1]),
    st.integers(0, 8192),
    st.integers(SMALL, CAPACITY // 2),
)
KINDS = st.sampled_from(["empty", "zeros", "full", "copy"])
ALIGNS = st.sampled_from([None, None, None, 1, 64, 256, 4096, 65536])
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
# Dtypes and trailing shapes of the tensors, to check that only bytes matter.
FORMS: list[tuple[object, int, tuple[int, ...]]] = [
    ("u1", 1, ()),
    ("f4", 4, ()),
    ([("a", "i4"), ("b", "f8")], 12, ()),
    ("f2", 6, (3,)),
]


class MemoryRules(Machine):
    """Allocates, checks, slices and drops."""

    def _must_fit(self, request: RequestModel | None, nbytes: int, align: int) -> bool:
        """Whether the pool must serve this, even if every held block pins as much as it can.

        What idle sessions hold gives way.
        """
        fresh = pages(block_bound(nbytes, align))
        own = 0
        if request is not None and request.root.reserve:
            root = request.root
            own = min(root.reserve_left, fresh)
            if own == fresh:
                return True  # a reserve is there, whatever else is held
            if (
                root.tidy
                and align <= 64
                and pages(root.used + block_bound(nbytes, align)) <= pages(root.reserve)
            ):
                return True  # a reserve serves to its last byte
            if nbytes <= SMALL:
                own = 0
        return self.model.pinned(without_idle=True) + fresh + self.model.set_aside() - own <= CAPACITY

    def _allocated(self, request: RequestModel | None, nbytes: int, align: int) -> Block:
        self.model.learn_evictions()
        s = self.pool.stats()
        size = s.live + s.retained + s.in_doubt - self.model.held()
        assert max(nbytes, 1) <= size <= block_bound(nbytes + self.guard, align)
        if request is not None and request.root.quota is not None:
            assert request.root.used + size <= request.root.quota
        return self.model.allocated(request, size, align, s.reserved)

    def _refused(self, error: Exception, request: RequestModel | None, nbytes: int, align: int) -> None:
        """Checks that this refusal was right."""
        self.model.learn_evictions(refused=True)
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
        block = self._allocated(request, nbytes, align or 64)
        assert type(array) is np.ndarray and array.shape == shape and array.dtype == np.dtype(dtype)
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.ctypes.data % (align or 64) == 0
        if kind == "zeros" or (kind == "empty" and self.scrubbed):
            assert not flat(array).any(), "bytes of another array"
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
        assert request.handle is not None
        try:
            tensors = request.handle.allocate(layout, zero=zero)
        except slabpool.SlabpoolError as error:
            self._refused(error, request, layout.nbytes, 64)
            return
        block = self._allocated(request, layout.nbytes, 64)
        if zero:
            assert not any(flat(array).any() for array in tensors.values())
        made = TensorsModel(tensors, layout, block, request)
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
        request = made.request
        try:
            array = made.tensors[name]
        except slabpool.RequestClosedError:
            owner = made.block.request  # another one, if an array of the block has moved
            assert request.over or owner is None or owner.over
            return
        assert not request.over, "a view of a request that is over"
        made.block.views += 1
        self.views.append(View(made.block, made.stamps[name], [(array, 0)]))

    @precondition(lambda self: self.views)
    @rule(pick=PICK, start=PICK, length=PICK)
    def slice_view(self, pick: int, start: int, length: int) -> None:
        view = self.views[pick % len(self.views)]
        if not view.arrays:
            return
        array, offset = view.arrays[start % len(view.arrays)]
        start %= array.nbytes + 1
        view.arrays.append((flat(array)[start : start + length % 5000], offset + start))

    @precondition(lambda self: self.model.requests)
    @rule(pick=PICK, nbytes=NBYTES, limit=st.integers(0, CAPACITY), alive=MOSTLY)
    def growable(self, pick: int, nbytes: int, limit: int, alive: bool) -> None:
        if (request := self._request(pick, alive, host=True)) is None:
            return
        assert request.handle is not None
        try:
            tensor = request.handle.growable(nbytes, "u1", limit=nbytes + limit)
        except slabpool.SlabpoolError as error:
            self.model.learn_evictions(refused=True)
            self._refused_growth(error, request, 0, nbytes)
            if not isinstance(error, slabpool.RequestClosedError):
                self.model.allocations += 1  # an allocation of no bytes, returned at once
                self.model.frees += 1
            return
        self.model.learn_evictions()
        view = View(self.model.open_growing(request), self.model.new_stamp(), [], tensor, request)
        view.block.views += 1
        self.views.append(view)
        self._grown(view, 0)

    @precondition(lambda self: any(view.growing is not None for view in self.views))
    @rule(pick=PICK, nbytes=NBYTES, back=st.integers(0, 5000))
    def extend(self, pick: int, nbytes: int, back: int) -> None:
        some = [view for view in self.views if view.growing is not None]
        view = some[pick % len(some)]
        assert view.growing is not None and view.block.request is not None
        if view.grower is not view.block.request:
            return  # a session keeps an array of it; tests/session/test_keep.py covers this
        length = max(view.growing.length - back, 0)
        view.growing.truncate(length)
        nbytes = min(nbytes, view.growing.limit - length)
        try:
            view.growing.extend(nbytes)
        except slabpool.SlabpoolError as error:
            self.model.learn_evictions(refused=True)
            assert view.growing.length == length
            self._refused_growth(error, view.block.request, view.block.size, length + nbytes)
            return
        self.model.learn_evictions()
        self._grown(view, length)

    def _grown(self, view: View, before: int) -> None:
        tensor, block = view.growing, view.block
        assert tensor is not None
        need = pages(tensor.length)
        # It has at most an eighth more than before; after a truncate it keeps what it does not use.
        assert max(need, block.size) <= tensor.nbytes <= max(need + block.size // 8, block.size)
        self.model.grown(block, tensor.nbytes, self.pool.stats().reserved)
        array = tensor.array
        assert array.shape == (tensor.length,)
        array[before:] = stamped(view.stamp, before, tensor.length - before)
        view.arrays.append((array, 0))

    def _refused_growth(self, error: Exception, request: RequestModel, had: int, nbytes: int) -> None:
        more = pages(nbytes) - had
        root = request.root
        if isinstance(error, slabpool.RequestClosedError):
            assert not request.host
        elif isinstance(error, slabpool.QuotaExceededError):
            if request.kept_as is None:
                assert root.quota is not None and root.used + more > root.quota
            else:
                (session,) = [s for s in self.model.sessions if request in s.keepers]
                assert session.budget is not None and session.nbytes + more > session.budget
        elif isinstance(error, slabpool.TensorTooLargeError):
            assert pages(nbytes) > CAPACITY
        else:
            assert isinstance(error, slabpool.PoolExhausted), error
            free = CAPACITY - self.model.pinned(without_idle=True) - self.model.set_aside()
            assert more > free + min(root.reserve_left, more), "refused what must fit"
            self.model.exhaustions += 1

    def _drop(self, view: View, index: int) -> None:
        if view.growing is not None and index % 2:
            view.growing = None
        elif view.arrays:
            del view.arrays[index % len(view.arrays)]
        if not view.arrays and view.growing is None:
            self.views.remove(view)
            view.block.views -= 1
            self.model.let_go(view.block)

    @precondition(lambda self: self.views)
    @rule(pick=PICK, index=PICK)
    def drop_view(self, pick: int, index: int) -> None:
        self._drop(self.views[pick % len(self.views)], index)

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
