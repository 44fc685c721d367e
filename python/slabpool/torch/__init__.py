"""torch over pool memory: CPU tensors in pools of host memory, CUDA allocations in pools of device memory.

`empty`, `zeros`, `full`, `copy` and `from_numpy` make CPU tensors (`_tensors.py`). `use_cuda` and `mem_pool`
let torch allocate GPU memory in pools (`_cuda.py`). Tested with torch 2.13.0.
"""

try:
    import torch as _torch  # noqa: F401  # first, so that the error names what is missing
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "slabpool.torch needs PyTorch, which is not installed: pip install torch", name="torch"
    ) from None

from slabpool.torch._cuda import mem_pool, use_cuda
from slabpool.torch._tensors import copy, empty, from_numpy, full, zeros

__all__ = ["copy", "empty", "from_numpy", "full", "mem_pool", "use_cuda", "zeros"]
