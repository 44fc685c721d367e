"""`SlabCache`: a cache of transformers over a request.

Its tensors live in a child of the request, so that they come back when they are replaced (another batch) or
when the cache is closed, and not only with the request; the child waits for the same devices. What must stay
true: a step that runs out of memory has changed no layer, and can be tried again.
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
    """One layer for each that the library's own cache would have for this model."""
    layers: list[AnyLayer] = []
    for index, theirs in enumerate(DynamicCache(config=config).layers):
        if type(theirs) is DynamicSlidingWindowLayer:
            layers.append(SlabSlidingLayer(index, make, theirs.sliding_window))
        elif type(theirs) is DynamicLayer:
            layers.append(SlabLayer(index, make))
        elif type(theirs) is DummyLayer:
            layers.append(SharingLayer())
        else:
            raise InvalidTypeError(
                f"layer {index} of {type(config).__name__} is cached by {type(theirs).__name__}, and a "
                "SlabCache keeps keys and values of attention only: use DynamicCache for this model"
            )
    return layers


def _positions(value: SupportsIndex, what: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidTypeError(f"{what} must be a number of positions, got {value!r}") from None
    if number < least:
        raise InvalidArgumentError(f"{what} must be {least} or more positions, got {number}")
    return number


def _child(request: Request) -> Request:
    """A child that waits for all the devices its request waits for."""
    while True:
        try:
            return request.child(request.pending)
        except UnknownDeviceError:  # one of them acknowledged in between; there are fewer each time
            continue


def _close_with(cache: SlabCache, memory: Request) -> weakref.finalize[..., SlabCache]:
    # The end of a `with` block, and not close(): the child of a fork drops its cache too, and says nothing.
    return weakref.finalize(cache, memory.__exit__, None, None, None)


class SlabCache(Cache):
    """Keys and values of a model in memory of a request; for ``generate(past_key_values=...)``.

    Layers grow in place: no token copies those before it. Sliding-window layers keep a window and a quarter.
    The memory comes back when the request is released, thus when the host has closed it and its devices have
    acknowledged; with `close` or once the cache is dropped already, unless devices have to acknowledge.

    Parameters
    ----------
    request : Request
        Open; on the CPU. A request of a pool of ``memory="shared"`` may lend its layers (`lend`).
    config : transformers.PreTrainedConfig
        Of the model.
    limit : int, optional
        Most positions, by default the model's ``max_position_embeddings``. Address space is reserved for so
        many, memory only for those there are: give what the request may come to where many run at once.
    timeout : float, optional
        Seconds to wait for memory whenever more is needed. By default running out is an error at once.

    Attributes
    ----------
    request : Request
        As given.

    Raises
    ------
    RequestClosedError
        The host has let go of the request; also from ``generate``, as soon as somebody closes it.
    PoolExhausted, QuotaExceededError
        From ``generate``: no memory for the next positions. The cache is as it was before this step.
    TensorTooLargeError
        From ``generate``: beyond `limit`.
    InvalidArgumentError
        From ``generate``: another batch size than before.
    InvalidTypeError
        Not a request; a model with layers that are not attention; from ``generate``, tensors that are not on
        the CPU or that require gradients.

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
                f"a SlabCache lives in a Request, got {type(request).__name__}: pool.request(...) opens one"
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
        #: The layer that each step begins with.
        self._leading = next((i for i, layer in enumerate(self.layers) if not layer.is_dummy), 0)

    def _make_in(self, memory: Request) -> MakeRows:
        most, timeout = self._limit, self._timeout

        def make(
            layer: int, part: str, batch: int, heads: int, dim: int, dtype: torch.dtype, least: int
        ) -> Rows:
            return GrowableRows(memory, batch, heads, dim, dtype, max(most, least), timeout)

        return make

    # ---- what `generate` and models call

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values of new positions to a layer, and gives all that attention reads."""
        layers = self.layers
        if layer_idx == self._leading:
            self._check_open()
            if not layers[layer_idx].serves(key_states) and self.get_seq_length() == 0:
                self._replace(None)  # reset, and then used for another batch
                layers = self.layers
            # For all layers before the first is written: running out then leaves them all as they were.
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
            # The first step of all, which makes room layer by layer: there was nothing before it.
            for done in layers[:layer_idx]:
                done.clear()
            raise

    def _check_open(self) -> None:
        """Once a step: most steps find room, and would not notice that the request was closed."""
        if self.closed:
            raise RequestClosedError(f"the SlabCache of {self.request!r} was closed: make another")
        try:
            self.layers[self._leading].check_open()
        except RequestClosedError as error:
            raise RequestClosedError(
                f"{self.request!r} is no longer open, and its SlabCache cannot grow: keep the request open "
                "until generate has returned"
            ) from error

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence; the memory of the single ones comes back."""
        self._replace(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps some sequences; the memory of all of them before comes back."""
        self._replace(lambda tensor: tensor[indices, ...])

    def _replace(self, select: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        self._memory, self.layers = self._copied(select)
        self._closer()
        self._closer = _close_with(self, self._memory)

    def _copied(self, select: Callable[[torch.Tensor], torch.Tensor] | None) -> tuple[Request, list[Any]]:
        """Layers over a child of their own, new ones or copies; it is closed again if memory runs out."""
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
        raise InvalidTypeError("two SlabCaches would write to the same memory: use copy.deepcopy")

    def __reduce__(self) -> Any:
        raise InvalidTypeError("a SlabCache is memory of a request: it cannot be pickled")

    # ---- for the engine

    @property
    def limit(self) -> int:
        """Most positions."""
        return self._limit

    @property
    def nbytes(self) -> int:
        """Bytes of the pool that the cache takes, whole pages."""
        return self._memory.nbytes

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._closer.alive

    def close(self) -> None:
        """The host is done with these tensors. Again: nothing happens.

        The memory comes back at once, or with the last of the request's devices that has to acknowledge
        it; what a live tensor still shows stays until that is gone.
        """
        self.layers = make_layers(self._config, self._make_in(self._memory))
        self._closer()

    def lend(self, count: SupportsIndex, layers: Iterable[int] | None = None) -> list[LayerRefs]:
        """Makes room for `count` positions more, which devices in other processes fill (`PeerCache`).

        For requests of a pool of ``memory="shared"``, after `early_initialization`. The owner's own length
        of the layers grows as if they were updated here.

        Parameters
        ----------
        count : int
            New positions; 0 for the references alone.
        layers : iterable of int, optional
            Indices; by default all.

        Returns
        -------
        list of LayerRefs
            To be sent to the device that has these layers. Earlier ones stay valid.

        Raises
        ------
        PoolExhausted, QuotaExceededError, RequestClosedError
            No room was made in any layer.
        InvalidArgumentError
            The pool is not shared, the layers have no shape yet, or there are not so many.
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
