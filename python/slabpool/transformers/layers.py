"""Layers of a cache that append keys and values in place.

The library's own layers concatenate tensors, so each token copies all earlier ones. These layers write new
rows behind the old ones. Everything that does not access memory (lengths, masks, the meaning of `crop`) is
inherited.

Invariant: if an update raises, the layer is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from slabpool import InvalidArgumentError, InvalidTypeError, TensorRef
from slabpool.transformers.rows import GrowableRows, Rows

# Bytes that are copied at a time when rows are permuted or moved: small enough for the processor's cache.
_CHUNK = 1 << 20


#: Batch, heads, dim.
_Shape: TypeAlias = tuple[int, int, int]


def _shape(states: torch.Tensor) -> _Shape:
    batch, heads, _, dim = states.shape
    return batch, heads, dim


def _rows_of(tensor: torch.Tensor) -> int:
    """Return the number of rows in a chunk, at least one."""
    batch, heads, _, dim = tensor.shape
    row: int = batch * heads * dim * tensor.element_size()
    return max(1, _CHUNK // max(1, row))


class LayerRefs(NamedTuple):
    """References to the memory of one layer, for another process.

    Attributes
    ----------
    layer : int
        Index of the layer in the model.
    keys, values : TensorRef
        Tensors of shape ``(batch, heads, positions, dim)``, with all positions for which there is room.
    dtype : torch.dtype
        Dtype of the elements. The references have an integer dtype if numpy lacks it (bfloat16).

    Examples
    --------
    >>> import slabpool, torch, transformers
    >>> config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    >>> pool = slabpool.Pool("1MiB", memory="shared")
    >>> with pool.request("chat-42") as req:
    ...     cache = slabpool.transformers.SlabCache(req, config)
    ...     cache.early_initialization(1, 4, 8, torch.float32, torch.device("cpu"))
    ...     for refs in cache.lend(3):
    ...         print(refs.layer, refs.keys.shape[1], refs.dtype)
    0 4 torch.float32
    1 4 torch.float32
    """

    layer: int
    keys: TensorRef
    values: TensorRef
    dtype: torch.dtype


class MakeRows(Protocol):
    """Makes the rows of a layer: in a request (`SlabCache`), or in memory lent by the owner (`PeerCache`)."""

    def __call__(
        self, layer: int, part: str, batch: int, heads: int, dim: int, dtype: torch.dtype, least: int
    ) -> Rows: ...


class _SlabLayer:
    """Base of both kinds of layers. Rows ``[_first, _first + _kept)`` of `_keys` and `_values` are cached."""

    is_dummy = False

    # Attributes of the library's class that this is mixed into.
    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool

    def _begin(self, index: int, make: MakeRows) -> None:
        self.index = index
        self._make = make
        self._keys: Rows
        self._values: Rows
        self._shapes: tuple[_Shape, _Shape]  # of keys and values
        self._first = self._kept = 0
        self._capacity = 0  # rows that the layer needs even for short sequences

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make rows of these shapes. The first update calls this."""
        for states in (key_states, value_states):
            if states.device.type != "cpu":
                raise InvalidTypeError(
                    f"layer {self.index} got a tensor on {states.device}, but a SlabCache is in host memory: "
                    "run the model on the CPU, or use DynamicCache"
                )
        self._open(key_states, value_states)

    def _open(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        key, value = _shape(key_states), _shape(value_states)
        dtype = key_states.dtype
        keys = self._make(self.index, "keys", *key, dtype, self._capacity)
        self._values = self._make(self.index, "values", *value, dtype, self._capacity)
        self._keys, self._shapes = keys, (key, value)
        self.dtype, self.device = dtype, torch.device("cpu")
        self._first = self._kept = 0
        self._show()
        self.is_initialized = True

    def _show(self) -> None:
        """Set `keys` and `values` to the cached rows."""
        end = self._first + self._kept
        self.keys = self._keys.room(end).narrow(2, self._first, self._kept)
        self.values = self._values.room(end).narrow(2, self._first, self._kept)

    def _accept(self, key_states: torch.Tensor, value_states: torch.Tensor) -> int:
        """Return the number of new positions.

        Raises if a copy would silently convert the dtype, broadcast the shape, or lose the gradient.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count: int = key_states.shape[2]
        if (
            (_shape(key_states), _shape(value_states)) != self._shapes
            or count != value_states.shape[2]
            or key_states.dtype is not self.dtype
        ):
            batch, heads, dim = self._shapes[0]
            raise InvalidArgumentError(
                f"layer {self.index} got keys {tuple(key_states.shape)}, values {tuple(value_states.shape)} "
                f"of {key_states.dtype}, but keeps {batch} sequences of {heads} heads x {dim} of "
                f"{self.dtype}: a cache serves one batch; make another cache, or reset() this one"
            )
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise InvalidTypeError(
                "a SlabCache does not support gradients: call the model under torch.inference_mode()"
            )
        return count

    def check_open(self) -> None:
        """Raise `RequestClosedError` if the request is closed."""
        if self.is_initialized:
            self._keys.check_open()

    def make_room(self, count: int) -> None:
        """Make room for `count` more positions, so that the next update with as many cannot fail."""
        if self.is_initialized:
            end = self._first + self._kept + count
            self._keys.room(end)
            self._values.room(end)

    def lend(self, count: int) -> LayerRefs:
        """Lend `count` more positions, for which there is room, to another process."""
        self._lent(count)
        self._show()
        assert isinstance(self._keys, GrowableRows) and isinstance(self._values, GrowableRows)
        return LayerRefs(self.index, self._keys.ref(), self._values.ref(), self.dtype)

    def _lent(self, count: int) -> None:
        self._kept += count

    def serves(self, key_states: torch.Tensor) -> bool:
        """Return whether the layer can cache these states: it has no shape yet, or the same."""
        return not self.is_initialized or _shape(key_states) == self._shapes[0]

    def clear(self) -> None:
        """Drop all rows; the memory is kept for new ones."""
        if self.is_initialized:
            self._first = self._kept = 0
            self._show()

    def reset(self) -> None:
        """Do the same as `clear`, under the library's name."""
        self.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last positions, by the library's own rules; the memory is kept for new ones."""
        if self.is_initialized:
            super().crop(tokens_to_remove)  # type: ignore[misc]  # narrows `keys` and `values`
            self._kept = self.keys.shape[2]
            rows = self._keys.room(0)
            self._first = 0
            if self._kept:
                self._first = (self.keys.data_ptr() - rows.data_ptr()) // (
                    rows.stride(2) * rows.element_size()
                )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replace each sequence by another one (beam search), in place, with small temporary copies."""
        order = beam_idx.to("cpu", torch.long)
        if self._kept == 0 or torch.equal(order, torch.arange(len(order))):
            return
        for tensor in (self.keys, self.values):
            step = _rows_of(tensor)
            for start in range(0, tensor.shape[2], step):
                rows = tensor[:, :, start : start + step]
                rows.copy_(rows.index_select(0, order))

    def copied(self, make: MakeRows, select: Callable[[torch.Tensor], torch.Tensor]) -> _SlabLayer:
        """Make a copy of this layer with its own rows; `select` maps the old tensors to the new batch."""
        twin = self._twin(make)
        if self.is_initialized:
            keys, values = select(self.keys), select(self.values)
            twin._open(keys, values)
            twin._keys.room(self._kept).narrow(2, 0, self._kept).copy_(keys)
            twin._values.room(self._kept).narrow(2, 0, self._kept).copy_(values)
            twin._kept = self._kept
            twin._show()
        return twin

    def _twin(self, make: MakeRows) -> _SlabLayer:
        raise NotImplementedError


class SlabLayer(_SlabLayer, DynamicLayer):
    """A layer that caches all positions."""

    def __init__(self, index: int, make: MakeRows) -> None:
        super().__init__()
        self._begin(index, make)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new rows; return all keys and values."""
        count = self._accept(key_states, value_states)
        start, end = self._kept, self._kept + count
        keys, values = self._keys.room(end), self._values.room(end)
        keys.narrow(2, start, count).copy_(key_states)
        values.narrow(2, start, count).copy_(value_states)
        self._kept = end
        self.keys, self.values = keys.narrow(2, 0, end), values.narrow(2, 0, end)
        return self.keys, self.values

    def _twin(self, make: MakeRows) -> SlabLayer:
        return SlabLayer(self.index, make)


class SlabSlidingLayer(_SlabLayer, DynamicSlidingWindowLayer):
    """A layer that caches a sliding window, in a buffer that is a quarter longer (at least 64 positions).

    New rows are appended. When the buffer is full, the window moves to its front. So the window is copied
    once in a quarter of its length, and memory is bounded for any sequence length. While the past is recorded
    (assisted decoding), rows that have left the window are kept until `crop`, as in the library.
    """

    def __init__(self, index: int, make: MakeRows, sliding_window: int) -> None:
        super().__init__(sliding_window)
        if sliding_window < 2:
            raise InvalidArgumentError(f"layer {index} has a sliding window of {sliding_window}; at least 2")
        self._begin(index, make)
        self._capacity = sliding_window - 1 + max(sliding_window // 4, 64)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new rows; return the previous window followed by them, as the library does."""
        count = self._accept(key_states, value_states)
        total, window = self._kept + count, self.sliding_window - 1
        if total > self._capacity and not self.record_past:
            full = self._too_long(key_states, value_states)
        else:
            if self._first and self._first + total > self._capacity:
                self._to_front()
            end = self._first + total
            keys, values = self._keys.room(end), self._values.room(end)
            keys.narrow(2, end - count, count).copy_(key_states)
            values.narrow(2, end - count, count).copy_(value_states)
            seen = min(total, window + count)
            full = keys.narrow(2, end - seen, seen), values.narrow(2, end - seen, seen)
            self._kept = total if self.record_past else min(total, window)
            self._first = end - self._kept
            self._show()
        self.cumulative_length += count
        return full

    def _too_long(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update with more new rows than fit (a long prompt): attention reads a temporary tensor."""
        kept = self.sliding_window - 1
        keys, values = self._keys.room(kept), self._values.room(kept)
        full = key_states, value_states
        if self._kept:
            full = torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
        keys.narrow(2, 0, kept).copy_(full[0][:, :, -kept:])
        values.narrow(2, 0, kept).copy_(full[1][:, :, -kept:])
        self._first, self._kept = 0, kept
        self._show()
        return full

    def _to_front(self) -> None:
        """Move the window to the front of the buffer."""
        for tensor in (self._keys.room(0), self._values.room(0)):
            # Each step moves at most `_first` rows, so source and target do not overlap. If `_first` is
            # small, steps are longer and go through a copy.
            step = max(self._first, _rows_of(tensor))
            for start in range(0, self._kept, step):
                count = min(step, self._kept - start)
                source = tensor.narrow(2, self._first + start, count)
                tensor.narrow(2, start, count).copy_(source.clone() if count > self._first else source)
        self._first = 0
        self._show()

    def make_room(self, count: int) -> None:
        """Make room for `count` more positions, up to the length of the buffer."""
        if self.is_initialized:
            total = self._kept + count
            end = self._first + total
            if end > self._capacity:  # the update will move the window first, or keep only the window
                end = total if self.record_past else self._capacity
            self._keys.room(end)
            self._values.room(end)

    def clear(self) -> None:
        """Drop all rows; the memory is kept for new ones."""
        super().clear()
        self.cumulative_length = 0

    def _lent(self, count: int) -> None:
        self.cumulative_length += count
        # Only the device knows where in the buffer the window is.
        self._kept = min(self._kept + count, self.sliding_window - 1)

    def _twin(self, make: MakeRows) -> SlabSlidingLayer:
        twin = SlabSlidingLayer(self.index, make, self.sliding_window)
        twin.cumulative_length, twin.record_past = self.cumulative_length, self.record_past
        return twin


class SharingLayer(DummyLayer):
    """A layer that caches nothing: it uses another layer's keys and values, or has no attention."""

    is_dummy = True

    def check_open(self) -> None:
        """Do nothing."""

    def make_room(self, count: int) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def copied(self, make: MakeRows, select: Callable[[torch.Tensor], torch.Tensor] | None) -> SharingLayer:
        """Make another one."""
        return SharingLayer()
