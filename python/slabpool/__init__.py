"""slabpool: memory that belongs to a request, and is returned exactly once, after the last device that read
it has acknowledged.

>>> import numpy as np, slabpool
>>> pool = slabpool.Pool("64MiB")
>>> req = pool.request("chat-42", devices=["gpu0", "gpu1"])
>>> kv = req.zeros((2, 16, 64), np.float16)
>>> req.close()
>>> req.ack("gpu0"), req.ack("gpu1")
(<Ack.PENDING: 'pending'>, <Ack.RELEASED: 'released'>)
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from slabpool import messages as _messages
from slabpool import sessions as _sessions
from slabpool._core import hooks as _hooks
from slabpool._core.active import active_request
from slabpool._core.device_array import DeviceArray, device_pointer
from slabpool._core.pool import Pool
from slabpool._core.request import Group, Request
from slabpool._core.shared import Peer, TensorRef
from slabpool._core.tensors import GrowableTensor, Layout, Tensors
from slabpool.errors import (
    AmbiguousRequestError,
    AttachError,
    DeviceAttachedError,
    DeviceLostError,
    DeviceUnavailableError,
    DuplicateDeviceError,
    ForkedPoolError,
    InvalidArgumentError,
    InvalidReferenceError,
    InvalidTypeError,
    MemoryLimitError,
    NameInUseError,
    OwnerLostError,
    PoolBusyError,
    PoolClosedError,
    PoolExhausted,
    QuotaExceededError,
    RequestClosedError,
    SessionLostError,
    SlabpoolError,
    StaleReferenceError,
    SystemRefusedError,
    TensorTooLargeError,
    TooManyDevicesError,
    UnknownDeviceError,
)
from slabpool.libraries.numpy_handler import numpy_handler, numpy_usage
from slabpool.paths import get_cmake_dir, get_include, get_lib
from slabpool.records import (
    Ack,
    Corruption,
    Event,
    GroupRecord,
    NumpyUsage,
    RequestRecord,
    RequestState,
    SessionRecord,
    SessionStats,
    Stats,
    WaiterRecord,
)
from slabpool.sessions import Session

if _TYPE_CHECKING:
    from slabpool._core.pressure import Pressure, PressureWatch
    from slabpool.shared.attach import attach

    __version__: str


def _shared(name: str) -> _Any:
    try:
        return _import_module(f"slabpool.shared.{name}")
    except (ImportError, OSError, MemoryError) as error:
        raise _messages.not_loaded(error) from error


# What the core calls in the layers above it. Messages and sessions are loaded with the package, because they
# are needed when memory or descriptors have run out, and an import needs both. The owner of a shared pool
# needs sockets and JSON, so the first shared pool loads it, before anything else is made for it.
_hooks.register("messages", lambda: _messages)
_hooks.register("sessions", lambda: _sessions)
_hooks.register("owner", lambda: _shared("owner"))

# Modules that need another library: imported on first use, so that slabpool itself needs numpy only.
_LAZY: tuple[str, ...] = (
    "connector",
    "cuda",
    "cuda_core",
    "cupy",
    "exo",
    "numba",
    "tinygrad",
    "torch",
    "transformers",
)


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _import_module(f"slabpool.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return globals().setdefault(name, version("slabpool"))
    if name in ("Pressure", "PressureWatch"):
        return globals().setdefault(name, getattr(_import_module("slabpool._core.pressure"), name))
    if name == "attach":
        return globals().setdefault(name, _shared("attach").attach)
    raise AttributeError(f"module 'slabpool' has no attribute {name!r}")


def __dir__() -> list[str]:
    # Without what is still to be imported of _LAZY: `help` gets every name, and would import torch, or end in
    # the error of a library that is not installed. It lists them as modules of the package.
    return sorted({*globals(), *__all__})


__all__ = [
    "Ack",
    "AmbiguousRequestError",
    "AttachError",
    "Corruption",
    "DeviceArray",
    "DeviceAttachedError",
    "DeviceLostError",
    "DeviceUnavailableError",
    "DuplicateDeviceError",
    "Event",
    "ForkedPoolError",
    "Group",
    "GroupRecord",
    "GrowableTensor",
    "InvalidArgumentError",
    "InvalidReferenceError",
    "InvalidTypeError",
    "Layout",
    "MemoryLimitError",
    "NameInUseError",
    "NumpyUsage",
    "OwnerLostError",
    "Peer",
    "Pool",
    "PoolBusyError",
    "PoolClosedError",
    "PoolExhausted",
    "Pressure",
    "PressureWatch",
    "QuotaExceededError",
    "Request",
    "RequestClosedError",
    "RequestRecord",
    "RequestState",
    "Session",
    "SessionLostError",
    "SessionRecord",
    "SessionStats",
    "SlabpoolError",
    "StaleReferenceError",
    "Stats",
    "SystemRefusedError",
    "TensorRef",
    "TensorTooLargeError",
    "Tensors",
    "TooManyDevicesError",
    "UnknownDeviceError",
    "WaiterRecord",
    "__version__",
    "active_request",
    "attach",
    "device_pointer",
    "get_cmake_dir",
    "get_include",
    "get_lib",
    "numpy_handler",
    "numpy_usage",
]
