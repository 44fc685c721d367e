# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The request as Python sees it: allocate, let devices acknowledge, close.

A Request is a pair of integers (slot, generation) for the C++ request table, which decides everything. Invariant:
dropping an open Request closes it with a ResourceWarning, as dropping an open file does.
"""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from slabpool._core.array cimport new_array, new_copy, new_full, new_plain
from slabpool._core.core cimport (
    KEY_ROOM, NO_REQUEST, KnownName, LineReport, Site, Wait, ack_answer, caller, caller_site, check_here, deadline_of, failed,
    find_room, identity, known_name, location, loop_wait, name_key, names_of, next_slice, note_code, only_made_by, patience,
    short_key, show_line, wait_of, state_of, status_code, text_of, view_of,
)
from slabpool._core.cpp_block cimport Block, byte
from slabpool._core.cpp_cuda cimport StreamName
from slabpool._core.cpp_observe cimport GroupInfo, QuotaInfo, RequestInfo
from slabpool._core.cpp_pool cimport Acked, Adopted, kLiveViews, kPendingDevices
from slabpool._core.cpp_request cimport AckResult, LevelNeed, OpenSpec, device_span, kMaxDevices
from slabpool._core.cpp_status cimport Error, Status
from slabpool._core.cpp_wait cimport Waiter
from slabpool._core.cuda cimport stream_device, stream_of
from slabpool._core.device_array cimport DeviceArray
from slabpool._core.shared cimport new_ref
from slabpool._core.tensors cimport GrowableTensor, Layout, Tensors, new_growable, new_tensors

import warnings

from slabpool._core import active, async_wait, hooks
from slabpool._core.core import StatusCode
from slabpool.arguments.sizes import parse_size
from slabpool.arguments.names import plain_name
from slabpool.arguments.seconds import some_seconds
from slabpool.arguments.texts import show
from slabpool.errors import InvalidTypeError
from slabpool.records import Ack, GroupRecord, RequestState, waits_for

cdef extern from *:
    bint likely(bint condition) noexcept  # Cython's own macros
    bint unlikely(bint condition) noexcept

cdef object PENDING = Ack.PENDING
cdef int64_t FOREVER = 0x7FFFFFFFFFFFFFFF
# From so many names on, they are searched by hash.
cdef Py_ssize_t MANY_NAMES = 16

include "adopt.pxi"
include "opening.pxi"
include "group.pxi"


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Request:
    """Memory of one inference request, held by the host and by every named device.

    Made by `Pool.request` or `Request.child`. The host is a holder until `close`, `cancel` or the end of a ``with`` block
    (an exception cancels), each device until its `ack`. The call by which the last holder leaves returns the blocks, once,
    on its own thread. A live numpy view keeps its block even then.

    Attributes
    ----------
    id : str, int or bytes
        As given when it was opened.
    generation : int
        Distinguishes requests of the same id; larger is later. A pool uses each generation once.
    parent : int or None
        Generation of the request this one is a child of.
    quota : int or None
        Most bytes that it and its children may hold; None for no limit. A child without a quota of its own has its parent's
        here. The quotas of its parents and of its group bind it as well, and may be lower.
    priority : int
        Of its allocations that wait, unless the call names another.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> req = pool.request("chat-42", devices=["gpu0", "gpu1"])
    >>> kv = req.zeros((2, 4, 64), np.float16)
    >>> req.close()
    >>> req.ack("gpu0")
    <Ack.PENDING: 'pending'>
    >>> del kv
    >>> req.ack("gpu1")
    <Ack.RELEASED: 'released'>
    >>> pool.stats().live
    0
    """

    def __del__(self):
        if self.core is None or self.closed:
            return
        if not self.core.pool.usable_here() or not self.core.pool.is_open(self.handle):
            return
        try:
            opened_at = self._opened_at()
        except MemoryError:
            opened_at = "?"
        # Before the warning, which a filter may turn into an exception.
        self._leave(False)
        warnings.warn(
            f"request {show(self.id)} generation {self.handle.generation} was dropped while open and is closed now; "
            f"it was opened at {opened_at}. Call close() or use `with`.",
            ResourceWarning,
            stacklevel=2,
            source=None,
        )

    # ---- memory

    # Methods with `dtype=float` write their signature themselves: `inspect` reads no default that is a type.
    @cython.embedsignature(False)
    def empty(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """empty($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        Array of undefined contents in the pool's memory, held by this request.

        Parameters
        ----------
        shape : int or tuple of ints
        dtype : data-type, default float64
            Any that holds no Python objects.
        align : int, default 64
            Alignment of the first byte; a power of two up to 2 MiB.
        timeout : float, optional
            Seconds to wait for memory to be returned, or for the quota. By default running out is an error at once.
        priority : int, optional
            Callers that wait are served by priority, the highest first, then in order of arrival. By default that of
            the request.

        Returns
        -------
        numpy.ndarray
            C order, writable. In device memory: a `DeviceArray`.

        Raises
        ------
        PoolExhausted
            No room now (or within the timeout); `TensorTooLargeError` if there never can be.
        QuotaExceededError
            The request's quota does not allow it.
        RequestClosedError
            The host has closed the request.
        PoolClosedError, ForkedPoolError
            The pool is closed, or was inherited from the parent process.
        InvalidArgumentError, InvalidTypeError
            A bad shape, dtype or alignment.

        Examples
        --------
        >>> import slabpool
        >>> with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
        ...     req.empty((4, 8), "f4").shape
        (4, 8)
        """
        if align is None and timeout is None and priority is None:
            return new_plain(self.core, self.handle, shape, dtype, self)
        return new_array(self.core, self.handle, shape, dtype, align, False, patience(timeout, priority), self)

    @cython.embedsignature(False)
    def zeros(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """zeros($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `empty`, filled with zeros. Memory that is known to be zero is not written again."""
        return new_array(self.core, self.handle, shape, dtype, align, True, patience(timeout, priority), self)

    def full(self, shape, fill_value, dtype=None, *, align=None, timeout=None, priority=None):
        """As `empty`, filled with a value; the dtype is the value's unless given."""
        return new_full(self.core, self.handle, shape, fill_value, dtype, align, patience(timeout, priority), self)

    def copy(self, array, *, align=None, timeout=None, priority=None):
        """As `empty`, with shape, dtype and contents of `array`, in C order."""
        return new_copy(self.core, self.handle, array, align, patience(timeout, priority), self)

    @cython.embedsignature(False)
    def growable(self, shape, dtype=float, *, limit, axis=0, timeout=None, priority=None):
        """growable($self, shape, dtype='float64', *, limit, axis=0, timeout=None, priority=None)\n--\n
        A tensor that becomes longer along one axis without being copied, such as a KV cache.

        Parameters
        ----------
        shape : int or tuple of ints
            The initial shape; it may be 0 along the axis.
        dtype : data-type, default float64
            Any that holds no Python objects.
        limit : int
            Most elements along the axis. Costs addresses, and no memory.
        axis : int, default 0
            The axis that grows.
        timeout : float, optional
            Seconds to wait for the addresses and the initial memory; `GrowableTensor.extend` has a timeout of its own.
        priority : int, optional
            As for `empty`.

        Returns
        -------
        GrowableTensor
            Its `extend` returns views. It and all its arrays count as one view.

        Raises
        ------
        PoolExhausted, QuotaExceededError, RequestClosedError
            As for `empty`. `PoolExhausted` also if the pool's address range has no run that is long enough for the
            limit.
        InvalidArgumentError, InvalidTypeError
            A bad shape, dtype, axis or limit.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.request("r") as req:
        ...     keys = req.growable((4, 0, 8), "f4", axis=1, limit=100_000)
        ...     keys.extend(16).shape, keys.nbytes
        ((4, 16, 8), 4096)
        """
        if priority is not None:
            return new_growable(self.core, self.handle, shape, dtype, axis, limit, patience(timeout, priority), self)
        return new_growable(self.core, self.handle, shape, dtype, axis, limit, timeout, self)

    def allocate(self, Layout layout not None, *, bint zero=False, timeout=None, priority=None):
        """All tensors of a layout in one call. Views are made on access.

        Parameters
        ----------
        layout : Layout
        zero : bool, default False
            Fill with zeros.
        timeout : float, optional
        priority : int, optional
            As for `empty`.

        Returns
        -------
        Tensors

        Raises
        ------
        PoolExhausted, QuotaExceededError, RequestClosedError
            As for `empty`. Nothing is allocated then.

        Examples
        --------
        >>> import slabpool
        >>> layout = slabpool.Layout({"k": ((2, 8), "f2"), "v": ((2, 8), "f2")})
        >>> with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
        ...     t = req.allocate(layout, zero=True)
        ...     float(t.k.sum())
        0.0
        """
        if priority is not None:
            return new_tensors(self.core, self.handle, layout, zero, patience(timeout, priority), self)
        return new_tensors(self.core, self.handle, layout, zero, timeout, self)

    def adopt(self, tensor):
        """Takes a tensor over from another request of the same pool. Its memory moves to this request; nothing is copied.

        From now on the memory is this request's: it counts here, also in the quota, and no longer there. Arrays made before
        stay valid. Devices of the other request may go on reading it under references made before: then it is returned once
        both requests are released, and `live_views` counts one more until the other request is.

        Parameters
        ----------
        tensor : numpy.ndarray, DeviceArray, Tensors or GrowableTensor
            In the memory of a request of this pool that is not released; slices too. The whole block moves: all tensors
            of a layout together. A `GrowableTensor` goes on growing, within this request's quota.

        Raises
        ------
        RequestClosedError
            The host has closed this request, or the tensor's request is released.
        QuotaExceededError
            More than this request's quota, or one around it, allows; or waiters of that quota come first. Idle sessions of
            the request's group give way before.
        InvalidArgumentError, InvalidTypeError
            Not a tensor of a request of this pool, one without bytes, one that this request has already, or one that a
            session keeps.

        Notes
        -----
        An error changes nothing. What is promised to this request by ``reserve=`` is not drawn: the memory is committed
        already. What the other request drew from its own ``reserve=`` goes along: the promise is smaller by it.

        Examples
        --------
        >>> import numpy as np, slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.request("decode") as decode:
        ...     with pool.request("prefill", devices=["gpu0"]) as prefill:
        ...         kv = prefill.full(1000, 7, np.uint8)
        ...         decode.adopt(kv)
        ...         print(prefill.nbytes, decode.nbytes)
        ...         _ = prefill.ack("gpu0")
        ...     print(prefill.state.value, kv[0])
        0 1024
        released 7
        """
        _adopt(self, tensor)

    # ---- the same, awaitable

    @cython.embedsignature(False)
    def empty_async(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """empty_async($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `empty`, awaitable: waits without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default there is no limit. The others are those of `empty`.

        Returns
        -------
        numpy.ndarray
            A coroutine that is cancelled leaves no block behind.

        Examples
        --------
        >>> import asyncio, slabpool
        >>> async def main():
        ...     with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
        ...         return (await req.empty_async((4, 8), "f4")).shape
        >>> asyncio.run(main())
        (4, 8)
        """
        check_here(self.core)
        return async_wait.served(self.pool, loop_wait(self.core, priority),
                                 lambda wait: self.empty(shape, dtype, align=align, timeout=wait), timeout)

    @cython.embedsignature(False)
    def zeros_async(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """zeros_async($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `empty_async`, filled with zeros."""
        check_here(self.core)
        return async_wait.served(self.pool, loop_wait(self.core, priority),
                                 lambda wait: self.zeros(shape, dtype, align=align, timeout=wait), timeout)

    def allocate_async(self, Layout layout not None, *, bint zero=False, timeout=None, priority=None):
        """As `allocate`, awaitable: waits without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default there is no limit. The others are those of `allocate`.

        Returns
        -------
        Tensors
        """
        check_here(self.core)
        return async_wait.served(self.pool, loop_wait(self.core, priority),
                                 lambda wait: self.allocate(layout, zero=zero, timeout=wait), timeout)

    def ref(self, array=None):
        """A reference that another process can open; for pools of ``memory="shared"``.

        Parameters
        ----------
        array : numpy.ndarray, optional
            In this request's memory; slices and transposed views too. By default the reference is to the
            request alone: an empty tensor, which is enough for an ack.

        Returns
        -------
        TensorRef
            Small, and can be pickled. It keeps no memory alive: the request does, until the device acknowledges.

        Raises
        ------
        InvalidArgumentError
            The pool is not shared, or the array is not in this request's memory.
        RequestClosedError
            The request is over.
        InvalidTypeError
            Not an array, or of a dtype that cannot be sent to another process.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB", memory="shared")
        >>> with pool.request("r") as req:
        ...     x = req.zeros((4, 4), "f4")
        ...     req.ref(x[1:]).shape
        (3, 4)
        """
        check_here(self.core)
        return new_ref(self.core, self.handle, array, self)

    # ---- holders

    def ack(self, device, *, stream=None):
        """A device is done with this request: it will not touch its memory again.

        Parameters
        ----------
        device : str or int
            As named when the request was opened.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            A CUDA stream: the ack counts once everything queued on it so far is done. No thread waits for that: the
            stream is polled. 0 and 1 are the legacy default stream of the pool's device, or of the current device if
            the pool is in host memory. By default the ack counts now.

        Returns
        -------
        Ack
            ``PENDING`` if the host or another device still holds the request, ``RELEASED`` if this was the last holder.
            ``DUPLICATE``: this device has acknowledged before, and the request is not released. ``LATE``: the request is
            released. Neither changes anything. An ack of a request is an ack of all its children. While the stream still has
            work to do the answer is ``PENDING``, and the device is one of `pending`; another ack with a stream is a
            ``DUPLICATE`` then, and one without counts at once.

        Raises
        ------
        UnknownDeviceError
            The device was never named for this request. After this and the errors below nothing has changed.
        InvalidTypeError, InvalidArgumentError
            `stream` is no stream, or CUDA does not know it, or it is being captured into a graph.
        DeviceUnavailableError
            There is no CUDA driver.
        DeviceLostError
            The GPU has failed: nothing queued on it will be done. `Pool.device_lost` releases what its device holds.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> req = pool.request("chat-42", devices=["gpu0"])
        >>> req.ack("gpu0")  # with stream=s: counts once the work queued on s is done
        <Ack.PENDING: 'pending'>
        """
        if unlikely(stream is not None):
            return _ack_after(self, device, stream)
        cdef KnownName* last = known_name(self.devices, device)
        cdef uint32_t index = last.number
        cdef int64_t number
        if unlikely(last.name != <PyObject*>device):
            number = self.devices.number_of(device)
            if unlikely(number < 0):
                return self.devices.ack_other_name(&self.handle, self.quick_named(), device, self)
            index = <uint32_t>number
        if unlikely(not self.has_named(index)):
            # Once the slot is reused the core cannot tell an unknown device from a late ack, and would answer late.
            if device not in self.quick_named() and self.core.pool.released(self.handle):
                hooks.messages.unknown_device(device, self)
        cdef Acked acked
        if unlikely(self.core.cleans):
            return self.devices.ack_without_gil(&self.handle, index, self.quick_named(), device, self)
        acked = self.core.pool.ack(self.handle, index)
        if acked.result == AckResult.pending:
            return PENDING
        if unlikely(acked.result == AckResult.late):  # of every status that is not ok, too
            return self.devices.late(acked.status, &self.handle, self.quick_named(), device, self)
        return ack_answer(<int>acked.result)

    cdef bint has_named(self, uint32_t number) noexcept:
        if number < 64:
            return self.named_mask >> number & 1
        number -= 64
        return number >> 6 < self.named_more.size() and self.named_more[number >> 6] >> (number & 63) & 1

    cdef int add_named(self, object device, uint32_t number) except -1:
        cdef uint32_t word
        if type(self.named) is tuple and len(<tuple>self.named) < MANY_NAMES:
            self.named = <tuple>self.named + (device,)
        else:
            (<set>self.quick_named()).add(device)
        if number < 64:
            self.named_mask |= <uint64_t>1 << number
        else:
            word = (number >> 6) - 1
            if word >= self.named_more.size():
                self.named_more.resize(word + 1)
            self.named_more[word] |= <uint64_t>1 << (number & 63)
        return 0

    cdef object quick_named(self):
        """`named`, in a form in which a name is found at once. Made when first needed, because few requests need it."""
        if type(self.named) is tuple and len(<tuple>self.named) >= MANY_NAMES:
            self.named = set(<tuple>self.named)
        return self.named

    def add_device(self, device):
        """One more device must acknowledge (a ring was repartitioned). Only while the host is a holder.

        Raises
        ------
        RequestClosedError
            The host has closed the request.
        DuplicateDeviceError
            The device is one of those that still have to acknowledge.
        UnknownDeviceError
            This is a child, and its parent does not wait for the device.
        """
        cdef uint32_t number
        cdef Status status
        device = plain_name(device)
        if self.parent is None:
            number = self.devices.hold(device)
            status = self.core.pool.add_device(self.handle, number)
            self.core.pool.devices().drop(number)
        else:
            number = self.devices.known(device, self)  # named for its parent, so the pool knows it
            status = self.core.pool.add_device(self.handle, number)
        if status == Status.unknown_device:
            hooks.messages.not_the_parents(device, self)
        if status != Status.ok:
            failed(self.core, self, status, 0, device)
        self.add_named(device, number)

    def remove_device(self, device):
        """Acknowledges on the device's behalf; the same as ``ack(device)``."""
        return self.ack(device)

    def child(self, devices=(), *, reserve=None, quota=None, lease=None, timeout=None, priority=None):
        """A request inside this one, for memory that is returned sooner (one step, one hidden state).

        Parameters
        ----------
        devices : iterable of str or int
            A subset of the devices that still have to acknowledge this request.
        reserve : int or str, optional
            Bytes to reserve now for the child, out of this request's reserve as far as that suffices. They go back there
            when the child ends.
        quota : int or str, optional
            Most bytes that the child may hold. They count in this request's quota too.
        lease : float, optional
            By default this request's.
        timeout : float, optional
            Seconds to wait for the reserve, or where too many requests are alive. By default that is an error at once.
        priority : int, optional
            By default this request's.

        Returns
        -------
        Request
            With the same id and a generation of its own; it shares this request's quota and reserve. It is released
            when its own holders have left, and at the latest with this request.

        Raises
        ------
        PoolExhausted, QuotaExceededError
            The reserve: there is no room for it, or a quota around the child is lower.
        InvalidArgumentError
            Budgets nest deeper than eight requests with a quota or a reserve, a group and a session included.
        UnknownDeviceError
            A device that this request does not wait for.
        RequestClosedError
            The host has closed this request.

        Examples
        --------
        >>> import slabpool
        >>> with slabpool.Pool("1MiB") as pool, pool.request("r", devices=["gpu0", "gpu1"]) as req:
        ...     with req.child(devices=["gpu1"]) as step:
        ...         hidden = step.empty(128, "f4")
        ...     del hidden
        ...     print(step.ack("gpu1"), pool.stats().live)
        ...     for device in ("gpu0", "gpu1"):
        ...         _ = req.ack(device)
        Ack.RELEASED 0
        """
        return open_request(self.pool, self.core, self.devices, self.id, devices, reserve, quota, lease,
                            patience(timeout, priority), self, None, None)

    cdef void _leave(self, bint cancel) noexcept:
        if self.core.cleans:
            with nogil:
                self.core.pool.close_request(self.handle, cancel)
        else:
            self.core.pool.close_request(self.handle, cancel)

    def close(self):
        """The host leaves: nothing more can be allocated. Calling it again does nothing."""
        check_here(self.core)
        self.closed = True
        self._leave(False)

    def cancel(self):
        """As `close`, and sets `cancelled`, so that devices can stop early; see also `Peer.wait_cancelled`.

        A with statement that an exception ends does the same. Children that the host has not closed are cancelled too.
        """
        check_here(self.core)
        self.closed = True
        self.gave_up = self.gave_up or self.core.pool.is_open(self.handle)
        self._leave(True)

    def activate(self):
        """Inside the block, memory that other libraries allocate belongs to this request.

        This applies to libraries whose integration is installed, such as `slabpool.tinygrad.install`. Of nested blocks
        the innermost counts. Asyncio tasks that are made inside inherit it; for them too it ends with the block.

        Returns
        -------
        context manager
            Yields the request; usable once.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.request("chat-42") as req:
        ...     with req.activate():
        ...         slabpool.active_request() is req
        True
        """
        return active.Activation(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        # A child of fork leaves the block too, and must not close its parent's request.
        if self.core.pool.usable_here():
            if kind is None:
                self.close()
            else:
                self.cancel()

    # ---- looking

    cdef object _opened_at(self):
        cdef RequestInfo info
        return location(info.opened_at) if self.core.pool.describe(self.handle, info, 0) else "?"

    @property
    def generation(self):
        """Distinguishes requests of the same id (int)."""
        return self.handle.generation

    @property
    def group(self):
        """Id of the `Group` that it was opened under, or None."""
        return None if self.hold is None else self.hold.id

    def _refuser(self, nbytes):
        """What refuses it so many bytes: see `messages`."""
        return refuser_of(self.core, self.handle, nbytes, True)

    @property
    def pending(self):
        """Devices that have not acknowledged (frozenset of str or int)."""
        cdef RequestInfo info
        check_here(self.core)
        if not self.core.pool.describe(self.handle, info, kPendingDevices):
            return frozenset()
        return names_of(self.devices.names, info.pending)

    @property
    def state(self):
        """The `RequestState`."""
        cdef RequestInfo info
        check_here(self.core)
        return state_of(<int>info.state) if self.core.pool.describe(self.handle, info, 0) else RequestState.RELEASED

    @property
    def nbytes(self):
        """Bytes of the blocks it holds; once released, of those that views retain."""
        cdef RequestInfo info
        check_here(self.core)
        return info.nbytes if self.core.pool.describe(self.handle, info, 0) else 0

    @property
    def live_views(self):
        """Arrays that point into its memory; an array and its slices count as one."""
        cdef RequestInfo info
        check_here(self.core)
        return info.live_views if self.core.pool.describe(self.handle, info, kLiveViews) else 0

    @property
    def cancelled(self):
        """Whether it was cancelled while the host was a holder: by `cancel`, an exception in its ``with`` block,
        `Pool.cancel`, with its parent, or by ``Pool.close(force=True)``.

        Of a released request that was not cancelled through this object, the pool knows it until a later request in the
        same place is cancelled. An answer that was given stays.
        """
        check_here(self.core)
        self.gave_up = self.gave_up or self.core.pool.cancelled(self.handle)
        return self.gave_up

    def wait(self, timeout=None):
        """Waits, without the GIL, until the request is released. The host is a holder, too: call `close` before.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default there is no limit.

        Returns
        -------
        bool
            False if the timeout expired first.
        """
        cdef int64_t deadline = FOREVER if timeout is None else deadline_of(timeout)
        cdef bint done
        check_here(self.core)
        cdef int64_t until
        while True:
            until = next_slice(deadline)
            with nogil:
                done = self.core.pool.wait_released(self.handle, until)
            if done or until == deadline:
                return done
            PyErr_CheckSignals()

    def _wait_for_end(self, Wait wait not None):
        """The waiter, which has joined a loop, is woken once the request is released."""
        self.core.pool.enter_end(wait.waiter, self.handle)

    @property
    def _is_released(self):
        check_here(self.core)
        return self.core.pool.released(self.handle)

    def released(self):
        """Awaitable: returns once the request is released, without blocking the event loop.

        The host is a holder, too: await this after `close`, or after the ``with`` block, not inside.

        Examples
        --------
        >>> import asyncio, slabpool
        >>> async def main():
        ...     with slabpool.Pool("1MiB") as pool:
        ...         req = pool.request("r", devices=["gpu0"])
        ...         req.close()
        ...         asyncio.get_running_loop().call_soon(req.ack, "gpu0")
        ...         await req.released()
        ...         return req.state
        >>> asyncio.run(main())
        <RequestState.RELEASED: 'released'>
        """
        return async_wait.released(self.pool, loop_wait(self.core, None), self)

    def __reduce__(self):
        raise InvalidTypeError("a Request holds memory of this process: it cannot be copied or pickled")

    def __repr__(self):
        if not self.core.pool.usable_here():
            return f"<Request {show(self.id)} generation {self.handle.generation}: inherited through fork>"
        cdef RequestInfo info
        state, nbytes, waits, where = RequestState.RELEASED, 0, "", "?"
        cdef list names = self.devices.names
        if self.core.pool.describe(self.handle, info, kPendingDevices):
            names = self.devices.names  # of the same moment: see Devices
            where = location(info.opened_at)
            state, nbytes = state_of(<int>info.state), info.nbytes
            if not info.pending.empty():
                pending, behind = names_of(names, info.pending), names_of(names, info.behind_stream)
                waits = f", waits for {waits_for(pending, behind)}"
        return (f"<Request {show(self.id)} generation {self.handle.generation}: {state.value}, "
                f"{nbytes} bytes{waits}, opened at {where}>")


cdef object _ack_after(Request self, object device, object stream):
    cdef StreamName on
    cdef Error error
    cdef Acked acked
    check_here(self.core)
    cdef object named = self.quick_named()
    cdef int64_t number = self.devices.known_to(named, device, self)  # raises for an unknown one
    # As in ack().
    if device not in named and self.core.pool.released(self.handle):
        hooks.messages.unknown_device(device, self)
    on.stream = stream_of(stream)
    on.device = stream_device(stream)
    number = self.devices.known_to(named, device, self)  # again, because Python code of the stream has run
    if number < 0:
        return ack_answer(<int>self.core.pool.ack_retired(self.handle))
    self.core.pool.devices().hold_number(<uint32_t>number)
    with nogil:
        acked = self.core.pool.ack_after(self.handle, <uint32_t>number, on, error)
    self.core.pool.devices().drop(<uint32_t>number)
    if acked.status == Status.ok and acked.result != AckResult.late:
        return ack_answer(<int>acked.result)
    if acked.status == Status.ok or acked.status == Status.unknown_device:
        return self.devices.late(acked.status, &self.handle, named, device, self)
    hooks.messages.stream_failed(StatusCode(<int>acked.status), stream,
                                 text_of(error.text))
    failed(self.core, self, acked.status, 0, device)


only_made_by(Request, "a Request is made by Pool.request(...) or Request.child(...)")
only_made_by(Group, "a Group is made by Pool.group(group_id)")
only_made_by(GroupHold, "a Group is made by Pool.group(group_id)")
