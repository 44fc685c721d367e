"""`PeerCache`: a cache in a device's process, over memory that the owner of a shared pool lends.

The device fills it while the model runs. The owner decides how many positions there is room for.

Invariant: the cache holds no memory itself, so everything returns with the device's ack or its death.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers.cache_utils import Cache

from slabpool import InvalidArgumentError, InvalidTypeError, Peer
from slabpool.transformers.cache import make_layers
from slabpool.transformers.layers import LayerRefs
from slabpool.transformers.rows import LentRows, Rows


class PeerCache(Cache):
    """Keys and values of some layers of a model, in memory that `SlabCache.lend` lent in another process.

    Parameters
    ----------
    peer : Peer
    config : transformers.PreTrainedConfig
        Configuration of the whole model.

    Raises
    ------
    InvalidArgumentError
        When the model runs: a layer was not lent, or there is no room for all positions.

    Examples
    --------
    >>> import slabpool, torch, transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ... )
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> with slabpool.Pool("1MiB", memory="shared", name="doc-peer-cache") as pool:
    ...     with pool.request("chat-42", devices=["cpu1"]) as req:
    ...         owner = slabpool.transformers.SlabCache(req, config, limit=64)
    ...         owner.early_initialization(1, 4, 8, torch.float32, torch.device("cpu"))
    ...         refs, done = owner.lend(3), req.ref()
    ...         owner.close()
    ...     with slabpool.attach("doc-peer-cache", device="cpu1") as peer:  # usually in another process
    ...         cache = slabpool.transformers.PeerCache(peer, config)
    ...         cache.take(refs)
    ...         with torch.inference_mode():
    ...             out = model(torch.tensor([[1, 2, 3]]), past_key_values=cache)
    ...         print(cache.get_seq_length(), peer.ack(done))
    3 Ack.RELEASED
    """

    def __init__(self, peer: Peer, config: Any) -> None:
        if not isinstance(peer, Peer):
            raise InvalidTypeError(
                f"a PeerCache needs a Peer, got {type(peer).__name__}: slabpool.attach(...) makes one"
            )
        self._peer = peer
        self._rows: dict[tuple[int, str], LentRows] = {}
        super().__init__(layers=make_layers(config, self._make))

    def _make(
        self, layer: int, part: str, batch: int, heads: int, dim: int, dtype: torch.dtype, least: int
    ) -> Rows:
        rows = self._rows.get((layer, part))
        if rows is None:
            raise InvalidArgumentError(
                f"layer {layer} was not lent to this process: call SlabCache.lend in the pool's owner, and "
                "take() here"
            )
        rows.check_shape(layer, (batch, heads, dim), dtype)
        return rows

    def _lent_like(self, layer_idx: int) -> int:
        """Return the layer, or a lent one of the same kind if another device has this layer.

        Models ask one layer, usually the first, for the length of all.
        """
        if (layer_idx, "keys") not in self._rows:
            sliding = self.is_sliding
            for index, _ in self._rows:
                if sliding[index] == sliding[layer_idx]:
                    return index
        return layer_idx

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of positions that this process has filled."""
        return int(super().get_seq_length(self._lent_like(layer_idx)))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the library's mask sizes for a lent layer of the same kind."""
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, self._lent_like(layer_idx))
        return sizes

    def take(self, refs: Iterable[LayerRefs]) -> None:
        """Use the memory that `SlabCache.lend` lent. Call this again whenever it has lent more.

        Parameters
        ----------
        refs : iterable of LayerRefs

        Raises
        ------
        StaleReferenceError
            The request is over, or this device has acknowledged it.
        InvalidReferenceError, UnknownDeviceError, OwnerLostError
            As for `Peer.open`.
        """
        for one in refs:
            for part, ref in (("keys", one.keys), ("values", one.values)):
                rows = self._rows.get((one.layer, part))
                if rows is None:
                    self._rows[one.layer, part] = LentRows(self._peer, ref, one.dtype)
                else:
                    rows.take(ref)

    def __copy__(self) -> PeerCache:
        raise InvalidTypeError(
            "a copy of a PeerCache would write to the same memory: copy the SlabCache in the pool's owner"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> PeerCache:
        raise InvalidTypeError(
            "a PeerCache cannot allocate memory for a copy: copy the SlabCache in the pool's owner"
        )

    def __reduce__(self) -> Any:
        raise InvalidTypeError("a PeerCache cannot be pickled, because its memory is mapped in this process")
