# Part of tensors.pyx. Tensors that grow in place: addresses are reserved for the limit, memory is committed for the
# length. Whole pages before the first element, and behind the last one, can be given back.
#
# Invariants: all arrays of one tensor share its hold, and so one view hold of its block; no array reaches beyond the bytes
# that the core said are usable; no byte is given back that a living array reaches: each array has a _Rows as its base, which
# spans it; `stop` is written only if no other thread changed it since it was read. The GIL guards all of it. Where it is
# released, around a call that grows the block, `shrinks` tells whether bytes were given back meanwhile.

cdef Py_ssize_t _count(object value, str what) except -1:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidTypeError(f"{what} must be an int, got {show_typed(value)}") from None
    if number < 0:
        raise InvalidArgumentError(f"{what} must be 0 or more, got {show(number)}")
    if number > 0x7FFFFFFFFFFFFFFF:
        raise InvalidArgumentError(f"{what} is too large: {show(number)}")
    return number


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class _Extent:
    """Which bytes of one block are committed, and which of them are still needed."""

    cdef void _give(self) noexcept:
        """Gives the pages back that neither the tensor nor a living array needs. Does nothing while a device may read them."""
        cdef Py_ssize_t low = self.first, high = max(self.wanted, self.stop)
        cdef uint64_t first, last
        cdef CppPool.Extent kept
        cdef bint all_of_tail
        if self.first * <Py_ssize_t>self.step < <Py_ssize_t>(self.begin + kPageSize) and not self.tail:
            return
        cdef void* one = self.rows
        while one is not NULL:
            low = min(low, (<_Rows>one).low)
            high = max(high, (<_Rows>one).high)
            one = (<_Rows>one).next
        first = <uint64_t>low * self.step
        # Without truncate(release=True), what was committed ahead stays for the next extend().
        last = min(<uint64_t>high * self.step, self.usable) if self.tail else self.usable
        all_of_tail = self.tail and high == max(self.wanted, self.stop)
        if first < self.begin + kPageSize and last + kPageSize > self.usable:
            self.tail = self.tail and not all_of_tail
            return
        if self.core.pool.give_part(self.block[0], self.handle, first, max(first, last), self.holds, kept):
            self.begin = kept.from_
            self.usable = kept.to
            self.shrinks += 1
            self.tail = self.tail and not all_of_tail


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class _Hold:
    """One view hold of a growing block."""

    cdef _Extent extent

    def __dealloc__(self):
        if self.extent is not None:
            self.extent.holds -= 1
            with nogil:
                self.extent.core.pool.drop_view(self.extent.block[0])


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class _Rows:
    """The base of arrays of a growing tensor; spans every one of them. When the last one dies, pages may be given back."""

    cdef _Extent extent
    cdef object hold
    cdef bint frozen  # its arrays stay read-only
    cdef Py_ssize_t low, high
    cdef void* next
    cdef void* prev

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        # numpy asks the base of an array for a writable buffer before `flags.writeable` may be set again.
        cdef _Extent extent = self.extent
        cdef uint64_t first = max(<uint64_t>self.low * extent.step, extent.begin)
        cdef char* data = <char*>extent.block.data + (first - extent.begin)
        PyBuffer_FillInfo(buffer, self, data, <Py_ssize_t>(<uint64_t>self.high * extent.step - first), self.frozen, flags)

    def __dealloc__(self):
        cdef _Extent extent = self.extent
        if extent is None:
            return
        if extent.current is <void*>self:
            extent.current = NULL
        if self.next is not NULL:
            (<_Rows>self.next).prev = self.prev
        if self.prev is not NULL:
            (<_Rows>self.prev).next = self.next
        else:
            extent.rows = self.next
        extent._give()


@cython.final
@cython.auto_pickle(False)
cdef class _Growth:
    """What all `GrowableTensor` of one block share."""


# What an attempt to grow is about: an _Extent, and where its bytes are to end.
cdef struct _Wanted:
    void* extent
    uint64_t end


cdef Status _attempt(Core core, void* job, Waiter* waiter) noexcept:
    cdef _Extent extent = <_Extent>(<_Wanted*>job).extent
    cdef uint64_t end = (<_Wanted*>job).end
    cdef uint64_t usable, shrinks
    cdef Handle handle
    cdef Status status
    while True:
        usable = 0
        handle = extent.handle
        shrinks = extent.shrinks
        if waiter is not NULL or end - min(extent.usable, end) >= BULK:
            with nogil:
                status = core.pool.grow(extent.block[0], handle, end, usable, waiter)
        else:
            status = core.pool.grow(extent.block[0], handle, end, usable, NULL)
        if extent.shrinks == shrinks:
            extent.usable = max(extent.usable, usable)
        elif status == Status.ok:
            continue  # what it says may have been given back since
        # A session that came to keep the tensor meanwhile has changed the handle: it grows in the session's name now.
        if status == Status.ok or extent.handle.generation == handle.generation:
            return status


@cython.final
cdef class GrowableTensor:
    """A tensor of a request that becomes longer along one axis without being copied.

    Made by `Request.growable`. Addresses are reserved for `limit` when it is made. Memory is committed page by page as
    it grows, at most an eighth more than asked for, and only committed memory counts. Arrays made before stay valid.

    In memory the growing axis comes first, whatever its place in the shape; the other axes follow in C order.
    So a tensor of shape ``(batch, heads, tokens, dim)`` that grows along ``axis=2`` has strides as if it were
    ``(tokens, batch, heads, dim)``, seen through `numpy.moveaxis`.

    `drop_front` takes elements off the beginning, as a sliding window does, and ``truncate(release=True)`` off the end. Both
    return the whole pages that become free, as soon as nothing can access them: while an array over those elements lives, or
    a device holds the request, they stay. The other elements keep their addresses.

    A `Session` can keep it. It then goes on growing, within the session's budget.

    Attributes
    ----------
    request : Request or None
        The request that holds its memory; None once a session keeps it, or an array of it was kept or adopted: then it
        can grow and give memory back no more.
    dtype : numpy.dtype
    axis : int
        The axis that grows.
    first : int
        Elements that were dropped from the beginning so far.
    length : int
        Elements along that axis now.
    limit : int
        Most elements along that axis, those dropped from the beginning included. They cost addresses only.
    nbytes : int
        Bytes committed for it.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> with pool.request("chat-42") as req:
    ...     keys = req.growable((2, 0, 64), np.float16, axis=1, limit=4096)
    ...     old = keys.extend(3)
    ...     old[:] = 1
    ...     new = keys.extend(1)
    ...     new[:, 3] = 2
    ...     print(new.shape, np.shares_memory(old, new), float(new.sum()))
    (2, 4, 64) True 640.0

    A window over the last 1,000 tokens:

    >>> with pool.request("window") as req:
    ...     keys = req.growable((0, 1024), np.float16, limit=1 << 20)
    ...     for token in range(5000):
    ...         last = keys.extend(1)
    ...         last[-1] = token
    ...         if keys.length > 1000:
    ...             last = keys.drop_front(1)
    ...     print(last.shape, keys.first, float(last[0, 0]), keys.nbytes < 1.3 * last.nbytes)
    (1000, 1024) 4000 4000.0 True
    """

    cdef object _view(self):
        cdef _Growth growth = self.growth
        cdef _Extent extent = growth.extent
        cdef _Rows rows = _rows_of(self)  # first: from here on the elements stay
        cdef Shape shape
        cdef int i
        shape.nd = growth.full.nd
        for i in range(shape.nd):
            shape.dims[i] = growth.full.dims[i]
        shape.dims[growth.axis] = extent.stop - extent.first
        return wrap_strided(rows, growth.base + <uint64_t>extent.first * extent.step, growth.dtype, &shape,
                            growth.strides, not self.frozen)

    cdef int _grow(self, uint64_t end, object timeout) except -1:
        """Commits memory for the bytes up to `end`."""
        cdef _Growth growth = self.growth
        cdef _Extent extent = growth.extent
        cdef Status status = Status.waiters_ahead
        cdef Wait wait = None
        cdef _Wanted wanted
        wanted.extent = <void*>extent
        wanted.end = end
        extent._give()  # what a device could still read at an earlier call may be free now
        if timeout is None:
            status = _attempt(self.core, &wanted, NULL)
            if status == Status.ok:
                return 0
        wait = wait_of(self.core, timeout, growth.request)
        status = find_room(self.core, status, _attempt, &wanted, wait, extent.handle, end - min(extent.usable, end), True)
        if status == Status.ok:
            return 0
        if growth.keeper is not None:  # raises if the session or its budget is the reason
            growth.keeper(StatusCode(<int>status), end - min(extent.usable, end))
        if status == Status.request_closed:
            self._must_have_its_memory("grow")
        failed(self.core, growth.request, status, end - min(extent.usable, end), wait)
        return 0

    def extend(self, n=1, *, timeout=None, priority=None):
        """Makes it longer.

        Parameters
        ----------
        n : int, default 1
            Elements to add along the axis.
        timeout : float, optional
            Seconds to wait for memory, or for the quota. By default running out is an error at once.
        priority : int, optional
            As for `Request.empty`.

        Returns
        -------
        numpy.ndarray
            The whole tensor; the added elements are uninitialised. Arrays made before stay valid.

        Raises
        ------
        TensorTooLargeError
            It would exceed its limit.
        PoolExhausted, QuotaExceededError, RequestClosedError
            As for `Request.empty`. Its length is unchanged then.
        """
        cdef Py_ssize_t more = _count(n, "n")
        cdef Py_ssize_t before, after
        cdef uint64_t end
        cdef _Growth growth = self.growth
        cdef _Extent extent = growth.extent
        check_here(self.core)
        self._must_be_writable()
        while True:
            before = extent.stop
            if more > growth.limit - before:
                dropped = f", {extent.first} of them dropped," if extent.first else ""
                raise TensorTooLargeError(
                    f"cannot extend by {more}: the tensor has {before}{dropped} of at most {growth.limit} along axis "
                    f"{growth.axis}, {self._whose()}. Make it with a higher limit="
                )
            after = before + more
            end = <uint64_t>after * extent.step
            if end > extent.usable:
                self._grow(end, patience(timeout, priority))
            elif not self.core.pool.is_open(extent.handle):
                if growth.keeper is not None:
                    growth.keeper(StatusCode(<int>Status.request_closed), 0)
                self._must_have_its_memory("grow")
                failed(self.core, growth.request, Status.request_closed, 0, None)
            # Otherwise another thread has extended it meanwhile, or has given memory back.
            if extent.stop == before and end <= extent.usable:
                extent.stop = after
                extent.wanted = max(extent.wanted, after)
                return self._view()

    def extend_async(self, n=1, *, timeout=None, priority=None):
        """As `extend`, awaitable: waits without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default there is no limit. The others are those of `extend`.

        Returns
        -------
        numpy.ndarray

        Examples
        --------
        >>> import asyncio, slabpool
        >>> async def main():
        ...     with slabpool.Pool("1MiB").request("r") as req:
        ...         keys = req.growable((0, 8), "f4", limit=100)
        ...         return (await keys.extend_async(16)).shape
        >>> asyncio.run(main())
        (16, 8)
        """
        check_here(self.core)
        return async_wait.served(self.core.owner(), loop_wait(self.core, priority),
                                 lambda wait: self.extend(n, timeout=wait), timeout)

    def truncate(self, length, *, release=False):
        """Makes it shorter.

        Parameters
        ----------
        length : int
            Elements along the axis, at most as many as now.
        release : bool, default False
            Whether to return the whole pages behind the remaining elements to the pool, quota and reserve included. By
            default they stay committed, and the next `extend` reuses them. Pages stay as long as an array that was made of
            elements in them lives, or a device holds the request, or, after `Request.adopt`, the request it came from is not
            released.

        Returns
        -------
        numpy.ndarray
            The remaining tensor. Arrays made before stay valid, and see later writes to the same memory.

        Raises
        ------
        RequestClosedError
            With `release`: a session keeps, or another request has adopted, an array of it. Nothing has changed then.

        Examples
        --------
        >>> import numpy as np, slabpool
        >>> pool = slabpool.Pool("16MiB")
        >>> with pool.request("r") as req:
        ...     keys = req.growable((3000, 1024), "u1", limit=1 << 20)
        ...     kept = keys.truncate(10, release=True)
        ...     kept.shape, keys.nbytes <= 16 << 10
        ((10, 1024), True)
        """
        cdef Py_ssize_t wanted = _count(length, "length")
        cdef _Extent extent = self.growth.extent
        self._must_be_writable()
        if wanted > extent.stop - extent.first:
            raise InvalidArgumentError(
                f"cannot truncate to {show(wanted)}: the tensor has {self.length} along axis {self.axis}. Use extend()"
            )
        if release:
            self._must_have_its_memory("give memory back")
        extent.stop = extent.first + wanted
        if release:
            extent.wanted = extent.stop
            extent.tail = True
            extent.current = NULL  # arrays made from now on reach less far
            extent._give()
        return self._view()

    def drop_front(self, n):
        """Drops elements from the beginning, and returns their memory to the pool in whole pages.

        What was element ``n`` along the axis is element 0 from now on; it keeps its address. `first` counts the elements
        that were dropped; they still count towards `limit`.

        Arrays made before stay valid. The pages of dropped elements stay as long as such an array lives (a slice of it
        counts), or a device holds the request: a device may read any element that it has a reference to. After
        `Request.adopt` they stay until the request it came from is released. Pages that stay are returned when the last of
        these arrays dies, or at the next call after the last device's ack, or with the request. Do not open a reference that
        was made to elements before they were dropped.

        Parameters
        ----------
        n : int
            Elements to drop along the axis, at most as many as there are.

        Returns
        -------
        numpy.ndarray
            The remaining tensor.

        Raises
        ------
        RequestClosedError
            A session keeps, or another request has adopted, an array of it. Nothing has changed then.

        Examples
        --------
        >>> import numpy as np, slabpool
        >>> pool = slabpool.Pool("16MiB")
        >>> with pool.request("r") as req:
        ...     keys = req.growable((0, 1024), "u2", limit=1 << 20)
        ...     keys.extend(1000)[:] = np.arange(1000)[:, None]
        ...     window = keys.drop_front(900)
        ...     window.shape, int(window[0, 0]), keys.first, keys.nbytes <= 300 << 10
        ((100, 1024), 900, 900, True)
        """
        cdef Py_ssize_t count = _count(n, "n")
        cdef _Extent extent = self.growth.extent
        self._must_be_writable()
        if count > extent.stop - extent.first:
            raise InvalidArgumentError(
                f"cannot drop {show(count)}: the tensor has {self.length} along axis {self.axis}"
            )
        self._must_have_its_memory("give memory back")
        extent.first += count
        extent.current = NULL  # arrays made from now on begin later
        extent._give()
        return self._view()

    cdef int _must_be_writable(self) except -1:
        if self.frozen:
            raise InvalidArgumentError(
                f"{self!r} is read-only: session[name] is for reading. session.writable(name) can be extended, truncated and dropped from"
            )
        return 0

    cdef bint _moved(self) noexcept:
        """Whether a session or another request has taken the memory over by an array of it."""
        cdef _Extent extent = self.growth.extent
        cdef Handle owner = self.core.pool.owner_of(extent.block[0])
        return owner.generation != extent.handle.generation

    cdef int _must_have_its_memory(self, str what) except -1:
        if self._moved():
            raise RequestClosedError(
                f"{self!r} cannot {what} any more: a session keeps, or another request has adopted, an array of its memory. "
                "Keep the GrowableTensor itself, or adopt it: then it can go on")
        return 0

    cdef str _whose(self):
        if self._moved():
            return f"taken over as generation {self.core.pool.owner_of(self.growth.extent.block[0]).generation}"
        if self.growth.request is None:
            return f"kept by a session as generation {self.growth.extent.handle.generation}"
        return f"in request {show(self.growth.request.id)} generation {self.growth.extent.handle.generation}"

    @property
    def request(self):
        """The Request that holds its memory; None once a session keeps it, or an array of it was kept or adopted."""
        return None if self._moved() else self.growth.request

    @property
    def dtype(self):
        """The data type of its elements."""
        return self.growth.dtype

    @property
    def axis(self):
        """The axis that grows."""
        return self.growth.axis

    @property
    def first(self):
        """Elements that were dropped from the beginning so far."""
        return self.growth.extent.first

    @property
    def length(self):
        """Elements along that axis now."""
        return self.growth.extent.stop - self.growth.extent.first

    @property
    def limit(self):
        """Most elements along that axis, those dropped from the beginning included."""
        return self.growth.limit

    @property
    def nbytes(self):
        """Bytes committed for it."""
        return self.growth.extent.usable - self.growth.extent.begin

    @property
    def array(self):
        """A new view of the whole tensor (numpy.ndarray)."""
        return self._view()

    @property
    def shape(self):
        """The current shape (tuple of int)."""
        cdef _Growth growth = self.growth
        return tuple([self.length if i == growth.axis else growth.full.dims[i] for i in range(growth.full.nd)])

    def __len__(self):
        return self.growth.extent.stop - self.growth.extent.first

    def __reduce__(self):
        raise InvalidTypeError("a GrowableTensor is memory of this process: copy its array, or send a reference to it")

    def __repr__(self):
        return (f"<GrowableTensor {self.shape} of {short(str(self.dtype), 100)}, limit {self.limit} along axis {self.axis}, "
                f"{self.nbytes} bytes, {self._whose()}>")


cdef _Rows _rows_of(GrowableTensor self):
    """The base of the next array."""
    cdef _Extent extent = self.growth.extent
    cdef _Rows rows
    if extent.current is not NULL and (<_Rows>extent.current).frozen == self.frozen:
        rows = <_Rows>extent.current
        rows.high = max(rows.high, extent.stop)
        return rows
    rows = _Rows.__new__(_Rows)
    rows.hold = self.hold
    rows.frozen = self.frozen
    rows.low = extent.first
    rows.high = extent.stop
    rows.next = extent.rows
    rows.prev = NULL
    if rows.next is not NULL:
        (<_Rows>rows.next).prev = <void*>rows
    rows.extent = extent
    extent.rows = extent.current = <void*>rows
    return rows


cdef int _axis(object axis, int nd) except -1:
    try:
        number = operator.index(axis)
    except TypeError:
        raise InvalidTypeError(f"axis must be an int, got {show_typed(axis)}") from None
    if nd == 0:
        raise InvalidArgumentError("a tensor without axes cannot grow; shape is ()")
    if not -nd <= number < nd:
        raise InvalidArgumentError(f"axis must be from {-nd} to {nd - 1} for {nd} axes, got {show(number)}")
    return number % nd


cdef GrowableTensor _new(Core core, _Growth growth):
    cdef GrowableTensor tensor = GrowableTensor.__new__(GrowableTensor)
    tensor.core = core
    tensor.growth = growth
    return tensor


cdef _Hold _hold(_Extent extent):
    """Takes a view hold of the caller over."""
    cdef _Hold hold = _Hold.__new__(_Hold)
    hold.extent = extent
    extent.holds += 1
    return hold


cdef GrowableTensor growable_of(Core core, _Growth growth, bint writable):
    cdef GrowableTensor tensor
    try:
        tensor = _new(core, growth)
        tensor.frozen = not writable
        tensor.hold = _hold(growth.extent)
    except BaseException:
        core.pool.drop_view(growth.extent.block[0])
        raise
    return tensor


cdef struct _Opened:
    Handle* request
    uint64_t most
    Allocation result


cdef Status _attempt_addresses(Core core, void* job, Waiter* waiter) noexcept:
    cdef _Opened* opened = <_Opened*>job
    opened.result = core.pool.open_growing(opened.request[0], opened.most, waiter)
    return opened.result.status


cdef Allocation _find_addresses(Core core, Handle handle, uint64_t nbytes, Wait wait, object request) except *:
    cdef _Opened opened
    cdef Status status = Status.waiters_ahead
    opened.request = &handle
    opened.most = nbytes
    if wait is None:
        status = _attempt_addresses(core, &opened, NULL)
        if status == Status.ok:
            return opened.result
        wait = wait_of(core, None, request)
    status = find_room(core, status, _attempt_addresses, &opened, wait, handle, nbytes, True)
    if status != Status.ok:
        failed(core, request, status, nbytes, wait)
    return opened.result


cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request):
    cdef cnp.dtype descr = as_dtype(dtype)
    cdef Shape parsed, full
    cdef Py_ssize_t first, most
    cdef uint64_t nbytes, step
    cdef int i, at
    if core.maker is not None:
        hooks.messages.host_only("a growable tensor")
    parse_shape(shape, descr.itemsize, &parsed)
    at = _axis(axis, parsed.nd)
    first = parsed.dims[at]
    most = _count(limit, "limit")
    if most < first:
        raise InvalidArgumentError(
            f"limit is {most} and shape already {first} along axis {at}; it must be as much or more")
    dims = [parsed.dims[i] for i in range(parsed.nd)]
    dims[at] = 1
    step = parse_shape(tuple(dims), descr.itemsize, &full)
    dims[at] = most
    nbytes = parse_shape(tuple(dims), descr.itemsize, &full)
    check_here(core)
    cdef _Growth growth = _Growth.__new__(_Growth)
    cdef _Extent extent = _Extent.__new__(_Extent)
    cdef GrowableTensor tensor = _new(core, growth)  # before the core returns a view hold, which needs an owner
    cdef Wait wait = wait_of(core, timeout, request) if timeout is not None else None
    result = _find_addresses(core, handle, nbytes, wait, request)
    extent.core = core
    extent.block = result.block
    extent.handle = handle
    extent.step = step
    growth.extent = extent
    growth.base = <char*>result.block.data
    growth.request = request
    growth.dtype = descr
    growth.axis = at
    growth.limit = most
    growth.full = full
    nbytes = <uint64_t>descr.itemsize
    for i in range(full.nd - 1, -1, -1):
        if i != at:
            growth.strides[i] = <cnp.npy_intp>nbytes
            nbytes *= <uint64_t>max(full.dims[i], 1)
    growth.strides[at] = <cnp.npy_intp>nbytes
    try:
        if <uint64_t>first * step != 0:
            tensor._grow(<uint64_t>first * step, wait)
        tensor.hold = _hold(extent)
    except BaseException:
        if extent.usable == 0:
            core.pool.cancel_growing(result.block[0], handle)
        else:  # the request holds it until it ends
            core.pool.drop_view(result.block[0])
        raise
    extent.stop = extent.wanted = first
    return tensor


only_made_by(GrowableTensor, "a GrowableTensor is made by Request.growable(...)")
