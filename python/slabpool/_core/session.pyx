# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""What sessions ask of the core: a shelf for each session, and the blocks that are kept on it.

What a session keeps, for how long, and which one gives way is decided in `slabpool.sessions`. All functions here are
called with the lock of its registry held. Invariant: nothing here keeps a `Pool` alive.
"""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable
from libc.stdint cimport uint32_t, uint64_t
from libcpp.optional cimport make_optional, optional
from libcpp.vector cimport vector

from slabpool._core.array cimport own, own_frozen, parse_shape, wrap, wrap_frozen, wrap_strided
from slabpool._core.core cimport (
    Core, Shape, Site, Wait, check_here, failed, loop_wait, name_key, note_code, patience, view_of,
)
from slabpool._core.cpp_block cimport Block, byte
from slabpool._core.cpp_observe cimport RequestInfo
from slabpool._core.cpp_pool cimport Kept as CppKept
from slabpool._core.cpp_pool cimport Groups, KeepSpec, Planned, Shortage
from slabpool._core.cpp_request cimport Handle, handle_span
from slabpool._core.cpp_status cimport Status
from slabpool._core.pool cimport Pool
from slabpool._core.request cimport GroupHold, Request, block_of_array, refuser_of
from slabpool._core.tensors cimport GrowableTensor, Layout, Tensors, _Growth, growable_of, tensors_of

import numpy as np

from slabpool._core import hooks
from slabpool._core.core import StatusCode
from slabpool.errors import InvalidArgumentError, InvalidTypeError, RequestClosedError

cnp.import_array()

cdef uint64_t NO_LIMIT = 1 << 62


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class Form:
    """Where a tensor lies in its block, and its shape: all that is needed to make a view of it again."""


@cython.final
@cython.no_gc
cdef class Kept:
    """One block that a session keeps, until it is closed or this object dies."""

    def __dealloc__(self):
        if self.core is not None:
            self.core.pool.close_request(self.handle, False)

    @property
    def generation(self):
        return self.handle.generation

    @property
    def nbytes(self):
        cdef RequestInfo info
        return info.nbytes if self.core.pool.describe(self.handle, info, 0) else 0

    @property
    def live_views(self):
        return self.block.live_views()

    def close(self):
        """Returns the block, once no request pins it."""
        with nogil:
            self.core.pool.close_request(self.handle, False)

    def adopt(self, tensor, keeper):
        """A growable tensor of this block belongs to the session from now on: it grows within the session's budget."""
        if isinstance(tensor, GrowableTensor):
            _adopt((<GrowableTensor>tensor).growth, self.handle, keeper)

    def view(self, Form form not None, bint writable):
        """The tensor: an array, Tensors or a GrowableTensor. None if the block was returned."""
        cdef Shape shape
        cdef cnp.npy_intp strides[64]
        cdef Status status
        cdef int i
        if isinstance(form.descr, Layout):
            return tensors_of(self.core, self.handle, <Layout>form.descr, self.block, self.serial, writable)
        status = self.core.pool.open_view(self.block[0], self.serial, self.handle)
        if status != Status.ok:
            return None
        if isinstance(form.descr, _Growth):
            return growable_of(self.core, <_Growth>form.descr, writable)
        cdef cnp.dtype descr = form.descr
        parse_shape(form.shape, descr.itemsize, &shape)
        if not _lies_in(self.block, form, &shape):
            self.core.pool.drop_view(self.block[0])
            raise InvalidArgumentError(
                "the session keeps an array under this name whose elements a GrowableTensor of the same memory has dropped "
                "since. drop() the name, and keep the GrowableTensor only")
        if form.strides is None:
            if writable:
                return wrap(self.core, self.block, form.first, descr, &shape)
            return wrap_frozen(self.core, self.block, form.first, descr, &shape)
        for i in range(shape.nd):
            strides[i] = form.strides[i]
        owner = own(self.core, self.block, True) if writable else own_frozen(self.core, self.block)
        return wrap_strided(owner, form.first, descr, &shape, strides, writable)


@cython.final
@cython.no_gc
cdef class Shelf:
    """One session in the core. Closing it closes everything it keeps."""

    def __dealloc__(self):
        if self.core is not None:
            self.core.pool.close_request(self.handle, False)

    def figures(self):
        """(bytes charged, quota, unreleased requests that pin it, idle since in monotonic ns); None once it is over."""
        cdef CppKept kept
        if not self.core.pool.kept(self.handle, kept):
            return None
        return kept.bytes, None if kept.quota == NO_LIMIT else kept.quota, kept.pins, kept.idle_since_ns

    @property
    def generation(self):
        return self.handle.generation

    def drawn(self):
        """Bytes of what it keeps that were drawn from the reserve of its group: they return there."""
        cdef CppKept kept
        return kept.drawn if self.core.pool.kept(self.handle, kept) else 0

    def counts_in(self, tuple root):
        """Whether what it keeps counts in the quota of a group, or of a session; see `over_quota`."""
        cdef Handle other
        other.slot, other.generation = root
        return self.core.pool.charged_to(self.handle, other)

    def over_quota(self, nbytes):
        """As `over_quota`, for memory from outside that it is to keep: its own quota, or the group's."""
        cdef Handle level
        cdef uint64_t over = self.core.pool.over_quota(self.handle, max(nbytes, 0), False, level)
        return over, (level.slot, level.generation)

    def refuser(self, nbytes):
        """What refuses it so many bytes: see `messages`."""
        return refuser_of(self.core, self.handle, nbytes, False)

    def set_budget(self, budget):
        """Returns False, and changes nothing, if the session keeps more than that."""
        return self.core.pool.set_quota(self.handle, NO_LIMIT if budget is None else budget) == Status.ok

    def close(self):
        with nogil:
            self.core.pool.close_request(self.handle, False)

    def wait(self, timeout, priority):
        """What a turn passes as its timeout: it waits no longer than the session lives."""
        if timeout is None and priority is None:
            return None
        return self._depend(patience(timeout, self.priority if priority is None else priority))

    def loop_wait(self, priority):
        """The same for a turn that a coroutine opens."""
        return self._depend(loop_wait(self.core, self.priority if priority is None else priority))

    cdef Wait _depend(self, Wait wait):
        wait.waiter.session.slot = self.handle.slot
        wait.waiter.session.generation = self.handle.generation
        return wait

    def pin(self, Request request not None, list kept):
        """Keeps the session and these blocks until the request is released. Returns False if the request or
        the session is over."""
        cdef vector[Handle] handles
        cdef Kept one
        handles.push_back(self.handle)
        for one in kept:
            handles.push_back(one.handle)
        cdef Status status = self.core.pool.pin(request.handle, handle_span(handles.data(), handles.size()))
        if status == Status.system_refused:
            raise MemoryError("no memory to record which tensors a request reads")
        return status == Status.ok

    def discard(self, Request request not None):
        """Ends a request that no caller has yet, whatever devices it names."""
        with nogil:
            self.core.pool.discard(request.handle)

    def locate(self, tensor):
        """(generation that holds its block, its Form, bytes of the block); None if no request of this pool holds it."""
        cdef Block* block
        cdef Form form = Form.__new__(Form)
        cdef Handle owner
        if isinstance(tensor, Tensors):
            if (<Tensors>tensor).core is not self.core:
                return None
            form.descr = (<Tensors>tensor).layout
            # Tensors keep no memory alive: the block may have been returned.
            if self.core.pool.open_view((<Tensors>tensor).block[0], (<Tensors>tensor).serial,
                                        (<Tensors>tensor).request) != Status.ok:
                raise RequestClosedError(
                    f"{tensor!r}: the request is released, and its tensors with it; call keep() before the last holder "
                    "leaves")
            block = (<Tensors>tensor).block
            owner = self.core.pool.owner_of(block[0])
            self.core.pool.drop_view(block[0])
            return (owner.generation, form, block.bytes) if owner.generation else None
        if isinstance(tensor, GrowableTensor):
            if (<GrowableTensor>tensor).core is not self.core:
                return None
            form.descr = (<GrowableTensor>tensor).growth
            block = (<GrowableTensor>tensor).growth.extent.block
            owner = self.core.pool.owner_of(block[0])
            return owner.generation, form, tensor.nbytes
        if not isinstance(tensor, np.ndarray):
            raise InvalidTypeError(
                "a session keeps a numpy array, the Tensors or a GrowableTensor of a request, "
                f"got {type(tensor).__name__}")
        return _locate_array(self.core, tensor, form)

    def keep(self, tensor, str name, Site where not None, Kept instead, keeper):
        """A Kept that holds the tensor's block now; or the status of a failure, after which nothing has changed."""
        cdef KeepSpec spec
        cdef Handle handle
        cdef Status status
        cdef bytes text = name.encode("utf-8", "surrogatepass")
        cdef bytes key = b"k" + len(self.key).to_bytes(4, "little") + self.key + b"=" + text
        cdef Block* block
        cdef bint viewed = isinstance(tensor, Tensors)
        spec.where = where.where
        cdef Kept kept = Kept.__new__(Kept)  # may raise: before anything is held; and once the block is kept, it has an owner
        if viewed:
            block = (<Tensors>tensor).block
            if self.core.pool.open_view(block[0], (<Tensors>tensor).serial, (<Tensors>tensor).request) != Status.ok:
                return StatusCode.REQUEST_CLOSED
        elif isinstance(tensor, GrowableTensor):
            block = (<GrowableTensor>tensor).growth.extent.block
        else:
            block = self.core.pool.find(cnp.PyArray_DATA(<cnp.ndarray>tensor))
        spec.id = view_of(key)
        spec.block = block
        spec.from_ = self.core.pool.owner_of(block[0])
        spec.session = self.handle
        if instead is not None:
            spec.instead_of = make_optional[Handle](instead.handle)
        status = self.core.pool.keep(spec, handle)
        if status == Status.ok:
            note_code(self.core, handle, spec.where)
        cdef uint32_t serial = block.serial()
        if viewed:
            self.core.pool.drop_view(block[0])
        if status != Status.ok:
            return StatusCode(<int>status)
        if isinstance(tensor, GrowableTensor):
            _adopt((<GrowableTensor>tensor).growth, handle, keeper)  # before another thread can run
        kept.core = self.core
        kept.handle = handle
        kept.block = block
        kept.serial = serial
        return kept


cdef bint _lies_in(Block* block, Form form, Shape* shape):
    """Whether an array lies in the bytes that its block has now. The caller has a view, so the block gives none back."""
    cdef Py_ssize_t low = 0, high = (<cnp.dtype>form.descr).itemsize, reach
    cdef Py_ssize_t stride = high
    cdef int i
    for i in range(shape.nd - 1, -1, -1):
        reach = (shape.dims[i] - 1) * (stride if form.strides is None else <Py_ssize_t>form.strides[i])
        stride *= shape.dims[i]
        if reach < 0:
            low += reach
        else:
            high += reach
    return form.first + low >= block.data and form.first + high <= block.data + block.bytes


cdef object _locate_array(Core core, object tensor, Form form):
    cdef cnp.ndarray array = tensor
    if cnp.PyArray_SIZE(array) == 0 or cnp.PyArray_ITEMSIZE(array) == 0:
        raise InvalidArgumentError(
            f"an array of shape {tensor.shape} has no bytes to keep; keep one with elements")
    cdef Block* block = block_of_array(core, array)
    if block is NULL:
        return None
    cdef Handle owner = core.pool.owner_of(block[0])
    if owner.generation == 0:
        return None
    form.descr = tensor.dtype
    form.shape = tuple([cnp.PyArray_DIM(array, i) for i in range(cnp.PyArray_NDIM(array))])
    form.strides = None if cnp.PyArray_IS_C_CONTIGUOUS(array) else tensor.strides
    form.first = <byte*>cnp.PyArray_DATA(array)
    return owner.generation, form, block.bytes


cdef void _adopt(_Growth growth, Handle handle, object keeper):
    growth.extent.handle = handle
    growth.keeper = keeper
    growth.request = None


def key_of(session_id, GroupHold group):
    """The id as the core knows it, which distinguishes "7" from 7; under a group, with the group's number."""
    cdef bytes name = name_key(session_id, "session_id")
    return name if group is None else b"g" + int(group.handle.generation).to_bytes(8, "little") + name


def is_under(GroupHold group, GroupHold other not None):
    """Whether both hold the same group."""
    return group is not None and group.handle.generation == other.handle.generation


def open_shelf(Pool pool not None, session_id, budget, Site where not None, GroupHold group):
    """A Shelf; None if every request slot is taken."""
    check_here(pool.core)
    cdef bytes name = name_key(session_id, "session_id")
    cdef bytes key = b"k" + len(name).to_bytes(4, "little") + name
    cdef Handle handle
    cdef Shelf shelf = Shelf.__new__(Shelf)  # first: once the session is open, nothing may fail before it has an owner
    cdef optional[Handle] under
    if group is not None:
        under = make_optional[Handle](group.handle)
        shelf.priority = group.priority
    cdef Status status = pool.core.pool.open_session(
        view_of(key), NO_LIMIT if budget is None else budget, where.where, handle, under)
    if status == Status.too_many_requests:
        return None
    if status == Status.request_closed and group is not None:
        hooks.messages.group_closed(group.id)
    if status != Status.ok:
        failed(pool.core, None, status, 0, None)
    note_code(pool.core, handle, where.where)
    shelf.core = pool.core
    shelf.handle = handle
    shelf.key = name
    return shelf


def set_limit(Pool pool not None, limit):
    """Bytes that all sessions of a pool may keep; None for no limit."""
    pool.core.pool.set_kept_quota(NO_LIMIT if limit is None else limit)


def kept_bytes(Pool pool not None):
    """Bytes that all sessions of a pool keep."""
    return pool.core.pool.kept_bytes()


# ---- what gives way

def gone_idle(Pool pool not None):
    """Generations of the sessions that became idle since the last call, the last one first."""
    cdef list found = []
    cdef Handle session
    while pool.core.pool.take_idle(session):
        found.append(session.generation)
    return found


def bytes_not_kept(Pool pool not None):
    """Bytes of the capacity that stay taken, whatever sessions give back. Of some instant during the call."""
    return pool.core.pool.bytes_not_kept()


def plan_return(Pool pool not None, status, nbytes, pages, tuple request, list groups):
    """Which of several lists of Kept to close, so that there is room: their indexes.

    The first in the list are to go first. None: not even all of them would do. An empty list: there is room already.
    `status`, `nbytes` and `pages` are those that `give_way` gets, `request` is (slot, generation) of what asks. No block
    may have a view.
    """
    cdef Handle asks
    cdef Groups wanted
    cdef Shortage shortage
    cdef Kept kept
    cdef list group
    cdef size_t i
    asks.slot, asks.generation = request
    shortage.bytes = nbytes
    shortage.pages = pages
    for group in groups:
        for kept in group:
            wanted.blocks.push_back(kept.block)
        wanted.ends.push_back(<uint32_t>wanted.blocks.size())
    cdef Planned planned = pool.core.pool.plan_return(<Status><int>status, shortage, asks, wanted)
    if planned == Planned.never:
        return None
    return [i for i in range(wanted.chosen.size()) if wanted.chosen[i]] if planned == Planned.chosen else []


def over_quota(Pool pool not None, tuple request, nbytes):
    """(bytes by which a charge to the request would exceed the lowest quota that refuses it, what has the quota)."""
    cdef Handle asks, root
    asks.slot, asks.generation = request
    cdef uint64_t over = pool.core.pool.over_quota(asks, nbytes, True, root)
    return over, (root.slot, root.generation)


def report(error, where):
    """Passes an exception that no caller gets to `sys.unraisablehook`."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(where)
