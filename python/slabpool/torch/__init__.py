"""torch over pool memory: tensors on the CPU in pools of host memory, and CUDA allocations from pools of
device memory.

Tested with torch 2.13.0. Names without CUDA in them are about tensors on the CPU (`_tensors.py`);
`use_cuda` and `mem_pool` put a pool under what torch allocates on a GPU (`_cuda.py`).
"""

try:
    import torch as _torch  # noqa: F401  # before what needs it, to say what is missing
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "slabpool.torch needs PyTorch, which is not installed: pip install torch", name="torch"
    ) from None

from slabpool.torch._cuda import mem_pool, use_cuda
from slabpool.torch._tensors import copy, empty, from_numpy, full, zeros

__all__ = ["copy", "empty", "from_numpy", "full", "mem_pool", "use_cuda", "zeros"]
