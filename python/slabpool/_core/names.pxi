# Part of core.pyx. Names of requests, sessions and devices as the core knows them, and lines of code.
#
# Invariants: the key of a name says its type as well, so "1" is not 1; a device keeps its number as long as its pool
# lives.

from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.ref cimport Py_XDECREF
from cpython.unicode cimport PyUnicode_AsUTF8
from libcpp.optional cimport optional

from slabpool._core.cpp_request cimport kMaxDevices

from slabpool.errors import TooManyDevicesError, UnknownDeviceError

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030b0000
    #include <frameobject.h>
    #endif
    // File name (a new reference, or null) and line of the Python code that is running.
    static PyObject* slabpool_caller(int* line) {
      PyFrameObject* frame = PyEval_GetFrame();
      *line = 0;
      if (frame == NULL) return NULL;
      *line = PyFrame_GetLineNumber(frame);
      PyCodeObject* code = PyFrame_GetCode(frame);
      PyObject* name = code->co_filename;
      Py_INCREF(name);
      Py_DECREF(code);
      return name;
    }
    """
    PyObject* slabpool_caller(int* line)

# In the order of the C++ enums.
cdef tuple STATES = (RequestState.OPEN, RequestState.DRAINING, RequestState.IN_DOUBT, RequestState.RELEASED,
                     RequestState.KEPT)
cdef tuple ANSWERS = (Ack.PENDING, Ack.RELEASED, Ack.DUPLICATE, Ack.LATE)


cdef object state_of(int state):
    return STATES[state]


cdef object ack_answer(int result):
    return ANSWERS[result]


cdef bytes name_key(object name, str what):
    """A letter for the type, then the bytes of the name."""
    if type(name) is str:
        return b"s" + (<str>name).encode("utf-8", "surrogatepass")
    return _key_of_other(name, what)


cdef bytes _key_of_other(object name, str what):
    """The key of a name that is not exactly a str: an int, of a subclass, of numpy, bytes, or none."""
    cdef int overflow = 0
    if type(name) is int:
        PyLong_AsLongLongAndOverflow(name, &overflow)
        if not overflow:
            return b"i%d" % name
    name = plain_name(name)
    if type(name) is str:
        return b"s" + (<str>name).encode("utf-8", "surrogatepass")
    if type(name) is int:
        if int.bit_length(name) > _MOST_BITS:
            raise InvalidArgumentError(f"{what} must be an int of at most {_MOST_BITS} bits, got {show(name)}")
        return b"i%d" % name
    if what != "device" and isinstance(name, bytes):
        return b"b" + <bytes>name
    allowed = "a str or an int" if what == "device" else "a str, an int or bytes"
    raise InvalidTypeError(f"{what} must be {allowed}, got {show_typed(name)}")


cdef object _name_of(bytes key):
    if key[:1] == b"s":
        return key[1:].decode("utf-8", "surrogatepass")
    return int(key[1:]) if key[:1] == b"i" else key[1:]


cdef tuple identity(bytes raw, bint kept):
    if not kept:
        return _name_of(raw), None
    end = 5 + int.from_bytes(raw[1:5], "little")
    return _name_of(raw[5:end]), raw[end + 1:].decode("utf-8", "surrogatepass") if len(raw) > end else None


cdef SourceLocation caller(Core core) except *:
    cdef int line = 0
    cdef SourceLocation where
    cdef PyObject* name = slabpool_caller(&line)
    if name is not NULL:
        where = located(core, <object>name, line)
        Py_XDECREF(name)
    return where


cdef SourceLocation located(Core core, object file, int line) except *:
    cdef SourceLocation where
    file = core.filenames.setdefault(file, file)
    where.file = PyUnicode_AsUTF8(file)
    where.line = <uint32_t>line
    return where


cdef tuple caller_of(Core core):
    cdef SourceLocation where = caller(core)
    return where.file.decode("utf-8", "replace"), where.line


cdef object location(SourceLocation where):
    """``file:line``, or "" where no line was recorded."""
    if where.line == 0:
        return ""
    return f"{where.file.decode('utf-8', 'replace')}:{where.line}"


@cython.final
cdef class Devices:
    """The devices that a pool knows, by name and by number."""

    def __cinit__(self, Core core not None, str pool not None):
        self.core = core
        self.pool = pool
        self.numbers = {}
        self.names = []

    cdef object number(self, object device):
        """The number of a device; a new one for a new name."""
        number = self.numbers.get(device) if type(device) in (str, int) else None
        if number is not None:
            return number
        device = plain_name(device)
        check_here(self.core)
        cdef bytes key = name_key(device, "device")
        cdef optional[uint32_t] added = self.core.pool.devices().add(view_of(key))
        if not added.has_value():
            raise TooManyDevicesError(
                f"device {show(device)} would be name {kMaxDevices + 1} in pool {show(self.pool)}; a pool tells at most "
                f"{kMaxDevices} devices apart. Use the same names for the same devices, or another pool"
            )
        number = added.value()
        while len(self.names) <= number:
            self.names.append(None)
        self.names[number] = device
        self.numbers[device] = number
        return number

    cdef object known(self, object device, object request):
        """The number of a device that the pool knows. Otherwise raises, naming the request if one is given."""
        name_key(device, "device")  # a wrong type is an error of its own, although True == 1 == 1.0
        number = self.numbers.get(device)
        if number is None:
            if request is None:
                raise UnknownDeviceError(
                    f"device {show(device)} was never named for any request of pool {show(self.pool)}; "
                    f"it knows {hooks.messages.names(self.names)}"
                )
            hooks.messages.unknown_device(device, request)
        return number

    cdef object named(self, const vector[uint32_t]& numbers):
        """The names of these devices (frozenset)."""
        # Not `for number in numbers`: Cython then copies the vector where no exception may be thrown.
        cdef size_t i
        return frozenset([self.names[numbers[i]] for i in range(numbers.size())])

    cdef bint room_for(self, tuple devices) except -1:
        """Raises TooManyDevicesError if these names would exceed the pool's limit; else returns True."""
        for device in devices:
            name_key(device, "device")
        known = len(self.numbers)
        named = len({device for device in devices if device not in self.numbers})
        if known + named > kMaxDevices:
            raise TooManyDevicesError(
                f"{named} new device names, and pool {show(self.pool)} already knows {known}; it tells at most "
                f"{kMaxDevices} devices apart. Use the same names for the same devices, or another pool"
            )
        return True
