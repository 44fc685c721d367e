"""What the GPU benchmarks share: whether there is a GPU, its description, and a stream to work on.

``python -m benchmarks gpu`` runs all of them. Without a GPU nothing is measured and nothing claimed. Peers
are those of `benchmarks.harness.peers`. Each case runs in a separate process, so that allocators do not
affect each other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness.model import Effort, Metric, Metrics

#: Several times what the largest case needs.
CAPACITY = "4GiB"
DEVICE = 0


def missing(quick: bool) -> str | None:
    """Why there is no GPU to measure on, or None if there is one. The tests' stand-in driver does not count
    as a GPU; a quick run on it shows that everything runs."""
    import slabpool.cuda

    why = slabpool.cuda.why_unavailable()
    if why is None and not quick and "stand-in" in slabpool.cuda.devices()[DEVICE].name:
        return "the driver is the stand-in of the tests, whose times mean nothing (--quick runs on it)"
    return why


def describe() -> dict[str, str]:
    """The GPU and its driver, for the head of a report."""
    import slabpool.cuda

    device = slabpool.cuda.devices()[DEVICE]
    return {
        "GPU": device.name,
        "GPU memory": f"{device.total_bytes / (1 << 30):.1f} GiB",
        "CUDA driver": "{}.{}".format(*slabpool.cuda.driver_version()),
    }


def file_stem(machine: dict[str, str]) -> str:
    """A file name for results: the device and the date.

    Examples
    --------
    >>> file_stem({"GPU": "NVIDIA H100 80GB HBM3", "date": "2026-11-23 05:21 UTC"})
    'nvidia-h100-80gb-hbm3-2026-11-23'
    """
    device = re.sub(r"[^a-z0-9]+", "-", machine["GPU"].lower()).strip("-")
    return f"{device}-{machine['date'].split()[0]}"


def repeated(work: Callable[[], object], finish: Callable[[], object], effort: dict[str, Any]) -> Metrics:
    """Seconds of one `work()`, including its share of one `finish()` (which waits for the GPU) after many.

    Loops are doubled until they last long enough, then one more batch warms up, as pyperf does.
    """
    loops = 1
    while True:
        seconds = _batch(work, finish, loops)
        if seconds >= effort["seconds"]:
            break
        loops *= 2
    _batch(work, finish, loops)
    values = [_batch(work, finish, loops) / loops for _ in range(effort["values"])]
    return {"time": Metric("s", values)}


def _batch(work: Callable[[], object], finish: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        work()
    finish()
    return time.perf_counter() - start


def args(effort: Effort) -> dict[str, Any]:
    """The effort as keyword arguments, for `repeated` in the case's process."""
    return {"effort": {"values": effort.values, "seconds": effort.min_time}}


def torch_on(pool: str, backend: str = "native") -> tuple[Any, Any]:
    """torch with the pool under its CUDA allocations; `pool` is "" (none), "global" or "mem_pool"."""
    import os

    if not pool:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = f"backend:{backend}"
    import torch

    import slabpool
    import slabpool.torch

    if not pool:
        return torch, None
    made = slabpool.Pool(CAPACITY, memory=f"cuda:{DEVICE}")
    if pool == "global":
        slabpool.torch.use_cuda(made)
    return torch, made
