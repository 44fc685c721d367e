"""What there is of CUDA: whether a driver can be used, and which devices it shows.

The driver is loaded when it is first asked for, here or by a pool of CUDA memory: nothing of CUDA is
needed to install or import slabpool. It is ``libcuda.so.1``, which NVIDIA's driver brings, or the library
that the environment variable ``SLABPOOL_CUDA_DRIVER`` names. A driver that was loaded stays for the life
of the process; where there was none, it is looked for again at the next call. After a fork the child has
no driver, if the parent used it.

>>> import slabpool
>>> if slabpool.cuda.is_available():
...     pool = slabpool.Pool("1GiB", memory="cuda:0")
"""

from __future__ import annotations

from dataclasses import dataclass

from slabpool._core import cuda as _cuda
from slabpool.arguments.sizes import show_size
from slabpool.errors import InvalidArgumentError

__all__ = ["Device", "devices", "driver_version", "free_bytes", "is_available", "why_unavailable"]


@dataclass(frozen=True)
class Device:
    """One CUDA device, as the driver describes it.

    Examples
    --------
    >>> import slabpool
    >>> for device in slabpool.cuda.devices() if slabpool.cuda.is_available() else []:
    ...     pool = slabpool.Pool("64MiB", memory=f"cuda:{device.number}")
    """

    #: The N of ``memory="cuda:N"``. CUDA_VISIBLE_DEVICES changes which device that is.
    number: int
    name: str
    total_bytes: int
    #: The slot, as Linux names it: "0000:17:00.0".
    pci: str
    #: The NUMA node of the host whose memory is nearest, where the driver or the system tells.
    numa_node: int | None
    #: Memory is mapped and unmapped piece by piece. Without it a pool takes all its capacity at once.
    virtual_memory: bool
    #: Other processes can map it (``memory="shared:cuda:N"``).
    exportable: bool
    #: Managed memory that the host may touch while the device works (``memory="managed:N"``).
    managed: bool

    def __str__(self) -> str:
        return f"cuda:{self.number} {self.name}, {show_size(self.total_bytes)}, {self.pci}"


def is_available() -> bool:
    """Whether there is a CUDA driver that shows at least one device.

    Returns
    -------
    bool

    Examples
    --------
    >>> import slabpool
    >>> slabpool.cuda.is_available() == (slabpool.cuda.why_unavailable() is None)
    True
    """
    return _cuda.why_unavailable() is None


def why_unavailable() -> str | None:
    """What was looked for and not found, in words.

    Returns
    -------
    str or None
        None if a driver is there.

    Examples
    --------
    >>> import slabpool
    >>> reason = slabpool.cuda.why_unavailable()
    >>> print("a GPU can be used" if reason is None else reason)  # doctest: +SKIP
    no CUDA driver: libcuda.so.1: cannot open shared object file: No such file or directory
    """
    return _cuda.why_unavailable()


def driver_version() -> tuple[int, int]:
    """Which CUDA the driver is made for.

    Returns
    -------
    tuple of int
        As (12, 4).

    Raises
    ------
    DeviceUnavailableError
        There is no driver; the message says what was looked for.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.cuda.is_available() and slabpool.cuda.driver_version() < (11, 3)
    False
    """
    version = _cuda.driver_version()
    return version // 1000, version % 1000 // 10


def devices() -> list[Device]:
    """The devices that the driver shows. Looking makes no context: it takes none of their memory.

    Returns
    -------
    list of Device
        Device N at index N.

    Raises
    ------
    DeviceUnavailableError
        There is no driver, or a device does not answer; the message says which call failed.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     assert [device.number for device in slabpool.cuda.devices()][0] == 0
    """
    return [Device(*_cuda.describe(number)) for number in range(_cuda.device_count())]


def free_bytes(device: int = 0) -> int:
    """Bytes of a device's memory that no process has taken.

    The driver tells only within a context, so this makes the device's primary context, which every library
    in the process shares and which itself takes some of the device's memory.

    Parameters
    ----------
    device : int
        Its number.

    Returns
    -------
    int

    Raises
    ------
    DeviceUnavailableError
        There is no driver, or the device does not answer.
    InvalidArgumentError
        There is no such device.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     assert slabpool.cuda.free_bytes(0) <= slabpool.cuda.devices()[0].total_bytes
    """
    count = _cuda.device_count()
    if not 0 <= device < count:
        raise InvalidArgumentError(f"device must be from 0 to {count - 1}, not {device}")
    return _cuda.free_bytes(device)
