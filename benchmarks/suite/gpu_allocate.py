"""gpu_allocate: allocates and frees device memory on one stream, with nothing else alive.

Three groups: from torch in Python (`torch.empty` on the device), from CuPy in Python, and the allocators
themselves by the thinnest call that each has (C for cuMemAllocAsync and for slabpool). Each case has a
process of its own.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness.figures import per_round, ratio
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Figure, Group, Metrics, Result
from benchmarks.suite import gpu

SIZES = (4 << 10, 1 << 20, 64 << 20)
RAW = [Group("allocate and free", nbytes) for nbytes in SIZES]
TORCH = [Group("torch.empty, dropped", nbytes) for nbytes in SIZES]
CUPY = [Group("cupy.empty, dropped", nbytes) for nbytes in SIZES]

TORCH_CACHE = "torch's caching allocator"
TORCH_ASYNC = "torch with cudaMallocAsync"
DRIVER_ASYNC = "cuMemAllocAsync"
CUPY_POOL = "CuPy's MemoryPool"


def raw_torch(nbytes: int, effort: dict[str, Any]) -> Metrics:
    """torch's caching allocator without tensors on top."""
    torch, _ = gpu.torch_on("")
    stream = torch.cuda.Stream(gpu.DEVICE)
    allocate, free = torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete
    return gpu.repeated(lambda: free(allocate(nbytes, gpu.DEVICE, stream)), stream.synchronize, effort)


def raw_cupy(nbytes: int, effort: dict[str, Any]) -> Metrics:
    import cupy

    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        return gpu.repeated(lambda: pool.malloc(nbytes), stream.synchronize, effort)


def torch_empty(nbytes: int, pool: str, backend: str, effort: dict[str, Any]) -> Metrics:
    torch, made = gpu.torch_on(pool, backend)
    device, dtype = f"cuda:{gpu.DEVICE}", torch.uint8
    torch.empty(1, device=device)
    finish = torch.cuda.synchronize
    found = gpu.repeated(lambda: torch.empty(nbytes, dtype=dtype, device=device), finish, effort)
    if made is not None and made.stats().allocations == 0:
        raise AssertionError("the pool was never called: torch used another allocator")
    return found


def cupy_empty(nbytes: int, pool: bool, effort: dict[str, Any]) -> Metrics:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    if pool:
        import slabpool
        import slabpool.cupy

        slabpool.cupy.install(slabpool.Pool(gpu.CAPACITY, memory=f"cuda:{gpu.DEVICE}"))
    with stream:
        return gpu.repeated(lambda: cupy.empty(nbytes, cupy.uint8), stream.synchronize, effort)


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.gpu_allocate:"
    cases = []
    for group in RAW:
        size = {"bytes": group.nbytes}
        cases.append(Case(group, OURS, "native", "allocate", size, heap="slabpool", program="gpu"))
        cases.append(Case(group, DRIVER_ASYNC, "native", "allocate", size, heap="driver", program="gpu"))
        args = {"nbytes": group.nbytes, **gpu.args(effort)}
        cases.append(Case(group, TORCH_CACHE, "measured", here + "raw_torch", args, peer="torch"))
        cases.append(Case(group, CUPY_POOL, "measured", here + "raw_cupy", args, peer="cupy"))
    for group in TORCH:
        for contender, pool, backend in (
            (OURS, "global", "native"),
            (TORCH_CACHE, "", "native"),
            (TORCH_ASYNC, "", "cudaMallocAsync"),
        ):
            args = {"nbytes": group.nbytes, "pool": pool, "backend": backend, **gpu.args(effort)}
            cases.append(Case(group, contender, "measured", here + "torch_empty", args, peer="torch"))
    for group in CUPY:
        for contender, ours in ((OURS, True), (CUPY_POOL, False)):
            args = {"nbytes": group.nbytes, "pool": ours, **gpu.args(effort)}
            cases.append(Case(group, contender, "measured", here + "cupy_empty", args, peer="cupy"))
    return cases


def over_best(group: Group, others: tuple[str, ...], ours: str = OURS) -> Figure:
    """slabpool's time divided by that of the fastest other contender that took part."""

    def figure(result: Result) -> list[float] | None:
        mine = result.outcome(group, ours)
        theirs = [o for name in others if (o := result.outcome(group, name)) is not None]
        if mine is None or not theirs:
            return None
        best = [min(values) for values in zip(*(per_round(o, "time") for o in theirs), strict=True)]
        return [a / b for a, b in zip(per_round(mine, "time"), best, strict=True)]

    return figure


def _bars(effort: Effort) -> list[Bar]:
    others = (DRIVER_ASYNC, TORCH_CACHE, CUPY_POOL)
    bars = [
        Bar(f"{group.label}: time over the best of the others", over_best(group, others), "at most", 0.3)
        for group in RAW
    ]
    for group in TORCH:
        bars.append(Bar(f"{group.label}: over {TORCH_CACHE}", ratio(group, TORCH_CACHE), "at most", 1.0))
    for group in CUPY:
        bars.append(Bar(f"{group.label}: over {CUPY_POOL}", ratio(group, CUPY_POOL), "at most", 1.0))
    return bars


BENCHMARK = Benchmark(
    "gpu_allocate",
    "GPU: allocate and free device memory",
    _cases,
    _bars,
    (
        "`allocate and free`: slabpool and cuMemAllocAsync are called from C++, torch's cache and CuPy's "
        "pool by their own Python functions, which are the thinnest calls they offer; the cost of Python is "
        "in their time.",
        "The other groups are the same Python statement with and without the pool underneath.",
    ),
)
