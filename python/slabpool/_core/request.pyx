# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The request as Python sees it: allocate, let devices acknowledge, close.

A thin shell over a pair of integers (slot, generation); the C++ table decides everything. What must
stay true: dropping an open Request closes it, as a file does, with a ResourceWarning.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from slabpool._core.array cimport Core, allocate, check_here, deadline_of, new_array, next_slice, new_copy, new_full
from slabpool._core.cpp_observe cimport RequestInfo
from slabpool._core.cpp_pool cimport Acked
from slabpool._core.cpp_request cimport AckResult, Handle
from slabpool._core.cpp_status cimport Status
from slabpool._core.cpp_stream cimport StreamName
from slabpool._core.growable cimport new_growable
from slabpool._core.layout cimport Layout, Tensors, new_tensors
from slabpool._core.looking cimport state_of
from slabpool._core.naming cimport Devices, location
from slabpool._core.ref cimport new_ref
from slabpool._core.stream cimport stream_device, stream_of

import warnings

from slabpool._core import active, async_wait
from slabpool.messages import pool as _report
from slabpool.errors import InvalidTypeError
from slabpool.records import Ack, RequestState, waits_for

cdef object PENDING = Ack.PENDING
cdef tuple ANSWERS = (Ack.PENDING, Ack.RELEASED, Ack.DUPLICATE, Ack.LATE)  # in the order of AckResult
cdef int64_t FOREVER = 0x7FFFFFFFFFFFFFFF
cdef bint _making = False  # a Request by new_request(), and not by somebody who calls the type


cdef object ack_answer(int result):
    return ANSWERS[result]


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Request:
    """Memory of one inference request, kept until the host and every device have let go.

    Made by `Pool.request` or `Request.child`. The host holds it until `close` (or the end of a ``with``
    block), each device until its `ack`; whoever is last returns the blocks, once, on its own thread. A
    live numpy view keeps its block even then.

    Attributes
    ----------
    id : str, int or bytes
        As given when it was opened.
    generation : int
        Tells requests of the same id apart; larger is later. Never used twice in a pool.
    parent : int or None
        Generation of the request this one is a child of.
    quota : int or None
        Most bytes it may have; a child shares that of the request it descends from.

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

    def __cinit__(self):
        if not _making:  # Request.__new__(Request) has no core to ask
            raise InvalidTypeError("a Request is made by Pool.request(...) or Request.child(...)")

    def __del__(self):
        if self.core is None or self.closed:
            return
        if not self.core.pool.usable_here() or not self.core.pool.is_open(self.handle):
            return
        opened_at = self._info()[4]
        # Closed first: the warning may be made an error.
        self._leave(False)
        warnings.warn(
            f"request {self.id!r} generation {self.handle.generation} was dropped while open and is closed now; "
            f"it was opened at {opened_at}. Call close() or use `with`.",
            ResourceWarning,
            stacklevel=2,
            source=None,
        )

    # ---- memory

    def empty(self, shape, dtype=float, *, align=None, timeout=None):
        """Array of undefined contents in the pool's memory, held by this request.

        Parameters
        ----------
        shape : int or tuple of ints
        dtype : data-type, default float64
            Any that holds no Python objects.
        align : int, default 64
            Alignment of the first byte; a power of two up to 2 MiB.
        timeout : float, optional
            Seconds to wait for memory to come back. By default running out is an error at once.

        Returns
        -------
        numpy.ndarray
            C order, writable.

        Raises
        ------
        PoolExhausted
            No room now (or within the timeout); `TensorTooLargeError` if there never can be.
        QuotaExceededError
            The request's quota does not allow it.
        RequestClosedError
            The host has let go of the request.
        InvalidArgumentError, InvalidTypeError
            A bad shape, dtype or alignment.

        Examples
        --------
        >>> import slabpool
        >>> with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
        ...     req.empty((4, 8), "f4").shape
        (4, 8)
        """
        return new_array(self.core, self.handle, shape, dtype, align, False, timeout, self)

    def zeros(self, shape, dtype=float, *, align=None, timeout=None):
        """As `empty`, filled with zeros. Memory that is known to be zero is not written again."""
        return new_array(self.core, self.handle, shape, dtype, align, True, timeout, self)

    def full(self, shape, fill_value, dtype=None, *, align=None, timeout=None):
        """As `empty`, filled with a value; the dtype is the value's unless given."""
        return new_full(self.core, self.handle, shape, fill_value, dtype, align, timeout, self)

    def copy(self, array, *, align=None, timeout=None):
        """As `empty`, with shape, dtype and contents of `array`, in C order."""
        return new_copy(self.core, self.handle, array, align, timeout, self)

    def growable(self, shape, dtype=float, *, limit, axis=0, timeout=None):
        """A tensor that can become longer along one axis without being copied: a KV cache.

        Parameters
        ----------
        shape : int or tuple of ints
            What it is at first; 0 along the axis will do.
        dtype : data-type, default float64
            Any that holds no Python objects.
        limit : int
            The most it may come to along the axis. Costs addresses, and no memory.
        axis : int, default 0
            The axis that grows.
        timeout : float, optional
            Seconds to wait for the first memory; `GrowableTensor.extend` has its own.

        Returns
        -------
        GrowableTensor
            Its `extend` returns views. It keeps the request's handle, and counts as one view together with its arrays.

        Raises
        ------
        PoolExhausted, QuotaExceededError, RequestClosedError
            As for `empty`. `PoolExhausted` also where the pool's range has no run of addresses for the limit.
        InvalidArgumentError, InvalidTypeError
            A bad shape, dtype, axis or limit.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.request("r") as req:
        ...     keys = req.growable((4, 0, 8), "f4", axis=1, limit=100_000)
        ...     keys.extend(16).shape, keys.nbytes
        ((4, 16, 8), 16384)
        """
        return new_growable(self.core, self.handle, shape, dtype, axis, limit, timeout, self)

    def allocate(self, Layout layout not None, *, bint zero=False, timeout=None):
        """All tensors of a layout, in one call; views are made when asked for.

        Parameters
        ----------
        layout : Layout
        zero : bool, default False
            Fill with zeros.
        timeout : float, optional
            Seconds to wait for memory to come back.

        Returns
        -------
        Tensors

        Raises
        ------
        PoolExhausted, QuotaExceededError, RequestClosedError
            As for `empty`; then nothing was allocated.

        Examples
        --------
        >>> import slabpool
        >>> layout = slabpool.Layout({"k": ((2, 8), "f2"), "v": ((2, 8), "f2")})
        >>> with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
        ...     t = req.allocate(layout, zero=True)
        ...     float(t.k.sum())
        0.0
        """
        return new_tensors(self.core, self.handle, layout, zero, timeout, self)

    def ref(self, array=None):
        """A reference that another process can open; for pools of ``memory="shared"``.

        Parameters
        ----------
        array : numpy.ndarray, optional
            In this request's memory; slices and transposed views too. By default the reference is to the
            request alone: an empty tensor, good for an ack.

        Returns
        -------
        TensorRef
            Small, and may be pickled. It keeps nothing: the request does, until the device acknowledges.

        Raises
        ------
        InvalidArgumentError
            The pool is not shared, or the array is not in this request's memory.
        RequestClosedError
            The request is over.
        InvalidTypeError
            Not an array, or of a dtype that other processes cannot know.

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
            A CUDA stream: the ack counts once everything that is queued on it until now is done. Nobody waits for
            that, here or elsewhere. 0 and 1 are the legacy default stream, of the device that the pool's memory is
            of, else of the current one. By default the device is done now.

        Returns
        -------
        Ack
            ``RELEASED`` if this was the last hold; ``DUPLICATE`` or ``LATE`` change nothing. An ack of a
            request is an ack of all its children. With a stream that still has something to do: ``PENDING``, and
            until the ack counts the device is one of `pending`; another ack with a stream is a ``DUPLICATE``, and one
            without counts at once.

        Raises
        ------
        UnknownDeviceError
            The device was never named for this request. Nothing changed, as with the others:
        InvalidTypeError, InvalidArgumentError
            That is no stream; CUDA does not know it, or it is being captured into a graph.
        DeviceUnavailableError
            There is no CUDA driver.
        DeviceLostError
            The GPU has failed: nothing that was queued on it will be done. `Pool.device_lost` lets go of what its
            device holds.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> req = pool.request("chat-42", devices=["gpu0"])
        >>> req.ack("gpu0")  # with stream=s: once what is queued on s is done
        <Ack.PENDING: 'pending'>
        """
        if stream is not None:
            return _ack_after(self, device, stream)
        number = self.devices.numbers.get(device) if type(device) is str or type(device) is int else None
        if number is None:
            number = self.devices.known(device, self)
        cdef uint32_t index = number
        if index >= 64 or not self.named_mask >> index & 1:
            # The core cannot tell late from unknown once the slot is another's, and would count it as late.
            if device not in self.named and self.core.pool.released(self.handle):
                _report.unknown_device(device, self)
        cdef Acked acked
        if self.core.cleans:
            with nogil:
                acked = self.core.pool.ack(self.handle, index)
        else:
            acked = self.core.pool.ack(self.handle, index)
        if acked.status == Status.ok:
            if acked.result == AckResult.pending:
                return PENDING
            if acked.result != AckResult.late or device in self.named:
                return ANSWERS[<int>acked.result]
            _report.unknown_device(device, self)
        self.core.report(self, <int>acked.status, 0, device)

    def add_device(self, device):
        """One more device must acknowledge (a ring that is partitioned anew). Only while the host holds.

        Raises
        ------
        RequestClosedError
            The host has let go.
        DuplicateDeviceError
            The device is one of those that still have to acknowledge.
        UnknownDeviceError
            This is a child, and its parent does not wait for the device.
        """
        cdef uint32_t number
        if self.parent is None:
            number = self.devices.number(device)
        else:
            number = self.devices.known(device, self)  # its parent's, so no new name
        cdef Status status = self.core.pool.add_device(self.handle, number)
        if status == Status.unknown_device:
            _report.not_the_parents(device, self)
        if status != Status.ok:
            self.core.report(self, <int>status, 0, device)
        self.named = self.named + (device,)
        if number < 64:
            self.named_mask |= <uint64_t>1 << number

    def remove_device(self, device):
        """Acknowledges on the device's behalf; the same as ``ack(device)``."""
        return self.ack(device)

    def child(self, devices=()):
        """A request of its own within this one, for memory that returns sooner (a step, a hidden state).

        Parameters
        ----------
        devices : iterable of str or int
            A subset of the devices that still have to acknowledge this request.

        Returns
        -------
        Request
            With the same id, a generation of its own, and this request's quota and reserve. It is over
            when its own holders have let go, and at the latest with this request.

        Raises
        ------
        UnknownDeviceError
            A device that this request does not wait for.
        RequestClosedError
            The host has let go.

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
        return self.pool._open_child(self, devices)

    cdef void _leave(self, bint cancel) noexcept:
        if self.core.cleans:
            with nogil:
                self.core.pool.close_request(self.handle, cancel)
        else:
            self.core.pool.close_request(self.handle, cancel)

    def close(self):
        """The host is done: nothing more will be allocated. Again: nothing happens."""
        check_here(self.core)
        self.closed = True
        self._leave(False)

    def cancel(self):
        """The host gives up. As `close`, and `cancelled` tells the devices that they may stop early."""
        check_here(self.core)
        self.closed = True
        self.gave_up = self.gave_up or self.core.pool.is_open(self.handle)
        self._leave(True)

    def activate(self):
        """What other libraries allocate inside the block counts to this request.

        That is what their integrations install: `slabpool.tinygrad.install`, for one. Nested blocks: the
        inner request. Asyncio tasks that are made inside have it too; it ends with the block for them as well.

        Returns
        -------
        context manager
            Gives the request; for one ``with``.

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

    def __exit__(self, *exc):
        # A child of fork leaves the block too, and the request is not its to close.
        if self.core.pool.usable_here():
            self.close()

    # ---- looking

    cdef tuple _info(self):
        """(state, nbytes, pending, live_views, opened_at, those of pending whose stream's work is missing)"""
        cdef RequestInfo info
        check_here(self.core)
        if not self.core.pool.describe(self.handle, info):
            return RequestState.RELEASED, 0, frozenset(), 0, "?", frozenset()
        pending = frozenset([self.devices.names[number] for number in info.pending])
        behind = frozenset([self.devices.names[number] for number in info.behind_stream])
        return state_of(<int>info.state), info.nbytes, pending, info.live_views, location(info.opened_at), behind

    @property
    def generation(self):
        """Tells requests of the same id apart."""
        return self.handle.generation

    @property
    def pending(self):
        """Devices that have not acknowledged (frozenset of str or int)."""
        return self._info()[2]

    @property
    def state(self):
        """The `RequestState`."""
        return self._info()[0]

    @property
    def nbytes(self):
        """Bytes it keeps from reuse, in whole blocks; once released, those that views retain."""
        return self._info()[1]

    @property
    def live_views(self):
        """Arrays, each with all its slices counted once, that point into its memory."""
        return self._info()[3]

    @property
    def cancelled(self):
        """Whether the host gave up before the end."""
        check_here(self.core)
        return self.gave_up or self.core.pool.cancelled(self.handle)

    def wait(self, timeout=None):
        """Waits, without the GIL, until the request is released.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default for ever.

        Returns
        -------
        bool
            False if the timeout came first.
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

    @property
    def _is_released(self):
        check_here(self.core)
        return self.core.pool.released(self.handle)

    def released(self):
        """Awaitable: returns once the request is released, without blocking the event loop.

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
        return async_wait.released(self.pool, lambda: self._is_released)

    def __reduce__(self):
        raise InvalidTypeError("a Request is a hold on memory of this process: it cannot be copied or pickled")

    def __repr__(self):
        if not self.core.pool.usable_here():
            return f"<Request {self.id!r} generation {self.handle.generation}: inherited through fork>"
        state, nbytes, pending, _, where, behind = self._info()
        waits = f", waits for {waits_for(pending, behind)}" if pending else ""
        return (f"<Request {self.id!r} generation {self.handle.generation}: {state.value}, "
                f"{nbytes} bytes{waits}, opened at {where}>")


cdef object _ack_after(Request self, object device, object stream):
    cdef StreamName on
    cdef string why
    cdef Acked acked
    check_here(self.core)
    cdef uint32_t number = self.devices.known(device, self)
    # As in ack().
    if device not in self.named and self.core.pool.released(self.handle):
        _report.unknown_device(device, self)
    on.stream = stream_of(stream)
    on.device = stream_device(stream)
    with nogil:
        acked = self.core.pool.ack_after(self.handle, number, on, &why)
    if acked.status == Status.ok:
        if acked.result != AckResult.late or device in self.named:
            return ANSWERS[<int>acked.result]
        _report.unknown_device(device, self)
    _report.stream_failed(<int>acked.status, stream, why.decode("utf-8", "replace"))
    self.core.report(self, <int>acked.status, 0, device)


cdef Request new_request(object pool, Core core, Devices devices, Handle handle, object id, tuple named,
                         uint64_t named_mask, object parent, object quota):
    global _making
    _making = True
    cdef Request request = Request.__new__(Request)
    _making = False
    request.pool = pool
    request.core = core
    request.devices = devices
    request.handle = handle
    request.id = id
    request.named = named
    request.named_mask = named_mask
    request.parent = parent
    request.quota = quota
    request.closed = request.gave_up = False
    return request
