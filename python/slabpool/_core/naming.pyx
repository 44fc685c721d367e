# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""Names as the core knows them: of requests, sessions and devices, and lines of code.

What must stay true: a name and its key are told apart by type as well ("1" is not 1), and a device keeps its number
as long as its pool lives.
"""

cimport cython
from libc.stdint cimport uint32_t
from libcpp.optional cimport optional

from slabpool._core.array cimport Core, caller, check_here
from slabpool._core.cpp_request cimport SourceLocation, kMaxDevices

from slabpool.messages import pool as _report
from slabpool.errors import InvalidTypeError, TooManyDevicesError, UnknownDeviceError


cdef bytes name_key(object name, str what):
    """Names as the core knows them: a letter for the kind, then the bytes."""
    if isinstance(name, str):
        return b"s" + (<str>name).encode("utf-8", "surrogatepass")
    if isinstance(name, int) and not isinstance(name, bool):
        return b"i%d" % name
    if what != "device" and isinstance(name, bytes):
        return b"b" + <bytes>name
    allowed = "a str or an int" if what == "device" else "a str, an int or bytes"
    raise InvalidTypeError(f"{what} must be {allowed}, got {name!r} of type {type(name).__name__}")


cdef object unkey(bytes raw):
    if raw[:1] == b"s":
        return raw[1:].decode("utf-8", "surrogatepass")
    return int(raw[1:]) if raw[:1] == b"i" else raw[1:]


cdef tuple identity(bytes raw, bint kept):
    """(id, None) of a request or a session; (id, name) of what a session keeps."""
    if not kept:
        return unkey(raw), None
    end = 5 + int.from_bytes(raw[1:5], "little")
    return unkey(raw[5:end]), raw[end + 1:].decode("utf-8", "surrogatepass") if len(raw) > end else None


cdef tuple caller_of(Core core):
    """File and line of the Python code that called."""
    cdef SourceLocation where = caller(core)
    return where.file.decode("utf-8", "replace"), where.line


cdef object location(SourceLocation where):
    if where.line == 0:
        return ""
    return f"{where.file.decode('utf-8', 'replace')}:{where.line}"


@cython.final
cdef class Devices:
    """The devices that a pool was told of."""

    def __cinit__(self, Core core not None, str pool not None):
        self.core = core
        self.pool = pool
        self.numbers = {}
        self.names = []

    cdef object number(self, object device):
        """A device's number, given now if it has none yet."""
        number = self.numbers.get(device) if type(device) in (str, int) else None
        if number is not None:
            return number
        check_here(self.core)
        cdef optional[uint32_t] added = self.core.pool.devices().add(name_key(device, "device"))
        if not added.has_value():
            raise TooManyDevicesError(
                f"device {device!r} would be name {kMaxDevices + 1} in pool {self.pool!r}; a pool tells at most "
                f"{kMaxDevices} devices apart. Use the same names for the same devices, or another pool"
            )
        number = added.value()
        while len(self.names) <= number:
            self.names.append(None)
        self.names[number] = device
        self.numbers[device] = number
        return number

    cdef object known(self, object device, object request):
        """The number of a device that the pool knows; else raises, for the request if one is given."""
        name_key(device, "device")  # a wrong type is an error of its own, although True == 1 == 1.0
        number = self.numbers.get(device)
        if number is None:
            if request is None:
                raise UnknownDeviceError(
                    f"device {device!r} was never named for any request of pool {self.pool!r}; "
                    f"it knows {_report.names(self.names)}"
                )
            _report.unknown_device(device, request)
        return number

    cdef bint room_for(self, tuple devices) except -1:
        """True; raises if these names and those known are more than a pool can tell apart."""
        for device in devices:
            name_key(device, "device")
        known = len(self.numbers)
        named = len({device for device in devices if device not in self.numbers})
        if known + named > kMaxDevices:
            raise TooManyDevicesError(
                f"{named} new device names, and pool {self.pool!r} already knows {known}; it tells at most "
                f"{kMaxDevices} devices apart. Use the same names for the same devices, or another pool"
            )
        return True
