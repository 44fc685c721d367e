# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""What the CUDA driver says of itself and of its devices. `slabpool.cuda` is the face of it."""

from libc.stdint cimport uint64_t
from libcpp cimport bool
from libcpp.string cimport string

from slabpool._core.array cimport Core
from slabpool._core.cpp_cuda cimport DeviceInfo, Driver, Error, describe_device, free_memory
from slabpool._core.pool cimport Pool

from slabpool.errors import DeviceUnavailableError


cdef str text(const string& told):
    # Messages name files, which need not be UTF-8.
    cdef bytes raw = told
    return raw.decode("utf-8", "surrogateescape")


cdef const Driver* find(Error& error) noexcept:
    # Loading a driver and starting it may take seconds.
    cdef const Driver* driver
    with nogil:
        driver = Driver.get(error)
    return driver


cdef const Driver* need() except NULL:
    cdef Error error
    cdef const Driver* driver = find(error)
    if driver == NULL:
        raise DeviceUnavailableError(text(error.text))
    return driver


def why_unavailable():
    """Why there is no driver, or None if there is one."""
    cdef Error error
    return text(error.text) if find(error) == NULL else None


def driver_version():
    """The version as the driver gives it: 12040 is 12.4."""
    return need().version()


def library():
    """The library that was loaded."""
    return text(need().library())


def device_count():
    """How many devices the driver showed when it was loaded."""
    return need().devices()


def describe(int device):
    """The fields of `slabpool.cuda.Device`, in order."""
    cdef const Driver* driver = need()
    cdef DeviceInfo info
    cdef Error error
    cdef bool told
    with nogil:
        told = describe_device(driver[0], device, info, error)
    if not told:
        raise DeviceUnavailableError(text(error.text))
    return (device, text(info.name), info.total_bytes, text(info.pci),
            None if info.numa_node < 0 else info.numa_node,
            info.virtual_memory, info.exportable, info.managed)


def free_bytes(int device):
    """Free bytes of the device's memory."""
    cdef const Driver* driver = need()
    cdef uint64_t free = 0
    cdef Error error
    cdef bool told
    with nogil:
        told = free_memory(driver[0], device, free, error)
    if not told:
        raise DeviceUnavailableError(text(error.text))
    return free


def refusal(Pool pool not None):
    """Which call of the driver refused the pool memory last, and what there is; "" if none did."""
    cdef Core core = pool.core
    cdef string told
    with nogil:
        told = core.pool.refusal()
    return text(told)
