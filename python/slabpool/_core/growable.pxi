# Part of tensors.pyx. Tensors that grow in place: addresses are reserved for the limit, memory is committed for the
# length.
#
# Invariants: all arrays of one tensor share its owner, and so one view hold of its block; no array reaches beyond the
# bytes that the core said are usable; `length` is written only if no other thread changed it since it was read.

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
@cython.auto_pickle(False)
cdef class _Growth:
    """What all `GrowableTensor` of one block share."""


# What an attempt to grow is about: a _Growth, and the bytes it is to have.
cdef struct _Wanted:
    void* growth
    uint64_t nbytes


cdef Status _attempt(Core core, void* job, Waiter* waiter) noexcept:
    cdef _Growth growth = <_Growth>(<_Wanted*>job).growth
    cdef uint64_t nbytes = (<_Wanted*>job).nbytes
    cdef uint64_t usable = 0
    cdef Handle handle
    cdef Status status
    while True:
        handle = growth.handle
        if waiter is not NULL or nbytes - growth.nbytes >= BULK:
            with nogil:
                status = core.pool.grow(growth.block[0], handle, nbytes, usable, waiter)
        else:
            status = core.pool.grow(growth.block[0], handle, nbytes, usable, NULL)
        growth.nbytes = max(growth.nbytes, usable)
        # A session that came to keep the tensor meanwhile has changed the handle: it grows in the session's name now.
        if status == Status.ok or growth.handle.generation == handle.generation:
            return status


@cython.final
cdef class GrowableTensor:
    """A tensor of a request that becomes longer along one axis without being copied.

    Made by `Request.growable`. Addresses are reserved for `limit` when it is made. Memory is committed page by page as
    it grows, at most an eighth more than asked for, and only committed memory counts. Arrays made before stay valid.

    In memory the growing axis comes first, whatever its place in the shape; the other axes follow in C order.
    So a tensor of shape ``(batch, heads, tokens, dim)`` that grows along ``axis=2`` has strides as if it were
    ``(tokens, batch, heads, dim)``, seen through `numpy.moveaxis`.

    A `Session` can keep it. It then goes on growing, within the session's budget.

    Attributes
    ----------
    request : Request or None
        The request that holds its memory; None once a session keeps it.
    dtype : numpy.dtype
    axis : int
        The axis that grows.
    length, limit : int
        Elements along that axis: now, and at most.
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
    """

    cdef object _view(self, Py_ssize_t length):
        cdef _Growth growth = self.growth
        cdef Shape shape
        cdef int i
        shape.nd = growth.full.nd
        for i in range(shape.nd):
            shape.dims[i] = growth.full.dims[i]
        shape.dims[growth.axis] = length
        return wrap_strided(self.owner, growth.block.data, growth.dtype, &shape, growth.strides, True)

    cdef int _grow(self, uint64_t nbytes, object timeout) except -1:
        """Commits memory for so many bytes in all."""
        cdef _Growth growth = self.growth
        cdef Status status = Status.waiters_ahead
        cdef Wait wait = None
        cdef _Wanted wanted
        wanted.growth = <void*>growth
        wanted.nbytes = nbytes
        if timeout is None:
            status = _attempt(self.core, &wanted, NULL)
            if status == Status.ok:
                return 0
        while True:
            wait = wait_of(self.core, timeout, growth.request)
            # Beyond the session's budget the keeper may make room, or raises.
            status = find_room(self.core, status, _attempt, &wanted, wait, growth.handle,
                               nbytes - min(growth.nbytes, nbytes), growth.keeper)
            if status == Status.ok:
                return 0
            if growth.keeper is None or not growth.keeper(StatusCode(<int>status), nbytes - min(growth.nbytes, nbytes)):
                break
            status = Status.waiters_ahead
        if status == Status.request_closed and growth.request is not None and self.core.pool.is_open(growth.handle):
            raise RequestClosedError(
                f"{self!r} cannot grow any more: a session keeps an array of its memory. Keep the GrowableTensor "
                "itself: then it can go on growing")
        failed(self.core, growth.request, status, nbytes - min(growth.nbytes, nbytes), wait)
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
        cdef _Growth growth = self.growth
        check_here(self.core)
        while True:
            before = growth.length
            if more > growth.limit - before:
                raise TensorTooLargeError(
                    f"cannot extend by {more}: the tensor has {before} of at most {growth.limit} along axis "
                    f"{growth.axis}, {self._whose()}. Make it with a higher limit="
                )
            after = before + more
            if <uint64_t>after * growth.step > growth.nbytes:
                self._grow(<uint64_t>after * growth.step, patience(timeout, priority))
            elif not self.core.pool.is_open(growth.handle):
                if growth.keeper is not None:
                    growth.keeper(StatusCode(<int>Status.request_closed), 0)
                failed(self.core, growth.request, Status.request_closed, 0, None)
            if growth.length == before:  # otherwise another thread has extended it meanwhile
                growth.length = after
                return self._view(after)

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
        ...     with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
        ...         keys = req.growable((0, 8), "f4", limit=100)
        ...         return (await keys.extend_async(16)).shape
        >>> asyncio.run(main())
        (16, 8)
        """
        check_here(self.core)
        return async_wait.served(self.core.owner(), loop_wait(self.core, priority),
                                 lambda wait: self.extend(n, timeout=wait), timeout)

    def truncate(self, length):
        """Makes it shorter. Its memory stays committed, and the next `extend` reuses it.

        Parameters
        ----------
        length : int
            Elements along the axis, at most as many as now.

        Returns
        -------
        numpy.ndarray
            The remaining tensor. Arrays made before stay valid, and see later writes to the same memory.
        """
        cdef Py_ssize_t wanted = _count(length, "length")
        if wanted > self.growth.length:
            raise InvalidArgumentError(
                f"cannot truncate to {show(wanted)}: the tensor has {self.length} along axis {self.axis}. Use extend()"
            )
        self.growth.length = wanted
        return self._view(wanted)

    cdef str _whose(self):
        if self.growth.request is None:
            return f"kept by a session as generation {self.growth.handle.generation}"
        return f"in request {show(self.growth.request.id)} generation {self.growth.handle.generation}"

    @property
    def request(self):
        """The Request that holds its memory; None once a session keeps it."""
        return self.growth.request

    @property
    def dtype(self):
        """The data type of its elements."""
        return self.growth.dtype

    @property
    def axis(self):
        """The axis that grows."""
        return self.growth.axis

    @property
    def length(self):
        """Elements along that axis now."""
        return self.growth.length

    @property
    def limit(self):
        """Most elements along that axis."""
        return self.growth.limit

    @property
    def nbytes(self):
        """Bytes committed for it."""
        return self.growth.nbytes

    @property
    def array(self):
        """A new view of the whole tensor (numpy.ndarray)."""
        return self._view(self.growth.length)

    @property
    def shape(self):
        """The current shape (tuple of int)."""
        cdef _Growth growth = self.growth
        return tuple([growth.length if i == growth.axis else growth.full.dims[i] for i in range(growth.full.nd)])

    def __len__(self):
        return self.growth.length

    def __reduce__(self):
        raise InvalidTypeError("a GrowableTensor is memory of this process: copy its array, or send a reference to it")

    def __repr__(self):
        return (f"<GrowableTensor {self.shape} of {short(str(self.dtype), 100)}, limit {self.limit} along axis {self.axis}, "
                f"{self.nbytes} bytes, {self._whose()}>")


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


cdef GrowableTensor growable_of(Core core, _Growth growth):
    cdef GrowableTensor tensor
    try:
        tensor = _new(core, growth)
        tensor.owner = own(core, growth.block, True)
    except BaseException:
        core.pool.drop_view(growth.block[0])
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
    status = find_room(core, status, _attempt_addresses, &opened, wait, handle, nbytes, None)
    if status != Status.ok:
        failed(core, request, status, nbytes, wait)
    return opened.result


cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request):
    cdef cnp.dtype descr = as_dtype(dtype)
    cdef Shape parsed, full
    cdef Allocation result
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
    cdef GrowableTensor tensor = _new(core, growth)  # before the core returns a view hold, which needs an owner
    cdef Wait wait = wait_of(core, timeout, request) if timeout is not None else None
    result = _find_addresses(core, handle, nbytes, wait, request)
    growth.block = result.block
    growth.handle = handle
    growth.request = request
    growth.dtype = descr
    growth.axis = at
    growth.length = 0
    growth.limit = most
    growth.full = full
    growth.step = step
    growth.nbytes = 0
    nbytes = <uint64_t>descr.itemsize
    for i in range(full.nd - 1, -1, -1):
        if i != at:
            growth.strides[i] = <cnp.npy_intp>nbytes
            nbytes *= <uint64_t>max(full.dims[i], 1)
    growth.strides[at] = <cnp.npy_intp>nbytes
    try:
        if <uint64_t>first * step != 0:
            tensor._grow(<uint64_t>first * step, wait)
        tensor.owner = own(core, result.block, True)
    except BaseException:
        if growth.nbytes == 0:
            core.pool.cancel_growing(result.block[0], handle)
        else:  # the request holds it until it ends
            core.pool.drop_view(result.block[0])
        raise
    growth.length = first
    return tensor


only_made_by(GrowableTensor, "a GrowableTensor is made by Request.growable(...)")
