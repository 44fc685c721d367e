"""`SlabCache`: a cache of transformers in the memory of a request.

Its tensors are in a child of the request, which has the same devices. So their memory returns when they are
replaced (by another batch) or when the cache is closed, and not only when the request is released.

Invariant: a step that fails for lack of memory has changed no layer, so it can be repeated.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex, TypeAlias

import torch
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from slabpool import (
    InvalidArgumentError,
    InvalidTypeError,
    Request,
    RequestClosedError,
    UnknownDeviceError,
)
from slabpool.transformers.layers import LayerRefs, MakeRows, SharingLayer, SlabLayer, SlabSlidingLayer
from slabpool.transformers.rows import GrowableRows, Rows

AnyLayer: TypeAlias = SlabLayer | SlabSlidingLayer | SharingLayer


def make_layers(config: Any, make: MakeRows) -> list[AnyLayer]:
    """Make one layer for each layer of the library's own cache of this model."""
    layers: list[AnyLayer] = []
    for index, original in enumerate(DynamicCache(config=config).layers):
        if type(original) is DynamicSlidingWindowLayer:
            layers.append(SlabSlidingLayer(index, make, original.sliding_window))
        elif type(original) is DynamicLayer:
            layers.append(SlabLayer(index, make))
        elif type(original) is DummyLayer:
            layers.append(SharingLayer())
        else:
            raise InvalidTypeError(
                f"layer {index} of {type(config).__name__} is cached by {type(original).__name__}, but a "
                "SlabCache supports only keys and values of attention: use DynamicCache for this model"
            )
    return layers


def _positions(value: SupportsIndex, what: str, least: int) -> int:
    """Check an argument that is a number of positions."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidTypeError(f"{what} must be a number of positions, got {value!r}") from None
    if number < least:
        raise InvalidArgumentError(f"{what} must be {least} or more positions, got {number}")
    return number


def _child(request: Request) -> Request:
    """Open a child that has all devices for which its request still waits."""
    while True:
        try:
            return request.child(request.pending)
        except UnknownDeviceError:  # a device acknowledged in between; the next try has fewer devices
            continue


def _close_with(cache: SlabCache, memory: Request) -> weakref.finalize[..., SlabCache]:
    """Close `memory` when the cache is destroyed."""
    # __exit__ and not close(), because close() raises in the child of a fork, which destroys its cache too.
    return weakref.finalize(cache, memory.__exit__, None, None, None)


class SlabCache(Cache):
    """Keys and values of a model in memory of a request; for ``generate(past_key_values=...)``.

    Layers grow in place, so a new token does not copy the earlier ones. The buffer of a sliding-window layer
    is about a quarter longer than its window. Memory returns when the request is released: the host has
    closed it and all its devices have acknowledged. If the request has no devices, memory returns already
    when the cache is closed or destroyed.

    Parameters
    ----------
    request : Request
        An open request of a pool of host memory. With ``memory="shared"`` its layers can be lent (`lend`).
    config : transformers.PreTrainedConfig
        Configuration of the model.
    limit : int, optional
        Largest number of positions. By default the model's ``max_position_embeddings``. The cache reserves
        address space for `limit` positions, but memory only for the positions in use. If many requests run at
        once, give the length that the request can reach.
    timeout : float, optional
        Seconds to wait for memory whenever more is needed. By default exhaustion is an error at once.

    Attributes
    ----------
    request : Request
        The request as given.

    Raises
    ------
    RequestClosedError
        The request is closed. ``generate`` raises it too, if the request is closed meanwhile.
    PoolExhausted, QuotaExceededError
        From ``generate``: there is no memory for the next positions. The cache is as before this step.
    TensorTooLargeError
        From ``generate``: the sequence would exceed `limit`.
    InvalidArgumentError
        From ``generate``: the batch size has changed.
    InvalidTypeError
        `request` is not a request, or the model has layers that are not attention. From ``generate``: tensors
        are not on the CPU, or require gradients.

    Examples
    --------
    >>> import slabpool, torch, transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ... )
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> pool = slabpool.Pool("16MiB")
    >>> with pool.request("chat-42", devices=["gpu0"]) as req:
    ...     cache = slabpool.transformers.SlabCache(req, config, limit=64)
    ...     tokens = model.generate(
    ...         torch.tensor([[1, 2, 3]]), past_key_values=cache, max_new_tokens=5, min_new_tokens=5
    ...     )
    >>> tokens.shape, cache.get_seq_length(), pool.stats().live > 0
    (torch.Size([1, 8]), 7, True)
    >>> del cache
    >>> req.ack("gpu0"), pool.stats().live
    (<Ack.RELEASED: 'released'>, 0)
    """

    def __init__(
        self,
        request: Request,
        config: Any,
        *,
        limit: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> None:
        if not isinstance(request, Request):
            raise InvalidTypeError(
                f"a SlabCache needs a Request, got {type(request).__name__}: pool.request(...) opens one"
            )
        if not hasattr(config, "get_text_config"):
            raise InvalidTypeError(f"config must be the model's (model.config), got {type(config).__name__}")
        if limit is None:
            limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
            if limit is None:
                raise InvalidArgumentError(
                    f"{type(config).__name__} has no max_position_embeddings: give a limit="
                )
        limit = _positions(limit, "limit", 1)
        self.request = request
        self._config, self._limit, self._timeout = config, limit, timeout
        self._memory = _child(request)
        self._closer = _close_with(self, self._memory)
        super().__init__(layers=make_layers(config, self._make_in(self._memory)))
        #: Index of the layer with which each step begins.
        self._leading = next((i for i, layer in enumerate(self.layers) if not layer.is_dummy), 0)

    def _make_in(self, memory: Request) -> MakeRows:
        most, timeout = self._limit, self._timeout

        def make(
            layer: int, part: str, batch: int, heads: int, dim: int, dtype: torch.dtype, least: int
        ) -> Rows:
            return GrowableRows(memory, batch, heads, dim, dtype, max(most, least), timeout)

        return make

    # ---- called by `generate` and by models

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of new positions to a layer; return all keys and values for attention."""
        layers = self.layers
        if layer_idx == self._leading:
            self._check_open()
            if not layers[layer_idx].serves(key_states) and self.get_seq_length() == 0:
                self._replace(None)  # the cache was reset and now gets another batch
                layers = self.layers
            # Make room in all layers before the first one is written, so that exhaustion changes no layer.
            for layer in layers:
                layer.make_room(key_states.shape[-2])
        layer = layers[layer_idx]
        seen: tuple[torch.Tensor, torch.Tensor]
        if layer.is_initialized:
            seen = layer.update(key_states, value_states)
            return seen
        try:
            seen = layer.update(key_states, value_states)
            return seen
        except BaseException:
            # The very first step makes room layer by layer. All layers were empty before it, so clear them.
            for done in layers[:layer_idx]:
                done.clear()
            raise

    def _check_open(self) -> None:
        """Raise if the request is closed. Most steps need no new memory and would not notice it."""
        if self.closed:
            raise RequestClosedError(f"the SlabCache of {self.request!r} is closed: make another one")
        try:
            self.layers[self._leading].check_open()
        except RequestClosedError as error:
            raise RequestClosedError(
                f"{self.request!r} is no longer open, so its SlabCache cannot grow: keep the request open "
                "until generate has returned"
            ) from error

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence; the memory of the original ones returns."""
        self._replace(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only some sequences; the memory of the old tensors returns."""
        self._replace(lambda tensor: tensor[indices, ...])

    def _replace(self, select: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        """Replace all layers by copies (see `_copied`) and close the memory of the old ones."""
        self._memory, self.layers = self._copied(select)
        self._closer()
        self._closer = _close_with(self, self._memory)

    def _copied(self, select: Callable[[torch.Tensor], torch.Tensor] | None) -> tuple[Request, list[Any]]:
        """Make layers in a new child of the request: empty ones if `select` is None, else copies."""
        self._check_open()
        memory = _child(self.request)
        try:
            make = self._make_in(memory)
            if select is None:
                return memory, make_layers(self._config, make)
            return memory, [layer.copied(make, select) for layer in self.layers]
        except BaseException:
            memory.close()
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> SlabCache:
        twin: SlabCache = SlabCache.__new__(SlabCache)
        memory, layers = self._copied(lambda tensor: tensor)
        twin.__dict__.update(self.__dict__)
        twin._memory, twin.layers = memory, layers
        twin._closer = _close_with(twin, memory)
        memo[id(self)] = twin
        return twin

    def __copy__(self) -> SlabCache:
        raise InvalidTypeError(
            "a shallow copy of a SlabCache would write to the same memory: use copy.deepcopy"
        )

    def __reduce__(self) -> Any:
        raise InvalidTypeError("a SlabCache cannot be pickled, because its memory belongs to a request")

    # ---- for the engine

    @property
    def limit(self) -> int:
        """Largest number of positions."""
        return self._limit

    @property
    def nbytes(self) -> int:
        """Bytes of the pool that the cache uses, in whole pages."""
        return self._memory.nbytes

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._closer.alive

    def close(self) -> None:
        """Close the cache for the host. If it is already closed, do nothing.

        The memory returns at once if the request has no devices, otherwise when all of them have
        acknowledged. Memory that a live tensor uses stays until the tensor is gone.
        """
        self.layers = make_layers(self._config, self._make_in(self._memory))
        self._closer()

    def lend(self, count: SupportsIndex, layers: Iterable[int] | None = None) -> list[LayerRefs]:
        """Make room for `count` more positions, which devices in other processes fill (`PeerCache`).

        The request must be of a pool with ``memory="shared"``, and `early_initialization` must have been
        called. The length of the layers grows as if they were updated in this process.

        Parameters
        ----------
        count : int
            New positions; 0 if only the references are needed.
        layers : iterable of int, optional
            Indices of the layers. By default all layers.

        Returns
        -------
        list of LayerRefs
            Send these to the device that has the layers. Earlier references stay valid.

        Raises
        ------
        PoolExhausted, QuotaExceededError, RequestClosedError
            There is no room. The length of no layer has changed.
        InvalidArgumentError
            The pool is not shared, the layers have no shape yet, or an index is too large.
        """
        count = _positions(count, "count", 0)
        self._check_open()
        indices = range(len(self.layers)) if layers is None else list(layers)
        for index in indices:
            if not 0 <= index < len(self.layers):
                raise InvalidArgumentError(f"there is no layer {index}: the model has {len(self.layers)}")
            if not self.layers[index].is_initialized:
                raise InvalidArgumentError(
                    f"layer {index} has no shape yet: call early_initialization(batch_size, num_heads, "
                    "head_dim, dtype, device) first"
                )
        chosen = [self.layers[index] for index in indices if not self.layers[index].is_dummy]
        for layer in chosen:
            layer.make_room(count)
        return [layer.lend(count) for layer in chosen]

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.get_seq_length()} of {self._limit} positions"
        return f"<SlabCache of {self.request!r}: {state}>"
