"""The memory of one layer's keys or values: rows of ``(batch, heads, dim)``, one for each position.

Invariants:
- A tensor that was returned never moves, even when room is made for more rows.
- If `room` raises, nothing has changed.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slabpool import InvalidArgumentError, Peer, Request, TensorRef

# The dtypes that numpy has too. Others are stored as unsigned integers of the same size.
_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_BY_SIZE: dict[int, np.dtype[Any]] = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the numpy dtype that stores elements of a torch dtype."""
    return _DTYPES[dtype] if dtype in _DTYPES else _BY_SIZE[dtype.itemsize]


def as_tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor over the memory of an array. The tensor keeps the array alive."""
    with torch.inference_mode(False):  # a tensor made in inference mode cannot be written outside of it
        tensor = torch.from_numpy(array)
        return tensor if tensor.dtype is dtype else tensor.view(dtype)


class Rows(Protocol):
    """Room for the rows of one tensor of a layer."""

    def room(self, length: int) -> torch.Tensor:
        """Return a tensor ``(batch, heads, at least length, dim)``, always at the same address."""

    def check_open(self) -> None:
        """Raise `RequestClosedError` if the request is closed."""


class GrowableRows:
    """Rows in a growable tensor of a request."""

    def __init__(
        self,
        request: Request,
        batch: int,
        heads: int,
        dim: int,
        dtype: torch.dtype,
        limit: int,
        timeout: float | None,
    ) -> None:
        self._request, self._dtype, self._timeout = request, dtype, timeout
        self._row = max(batch * heads * dim * dtype.itemsize, 1)
        self._memory = request.growable((batch, heads, 0, dim), numpy_dtype(dtype), axis=2, limit=limit)
        self._tensor = as_tensor(self._memory.array, dtype)

    def room(self, length: int) -> torch.Tensor:
        if length > self._tensor.shape[2]:
            memory = self._memory
            if length > memory.length:
                memory.extend(length - memory.length, timeout=self._timeout)
            # Use all committed memory, which counts anyway: then the next tokens need no call.
            spare = min(memory.nbytes // self._row, memory.limit) - memory.length
            self._tensor = as_tensor(memory.extend(max(spare, 0)), self._dtype)
        return self._tensor

    def check_open(self) -> None:
        self._memory.extend(0)

    def ref(self) -> TensorRef:
        """Return a reference to all rows, for a device of the request."""
        return self._request.ref(self._memory.array)


class LentRows:
    """Rows in memory that the owner of a shared pool has lent."""

    def __init__(self, peer: Peer, ref: TensorRef, dtype: torch.dtype) -> None:
        self._peer, self._dtype = peer, dtype
        self.take(ref)

    def take(self, ref: TensorRef) -> None:
        """Use a reference to more rows, which the owner has lent."""
        self._tensor = as_tensor(self._peer.open(ref, writable=True), self._dtype)

    def check_shape(self, layer: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        """Raise if the rows do not have this ``(batch, heads, dim)`` and dtype."""
        batch, heads, _, dim = self._tensor.shape
        if (batch, heads, dim) != shape or self._dtype is not dtype:
            raise InvalidArgumentError(
                f"layer {layer} was lent for {batch} sequences of {heads} heads x {dim} in {self._dtype}, "
                f"but the model has {shape[0]} of {shape[1]} x {shape[2]} in {dtype}: call "
                "early_initialization in the owner with the model's shape"
            )

    def check_open(self) -> None:
        pass  # only the owner knows

    def room(self, length: int) -> torch.Tensor:
        if length > self._tensor.shape[2]:
            raise InvalidArgumentError(
                f"there is room for {self._tensor.shape[2]} positions, but {length} are needed: call "
                "SlabCache.lend in the pool's owner, and PeerCache.take here"
            )
        return self._tensor
