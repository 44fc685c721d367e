"""Key and value caches of transformers' models in a request's memory.

Pass a `SlabCache` to `generate` as ``past_key_values``. A `PeerCache` is its counterpart in a device's
process, over memory that the owner of a shared pool lends. The caches are on the CPU. They need torch and
transformers 5.23 or newer.
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

# Older versions have other layer classes, and `crop` has another meaning.
if tuple(map(int, _transformers.__version__.split(".")[:2])) < (5, 23):
    raise ImportError(
        f"slabpool.transformers needs transformers 5.23 or newer, but {_transformers.__version__} is "
        "installed: pip install 'transformers>=5.23'"
    )

from slabpool.transformers.cache import SlabCache
from slabpool.transformers.layers import LayerRefs
from slabpool.transformers.peer import PeerCache

__all__ = ["LayerRefs", "PeerCache", "SlabCache"]
