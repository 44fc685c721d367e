"""torch on a GPU, with a pool under all of its CUDA allocations. Each scene leaves the pool empty."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

import slabpool
import slabpool.torch
from slabpool.libraries import stream_heaps as _stream_heaps

MIB = 1 << 20
POOL = slabpool.Pool("512MiB", memory="cuda:0", name="torch")
slabpool.torch.use_cuda(POOL)
DEVICE = "cuda:0"


def _live() -> int:
    stats = POOL.stats()
    return stats.live + stats.retained


def _empty() -> None:
    gc.collect()
    torch.cuda.synchronize()
    _stream_heaps.heap_of(POOL).wait()
    assert _live() == 0, POOL.stats()


def scene_tensors_are_the_pools_memory() -> None:
    x = torch.arange(MIB, device=DEVICE, dtype=torch.float32)
    assert _live() >= 4 * MIB
    y = (x * 2 + 1).cpu()
    assert torch.equal(y, torch.arange(MIB, dtype=torch.float32) * 2 + 1)
    assert torch.empty(0, device=DEVICE).numel() == 0
    del x
    _empty()


def scene_kernels_on_memory_given_out_again() -> None:
    total = torch.zeros((), device=DEVICE)
    for step in range(500):
        total += torch.full((100_000,), float(step % 7), device=DEVICE).sum()
    assert total.item() == sum(100_000.0 * (step % 7) for step in range(500))
    del total
    _empty()


def scene_out_of_memory_is_torchs_own_error() -> None:
    kept = torch.empty(400 * MIB, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(400 * MIB, dtype=torch.uint8, device=DEVICE).fill_(1)
    del kept
    again = torch.ones(400 * MIB, dtype=torch.uint8, device=DEVICE)
    assert again[-1].item() == 1
    del again
    _empty()


def scene_memory_is_flat_over_many_steps() -> None:
    layer = torch.nn.Linear(512, 512, device=DEVICE)
    seen = []
    for step in range(300):
        out = layer(torch.ones(64 + step % 9, 512, device=DEVICE))
        out.sum().backward()
        del out
        seen.append(POOL.stats().committed)
    assert max(seen[30:]) == max(seen[:30])
    del layer
    _empty()


def scene_record_stream_keeps_memory_from_reuse() -> None:
    side = torch.cuda.Stream()
    for _ in range(50):
        x = torch.zeros(4 * MIB, dtype=torch.int32, device=DEVICE)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(2_000_000)
            copy = x.clone()
        x.record_stream(side)
        del x  # the side stream has not read it yet
        torch.full((4 * MIB,), 7, dtype=torch.int32, device=DEVICE)
        side.synchronize()
        assert copy.max().item() == 0
        del copy
    _empty()


def scene_other_streams_get_memory_after_the_work_is_done() -> None:
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    for value in range(40):
        with torch.cuda.stream(one):
            x = torch.full((32 * MIB,), value, dtype=torch.int32, device=DEVICE)
            total = x.sum(dtype=torch.int64)
            del x
        with torch.cuda.stream(two):
            y = torch.full((32 * MIB,), -1, dtype=torch.int32, device=DEVICE)
            del y
        assert total.item() == value * 32 * MIB
    del total
    _empty()


def scene_threads() -> None:
    wrong = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(200):
                x = torch.full((10_000 + number,), number, device=DEVICE)
                if x.sum().item() != number * (10_000 + number):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    _empty()


def scene_allocations_belong_to_the_active_request() -> None:
    with POOL.request("chat-42", devices=["gpu0"]) as req:
        with req.activate():
            x = torch.ones(2 * MIB, device=DEVICE)
            inside = req.nbytes
        y = torch.ones(MIB, device=DEVICE)
        assert inside == req.nbytes >= 8 * MIB
    assert req.ack("gpu0", stream=torch.cuda.current_stream()) in tuple(slabpool.Ack)
    assert req.wait(120)
    assert POOL.stats().retained >= 8 * MIB
    assert x.sum().item() == 2 * MIB
    del x, y
    _empty()


def scene_many_requests_leave_nothing() -> None:
    seen = []
    for number in range(200):
        with POOL.request("chat-42") as req, req.activate():
            x = torch.randn(256, 256 + number % 13, device=DEVICE)
            (x @ x.T).sum().item()
            del x
        seen.append(POOL.stats().committed)
    assert max(seen[20:]) == max(seen[:20])
    _empty()


def scene_a_second_call_with_the_same_pool() -> None:
    slabpool.torch.use_cuda(POOL)
    with pytest.raises(slabpool.SlabpoolError) as caught:
        slabpool.torch.use_cuda(slabpool.Pool("64MiB", memory=DEVICE))
    assert "'torch' is under torch on device 0" in str(caught.value)
    with pytest.raises(slabpool.SlabpoolError) as caught, slabpool.torch.mem_pool(POOL):
        pass
    assert "use_cuda" in str(caught.value)
