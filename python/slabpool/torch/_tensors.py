"""torch tensors (CPU) over pool memory: plain tensors that keep their memory as numpy views do.

Nothing is copied: the tensor's storage keeps a view, the view its block. What must stay true: memory comes
back when the last torch or numpy view of it and, if it is a request's, the request are gone. Dtypes that
numpy lacks (bfloat16, float8) go through bytes. Tested with torch 2.13.0 (CPU).
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
    """Tensor of undefined contents in the memory of a request, or of a pool.

    Parameters
    ----------
    owner : Request or Pool
        A request's tensor counts as its views do: it keeps its block even when the request is over.
    size : int or iterable of ints
    dtype : torch.dtype, optional
        By default torch's default dtype. Any, bfloat16 and the 8-bit floats too; not the quantized ones.
    align : int, default 64
        Alignment of the first byte; a power of two up to 2 MiB.
    timeout : float, optional
        Seconds to wait for memory to come back. By default running out is an error at once.

    Returns
    -------
    torch.Tensor
        On the CPU, contiguous, writable, not a view of another tensor. Its storage cannot be resized.

    Raises
    ------
    PoolExhausted, QuotaExceededError, RequestClosedError, PoolClosedError, ForkedPoolError
        As for `Request.empty`.
    InvalidArgumentError, InvalidTypeError
        A bad owner, size, dtype or alignment.

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
    """As `empty`, filled with zeros. Memory that is known to be zero is not written again.

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
    """As `empty`, filled with a value; the dtype is what `torch.full` would choose, unless given.

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
    """As `empty`, with size, dtype and contents of a tensor (of any device), contiguous and detached.

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
    """A view of a pool's array as a tensor, no copy. Dtypes that numpy lacks are given.

    Parameters
    ----------
    array : numpy.ndarray
        Writable, with positive strides: what `Request.empty`, a layout or a growing tensor gives.
    dtype : torch.dtype, optional
        What the elements are, where numpy cannot say it: uint16 as `torch.bfloat16`. As large as the
        array's own.

    Returns
    -------
    torch.Tensor

    Raises
    ------
    InvalidArgumentError
        The dtype has another size than the array's, or the array cannot be a tensor (read-only, backwards,
        or of a dtype that torch lacks).

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
        # torch has no read-only tensors, and would warn and let it be written.
        raise InvalidArgumentError(
            f"the array of shape {array.shape} is read-only, and a tensor never is; copy() it"
        )
    if dtype is None:
        source = array
    else:
        _check_dtype(dtype)
        if dtype.itemsize != array.itemsize:
            raise InvalidArgumentError(
                f"elements of {array.dtype} have {array.itemsize} bytes and of {dtype} {dtype.itemsize}; "
                f"give an array whose elements have {dtype.itemsize}"
            )
        source = array.view(_CARRIER[dtype.itemsize])
    try:
        tensor = torch.from_numpy(source)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"an array of {array.dtype} and strides {array.strides}: {error}"
        ) from None
    if dtype is None or tensor.dtype == dtype:
        return tensor
    return torch.empty(0, dtype=dtype).set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


# Dtypes that both have; what else torch has is carried by bytes of numpy's of the same size, and set_()
# afterwards says what they mean.
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
            f"the first argument must be a Request or a Pool, got {owner!r} of type {type(owner).__name__}"
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
    # Not view(dtype): its result is a view of another tensor, which autograd then has to follow.
    return torch.empty(0, dtype=dtype).set_(tensor.untyped_storage(), 0, tensor.size(), tensor.stride())


def _dims(size: _Size) -> tuple[int, ...]:
    """A size as a tuple; what numbers are in it is for the pool to check."""
    try:
        return (operator.index(size),)  # type: ignore[arg-type]
    except TypeError:
        pass
    if isinstance(size, (str, bytes)) or not isinstance(size, Iterable):
        raise InvalidTypeError(f"size must be an int or several, got {size!r} of type {type(size).__name__}")
    return tuple(size)  # type: ignore[arg-type]
