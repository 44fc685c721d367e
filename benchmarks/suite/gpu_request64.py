"""gpu_request64: a request of 64 tensors of device memory, ended by acks that follow a stream.

The peers have no requests: they make the 64 tensors and drop them on the same stream, and wait for no device.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metrics
from benchmarks.suite import gpu
from benchmarks.suite.gpu_allocate import CUPY_POOL, TORCH_ASYNC, TORCH_CACHE, over_best

#: The mix of sizes of the host benchmark, request64: 4 KiB to 1 MiB.
SIZES = [4 << 10, 16 << 10, 64 << 10, 1 << 20] * 16
GROUP = Group("64 tensors, 2 devices")
LAYOUT = f"{OURS}, a layout"


def ours(layout: bool, effort: dict[str, Any]) -> Metrics:
    import numpy as np

    import slabpool

    torch, _ = gpu.torch_on("")
    pool = slabpool.Pool(gpu.CAPACITY, memory=f"cuda:{gpu.DEVICE}")
    stream = torch.cuda.Stream(gpu.DEVICE)
    names = slabpool.Layout({f"t{i}": ((n,), np.uint8) for i, n in enumerate(SIZES)})

    def one() -> None:
        req = pool.request("chat-42", ["gpu0", "gpu1"])
        tensors = req.allocate(names) if layout else [req.empty(n, np.uint8) for n in SIZES]
        req.close()
        req.ack("gpu0", stream=stream)
        req.ack("gpu1", stream=stream)
        del tensors

    found = gpu.repeated(one, stream.synchronize, effort)
    stats = pool.stats()
    if stats.live or stats.requests_open or stats.requests_draining:
        raise AssertionError(f"not every request came back: {stats}")
    return found


def torch_loop(backend: str, effort: dict[str, Any]) -> Metrics:
    torch, _ = gpu.torch_on("", backend)
    device, dtype = f"cuda:{gpu.DEVICE}", torch.uint8
    stream = torch.cuda.Stream(gpu.DEVICE)

    def one() -> None:
        tensors = [torch.empty(n, dtype=dtype, device=device) for n in SIZES]
        del tensors

    with torch.cuda.stream(stream):
        return gpu.repeated(one, stream.synchronize, effort)


def cupy_loop(effort: dict[str, Any]) -> Metrics:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)

    def one() -> None:
        tensors = [cupy.empty(n, cupy.uint8) for n in SIZES]
        del tensors

    with stream:
        return gpu.repeated(one, stream.synchronize, effort)


def _cases(effort: Effort) -> list[Case]:
    here, args = "benchmarks.suite.gpu_request64:", gpu.args(effort)
    return [
        Case(GROUP, OURS, "measured", here + "ours", {"layout": False, **args}, peer="torch"),
        Case(GROUP, LAYOUT, "measured", here + "ours", {"layout": True, **args}, peer="torch"),
        Case(
            GROUP, TORCH_CACHE, "measured", here + "torch_loop", {"backend": "native", **args}, peer="torch"
        ),
        Case(
            GROUP,
            TORCH_ASYNC,
            "measured",
            here + "torch_loop",
            {"backend": "cudaMallocAsync", **args},
            peer="torch",
        ),
        Case(GROUP, CUPY_POOL, "measured", here + "cupy_loop", args, peer="cupy"),
    ]


def _bars(effort: Effort) -> list[Bar]:
    others = (TORCH_CACHE, TORCH_ASYNC, CUPY_POOL)
    return [
        Bar(f"{name}: time over the best of the others", over_best(GROUP, others, name), "at most", 0.3)
        for name in (OURS, LAYOUT)
    ]


BENCHMARK = Benchmark(
    "gpu_request64",
    "GPU: a request of 64 tensors, acknowledged behind a stream",
    _cases,
    _bars,
    (
        "slabpool opens a request for two devices, allocates 64 tensors (4 KiB to 1 MiB), closes it, and "
        "both devices acknowledge behind a stream. The others allocate 64 tensors on a stream and drop "
        "them. The stream has no other work: the times are the host's.",
    ),
)
