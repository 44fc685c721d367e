"""Key and value caches of transformers' models in a request's memory.

`SlabCache` is what `generate` takes as ``past_key_values``; `PeerCache` is its counterpart in a device's
process, over memory that the owner of a shared pool lends. Needs transformers 5.23 and torch, on the CPU.
"""

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"slabpool.transformers needs transformers and torch, and {_error.name!r} is not installed: "
        "pip install 'slabpool[transformers]'",
        name=_error.name,
    ) from _error

# Older ones have other kinds of layers, and another meaning of `crop`.
if tuple(map(int, _transformers.__version__.split(".")[:2])) < (5, 23):
    raise ImportError(
        f"slabpool.transformers needs transformers 5.23 or newer, this is {_transformers.__version__}: "
        "pip install 'transformers>=5.23'"
    )

from slabpool.transformers.cache import SlabCache
from slabpool.transformers.layers import LayerRefs
from slabpool.transformers.peer import PeerCache

__all__ = ["LayerRefs", "PeerCache", "SlabCache"]
