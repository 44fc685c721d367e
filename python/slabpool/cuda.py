"""Queries of CUDA: whether a driver is available, and which devices it has.

The driver is loaded on first use, by a function of this module or by a pool of CUDA memory, so slabpool can
be installed and imported without CUDA. It is ``libcuda.so.1`` of NVIDIA's driver, or the library that the
environment variable ``SLABPOOL_CUDA_DRIVER`` names. A loaded driver stays until the process ends. If loading
fails, the next call tries again. After a fork the child cannot use the driver if the parent has used it.

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
    """Properties of a CUDA device, from the driver.

    Examples
    --------
    >>> import slabpool
    >>> for device in slabpool.cuda.devices() if slabpool.cuda.is_available() else []:
    ...     pool = slabpool.Pool("64MiB", memory=f"cuda:{device.number}")
    """

    #: N in ``memory="cuda:N"``. CUDA_VISIBLE_DEVICES changes the numbering.
    number: int
    name: str
    #: Bytes of device memory.
    total_bytes: int
    #: The PCI address, as Linux writes it: "0000:17:00.0".
    pci: str
    #: The nearest NUMA node of the host; None if neither the driver nor the system reports it.
    numa_node: int | None
    #: Whether memory can be mapped and unmapped in pieces. If not, a pool commits all its capacity at once.
    virtual_memory: bool
    #: Whether other processes can map the memory (``memory="shared:cuda:N"``).
    exportable: bool
    #: Whether the host may access managed memory while the device works (``memory="managed:N"``).
    managed: bool

    def __str__(self) -> str:
        return f"cuda:{self.number} {self.name}, {show_size(self.total_bytes)}, {self.pci}"


def is_available() -> bool:
    """Return whether there is a CUDA driver with at least one device.

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
    """Return the reason why CUDA cannot be used.

    Returns
    -------
    str or None
        None if CUDA can be used.

    Examples
    --------
    >>> import slabpool
    >>> reason = slabpool.cuda.why_unavailable()
    >>> print("a GPU can be used" if reason is None else reason)  # doctest: +SKIP
    no CUDA driver: libcuda.so.1: cannot open shared object file: No such file or directory
    """
    return _cuda.why_unavailable()


def driver_version() -> tuple[int, int]:
    """Return the CUDA version of the driver.

    Returns
    -------
    tuple of int
        Major and minor version, such as (12, 4).

    Raises
    ------
    DeviceUnavailableError
        There is no driver. The message names the library that was not found.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.cuda.is_available() and slabpool.cuda.driver_version() < (11, 3)
    False
    """
    version = _cuda.driver_version()
    return version // 1000, version % 1000 // 10


def devices() -> list[Device]:
    """List the devices of the driver. This creates no context, so it takes no device memory.

    Returns
    -------
    list of Device
        Device N is at index N.

    Raises
    ------
    DeviceUnavailableError
        There is no driver, or a call for a device failed. The message names the call.

    Examples
    --------
    >>> import slabpool
    >>> if slabpool.cuda.is_available():
    ...     assert [device.number for device in slabpool.cuda.devices()][0] == 0
    """
    return [Device(*_cuda.describe(number)) for number in range(_cuda.device_count())]


def free_bytes(device: int = 0) -> int:
    """Return the free bytes of a device's memory.

    The driver needs a context for this. So the call creates the device's primary context, which all libraries
    in the process share and which takes some device memory.

    Parameters
    ----------
    device : int
        Number of the device.

    Returns
    -------
    int
        Bytes that no process has allocated.

    Raises
    ------
    DeviceUnavailableError
        There is no driver, or a call for the device failed.
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
