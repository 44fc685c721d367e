"""Where the keys (or values) of one layer lie: rows of ``(batch, heads, dim)``, one for each position.

What must stay true: a tensor once handed out stays where it is, whatever is made room for later, and `room`
either gives what was asked for or raises and leaves everything as it was.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slabpool import InvalidArgumentError, Peer, Request, TensorRef

# torch's names of what numpy knows; anything else is kept as unsigned integers of its size.
_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_BY_SIZE: dict[int, np.dtype[Any]] = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """What numpy keeps elements of a torch dtype as."""
    return _DTYPES[dtype] if dtype in _DTYPES else _BY_SIZE[dtype.itemsize]


def as_tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """The same bytes as a tensor, which keeps the array."""
    with torch.inference_mode(False):  # one made within could not be written to after it
        tensor = torch.from_numpy(array)
        return tensor if tensor.dtype is dtype else tensor.view(dtype)


class Rows(Protocol):
    """Room for the rows of one tensor of a layer."""

    def room(self, length: int) -> torch.Tensor:
        """A tensor ``(batch, heads, at least length, dim)``; always of the same memory."""

    def check_open(self) -> None:
        """Raises `RequestClosedError` where no more room can be made."""


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
            # What was committed beyond it counts in any case: taken now, it saves the next tokens the call.
            spare = min(memory.nbytes // self._row, memory.limit) - memory.length
            self._tensor = as_tensor(memory.extend(max(spare, 0)), self._dtype)
        return self._tensor

    def check_open(self) -> None:
        self._memory.extend(0)

    def ref(self) -> TensorRef:
        """All the room there is, for a device of the request."""
        return self._request.ref(self._memory.array)


class LentRows:
    """Rows in memory that the owner of a shared pool made room in."""

    def __init__(self, peer: Peer, ref: TensorRef, dtype: torch.dtype) -> None:
        self._peer, self._dtype = peer, dtype
        self.take(ref)

    def take(self, ref: TensorRef) -> None:
        """The owner has made more room."""
        self._tensor = as_tensor(self._peer.open(ref, writable=True), self._dtype)

    def fits(self, layer: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        """Whether it is for rows of this ``(batch, heads, dim)``."""
        batch, heads, _, dim = self._tensor.shape
        if (batch, heads, dim) != shape or self._dtype is not dtype:
            raise InvalidArgumentError(
                f"layer {layer} was lent for {batch} sequences of {heads} heads x {dim} in {self._dtype}, "
                f"and the model has {shape[0]} of {shape[1]} x {shape[2]} in {dtype}: the owner's "
                "early_initialization says what is lent"
            )

    def check_open(self) -> None:
        pass  # the owner's to know

    def room(self, length: int) -> torch.Tensor:
        if length > self._tensor.shape[2]:
            raise InvalidArgumentError(
                f"there is room for {self._tensor.shape[2]} positions, and {length} are needed: the pool's "
                "owner makes room with SlabCache.lend, and PeerCache.take takes it"
            )
        return self._tensor
