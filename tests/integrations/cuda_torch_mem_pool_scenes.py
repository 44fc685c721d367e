"""torch on a GPU, with a pool under a block of code and torch's own cache on top of it."""

from __future__ import annotations

import gc

import pytest
import torch

import slabpool
import slabpool.torch
from slabpool.libraries import stream_heaps as _stream_heaps

MIB = 1 << 20
POOL = slabpool.Pool("512MiB", memory="cuda:0", name="torch")
DEVICE = "cuda:0"


def _empty() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    _stream_heaps.heap_of(POOL).wait()
    stats = POOL.stats()
    assert stats.live == stats.retained == 0, stats


def scene_only_allocations_in_the_block_are_the_pools() -> None:
    outside = torch.ones(8 * MIB, device=DEVICE)
    assert POOL.stats().live == 0
    with slabpool.torch.mem_pool(POOL) as made:
        assert isinstance(made, torch.cuda.MemPool)
        del made
        inside = torch.ones(8 * MIB, device=DEVICE)
        assert POOL.stats().live >= 32 * MIB
        assert torch.equal(inside, outside)
        del inside
    del outside
    _empty()


def scene_a_tensor_may_outlive_the_block() -> None:
    with slabpool.torch.mem_pool(POOL):
        x = torch.full((MIB,), 3.0, device=DEVICE)
    assert x.sum().item() == 3 * MIB
    assert POOL.stats().live >= 4 * MIB
    del x
    _empty()


def scene_out_of_memory_is_torchs_own_error() -> None:
    with slabpool.torch.mem_pool(POOL):
        kept = torch.empty(400 * MIB, dtype=torch.uint8, device=DEVICE)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(400 * MIB, dtype=torch.uint8, device=DEVICE)
        del kept
    _empty()


def scene_segments_belong_to_the_active_request() -> None:
    with POOL.request("chat-42") as req:
        with req.activate(), slabpool.torch.mem_pool(POOL):
            x = torch.ones(MIB, device=DEVICE)
        assert req.nbytes >= 4 * MIB
    assert POOL.stats().retained >= 4 * MIB
    assert x.sum().item() == MIB
    del x
    _empty()


def scene_blocks_one_after_another_leave_nothing() -> None:
    seen = []
    for number in range(100):
        with POOL.request(f"chat-{number}") as req, req.activate(), slabpool.torch.mem_pool(POOL):
            x = torch.randn(512, 512 + number % 13, device=DEVICE)
            (x @ x.T).sum().item()
            del x
        seen.append(POOL.stats().committed)
    assert max(seen[10:]) == max(seen[:10])
    _empty()
