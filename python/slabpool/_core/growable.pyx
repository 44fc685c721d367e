# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Tensors that grow in place: addresses for the limit, bytes for the length.

What must stay true: all arrays of one tensor share its owner, and so one view hold of its block; no array
reaches beyond what the core said is usable; `length` changes only where no other thread changed it meanwhile.
"""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t

from slabpool._core.array cimport (
    BULK, Core, Shape, as_dtype, check_here, deadline_of, next_slice, others_give_way, own, parse_shape,
    wrap_strided,
)
from slabpool._core.cpp_pool cimport Allocation
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_status cimport Status

import operator

from slabpool.messages import pool as _report

from slabpool.errors import InvalidArgumentError, InvalidTypeError, RequestClosedError, TensorTooLargeError

cnp.import_array()


cdef Py_ssize_t _count(object value, str what) except -1:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidTypeError(f"{what} must be an int, got {value!r} of type {type(value).__name__}") from None
    if number < 0:
        raise InvalidArgumentError(f"{what} must be 0 or more, got {number}")
    if number > 0x7FFFFFFFFFFFFFFF:
        raise InvalidArgumentError(f"{what} is too large: {number}")
    return number


cdef bint _making = False


@cython.final
cdef class _Growth:
    """What all `GrowableTensor` of one block share."""


@cython.final
cdef class GrowableTensor:
    """A tensor of a request that becomes longer along one axis without being copied.

    Made by `Request.growable`. Addresses are reserved for `limit` when it is made; memory is committed page by
    page as it grows, an eighth more than asked for at most, and only that counts. Arrays made before stay valid.

    In memory the growing axis comes first, whatever its place in the shape; the other axes follow in C order.
    So a tensor of shape ``(batch, heads, tokens, dim)`` that grows along ``axis=2`` has strides as if it were
    ``(tokens, batch, heads, dim)``, seen through `numpy.moveaxis`.

    A `Session` can keep it, and it grows on: in the session's name then, and within its budget.

    Attributes
    ----------
    request : Request or None
        Whose memory it is; None once a session keeps it.
    dtype : numpy.dtype
    axis : int
        The axis that grows.
    length, limit : int
        Along that axis: now, and at most.
    nbytes : int
        Bytes that are committed for it and count.

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

    def __cinit__(self):
        if not _making:
            raise InvalidTypeError("a GrowableTensor is made by Request.growable(...)")

    cdef object _view(self, Py_ssize_t length):
        cdef _Growth growth = self.growth
        cdef Shape shape
        cdef int i
        shape.nd = growth.full.nd
        for i in range(shape.nd):
            shape.dims[i] = growth.full.dims[i]
        shape.dims[growth.axis] = length
        return wrap_strided(self.owner, growth.block.data, growth.dtype, &shape, growth.strides)

    cdef int _grow(self, uint64_t nbytes, object timeout) except -1:
        cdef _Growth growth = self.growth
        cdef Handle handle = growth.handle  # as it is now: a session may come to keep the tensor
        cdef Status status = Status.exhausted
        cdef uint64_t usable = 0
        cdef int64_t deadline, until
        if self.core.give_way is not None:
            while True:
                with nogil:
                    status = self.core.pool.grow(growth.block[0], handle, nbytes, usable, False)
                growth.nbytes = max(growth.nbytes, usable)
                if status == Status.ok:
                    return 0
                if growth.handle.generation != handle.generation:
                    return self._grow(nbytes, timeout)  # a session came to keep it, in whose name it grows now
                if others_give_way(self.core, status):
                    continue
                if growth.keeper is None or not growth.keeper(<int>status, nbytes - min(growth.nbytes, nbytes)):
                    break
        if timeout is None:
            if nbytes - growth.nbytes >= BULK:
                with nogil:
                    status = self.core.pool.grow(growth.block[0], handle, nbytes, usable, True)
            else:
                status = self.core.pool.grow(growth.block[0], handle, nbytes, usable, True)
        else:
            deadline = deadline_of(timeout)
            while True:
                until = next_slice(deadline)
                with nogil:
                    status = self.core.pool.grow_until(growth.block[0], handle, nbytes, usable, until,
                                                       until == deadline)
                if status != Status.exhausted or until == deadline:
                    break
                PyErr_CheckSignals()
                if self.core.give_way is not None:
                    others_give_way(self.core, status)  # what has become idle meanwhile
        if usable > growth.nbytes:
            growth.nbytes = usable
        if status == Status.ok:
            return 0
        if growth.handle.generation != handle.generation:
            return self._grow(nbytes, timeout)  # as above
        if status == Status.request_closed and growth.request is not None and self.core.pool.is_open(handle):
            raise RequestClosedError(
                f"{self!r} cannot grow any more: a session keeps an array of its memory. Keep the GrowableTensor itself, "
                "and it goes on growing in the session's name")
        self.core.report(growth.request, <int>status, nbytes - min(growth.nbytes, nbytes), timeout)
        return 0

    def extend(self, n=1, *, timeout=None):
        """Makes it longer.

        Parameters
        ----------
        n : int, default 1
            By how much, along the axis.
        timeout : float, optional
            Seconds to wait for memory to come back. By default running out is an error at once.

        Returns
        -------
        numpy.ndarray
            All of it, from the start; what was added is uninitialised. Arrays made before stay valid.

        Raises
        ------
        TensorTooLargeError
            It would pass its limit.
        PoolExhausted, QuotaExceededError, RequestClosedError
            As for `Request.empty`; it is as long as before then.
        """
        cdef Py_ssize_t more = _count(n, "n")
        cdef Py_ssize_t before, after
        cdef _Growth growth = self.growth
        check_here(self.core)
        while True:
            before = growth.length
            if more > growth.limit - before:
                raise TensorTooLargeError(
                    f"cannot extend by {more}: the tensor has {before} of at most {growth.limit} along axis {growth.axis}, "
                    f"{self._whose()}. "
                    "Make it with a higher limit="
                )
            after = before + more
            if <uint64_t>after * growth.step > growth.nbytes:
                self._grow(<uint64_t>after * growth.step, timeout)
            elif not self.core.pool.is_open(growth.handle):
                if growth.keeper is not None:
                    growth.keeper(<int>Status.request_closed, 0)
                self.core.report(growth.request, <int>Status.request_closed, 0, None)
            if growth.length == before:  # else another thread was faster, and comes first
                growth.length = after
                return self._view(after)

    def truncate(self, length):
        """Makes it shorter, for the next `extend` to write over the rest. Its memory stays.

        Parameters
        ----------
        length : int
            Along the axis, at most what it has.

        Returns
        -------
        numpy.ndarray
            What is left. Arrays made before stay valid, and show what is written over them.
        """
        cdef Py_ssize_t wanted = _count(length, "length")
        if wanted > self.growth.length:
            raise InvalidArgumentError(
                f"cannot truncate to {wanted}: the tensor has {self.length} along axis {self.axis}. Use extend()"
            )
        self.growth.length = wanted
        return self._view(wanted)

    cdef str _whose(self):
        if self.growth.request is None:
            return f"kept by a session as generation {self.growth.handle.generation}"
        return f"in request {self.growth.request.id!r} generation {self.growth.handle.generation}"

    @property
    def request(self):
        """The Request whose memory it is; None once a session keeps it."""
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
        """Along that axis, now."""
        return self.growth.length

    @property
    def limit(self):
        """Along that axis, at most."""
        return self.growth.limit

    @property
    def nbytes(self):
        """Bytes that are committed for it and count."""
        return self.growth.nbytes

    @property
    def array(self):
        """All of it, as a new view (numpy.ndarray)."""
        return self._view(self.growth.length)

    @property
    def shape(self):
        """The present shape (tuple of int)."""
        cdef _Growth growth = self.growth
        return tuple([growth.length if i == growth.axis else growth.full.dims[i] for i in range(growth.full.nd)])

    def __len__(self):
        return self.growth.length

    def __reduce__(self):
        raise InvalidTypeError("a GrowableTensor is memory of this process: copy its array, or send a reference to it")

    def __repr__(self):
        return (f"<GrowableTensor {self.shape} of {self.dtype}, limit {self.limit} along axis {self.axis}, "
                f"{self.nbytes} bytes, {self._whose()}>")


cdef int _axis(object axis, int nd) except -1:
    try:
        number = operator.index(axis)
    except TypeError:
        raise InvalidTypeError(f"axis must be an int, got {axis!r} of type {type(axis).__name__}") from None
    if nd == 0:
        raise InvalidArgumentError("a tensor without axes cannot grow; shape is ()")
    if not -nd <= number < nd:
        raise InvalidArgumentError(f"axis must be from {-nd} to {nd - 1} for {nd} axes, got {number}")
    return number % nd


cdef GrowableTensor _new(Core core, _Growth growth):
    global _making
    _making = True
    cdef GrowableTensor tensor = GrowableTensor.__new__(GrowableTensor)
    _making = False
    tensor.core = core
    tensor.growth = growth
    return tensor


cdef GrowableTensor growable_of(Core core, _Growth growth):
    """Once more, for a caller that has a view hold on the block, which the tensor takes over."""
    cdef GrowableTensor tensor
    try:
        tensor = _new(core, growth)
        tensor.owner = own(core, growth.block, True)
    except BaseException:
        core.pool.drop_view(growth.block[0])
        raise
    return tensor


cdef GrowableTensor new_growable(Core core, Handle handle, object shape, object dtype, object axis, object limit,
                                 object timeout, object request):
    cdef cnp.dtype descr = as_dtype(dtype)
    cdef Shape parsed, full
    cdef Allocation result
    cdef Py_ssize_t first, most
    cdef uint64_t nbytes, step
    cdef int i, at
    if core.maker is not None:
        _report.host_only("a growable tensor")
    parse_shape(shape, descr.itemsize, &parsed)
    at = _axis(axis, parsed.nd)
    first = parsed.dims[at]
    most = _count(limit, "limit")
    if most < first:
        raise InvalidArgumentError(f"limit is {most} and shape already {first} along axis {at}; it must be as much or more")
    dims = [parsed.dims[i] for i in range(parsed.nd)]
    dims[at] = 1
    step = parse_shape(tuple(dims), descr.itemsize, &full)
    dims[at] = most
    nbytes = parse_shape(tuple(dims), descr.itemsize, &full)
    check_here(core)
    cdef _Growth growth = _Growth.__new__(_Growth)
    cdef GrowableTensor tensor = _new(core, growth)  # first: after the core's answer its hold must find an owner
    result = core.pool.open_growing(handle, nbytes)
    if result.block is NULL:
        core.report(request, <int>result.status, nbytes, None)
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
            tensor._grow(<uint64_t>first * step, timeout)
        tensor.owner = own(core, result.block, True)
    except BaseException:
        if growth.nbytes == 0:
            core.pool.cancel_growing(result.block[0], handle)
        else:  # the request's until it ends
            core.pool.drop_view(result.block[0])
        raise
    growth.length = first
    return tensor
