"""The exceptions of slabpool, under one base.

Each is also the built-in exception that callers catch already: running out is a MemoryError, a bad argument a
ValueError or TypeError. After an exception the pool is as it was before the call.
"""


class SlabpoolError(Exception):
    """Base class of all errors of slabpool."""


class InvalidArgumentError(SlabpoolError, ValueError):
    """An argument has the right type and an invalid value."""


class InvalidTypeError(SlabpoolError, TypeError):
    """An argument has the wrong type."""


class TooManyDevicesError(InvalidArgumentError):
    """More device names than a pool can have (4,096)."""


class DuplicateDeviceError(InvalidArgumentError):
    """A device is named twice for one request."""


class PoolExhausted(SlabpoolError, MemoryError):
    """The pool has no room now, or had none within the timeout. No live memory was taken."""


class TensorTooLargeError(PoolExhausted, ValueError):
    """The tensor is larger than the capacity, so waiting cannot help."""


class QuotaExceededError(SlabpoolError, MemoryError):
    """The allocation would exceed the request's own budget."""


class UnknownDeviceError(SlabpoolError, LookupError):
    """The device was never named for the request. Nothing changed."""


class AmbiguousRequestError(SlabpoolError, LookupError):
    """Several generations of one request id wait for this device, and the call names none."""


class RequestClosedError(SlabpoolError, RuntimeError):
    """The host has closed this request: nothing more can be allocated for it or changed."""


class SessionLostError(SlabpoolError, RuntimeError):
    """The session was closed, has expired, or was evicted. Open its id again for a new one."""


class PoolClosedError(SlabpoolError, RuntimeError):
    """The pool is closed."""


class PoolBusyError(SlabpoolError, RuntimeError):
    """The pool cannot be closed, because memory is still held. The message names the holders."""


class ForkedPoolError(SlabpoolError, RuntimeError):
    """The pool was inherited through ``fork``: its views may only be read. Make a new pool."""


class NameInUseError(InvalidArgumentError):
    """A shared pool of this name exists already, in this process or another."""


class DeviceAttachedError(SlabpoolError, RuntimeError):
    """The device's process is attached and alive, so its memory cannot be returned."""


class AttachError(SlabpoolError, ConnectionError):
    """A shared pool has no owner, or the owner refuses this process."""


class OwnerLostError(SlabpoolError, ConnectionError):
    """The owner has closed the shared pool or has exited. Views stay readable."""


class InvalidReferenceError(InvalidArgumentError):
    """A reference is truncated, forged, out of range, or to another pool."""


class StaleReferenceError(InvalidReferenceError):
    """A reference to a request that is released, or that this device has acknowledged."""


class DeviceUnavailableError(SlabpoolError, RuntimeError):
    """The kind of memory is not available on this machine."""


class DeviceLostError(SlabpoolError, RuntimeError):
    """The GPU has failed, and CUDA refuses all further work on it in this process."""
