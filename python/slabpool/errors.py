"""All errors that slabpool raises, with one base class.

Each class also derives from the built-in error for its case: exhaustion from MemoryError, a bad argument from
ValueError or TypeError. When an error is raised, the pool is as it was before the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

_args: Any = BaseException.__dict__["args"]  # the slot that str(), repr() and pickle read

_LONGEST = 900  # characters of a message: its repr() is longer


class LateText:
    """A message that is made when it is first read, because most errors are caught and never read.

    Parameters
    ----------
    make : callable
        Called once, with `facts`; returns the message. It must not fail.
    *facts : object
    """

    __slots__ = ("_facts", "_make", "_text")

    def __init__(self, make: Callable[..., str], *facts: object) -> None:
        self._make: Callable[..., str] | None = make
        self._facts = facts
        self._text = ""

    def __str__(self) -> str:
        make, facts = self._make, self._facts
        if make is not None:
            # Two threads may both make it, of the same facts.
            self._text = str(_short(make(*facts)))
            self._make, self._facts = None, ()
        return self._text

    def __repr__(self) -> str:
        return repr(str(self))

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class SlabpoolError(Exception):
    """Base class of all errors of slabpool. A message is at most 900 characters long."""

    def __init__(self, *args: object) -> None:
        super().__init__(*map(_short, args))


def _short(text: object) -> object:
    """A message; of a long one, its beginning and its end, which says what to do."""
    if not isinstance(text, str) or len(text) <= _LONGEST:
        return text
    return f"{text[:600]}...{text[603 - _LONGEST :]}"


class InvalidArgumentError(SlabpoolError, ValueError):
    """An argument has the right type but a value that is not allowed."""


class InvalidTypeError(SlabpoolError, TypeError):
    """An argument has a type that is not allowed."""


class TooManyDevicesError(InvalidArgumentError):
    """More than 4,096 devices of one pool at a time. Names that nothing waits for do not count."""


class DuplicateDeviceError(InvalidArgumentError):
    """The same device is named twice for one request."""


class _Late(SlabpoolError):
    """Errors whose message is made when it is first read."""

    def __init__(self, *args: object) -> None:
        if not (args and type(args[0]) is LateText):  # BaseException.__new__ has stored that one
            super().__init__(*args)

    @classmethod
    def later(cls, make: Callable[..., str], *facts: object) -> Self:
        """The error whose message ``make(*facts)`` returns when it is read."""
        return cls(LateText(make, *facts))

    @property
    def args(self) -> tuple[Any, ...]:
        """The message, as a str."""
        return tuple(str(one) if type(one) is LateText else one for one in _args.__get__(self))

    @args.setter
    def args(self, args: Iterable[Any]) -> None:
        _args.__set__(self, args)


class PoolExhausted(_Late, MemoryError):
    """The pool has no memory for this now, or got none within the timeout. No live memory was evicted.

    The message is made when it is first read, of what the pool was like when it refused. Raising and catching
    the error takes the same few microseconds however many requests are open.
    """


class TensorTooLargeError(PoolExhausted, ValueError):
    """The pool can never serve this, because it is larger than the capacity."""


class MemoryLimitError(SlabpoolError, MemoryError):
    """A limit of this process or of its control group is lower than what a new pool needs.

    The message has the numbers, and what to do.
    """


class QuotaExceededError(_Late, MemoryError):
    """A quota has no room: the request's own, one around it, its group's, or a budget of sessions.

    The message names what refused, how much of its quota it has used, and for a group the largest holders at
    the time when the message is read.
    """


class UnknownDeviceError(SlabpoolError, LookupError):
    """The device was never named for the request, or the pool has forgotten its name. Nothing was changed."""


class AmbiguousRequestError(SlabpoolError, LookupError):
    """Several generations of the request id wait for this device. Give the generation."""


class RequestClosedError(SlabpoolError, RuntimeError):
    """The host has closed this request, so nothing more can be allocated or changed on it."""


class SessionLostError(SlabpoolError, RuntimeError):
    """The session was closed, has expired, or was evicted. Open its id again to get a new session."""


class PoolClosedError(SlabpoolError, RuntimeError):
    """The pool is closed."""


class PoolBusyError(SlabpoolError, RuntimeError):
    """The pool cannot be closed, because some of its memory is held. The message names the holders."""


class ForkedPoolError(SlabpoolError, RuntimeError):
    """The pool was inherited through ``fork``. The child may only read views; it needs a pool of its own."""


class SystemRefusedError(SlabpoolError, OSError):
    """The operating system refuses what a pool or a peer needs: memory, a descriptor, a file of its name.

    ``errno`` is the system's, and the cause is the system's error where there was one.
    """


class NameInUseError(InvalidArgumentError):
    """A shared pool with this name exists already, in this process or in another one; or a group is open."""


class DeviceAttachedError(SlabpoolError, RuntimeError):
    """The device's process is attached and alive, so the device cannot be reported as lost."""


class AttachError(SlabpoolError, ConnectionError):
    """The owner of the shared pool is not running, or refuses this process."""


class OwnerLostError(SlabpoolError, ConnectionError):
    """The owner has closed the shared pool or has exited. Views stay readable."""


class InvalidReferenceError(InvalidArgumentError):
    """The reference is not valid for this pool: truncated, forged, out of range, or of another pool."""


class StaleReferenceError(InvalidReferenceError):
    """The request of the reference is over, or this device has already acknowledged it."""


class DeviceUnavailableError(SlabpoolError, RuntimeError):
    """This kind of device memory is not available on this machine. Host memory: `SystemRefusedError`."""


class DeviceLostError(SlabpoolError, RuntimeError):
    """The GPU has failed, and nothing on it works any more in this process."""
