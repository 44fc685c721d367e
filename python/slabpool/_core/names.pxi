# Part of core.pyx. Names of requests, sessions and devices as the core knows them.
#
# Invariants: the key of a name says its type as well, so "1" is not 1; a number in Devices.numbers is that of the name in
# the C++ registry. Numbers are taken back with the GIL held (Devices.retire), so a number that was looked up is good
# until the GIL is released. A caller that releases it, or runs Python code, holds the number meanwhile.

from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport Py_CLEAR, Py_XDECREF, Py_XINCREF
from libcpp.optional cimport optional

from slabpool._core.cpp_observe cimport Event as CppEvent
from slabpool._core.cpp_pool_declared cimport Acked
from slabpool._core.cpp_request cimport AckResult, kMaxDevices

from slabpool.errors import TooManyDevicesError, UnknownDeviceError

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


cdef str _INSTEAD = "Let requests end, use the same names for the same devices, or another pool"


@cython.final
cdef class Devices:
    """The devices that requests of a pool have named, by name and by number."""

    def __cinit__(self, Core core not None, str pool not None):
        self.core = core
        self.pool = pool
        self.numbers = {}
        self.names = []
        self.former = []
        if not self.fit_last():
            raise MemoryError

    def __dealloc__(self):
        if self.last is not NULL:
            self.forget_last()
            PyMem_Free(self.last)

    cdef void forget_last(self) noexcept:
        cdef size_t i
        for i in range(<size_t>1 << self.last_bits):
            Py_CLEAR(self.last[i].name)

    cdef bint fit_last(self) noexcept:
        """Makes `last` at least twice as long as there are names, so that few share a place, and forgets what it had. False:
        there is no memory, and it stays."""
        cdef int bits = 7
        cdef KnownName* made
        while (<Py_ssize_t>1 << bits) < 2 * len(self.numbers):
            bits += 1
        if self.last is not NULL and bits <= self.last_bits <= bits + 2:
            return True
        made = <KnownName*>PyMem_Calloc(<size_t>1 << bits, sizeof(KnownName))
        if made is NULL:
            return False
        if self.last is not NULL:
            self.forget_last()
            PyMem_Free(self.last)
        self.last = made
        self.last_bits = bits
        return True

    cdef int64_t number_of(self, object device) except -2:
        """The number of a device; -1 for a name that has none, or is not exactly a str or an int. Runs no Python code."""
        cdef KnownName* last
        cdef PyObject* before
        if type(device) is not str and type(device) is not int:
            return -1
        number = self.numbers.get(device)
        if number is None:
            return -1
        last = known_name(self, device)
        before = last.name
        Py_XINCREF(<PyObject*>device)
        last.name = <PyObject*>device
        last.number = number
        Py_XDECREF(before)
        return last.number

    cdef uint32_t hold(self, object device) except? 0xFFFFFFFF:
        """The number of a device, a new one for a new name, held until it is dropped."""
        device = plain_name(device)
        cdef uint32_t number = self.hold_key(device, name_key(device, "device"))
        try:
            while len(self.names) <= <Py_ssize_t>number:
                self.names.append(None)
            self.numbers[device] = number
            self.names[number] = device
        except BaseException:
            self.core.pool.devices().drop(number)
            raise
        self.fit_last()
        return number

    cdef uint32_t hold_key(self, object device, bytes key) except? 0xFFFFFFFF:
        """As `hold`, for a name that no request names."""
        check_here(self.core)
        cdef optional[uint32_t] number = self.core.pool.devices().hold(view_of(key))
        if not number.has_value():
            self.retire()
            number = self.core.pool.devices().hold(view_of(key))
        if not number.has_value():
            raise TooManyDevicesError(
                f"device {show(device)} would be name {kMaxDevices + 1} in pool {show(self.pool)}, and something waits "
                f"for each of the others; a pool tells at most {kMaxDevices} devices apart at a time. {_INSTEAD}"
            )
        return number.value()

    cdef int hold_all(self, tuple devices) except -1:
        """Holds the number of each device until `drop_all`. All of them or none; the names are plain."""
        cdef list held = []
        cdef dict fresh = {}
        cdef bytes key
        try:
            for device in devices:
                number = self.numbers.get(device)
                if number is not None:
                    self.core.pool.devices().hold_number(number)
                    held.append(number)
            for device in devices:
                key = name_key(device, "device")
                if not self.core.pool.devices().find(view_of(key)).has_value():
                    fresh[device] = None
            if len(fresh) > self.core.pool.devices().room():
                self.retire()
            if len(fresh) > self.core.pool.devices().room():
                raise TooManyDevicesError(
                    f"{len(fresh)} new device names, and something waits for "
                    f"{kMaxDevices - self.core.pool.devices().room()} others of pool {show(self.pool)}; it tells at "
                    f"most {kMaxDevices} devices apart at a time. {_INSTEAD}"
                )
            known = set(held)
            for device in devices:
                number = self.numbers.get(device)
                if number is None or number not in known:
                    held.append(self.hold(device))
        except BaseException:
            for number in held:
                self.core.pool.devices().drop(number)
            raise
        return 0

    cdef void drop_all(self, tuple devices) noexcept:
        for device in devices:
            self.core.pool.devices().drop(self.numbers[device])

    cdef tuple made_known(self, tuple devices, object parent):
        """The names as plain values, each of which has a number until Python code runs. All of them or none are added."""
        for device in devices:
            name_key(device, "device")  # raises for a wrong type
        devices = tuple([plain_name(device) for device in devices])
        if parent is not None:  # named for it, so the pool knows them
            for device in devices:
                self.known(device, parent)
        self.hold_all(devices)
        self.drop_all(devices)
        return devices

    cdef Status find_room(self, tuple devices, Status status, Attempt attempt, void* job, Wait wait, Handle parent,
                          uint64_t reserve) except *:
        """As find_room(), for a request on these devices. Their numbers are held, because the GIL is released."""
        self.hold_all(devices)
        try:
            return find_room(self.core, status, attempt, job, wait, parent, reserve, True)
        finally:
            self.drop_all(devices)

    cdef int retire(self) except -1:
        """Takes back the numbers of names that nothing waits for."""
        cdef vector[uint32_t] retired
        cdef list after = []
        cdef list before = self.names  # from here on no Python code runs
        cdef size_t i
        after.extend(before)
        self.forget_last()
        self.core.pool.retire_devices(retired)
        # Allocates nothing, so that it cannot fail half-way.
        for i in range(retired.size()):
            if <Py_ssize_t>retired[i] < len(after) and after[retired[i]] is not None:
                del self.numbers[after[retired[i]]]
                after[retired[i]] = None
        self.names = after
        self.fit_last()
        cdef int64_t now = now_ns()
        # The event log has numbers. What it may still show is remembered by name.
        cdef vector[CppEvent] events = self.core.pool.events()
        if events.empty():
            return 0
        cdef set shown = {events[i].device for i in range(events.size())}
        cdef list former = [(until, names) for until, names in self.former if until >= events[0].time_ns]
        former.append((now, {retired[i]: before[retired[i]] for i in range(retired.size())
                             if retired[i] in shown and <Py_ssize_t>retired[i] < len(before)}))
        self.former = former
        return 0

    cdef object known(self, object device, object request):
        """The number of a device that the pool knows. Otherwise raises, naming the request if one is given."""
        cdef KnownName* last = known_name(self, device)
        if last.name == <PyObject*>device:
            return last.number
        name_key(device, "device")  # a wrong type is an error of its own, although True == 1 == 1.0
        number = self.numbers.get(device)
        if number is None:
            if request is None:
                raise UnknownDeviceError(
                    f"device {show(device)} was never named for any request of pool {show(self.pool)}, or nothing waited "
                    f"for it when other names needed room; the pool knows {hooks.messages.names(self.numbers)}"
                )
            hooks.messages.unknown_device(device, request)
        return number

    cdef int64_t known_to(self, object named, object device, object request) except? -2:
        """As `known`; -1 for a device that gave up its number after it had left the request."""
        name_key(device, "device")  # as in known()
        number = self.numbers.get(device)
        if number is None and device not in named:
            hooks.messages.unknown_device(device, request)
        return -1 if number is None else <int64_t>number

    cdef object ack_other_name(self, const Handle* handle, object named, object device, object request):
        """An ack under a name that is not plain, or has no number."""
        check_here(self.core)
        if self.known_to(named, device, request) < 0:
            return ack_answer(<int>self.core.pool.ack_retired(handle[0]))
        return request.ack(plain_name(device))

    cdef object ack_without_gil(self, const Handle* handle, uint32_t number, object named, object device, object request):
        cdef Acked acked
        self.core.pool.devices().hold_number(number)
        with nogil:
            acked = self.core.pool.ack(handle[0], number)
        self.core.pool.devices().drop(number)
        if acked.result != AckResult.late:
            return ack_answer(<int>acked.result)
        return self.late(acked.status, handle, named, device, request)

    cdef object late(self, Status status, const Handle* handle, object named, object device, object request):
        """What `Request.ack` answers or raises for an ack that the core answers late, of any status."""
        if status == Status.ok:
            if device in named:
                return ack_answer(<int>AckResult.late)
            hooks.messages.unknown_device(device, request)
        if status == Status.unknown_device and device in named:  # its name has given up its number
            return ack_answer(<int>self.core.pool.ack_retired(handle[0]))
        failed(self.core, request, status, 0, device)


cdef object names_of(list names, const vector[uint32_t]& numbers):
    # Not `for number in numbers`: Cython then copies the vector where no exception may be thrown.
    cdef size_t i
    return frozenset([names[numbers[i]] for i in range(numbers.size())])
