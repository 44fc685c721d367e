"""Layers of a cache whose keys and values stay where they are while more are appended.

The library's own layers concatenate: each token copies all that came before it. These write the new rows
behind the old ones, and everything that does not touch memory (lengths, masks, what `crop` means) is
inherited. What must stay true: a layer whose update raised is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from slabpool import InvalidArgumentError, InvalidTypeError, TensorRef
from slabpool.transformers.rows import GrowableRows, Rows

# Bytes that permuting or moving takes through a copy at a time: few enough to stay in the processor's cache.
_CHUNK = 1 << 20


#: Batch, heads, dim.
_Shape: TypeAlias = tuple[int, int, int]


def _shape(states: torch.Tensor) -> _Shape:
    batch, heads, _, dim = states.shape
    return batch, heads, dim


def _rows_of(tensor: torch.Tensor) -> int:
    """How many rows make a chunk; one at least."""
    batch, heads, _, dim = tensor.shape
    row: int = batch * heads * dim * tensor.element_size()
    return max(1, _CHUNK // max(1, row))


class LayerRefs(NamedTuple):
    """References to the room of one layer, for another process.

    Attributes
    ----------
    layer : int
        Its index in the model.
    keys, values : TensorRef
        ``(batch, heads, positions, dim)``; the positions that there is room for.
    dtype : torch.dtype
        Of the elements; the references' own differs where numpy lacks it (bfloat16).

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
    """Makes room: of a request (`SlabCache`), or lent by the owner (`PeerCache`)."""

    def __call__(
        self, layer: int, part: str, batch: int, heads: int, dim: int, dtype: torch.dtype, least: int
    ) -> Rows: ...


class _SlabLayer:
    """What both kinds of layers share. Rows ``[first, first + kept)`` of `_keys` and `_values` are cached."""

    is_dummy = False

    # Of the library's class that this is mixed into.
    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool

    def _begin(self, index: int, make: MakeRows) -> None:
        self.index = index
        self._make = make
        self._keys: Rows
        self._values: Rows
        self._shapes: tuple[_Shape, _Shape]  # of keys, and of values
        self._first = self._kept = 0
        self._capacity = 0  # rows it needs however short the sequences are

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Opens room for rows of these shapes. Called by the first update."""
        for states in (key_states, value_states):
            if states.device.type != "cpu":
                raise InvalidTypeError(
                    f"layer {self.index} got a tensor on {states.device}, and a SlabCache is in host memory: "
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
        """`keys` and `values` are the cached rows."""
        end = self._first + self._kept
        self.keys = self._keys.room(end).narrow(2, self._first, self._kept)
        self.values = self._values.room(end).narrow(2, self._first, self._kept)

    def _accept(self, key_states: torch.Tensor, value_states: torch.Tensor) -> int:
        """How many positions are new; refuses what a copy would silently convert, spread or cut off from
        its gradient."""
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
                f"of {key_states.dtype}, and keeps {batch} sequences of {heads} heads x {dim} of "
                f"{self.dtype}: a cache serves one batch; make another, or reset() it"
            )
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise InvalidTypeError(
                "a SlabCache keeps no gradients: call the model under torch.inference_mode()"
            )
        return count

    def check_open(self) -> None:
        """Raises `RequestClosedError` where no more room can be made."""
        if self.is_initialized:
            self._keys.check_open()

    def make_room(self, count: int) -> None:
        """Room for so many positions more, so that the next update of as many cannot fail."""
        if self.is_initialized:
            end = self._first + self._kept + count
            self._keys.room(end)
            self._values.room(end)

    def lend(self, count: int) -> LayerRefs:
        """`count` positions more are another process's to fill; there is room for them already."""
        self._lent(count)
        self._show()
        assert isinstance(self._keys, GrowableRows) and isinstance(self._values, GrowableRows)
        return LayerRefs(self.index, self._keys.ref(), self._values.ref(), self.dtype)

    def _lent(self, count: int) -> None:
        self._kept += count

    def serves(self, key_states: torch.Tensor) -> bool:
        """Whether it has no shape yet, or this one."""
        return not self.is_initialized or _shape(key_states) == self._shapes[0]

    def clear(self) -> None:
        """Forgets all rows; the memory stays for those to come."""
        if self.is_initialized:
            self._first = self._kept = 0
            self._show()

    def reset(self) -> None:
        """As `clear`: a cache that was reset is used as a new one."""
        self.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Takes away the last positions, by the library's own rules; the memory stays for those to come."""
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
        """Each sequence takes over the rows of another one (beam search), in place, through a small copy."""
        order = beam_idx.to("cpu", torch.long)
        if self._kept == 0 or torch.equal(order, torch.arange(len(order))):
            return
        for tensor in (self.keys, self.values):
            step = _rows_of(tensor)
            for start in range(0, tensor.shape[2], step):
                rows = tensor[:, :, start : start + step]
                rows.copy_(rows.index_select(0, order))

    def copied(self, make: MakeRows, select: Callable[[torch.Tensor], torch.Tensor]) -> _SlabLayer:
        """A layer like this one with rows of its own, in which batches are what `select` makes of them."""
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
    """All positions, one behind the other."""

    def __init__(self, index: int, make: MakeRows) -> None:
        super().__init__()
        self._begin(index, make)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends, and gives all keys and values there are."""
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
    """The last positions of a sliding window, in a buffer somewhat longer than it.

    New rows are appended; once the buffer is full, the window moves to its front. So a row is copied once in
    every quarter of a window, and memory is bounded however long the sequence gets. While the past is
    recorded (assisted decoding), rows that left the window stay until `crop`, as in the library.
    """

    def __init__(self, index: int, make: MakeRows, sliding_window: int) -> None:
        super().__init__(sliding_window)
        if sliding_window < 2:
            raise InvalidArgumentError(f"layer {index} has a sliding window of {sliding_window}: at least 2")
        self._begin(index, make)
        self._capacity = sliding_window - 1 + max(sliding_window // 4, 64)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends, and gives the window as it was with the new rows behind it, as the library does."""
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
        """More new rows than the buffer takes (a long prompt): what attention reads is not ours to keep."""
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
        for tensor in (self._keys.room(0), self._values.room(0)):
            # In steps of the distance, so that none reads what it writes; if that is short, through a copy.
            step = max(self._first, _rows_of(tensor))
            for start in range(0, self._kept, step):
                count = min(step, self._kept - start)
                source = tensor.narrow(2, self._first + start, count)
                tensor.narrow(2, start, count).copy_(source.clone() if count > self._first else source)
        self._first = 0
        self._show()

    def make_room(self, count: int) -> None:
        """Room for so many positions more, as far as the buffer takes them."""
        if self.is_initialized:
            total = self._kept + count
            end = self._first + total
            if end > self._capacity:  # the window moves first, and what is longer than the buffer is not kept
                end = total if self.record_past else self._capacity
            self._keys.room(end)
            self._values.room(end)

    def clear(self) -> None:
        """Forgets all rows; the memory stays for those to come."""
        super().clear()
        self.cumulative_length = 0

    def _lent(self, count: int) -> None:
        self.cumulative_length += count
        # Where in the buffer the window is, the device knows.
        self._kept = min(self._kept + count, self.sliding_window - 1)

    def _twin(self, make: MakeRows) -> SlabSlidingLayer:
        twin = SlabSlidingLayer(self.index, make, self.sliding_window)
        twin.cumulative_length, twin.record_past = self.cumulative_length, self.record_past
        return twin


class SharingLayer(DummyLayer):
    """A layer that keeps nothing: it uses another one's keys and values, or has no attention."""

    is_dummy = True

    def check_open(self) -> None:
        """It needs no room."""

    def make_room(self, count: int) -> None:
        """Nothing to make room for."""

    def clear(self) -> None:
        """Nothing to forget."""

    def copied(self, make: MakeRows, select: Callable[[torch.Tensor], torch.Tensor] | None) -> SharingLayer:
        """Another one."""
        return SharingLayer()
