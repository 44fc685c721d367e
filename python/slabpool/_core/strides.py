"""What indexing, transposing and reshaping do to the shape and strides of an array, by arithmetic alone.

For arrays whose memory the host must not access. Every function describes a view; operations that need a copy
are refused. The rules are numpy's. Strides and offsets are in bytes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from slabpool.arguments.texts import show
from slabpool.errors import InvalidArgumentError, InvalidTypeError

Dims = tuple[int, ...]

_INSTEAD = "; gather with a kernel of your array library over the same memory, or after copy_to_host()"


def c_strides(shape: Dims, itemsize: int) -> Dims:
    """Strides of C order.

    >>> from slabpool._core.strides import c_strides
    >>> c_strides((2, 3), 4)
    (12, 4)
    """
    strides = []
    step = itemsize
    for dim in reversed(shape):
        strides.append(step)
        step *= max(dim, 1)
    return tuple(reversed(strides))


def is_c_contiguous(shape: Dims, strides: Dims, itemsize: int) -> bool:
    """Whether the elements lie side by side in C order; strides along axes of length 1 do not matter."""
    step = itemsize
    for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dim == 0:
            return True
        if dim != 1 and stride != step:
            return 0 in shape
        step *= dim
    return True


def _expanded(key: tuple[Any, ...], nd: int, shape: Dims) -> list[Any]:
    """The key with one entry for each axis, and None for each new one."""
    for part in key:
        if isinstance(part, (bool, np.bool_)) or not (
            part is None or part is Ellipsis or isinstance(part, slice) or hasattr(type(part), "__index__")
        ):
            raise InvalidTypeError(
                "an array in device memory is indexed with ints, slices, ... and None, which need no copy; "
                f"got {type(part).__name__} {show(part)}{_INSTEAD}"
            )
        if isinstance(part, np.ndarray) and part.ndim:
            raise InvalidTypeError(f"an index array needs a copy, got one of shape {part.shape}{_INSTEAD}")
    given = sum(part is not None and part is not Ellipsis for part in key)
    ellipses = sum(part is Ellipsis for part in key)
    if ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if given > nd:
        raise IndexError(f"too many indices: {given} for an array of shape {shape}")
    full = [slice(None)] * (nd - given)
    expanded: list[Any] = []
    for part in key:
        expanded += full if part is Ellipsis else [part]
    return expanded if ellipses else expanded + full


def index(shape: Dims, strides: Dims, key: object) -> tuple[Dims, Dims, int]:
    """(shape, strides, offset) of ``array[key]``, for what numpy calls basic indexing.

    Examples
    --------
    >>> from slabpool._core.strides import index
    >>> index((4, 6), (24, 4), (slice(1, None), 2))
    ((3,), (24,), 32)
    """
    parts = key if isinstance(key, tuple) else (key,)
    new_shape: list[int] = []
    new_strides: list[int] = []
    offset = 0
    axis = 0
    for part in _expanded(parts, len(shape), shape):
        if part is None:
            new_shape.append(1)
            new_strides.append(0)
            continue
        dim, stride = shape[axis], strides[axis]
        if isinstance(part, slice):
            start, stop, step = part.indices(dim)
            length = len(range(start, stop, step))
            if length:
                offset += start * stride
            new_shape.append(length)
            new_strides.append(stride * step)
        else:
            at = operator.index(part)
            if not -dim <= at < dim:
                raise IndexError(f"index {show(at)} is out of bounds for axis {axis} with size {dim}")
            offset += (at + dim if at < 0 else at) * stride
        axis += 1
    return tuple(new_shape), tuple(new_strides), offset


def transpose(shape: Dims, strides: Dims, axes: Sequence[object] | None) -> tuple[Dims, Dims]:
    """(shape, strides) with the axes in another order; reversed for None.

    Examples
    --------
    >>> from slabpool._core.strides import transpose
    >>> transpose((2, 3), (12, 4), None)
    ((3, 2), (4, 12))
    """
    nd = len(shape)
    if axes is None:
        return shape[::-1], strides[::-1]
    try:
        order = [operator.index(axis) for axis in axes]  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTypeError(f"axes must be ints, got {show(axes)}") from None
    if not all(-nd <= axis < nd for axis in order) or sorted(axis % nd for axis in order) != list(range(nd)):
        raise InvalidArgumentError(f"axes must name each of {nd} axes once, got {tuple(order)}")
    return tuple(shape[axis] for axis in order), tuple(strides[axis] for axis in order)


def _new_shape(shape: Dims, wanted: Sequence[object]) -> Dims:
    try:
        dims = [operator.index(dim) for dim in wanted]  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTypeError(f"shape must be ints, got {show(wanted)}") from None
    size = 1
    for dim in shape:
        size *= dim
    known = 1
    for dim in dims:
        known *= 1 if dim == -1 else dim
    if dims.count(-1) == 1 and known > 0 and size % known == 0:
        dims[dims.index(-1)] = size // known
        known = size
    if known != size or min(dims, default=0) < 0:
        raise InvalidArgumentError(
            f"cannot reshape an array of shape {show(shape)}, {show(size)} elements, to {show(tuple(wanted))}"
        )
    return tuple(dims)


def reshape(shape: Dims, strides: Dims, itemsize: int, wanted: Sequence[object]) -> tuple[Dims, Dims]:
    """(shape, strides) of the same elements, in C order, as another shape; one dimension may be -1.

    Examples
    --------
    >>> from slabpool._core.strides import reshape
    >>> reshape((4, 6), (24, 4), 4, (2, -1))
    ((2, 12), (48, 4))
    """
    new = _new_shape(shape, wanted)
    if 0 in new or is_c_contiguous(shape, strides, itemsize):
        return new, c_strides(new, itemsize)
    # Axes of length 1 lie anywhere. The others are matched in groups of as many elements on both sides; the
    # axes of a group must lie so that one stride passes over all of it.
    old = [(dim, stride) for dim, stride in zip(shape, strides, strict=True) if dim != 1]
    result: list[int] = []
    i = j = 0
    while i < len(old):
        first, first_new = i, j
        count, count_new = old[i][0], new[j] if j < len(new) else 1
        i, j = i + 1, j + 1
        while count != count_new:
            if count < count_new:
                count *= old[i][0]
                i += 1
            else:
                count_new *= new[j]
                j += 1
        for (_, outer), (dim, inner) in zip(old[first : i - 1], old[first + 1 : i], strict=True):
            if outer != dim * inner:
                raise InvalidArgumentError(
                    f"an array of shape {shape} and strides {strides} cannot have shape {new} without a "
                    "copy, and arrays in device memory are not copied unasked; copy it first: "
                    "pool.copy(array).reshape(...)"
                )
        result += c_strides(new[first_new:j], old[i - 1][1])
    result += [result[-1] if result else itemsize] * (len(new) - j)
    return new, tuple(result)


def view(shape: Dims, strides: Dims, old: np.dtype[Any], new: np.dtype[Any]) -> tuple[Dims, Dims]:
    """(shape, strides) of the same bytes as elements of another dtype."""
    if old.itemsize == new.itemsize:
        return shape, strides
    if not shape:
        raise InvalidArgumentError(
            f"a view of a 0-d array must have items of {old.itemsize} bytes, {new} has not"
        )
    if shape[-1] != 1 and strides[-1] != old.itemsize:
        raise InvalidArgumentError(
            f"a view as {new} needs the last axis to be contiguous, and its stride is {strides[-1]} bytes"
        )
    nbytes = shape[-1] * old.itemsize
    if nbytes % new.itemsize:
        raise InvalidArgumentError(
            f"the last axis has {nbytes} bytes, which are no whole number of {new}, {new.itemsize} bytes each"
        )
    return (*shape[:-1], nbytes // new.itemsize), (*strides[:-1], new.itemsize)
