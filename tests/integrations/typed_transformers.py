"""The API of slabpool.transformers with its types: checked by mypy --strict, and run by a test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typing_extensions import assert_type

import slabpool
from slabpool.transformers import LayerRefs, PeerCache, SlabCache


def use_cache(request: slabpool.Request, config: Any) -> list[LayerRefs]:
    SlabCache(request, config).close()
    cache = SlabCache(request, config, limit=64, timeout=0.5)
    assert_type(cache.request, slabpool.Request)
    assert_type(cache.limit, int)
    assert_type(cache.nbytes, int)
    assert_type(cache.closed, bool)
    return cache.lend(0, []) + cache.lend(0, layers=range(0))


def use_refs(refs: LayerRefs) -> None:
    assert_type(refs.layer, int)
    assert_type(refs.keys, slabpool.TensorRef)
    assert_type(refs.values, slabpool.TensorRef)


def use_peer(peer: slabpool.Peer, config: Any, lent: Iterable[LayerRefs]) -> None:
    cache = PeerCache(peer, config)
    cache.take(lent)
    assert_type(cache.get_seq_length(), int)
    assert_type(cache.get_mask_sizes(1, 0), tuple[int, int])
