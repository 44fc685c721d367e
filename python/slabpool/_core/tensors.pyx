# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Tensors of a request that are more than one array: a layout allocated in one call, and tensors that grow.

All tensors of a layout lie in one block, each at a multiple of 64 bytes, so allocating and returning a hundred of them
costs the same as one. A `Tensors` keeps no memory alive: the request does, and each view that was made.
"""

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint32_t, uint64_t

from slabpool._core.array cimport allocate, as_dtype, parse_shape, wrap, wrap_frozen, wrap_strided
from slabpool._core.core cimport (
    BULK, Wait, check_here, failed, find_room, loop_wait, only_made_by, open_view, patience, wait_of,
)
from slabpool._core.cpp_block cimport Block, byte
from slabpool._core.cpp_memory cimport kPageSize
from slabpool._core.cpp_pool cimport Allocation
from slabpool._core.cpp_pool_declared cimport Pool as CppPool
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_status cimport Status
from slabpool._core.cpp_wait cimport Waiter

import operator

from slabpool._core import async_wait, hooks
from slabpool._core.core import StatusCode
from slabpool.arguments.texts import few, short, show, show_typed
from slabpool.errors import (
    ForkedPoolError, InvalidArgumentError, InvalidTypeError, RequestClosedError, TensorTooLargeError,
)

cnp.import_array()

include "growable.pxi"

cdef uint64_t ALIGN = 64


@cython.final
@cython.no_gc
cdef class _Field:
    """Where one tensor lies, and what it looks like."""


@cython.final
cdef class Layout:
    """Layout(fields)\n--\n
    Names, shapes and dtypes of tensors that belong together.

    Immutable and independent of any pool. Make it once and use it for every request.

    Parameters
    ----------
    fields : mapping of str to (shape, dtype)
        The tensors, in the order of their offsets. A shape is an int or a tuple of ints; a dtype is anything
        `numpy.dtype` takes except one that holds Python objects.

    Attributes
    ----------
    names : tuple of str
        The tensors' names.
    nbytes : int
        Bytes of the whole, each tensor rounded up to a multiple of 64.

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        No tensors, or a bad name, shape or dtype.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> layout = slabpool.Layout({"k": ((2, 8, 4), np.float16), "v": ((2, 8, 4), np.float16)})
    >>> layout.nbytes, layout["k"]
    (256, ((2, 8, 4), dtype('float16')))
    """

    def __cinit__(self, fields):
        cdef _Field field
        cdef uint64_t nbytes
        cdef uint64_t offset = 0
        if not hasattr(fields, "items"):
            raise InvalidTypeError(f"fields must map names to (shape, dtype), got {type(fields).__name__}")
        self.fields = {}
        for name, spec in fields.items():
            if not isinstance(name, str):
                raise InvalidTypeError(f"a tensor's name must be a str, got {show(name)}")
            if not isinstance(spec, (tuple, list)) or len(spec) != 2:
                raise InvalidTypeError(f"tensor {show(name)} must be given as (shape, dtype), got {show(spec)}")
            field = _Field.__new__(_Field)
            field.dtype = as_dtype(spec[1])
            nbytes = parse_shape(spec[0], field.dtype.itemsize, &field.shape)
            field.offset = offset
            offset += (nbytes + ALIGN - 1) & ~(ALIGN - 1)
            if nbytes > 0x7FFFFFFFFFFFFFFF or offset > 0x7FFFFFFFFFFFFFFF:
                raise InvalidArgumentError("the tensors together have more bytes than an address can hold")
            self.fields[name] = field
        if not self.fields:
            raise InvalidArgumentError("a layout needs at least one tensor")
        self.names = tuple(self.fields)
        self.nbytes = offset

    def __len__(self):
        return len(self.names)

    def __iter__(self):
        return iter(self.names)

    def __contains__(self, name):
        return name in self.fields

    def __getitem__(self, name):
        cdef _Field field = self.fields[name]
        return tuple([field.shape.dims[i] for i in range(field.shape.nd)]), field.dtype

    def __repr__(self):
        inner = few((f"{show(name)}: {show(self[name])}" for name in self.names), longest=150)
        return f"Layout({{{inner}}})"

    def __reduce__(self):
        return Layout, ({name: self[name] for name in self.names},)


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Tensors:
    """The tensors of a `Layout` that a request has allocated; made by `Request.allocate`.

    ``t["k"]`` or ``t.k`` makes a numpy view of one tensor. A `Tensors` keeps no memory alive: once the request is
    released, asking for a view raises `RequestClosedError`. Views made before stay valid.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> layout = slabpool.Layout({"k": ((2, 4), np.float32), "v": ((2, 4), np.float32)})
    >>> with slabpool.Pool("1MiB") as pool, pool.request("r") as req:
    ...     t = req.allocate(layout, zero=True)
    ...     t.k[0] = 1
    ...     float(t["k"].sum()), list(t)
    (4.0, ['k', 'v'])
    """

    cdef object _view(self, _Field field):
        cdef Status status = open_view(self.core, self.block, self.serial, self.request)
        if status != Status.ok:
            if status == Status.forked:
                raise ForkedPoolError(
                    "this pool was inherited through fork: views made before the fork may be read here, "
                    "new ones cannot be made"
                )
            raise RequestClosedError(
                f"request generation {self.request.generation} is released, and its tensors with it; "
                "make the views you need before its last holder leaves"
            )
        cdef byte* first = <byte*>self.block.data + field.offset
        if self.frozen:
            return wrap_frozen(self.core, self.block, first, field.dtype, &field.shape)
        return wrap(self.core, self.block, first, field.dtype, &field.shape)

    def __getitem__(self, name):
        return self._view(self.layout.fields[name])

    def __getattr__(self, name):
        field = self.layout.fields.get(name)
        if field is None:
            raise AttributeError(f"no tensor {show(name)} in this layout; it has {few(self.layout.names)}")
        return self._view(field)

    def __len__(self):
        return len(self.layout.names)

    def __iter__(self):
        return iter(self.layout.names)

    def __contains__(self, name):
        return name in self.layout.fields

    def keys(self):
        """Names of the tensors, in order."""
        return self.layout.names

    def values(self):
        """A view of each tensor, in order."""
        return [self._view(field) for field in self.layout.fields.values()]

    def items(self):
        """Pairs of name and view, in order."""
        return [(name, self._view(field)) for name, field in self.layout.fields.items()]

    def __reduce__(self):
        raise InvalidTypeError("Tensors belong to a request of this process: copy or pickle the arrays instead")

    def __repr__(self):
        return f"<Tensors {few(self.layout.names)} of request generation {self.request.generation}>"


cdef Tensors new_tensors(Core core, Handle request, Layout layout, bint zero, object timeout, object who):
    cdef Block* block = allocate(core, request, layout.nbytes, ALIGN, False, zero, timeout, who)
    return tensors_of(core, request, layout, block, block.serial(), True)


cdef Tensors tensors_of(Core core, Handle request, Layout layout, Block* block, uint32_t serial, bint writable):
    cdef Tensors tensors = Tensors.__new__(Tensors)
    tensors.core = core
    tensors.request = request
    tensors.block = block
    tensors.serial = serial
    tensors.layout = layout
    tensors.frozen = not writable
    return tensors


only_made_by(Tensors, "Tensors are made by Request.allocate(layout)")
