"""CPU tensors of torch over pool memory.

They are plain tensors. Nothing is copied: the tensor's storage keeps a numpy view, and the view keeps its
block. Dtypes that numpy lacks (bfloat16, float8) are reinterpreted from integers of the same size.

Invariant: memory returns when its last torch or numpy view is gone and, if it belongs to a request, the
request is released.

Tested with torch 2.13.0 (CPU).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from slabpool._core.pool import Pool
from slabpool._core.request import Request
from slabpool.errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    _Size: TypeAlias = SupportsIndex | Iterable[SupportsIndex]

__all__ = ["copy", "empty", "from_numpy", "full", "zeros"]


def empty(
    owner: Pool | Request,
    size: _Size,
    *,
    dtype: torch.dtype | None = None,
    align: int | None = None,
    timeout: float | None = None,
) -> torch.Tensor:
    """Make a tensor with undefined contents in the memory of a request or of a pool.

    Parameters
    ----------
    owner : Request or Pool
        A live tensor keeps its block, even when the request is over.
    size : int or iterable of ints
    dtype : torch.dtype, optional
        By default torch's default dtype. All dtypes are supported, including bfloat16 and the 8-bit floats,
        except the quantized ones.
    align : int, default 64
        Alignment of the first byte, in bytes: a power of two up to 2 MiB.
    timeout : float, optional
        Seconds to wait for memory. By default exhaustion is an error at once.

    Returns
    -------
    torch.Tensor
        A contiguous, writable CPU tensor that is not a view of another tensor. Its storage cannot be resized.

    Raises
    ------
    PoolExhausted, QuotaExceededError, RequestClosedError, PoolClosedError, ForkedPoolError
        As for `Request.empty`.
    InvalidArgumentError, InvalidTypeError
        The owner, size, dtype or alignment is not allowed.

    Examples
    --------
    >>> import slabpool, torch
    >>> import slabpool.torch
    >>> pool = slabpool.Pool("1MiB")
    >>> with pool.request("r", devices=["gpu0"]) as req:
    ...     kv = slabpool.torch.empty(req, (2, 16, 64), dtype=torch.bfloat16)
    >>> tuple(kv.shape), kv.dtype, pool.stats().live
    ((2, 16, 64), torch.bfloat16, 4096)
    >>> req.ack("gpu0"), pool.stats().retained
    (<Ack.RELEASED: 'released'>, 4096)
    >>> del kv
    >>> pool.stats().retained
    0
    """
    return _new(owner, size, dtype, align, timeout, zero=False)


def zeros(
    owner: Pool | Request,
    size: _Size,
    *,
    dtype: torch.dtype | None = None,
    align: int | None = None,
    timeout: float | None = None,
) -> torch.Tensor:
    """Make a tensor filled with zeros. Parameters and errors are those of `empty`.

    Memory that is known to be zero is not written.

    Returns
    -------
    torch.Tensor

    Examples
    --------
    >>> import slabpool, slabpool.torch
    >>> slabpool.torch.zeros(slabpool.Pool("1MiB"), 3)
    tensor([0., 0., 0.])
    """
    return _new(owner, size, dtype, align, timeout, zero=True)


def full(
    owner: Pool | Request,
    size: _Size,
    fill_value: float | complex | bool,
    *,
    dtype: torch.dtype | None = None,
    align: int | None = None,
    timeout: float | None = None,
) -> torch.Tensor:
    """Make a tensor filled with a value. Other parameters and errors are those of `empty`.

    Parameters
    ----------
    owner : Request or Pool
    size : int or iterable of ints
    fill_value : float, complex or bool
    dtype : torch.dtype, optional
        By default the dtype that `torch.full` would choose.
    align : int, optional
    timeout : float, optional

    Returns
    -------
    torch.Tensor

    Examples
    --------
    >>> import slabpool, slabpool.torch
    >>> slabpool.torch.full(slabpool.Pool("1MiB"), (2, 2), 7)
    tensor([[7, 7],
            [7, 7]])
    """
    if dtype is None:
        dtype = torch.full((), fill_value).dtype
    tensor = _new(owner, size, dtype, align, timeout, zero=False)
    return tensor.fill_(fill_value)


def copy(
    owner: Pool | Request, tensor: torch.Tensor, *, align: int | None = None, timeout: float | None = None
) -> torch.Tensor:
    """Copy a tensor. Errors are those of `empty`.

    Parameters
    ----------
    owner : Request or Pool
    tensor : torch.Tensor
        On any device.
    align : int, optional
    timeout : float, optional

    Returns
    -------
    torch.Tensor
        A contiguous CPU tensor, detached from the graph of `tensor`.

    Examples
    --------
    >>> import slabpool, slabpool.torch, torch
    >>> slabpool.torch.copy(slabpool.Pool("1MiB"), torch.arange(3))
    tensor([0, 1, 2])
    """
    if not isinstance(tensor, torch.Tensor):
        raise InvalidTypeError(f"copy needs a torch.Tensor, got {tensor!r} of type {type(tensor).__name__}")
    made = _new(owner, tuple(tensor.shape), tensor.dtype, align, timeout, zero=False)
    return made.copy_(tensor.detach())


def from_numpy(array: NDArray[Any], dtype: torch.dtype | None = None) -> torch.Tensor:
    """Make a tensor over the memory of an array, without a copy.

    Parameters
    ----------
    array : numpy.ndarray
        A writable array with positive strides, as from `Request.empty`, a layout or a growable tensor.
    dtype : torch.dtype, optional
        The dtype of the elements if numpy lacks it, such as `torch.bfloat16` for a uint16 array. Its size
        must be that of the array's dtype.

    Returns
    -------
    torch.Tensor

    Raises
    ------
    InvalidArgumentError
        The dtype has another size than the array's, or torch does not support the array: it is read-only, has
        a negative stride, or a dtype that torch lacks.
    InvalidTypeError
        `array` is not an array.

    Examples
    --------
    >>> import numpy as np, slabpool, slabpool.torch, torch
    >>> array = slabpool.Pool("1MiB").zeros((2, 3), np.uint16)
    >>> slabpool.torch.from_numpy(array, torch.bfloat16).dtype
    torch.bfloat16
    """
    if not isinstance(array, np.ndarray):
        raise InvalidTypeError(
            f"from_numpy needs a numpy.ndarray, got {array!r} of type {type(array).__name__}"
        )
    if not array.flags.writeable:
        # torch has no read-only tensors: it would only warn, and allow writes.
        raise InvalidArgumentError(
            f"the array of shape {array.shape} is read-only, but tensors are always writable; copy() it first"
        )
    if dtype is None:
        source = array
    else:
        _check_dtype(dtype)
        if dtype.itemsize != array.itemsize:
            raise InvalidArgumentError(
                f"elements of {array.dtype} have {array.itemsize} bytes, those of {dtype} {dtype.itemsize}; "
                f"give an array with elements of {dtype.itemsize} bytes"
            )
        source = array.view(_CARRIER[dtype.itemsize])
    try:
        tensor = torch.from_numpy(source)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"torch does not support an array of {array.dtype} with strides {array.strides}: {error}"
        ) from None
    if dtype is None or tensor.dtype == dtype:
        return tensor
    return torch.empty(0, dtype=dtype).set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


# Dtypes that numpy and torch both have. For torch's other dtypes numpy allocates elements of the same size
# (_CARRIER), and Tensor.set_() reinterprets them.
_COMMON = {
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
_CARRIER = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64, 16: np.complex128}


def _check_dtype(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype):
        raise InvalidTypeError(f"dtype must be a torch.dtype such as torch.float32, got {dtype!r}")
    if dtype in _QUANTIZED:
        raise InvalidArgumentError(f"{dtype} is a quantized dtype; allocate its integer dtype instead")


_QUANTIZED = {
    getattr(torch, name)
    for name in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
    if hasattr(torch, name)
}


def _new(
    owner: Pool | Request,
    size: _Size,
    dtype: torch.dtype | None,
    align: int | None,
    timeout: float | None,
    *,
    zero: bool,
) -> torch.Tensor:
    if not isinstance(owner, (Pool, Request)):
        raise InvalidTypeError(
            f"owner must be a Request or a Pool, got {owner!r} of type {type(owner).__name__}"
        )
    if dtype is None:
        dtype = torch.get_default_dtype()
    _check_dtype(dtype)
    make = owner.zeros if zero else owner.empty
    common = _COMMON.get(dtype)
    carrier: Any = common or _CARRIER[dtype.itemsize]
    array: NDArray[Any] = make(_dims(size), carrier, align=align, timeout=timeout)
    tensor = torch.from_numpy(array)
    if common is not None:
        return tensor
    # set_() and not view(dtype), because the result of view() is a view of another tensor for autograd.
    return torch.empty(0, dtype=dtype).set_(tensor.untyped_storage(), 0, tensor.size(), tensor.stride())


def _dims(size: _Size) -> tuple[int, ...]:
    """Return a size as a tuple. The pool checks the numbers in it."""
    try:
        return (operator.index(size),)  # type: ignore[arg-type]
    except TypeError:
        pass
    if isinstance(size, (str, bytes)) or not isinstance(size, Iterable):
        raise InvalidTypeError(
            f"size must be an int or an iterable of ints, got {size!r} of type {type(size).__name__}"
        )
    return tuple(size)  # type: ignore[arg-type]
