"""Every error slabpool raises of its own, under one base.

Each is also the built-in error a caller would already be catching: running out is a MemoryError, a
bad argument a ValueError or TypeError. A raised error means the pool is as it was before the call.
"""


class SlabpoolError(Exception):
    """Base of all errors of slabpool."""


class InvalidArgumentError(SlabpoolError, ValueError):
    """An argument of the right type with a value that cannot be served."""


class InvalidTypeError(SlabpoolError, TypeError):
    """An argument of a type that cannot be served."""


class TooManyDevicesError(InvalidArgumentError):
    """More device names than one pool can tell apart (4,096)."""


class DuplicateDeviceError(InvalidArgumentError):
    """The same device named twice for one request."""


class PoolExhausted(SlabpoolError, MemoryError):
    """The pool cannot serve this now, or could not within the timeout. Nobody's memory was taken."""


class TensorTooLargeError(PoolExhausted, ValueError):
    """The pool can never serve this, whoever lets go: it is larger than the capacity."""


class QuotaExceededError(SlabpoolError, MemoryError):
    """The request's own quota does not allow this much more."""


class UnknownDeviceError(SlabpoolError, LookupError):
    """A device that was never named for the request. Nothing changed."""


class AmbiguousRequestError(SlabpoolError, LookupError):
    """Several generations of one request id wait for this device, and none was named."""


class RequestClosedError(SlabpoolError, RuntimeError):
    """The host has let go of this request: nothing more can be allocated or changed on it."""


class SessionLostError(SlabpoolError, RuntimeError):
    """The session has been closed, has expired, or gave way to others. Open its id again for a new one."""


class PoolClosedError(SlabpoolError, RuntimeError):
    """The pool is closed."""


class PoolBusyError(SlabpoolError, RuntimeError):
    """The pool cannot be closed: somebody still holds memory. The message names the holders."""


class ForkedPoolError(SlabpoolError, RuntimeError):
    """A pool inherited through ``fork``: only views may be used, and read. Make a pool of your own."""


class NameInUseError(InvalidArgumentError):
    """A shared pool of this name lives already, in this process or another."""


class DeviceAttachedError(SlabpoolError, RuntimeError):
    """The device's process is attached and alive, so its memory cannot be taken from it."""


class AttachError(SlabpoolError, ConnectionError):
    """The owner of a shared pool is not there, or does not let this process attach."""


class OwnerLostError(SlabpoolError, ConnectionError):
    """The owner has closed the shared pool, or its process is gone. Views stay readable."""


class InvalidReferenceError(InvalidArgumentError):
    """A reference that is none of this pool's: truncated, forged, out of range, or another pool's."""


class StaleReferenceError(InvalidReferenceError):
    """A reference to a request that is over, or that this device has acknowledged."""


class DeviceUnavailableError(SlabpoolError, RuntimeError):
    """The kind of memory asked for is not available on this machine."""


class DeviceLostError(SlabpoolError, RuntimeError):
    """The GPU failed, and nothing on it works any more in this process."""
