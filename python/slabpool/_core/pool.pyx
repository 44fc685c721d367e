# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The pool as Python sees it: memory, requests, and looking inside.

Converts arguments, calls the C++ core, wraps what comes back. Errors are made in `slabpool._report`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.memory cimport unique_ptr
from libcpp.optional cimport make_optional, optional
from libcpp.string cimport string
from libcpp.utility cimport move
from libcpp.vector cimport vector

from slabpool._core.array cimport (
    NO_REQUEST, Core, caller, can_give_way, check_here, deadline_of, located, new_array, new_copy, new_full,
    next_slice, others_give_way, settle_copies, trim_heaps,
)
from slabpool._core.cpp_memory cimport MemoryKind
from slabpool._core.cpp_observe cimport Corruption as CppCorruption
from slabpool._core.cpp_observe cimport Event as CppEvent
from slabpool._core.cpp_observe cimport RequestInfo, kNoDevice
from slabpool._core.cpp_observe cimport Stats as CppStats
from slabpool._core.cpp_pool cimport Acked, PoolOptions
from slabpool._core.cpp_pool cimport Pool as CppPool
from slabpool._core.cpp_request cimport (
    Handle, OpenSpec, SourceLocation, device_span, kMaxDevices, string_view,
)
from slabpool._core.cpp_status cimport Status
from slabpool._core.cpp_stream cimport StreamName
from slabpool._core.device_new cimport device_maker
from slabpool._core.reachable cimport add_reachable
from slabpool._core.request cimport Request, ack_answer, new_request
from slabpool._core.stream cimport stream_device, stream_of

import itertools
import operator
import os
import weakref

from slabpool import _aio, _report
from slabpool._pool_options import parse_options
from slabpool._sizes import parse_size
from slabpool.errors import (
    DuplicateDeviceError,
    InvalidArgumentError,
    InvalidTypeError,
    PoolBusyError,
    TooManyDevicesError,
    UnknownDeviceError,
)
from slabpool.records import Corruption, Event, RequestRecord, RequestState, Stats

cdef tuple STATES = (RequestState.OPEN, RequestState.DRAINING, RequestState.IN_DOUBT, RequestState.RELEASED,
                     RequestState.KEPT)
cdef tuple KINDS = ("open", "allocate", "free", "ack", "close", "lost", "release", "retain", "exhausted", "keep")
cdef object STATS_NEW = tuple.__new__  # what Stats._make does, without its checks
_pool_numbers = itertools.count(1)


cdef MemoryKind _kind_of(str kind) noexcept:
    if kind == "device":
        return MemoryKind.device
    if kind == "pinned":
        return MemoryKind.pinned
    return MemoryKind.managed if kind == "managed" else MemoryKind.host


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


cdef object _unkey(bytes raw):
    if raw[:1] == b"s":
        return raw[1:].decode("utf-8", "surrogatepass")
    return int(raw[1:]) if raw[:1] == b"i" else raw[1:]


cdef tuple _identity(bytes raw, bint kept):
    """(id, None) of a request or a session; (id, name) of what a session keeps."""
    if not kept:
        return _unkey(raw), None
    end = 5 + int.from_bytes(raw[1:5], "little")
    return _unkey(raw[5:end]), raw[end + 1:].decode("utf-8", "surrogatepass") if len(raw) > end else None


cdef tuple _caller_of(Core core):
    """File and line of the Python code that called."""
    cdef SourceLocation where = caller(core)
    return where.file.decode("utf-8", "replace"), where.line


cdef object _location(SourceLocation where):
    if where.line == 0:
        return ""
    return f"{where.file.decode('utf-8', 'replace')}:{where.line}"


@cython.final
cdef class Pool:
    """A fixed amount of memory that belongs to requests and comes back when they are over.

    Parameters
    ----------
    capacity : int or str
        Bytes that the pool never exceeds; a number, or text such as ``"2GiB"``, ``"512 MB"``.
    memory : str, default "host"
        Where the bytes come from.

        - "host": memory of this process.
        - "shared" (Linux): devices in other processes of this user may `attach` by the pool's name, read its memory
          without a copy, and acknowledge.
        - "cuda:N": memory of CUDA device N; "cuda" is "cuda:0". The pool and its requests then give
          `DeviceArray` in place of numpy arrays. "shared:cuda:N": such memory that other processes may map.
        - "pinned", "pinned:N": host memory that CUDA devices reach too, with N near device N: numpy arrays,
          and `device_pointer` for what a device sees of them.
        - "managed:N": memory that moves between the host and device N as they touch it: numpy arrays, and
          `device_pointer`.
    name : str, optional
        For messages, and what peers attach to; by default ``pool-1``, ``pool-2``, ..., with the process
        id in front of the number if shared. Of one name only one shared pool lives at a time.
    scrub : {"never", "release"}, default "never"
        With "release" every block is zeroed before anybody else can get it.
    debug : {0, 1, 2}, default 0
        1 looks for writes past the end of each block, poisons blocks that come back, and remembers the
        line that allocated each; 2 also checks the allocator's own invariants at every slow step. Not for
        the memory of a device.
    events : int, default 0
        Entries of the event log; 0 turns it off.
    huge_pages : bool, optional
        Ask the system for huge pages (Linux); by default for pools of 64 MiB and more. Only for "host".
    numa_node : int, optional
        Take memory from this NUMA node only (Linux). Only for "host".

    Attributes
    ----------
    name, memory : str
        As given; "cuda:0" for "cuda".
    capacity : int

    Raises
    ------
    InvalidArgumentError, InvalidTypeError
        An argument that cannot be served.
    DeviceUnavailableError
        The system does not give the address space, or not from that NUMA node; there is no such CUDA device, no
        driver (see `slabpool.cuda.why_unavailable`), or not as much memory on the device.
    NameInUseError
        A shared pool of this name lives already.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> with slabpool.Pool("16MiB") as pool:
    ...     a = pool.zeros((4, 4), np.float32)
    ...     print(a.flags.c_contiguous, pool.stats().live)
    ...     del a
    True 64
    """

    def __cinit__(self, capacity, *, memory="host", name=None, scrub="never", debug=0, events=0,
                  huge_pages=None, numa_node=None):
        wanted = parse_options(capacity, memory, name, scrub, debug, events, huge_pages, numa_node)
        cdef PoolOptions options
        cdef Status status = Status.ok
        cdef string why
        cdef unique_ptr[CppPool] made
        cdef int error
        options.capacity = wanted.capacity
        options.scrub_on_release = wanted.scrub
        options.debug = wanted.debug
        options.events = wanted.events
        options.huge_pages = wanted.huge_pages
        options.numa_node = wanted.numa_node
        options.shared = wanted.memory.shared
        options.memory = _kind_of(wanted.memory.kind)
        options.device = wanted.memory.device
        with nogil:  # the first of CUDA memory starts the driver, which takes its time
            made = CppPool.create(options, status, &why)
            error = errno
        if made.get() is NULL:
            _report.no_pool(wanted, capacity, why.decode("utf-8", "replace"), error)
        self.core = Core.__new__(Core)
        self.core.owned = move(made)
        self.core.pool = self.core.owned.get()
        self.core.filenames = {}
        self.core.records_lines = wanted.debug > 0
        self.core.cleans = wanted.debug > 0 or wanted.scrub
        if not self.core.pool.host_reaches():
            self.core.maker = device_maker()
        elif options.memory != MemoryKind.host:
            add_reachable(self.core)
        if wanted.name is not None:
            self.name = wanted.name
        else:
            self.name = f"pool-{os.getpid()}-" if wanted.memory.shared else "pool-"
            self.name += str(next(_pool_numbers))
        self.memory = str(wanted.memory)
        self.capacity = wanted.capacity
        self.devices = {}
        self.device_names = []
        self.core.report = _report.Reporter(self)
        if wanted.memory.shared:
            from slabpool.shared.owner import serve

            self.service = serve(self)

    # ---- memory without a request

    def empty(self, shape, dtype=float, *, align=None, timeout=None):
        """Array of undefined contents, kept by its views alone. Of the memory of a device: a `DeviceArray`.

        Parameters
        ----------
        shape : int or tuple of ints
        dtype : data-type, default float64
            Any that holds no Python objects.
        align : int, default 64
            Alignment of the first byte; a power of two up to 2 MiB.
        timeout : float, optional
            Seconds to wait for memory to come back. By default running out is an error at once.

        Returns
        -------
        numpy.ndarray
            C order, writable.

        Raises
        ------
        PoolExhausted
            No room now (or within the timeout); `TensorTooLargeError` if there never can be.
        PoolClosedError, ForkedPoolError
            The pool is closed, or the parent process's.
        InvalidArgumentError, InvalidTypeError
            A bad shape, dtype or alignment.

        Examples
        --------
        >>> import slabpool
        >>> slabpool.Pool("1MiB").empty((2, 3), "f4").shape
        (2, 3)
        """
        return new_array(self.core, NO_REQUEST, shape, dtype, align, False, timeout, None)

    def zeros(self, shape, dtype=float, *, align=None, timeout=None):
        """As `empty`, filled with zeros. Memory that is known to be zero is not written again."""
        return new_array(self.core, NO_REQUEST, shape, dtype, align, True, timeout, None)

    def full(self, shape, fill_value, dtype=None, *, align=None, timeout=None):
        """As `empty`, filled with a value; the dtype is the value's unless given."""
        return new_full(self.core, NO_REQUEST, shape, fill_value, dtype, align, timeout, None)

    def copy(self, array, *, align=None, timeout=None):
        """As `empty`, with shape, dtype and contents of `array`, in C order."""
        return new_copy(self.core, NO_REQUEST, array, align, timeout, None)

    # ---- requests

    def request(self, request_id, devices=(), *, reserve=None, quota=None, lease=None, timeout=None):
        """Opens a request; its memory returns when the host and every device have let go.

        Parameters
        ----------
        request_id : str, int or bytes
            Yours. Opening an id again while an older request of it lives gives a new generation with
            memory of its own.
        devices : iterable of str or int
            Who has to acknowledge before the memory returns.
        reserve : int or str, optional
            Bytes set aside for this request and its children now, or `PoolExhausted`. In whole pages of
            16 KiB; tensors take their block sizes out of it, see `Request.nbytes`.
        quota : int or str, optional
            Most bytes it may have, children included.
        lease : float, optional
            Seconds a device may be silent before the request counts as in doubt.
        timeout : float, optional
            Seconds to wait for the reserve. By default failing is an error at once.

        Returns
        -------
        Request

        Raises
        ------
        PoolExhausted
            The reserve is not to be had, or too many requests are alive.
        DuplicateDeviceError, TooManyDevicesError
            A device named twice; more names than one pool can tell apart.
        InvalidArgumentError, InvalidTypeError
            A bad id, device, size or time.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.request("chat-42", devices=["gpu0"], reserve="256KiB") as req:
        ...     req.empty(1000, "u1").nbytes
        1000
        >>> pool.ack("chat-42", "gpu0")
        <Ack.RELEASED: 'released'>
        """
        return self._open(request_id, devices, reserve, quota, lease, timeout, None, None)

    def request_async(self, request_id, devices=(), *, reserve=None, quota=None, lease=None, timeout=None):
        """As `request`, awaited: waits for the reserve without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default for ever. The others are those of `request`.

        Returns
        -------
        Request
        """
        opened_at = _caller_of(self.core)
        devices = tuple(devices) if not isinstance(devices, (str, bytes)) else devices
        return _aio.open_request(
            self, lambda: self._open(request_id, devices, reserve, quota, lease, None, None, opened_at), timeout)

    cdef Request _open(self, object request_id, object devices, object reserve, object quota, object lease,
                       object timeout, Request parent, object opened_at):
        cdef OpenSpec spec
        cdef Handle handle
        cdef Status status
        cdef int64_t deadline, until
        cdef uint32_t few[16]
        cdef vector[uint32_t] many
        cdef Py_ssize_t count = 0
        cdef uint32_t index
        cdef uint64_t mask = 0
        cdef bint new = False
        cdef bytes key
        check_here(self.core)
        if isinstance(devices, (str, bytes)):
            raise InvalidTypeError(f"devices must be several names, got one {type(devices).__name__} {devices!r}")
        if type(devices) is not tuple:
            try:
                devices = tuple(devices)
            except TypeError:
                raise InvalidTypeError(f"devices must be an iterable of names, got {devices!r}") from None
        for device in <tuple>devices:
            number = self.devices.get(device) if type(device) is str or type(device) is int else None
            if number is None:
                if new == 0 and parent is None:
                    new = self._room_for(<tuple>devices)  # before any name is added: all of them or none
                number = self._device_number(device) if parent is None else self._known_device(device, parent)
            index = number
            if index < 64:
                mask |= <uint64_t>1 << index
            if count < 16:
                few[count] = index
            else:
                if count == 16:
                    many.assign(&few[0], &few[0] + 16)
                many.push_back(index)
            count += 1
        if count <= 16:
            spec.devices = device_span(&few[0], <size_t>count)
        else:
            spec.devices = device_span(many.data(), <size_t>count)
        key = name_key(request_id, "request_id")
        spec.id = string_view(PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key))
        if reserve is not None:
            spec.reserve = parse_size(reserve, "reserve", least=0, most=1 << 62)
        if quota is not None:
            spec.quota = parse_size(quota, "quota", least=1, most=1 << 62)
        if lease is not None:
            spec.lease_ns = _lease(lease)
        if parent is not None:
            spec.parent = parent.handle
        if opened_at is None:
            spec.where = caller(self.core)
        else:
            spec.where = located(self.core, opened_at[0], opened_at[1])
        status = Status.exhausted
        if can_give_way(self.core):
            spec.counts = False
            status = self.core.pool.open(spec, handle)
            while others_give_way(self.core, status):
                status = self.core.pool.open(spec, handle)
            spec.counts = True
        if status not in (Status.exhausted, Status.too_many_requests):
            pass
        elif timeout is None:
            status = self.core.pool.open(spec, handle)
        else:
            deadline = deadline_of(timeout)
            while True:
                until = next_slice(deadline)
                with nogil:
                    status = self.core.pool.open_until(spec, handle, until, until == deadline)
                if status not in (Status.exhausted, Status.too_many_requests) or until == deadline:
                    break
                PyErr_CheckSignals()
                others_give_way(self.core, status)  # what has become idle, or done, meanwhile
        if status != Status.ok:
            _report.open_failed(self, <int>status, request_id, devices, spec.reserve, spec.quota, timeout, parent)
        if parent is not None:
            return new_request(self, self.core, self.devices, handle, request_id, <tuple>devices, mask,
                               parent.handle.generation, parent.quota)
        return new_request(self, self.core, self.devices, handle, request_id, <tuple>devices, mask, None,
                           None if quota is None else spec.quota)

    def _open_child(self, Request parent, devices):
        return self._open(parent.id, devices, None, None, None, None, parent, None)

    def _open_turn(self, request_id, devices, reserve, quota, lease, timeout, opened_at):
        """A request of a session, opened at (file, line)."""
        return self._open(request_id, devices, reserve, quota, lease, timeout, None, opened_at)

    # ---- sessions

    def session(self, session_id, *, budget=None, ttl=None):
        """The living session of this id, or a new one: memory that one request leaves to the next.

        Parameters
        ----------
        session_id : str, int or bytes
            Yours, as for `request`; its requests bear it.
        budget : int or str, optional
            Most bytes that it may keep, in whole blocks. Given for a living session it replaces the one it
            has; by default a new session has none but the pool's.
        ttl : float, optional
            Seconds after which it expires when no request is using it. Given for a living session it
            replaces the one it has; by default a new session does not expire.

        Returns
        -------
        Session
            An idle one gives way, oldest first, when the pool has no room left; one that a request is using
            never does.

        Raises
        ------
        QuotaExceededError
            A living session keeps more than this budget.
        PoolExhausted
            Too many requests and sessions are alive.
        PoolClosedError, ForkedPoolError
            The pool is closed, or the parent process's.
        InvalidArgumentError, InvalidTypeError
            A bad id, size or time.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> session = pool.session("chat-42", budget="512KiB", ttl=600)
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.zeros((2, 4, 64), "f2"))
        >>> with session.request() as turn:
        ...     print(session["kv"].shape)
        (2, 4, 64)
        """
        from slabpool.session import Session

        where = _caller_of(self.core)
        sessions = self._sessions()
        return Session._of(self, sessions, sessions.open(session_id, budget, ttl, where))

    def sessions(self):
        """Every living session, the one that has been idle longest first; those in use last.

        Returns
        -------
        list of SessionRecord

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> session = pool.session("chat-42")
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.zeros(1000, "u1"))
        >>> [(s.session_id, s.names, s.nbytes) for s in pool.sessions()]
        [('chat-42', ('kv',), 1024)]
        """
        check_here(self.core)
        return [] if self.sessions_ is None else self.sessions_.records()

    @property
    def session_budget(self):
        """Most bytes that all sessions together may keep (int), or None; settable, also as text.

        Idle sessions give way, oldest first, when this is set and to what is kept later; what is kept by those
        in use stays.
        """
        return None if self.sessions_ is None else self.sessions_.budget

    @session_budget.setter
    def session_budget(self, budget):
        self._sessions().set_budget(budget)

    def _sessions(self):
        check_here(self.core)
        if self.sessions_ is None:
            if self.core.maker is not None:
                _report.host_only("a session")
            from slabpool._sessions import Sessions

            sessions = Sessions(self)
            if self.sessions_ is None:  # nobody came first, while that was made
                self.sessions_ = sessions
                self.core.give_way = weakref.WeakMethod(sessions.give_way)
        return self.sessions_

    def ack(self, request_id, device, *, generation=None, stream=None):
        """An ack by an engine that carries only the id.

        Parameters
        ----------
        request_id : str, int or bytes
        device : str or int
        generation : int, optional
            Needed where several requests of the id wait for the device at once.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            The ack counts once everything that is queued on this CUDA stream until now is done: see `Request.ack`,
            also for what is raised. While it is under way the request does not count as one that waits.

        Returns
        -------
        Ack
            ``LATE`` where no request of the id waits for the device.

        Raises
        ------
        AmbiguousRequestError
            Several generations wait for this device, and none was given.
        UnknownDeviceError
            The device was never named, in this pool or for the live requests of this id.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> pool.request("r", devices=["gpu0"]).close()
        >>> pool.ack("r", "gpu0"), pool.ack("r", "gpu0")
        (<Ack.RELEASED: 'released'>, <Ack.LATE: 'late'>)
        """
        cdef optional[uint64_t] wanted
        cdef Acked acked
        cdef uint32_t number = self._known_device(device, None)
        cdef string id = name_key(request_id, "request_id")
        if generation is not None:
            wanted = _generation(generation)
        cdef StreamName on
        cdef string why
        if stream is not None:
            on.stream = stream_of(stream)
            on.device = stream_device(stream)
            with nogil:
                acked = self.core.pool.ack_id_after(id, number, wanted, on, &why)
            _report.stream_failed(<int>acked.status, stream, why.decode("utf-8", "replace"))
        elif self.core.cleans:
            with nogil:
                acked = self.core.pool.ack_id(id, number, wanted)
        else:
            acked = self.core.pool.ack_id(id, number, wanted)
        if acked.status == Status.ok:
            return ack_answer(<int>acked.result)
        _report.ack_failed(self, <int>acked.status, request_id, device)

    def device_lost(self, device, *, kill=False):
        """A device is dead: lets go of everything it held.

        Devices that are attached from another process need not be reported: their end is noticed.

        Parameters
        ----------
        device : str or int
        kill : bool, default False
            If the device is attached, kill its process (SIGKILL) and wait for its end first: the only
            safe way to take memory from a process that hangs.

        Returns
        -------
        int
            Requests (children counted) that it still held.

        Raises
        ------
        UnknownDeviceError
            No request ever named it.
        DeviceAttachedError
            Its process is attached and alive, and `kill` was not asked for; or it is this process.
        """
        cdef uint32_t number
        cdef uint64_t lost
        check_here(self.core)
        if self.service is not None:
            name_key(device, "device")
            count = self.service.device_lost(device, bool(kill))
            if count is not None:
                return count
        number = self._known_device(device, None)
        with nogil:
            lost = self.core.pool.device_lost(number)
        return lost

    def heartbeat(self, device):
        """A sign of life: renews the device's leases.

        Parameters
        ----------
        device : str or int

        Raises
        ------
        UnknownDeviceError
            No request ever named it.
        """
        check_here(self.core)
        cdef uint32_t number = self._known_device(device, None)
        self.core.pool.heartbeat(number)

    # ---- devices' names

    def _device_number(self, device):
        number = self.devices.get(device) if type(device) in (str, int) else None
        if number is not None:
            return number
        check_here(self.core)
        cdef optional[uint32_t] added = self.core.pool.devices().add(name_key(device, "device"))
        if not added.has_value():
            raise TooManyDevicesError(
                f"device {device!r} would be name {kMaxDevices + 1} in pool {self.name!r}; a pool tells at most "
                f"{kMaxDevices} devices apart. Use the same names for the same devices, or another pool"
            )
        number = added.value()
        while len(self.device_names) <= number:
            self.device_names.append(None)
        self.device_names[number] = device
        self.devices[device] = number
        return number

    def _device_name(self, number):
        return self.device_names[number]

    def _room_for(self, devices):
        """True; raises if these names and those known are more than a pool can tell apart."""
        for device in devices:
            name_key(device, "device")
        known = len(self.devices)
        named = len({device for device in devices if device not in self.devices})
        if known + named > kMaxDevices:
            raise TooManyDevicesError(
                f"{named} new device names, and pool {self.name!r} already knows {known}; it tells at most "
                f"{kMaxDevices} devices apart. Use the same names for the same devices, or another pool"
            )
        return True

    def _known_device(self, device, request):
        """The number of a device that this pool knows; else raises, for the request if one is given."""
        name_key(device, "device")  # a wrong type is an error of its own, although True == 1 == 1.0
        number = self.devices.get(device)
        if number is None:
            if request is None:
                raise UnknownDeviceError(
                    f"device {device!r} was never named for any request of pool {self.name!r}; "
                    f"it knows {_report.names(self.device_names)}"
                )
            _report.unknown_device(device, request)
        return number

    # ---- looking inside

    def stats(self):
        """Bytes and counts as of now; takes no lock that allocating takes.

        Returns
        -------
        Stats
            Always ``committed == live + retained + in_doubt + cached``.
        """
        check_here(self.core)
        settle_copies()
        cdef CppStats s = self.core.pool.stats()
        return STATS_NEW(Stats, (
            s.capacity, s.reserved, s.committed, s.live, s.retained, s.in_doubt, s.cached, s.set_aside, s.peak_live,
            s.peak_committed, s.allocations, s.frees, s.requests_open, s.requests_draining, s.requests_in_doubt,
            s.acks, s.duplicate_acks, s.late_acks, s.exhaustions))

    def requests(self):
        """Every request that is not released, or whose bytes live views retain, and every tensor that a session
        keeps; oldest first.

        Returns
        -------
        list of RequestRecord
        """
        return self._records(0)

    def leaks(self, older_than=0):
        """Requests that have lived for at least `older_than` seconds, oldest first: what they keep, which
        devices are missing, and the line that opened them. What sessions keep is none; see `sessions`.

        Parameters
        ----------
        older_than : float, default 0
            Seconds.

        Returns
        -------
        list of RequestRecord

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> req = pool.request("chat-42", devices=["gpu0"])
        >>> req.close()
        >>> [(r.request_id, sorted(r.pending)) for r in pool.leaks()]
        [('chat-42', ['gpu0'])]
        """
        return [record for record in self._records(older_than) if record.state is not RequestState.KEPT]

    cdef list _records(self, object older_than):
        check_here(self.core)
        settle_copies()
        cdef vector[RequestInfo] infos = self.core.pool.requests(_older_than(older_than))
        records = []
        for i in range(<Py_ssize_t>infos.size()):
            id, name = _identity(infos[i].id, infos[i].kept)
            if infos[i].kept and name is None:
                continue  # a session, without memory of its own: see sessions()
            records.append(RequestRecord(
                request_id=id,
                generation=infos[i].handle.generation,
                state=STATES[<int>infos[i].state],
                nbytes=infos[i].nbytes,
                age=infos[i].age_ns / 1e9,
                pending=frozenset([self.device_names[number] for number in infos[i].pending]),
                live_views=infos[i].live_views,
                opened_at=_location(infos[i].opened_at),
                parent=None if infos[i].kept else infos[i].parent_generation or None,
                kept_as=name,
            ))
        return records

    def events(self):
        """The event log, oldest first; empty unless the pool was made with ``events=``.

        Returns
        -------
        list of Event
        """
        check_here(self.core)
        cdef vector[CppEvent] events = self.core.pool.events()
        return [
            Event(
                time_ns=events[i].time_ns,
                thread=events[i].thread,
                kind=KINDS[<int>events[i].kind],
                generation=events[i].generation,
                device=None if events[i].device == kNoDevice else self.device_names[events[i].device],
                nbytes=events[i].bytes,
            )
            for i in range(<Py_ssize_t>events.size())
        ]

    def corruptions(self):
        """Writes past the end of a block that a pool with ``debug`` on has found so far.

        Returns
        -------
        list of Corruption
        """
        check_here(self.core)
        cdef vector[CppCorruption] found = self.core.pool.corruptions()
        return [
            Corruption(
                address=found[i].address, nbytes=found[i].nbytes, offset=found[i].offset,
                generation=found[i].generation, allocated_at=_location(found[i].allocated_at))
            for i in range(<Py_ssize_t>found.size())
        ]

    def _verify(self):
        """None, or which invariant of the allocator does not hold. For tests."""
        check_here(self.core)
        cdef const char* wrong = self.core.pool.verify()
        return None if wrong is NULL else wrong.decode()

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.core.pool.closed()

    def _check_here(self):
        """Raises in a child of fork."""
        check_here(self.core)

    @property
    def _usable_here(self):
        return self.core.pool.usable_here()

    # ---- giving back

    def trim(self):
        """Gives committed but unused memory back to the system.

        Returns
        -------
        int
            Bytes given back.
        """
        cdef uint64_t freed
        check_here(self.core)
        settle_copies()
        trim_heaps(self.core, False)
        with nogil:
            freed = self.core.pool.trim()
        return freed

    def close(self, *, force=False):
        """Closes the pool. Again: nothing happens.

        Parameters
        ----------
        force : bool, default False
            Cut open requests loose instead of refusing. Live views stay valid all the same; their memory
            goes back to the system when the last of them dies.

        Raises
        ------
        PoolBusyError
            Somebody holds memory; the message names the holders. The pool stays open.
        """
        cdef bint forced = bool(force)
        cdef Status status
        if self.sessions_ is not None and self.core.pool.usable_here():
            self.sessions_.pool_closes(forced)
        settle_copies()
        if self.core.pool.usable_here():
            trim_heaps(self.core, True)
        with nogil:
            status = self.core.pool.close(forced)
        if status == Status.pool_busy:
            raise PoolBusyError(_report.busy(self))
        if status != Status.ok:
            self.core.report(None, <int>status, 0, None)
        if self.sessions_ is not None:
            self.sessions_.stop()
        if self.service is not None:
            self.service.stop()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        # A child of fork leaves the block too, and the pool is not its to close.
        if self.core.pool.usable_here():
            # After an error its traceback keeps views alive; refusing to close would hide it.
            self.close(force=kind is not None)

    @property
    def _stream_acks(self):
        """For event loops: acks that wait for a stream. While there are any, nobody is woken by them."""
        return self.core.pool.stream_acks()

    @property
    def _bell(self):
        """For event loops: a descriptor that is readable once a peer acknowledged, or -1."""
        return self.core.pool.bell()

    def _answer_bell(self):
        """Takes in what peers acknowledged; whoever finds `_bell` readable calls it."""
        self.core.pool.answer_bell()

    def _add_wakeup(self, int fd):
        check_here(self.core)
        self.core.pool.add_wakeup(fd)

    def _remove_wakeup(self, int fd):
        if self.core.pool.usable_here():
            self.core.pool.remove_wakeup(fd)

    def __reduce__(self):
        raise InvalidTypeError(f"pool {self.name!r} is memory of this process: it cannot be copied or pickled")

    def __repr__(self):
        if not self.core.pool.usable_here():
            return f"<Pool {self.name!r}: inherited through fork>"
        s = self.stats()
        state = "closed, " if self.closed else ""
        return (f"<Pool {self.name!r}: {state}{s.live} live, {s.retained} retained, {s.in_doubt} in doubt, "
                f"{s.cached} cached of {s.capacity} bytes, {s.requests_open + s.requests_draining} requests>")


cdef int64_t _older_than(object older_than) except? -1:
    try:
        seconds = float(older_than)
    except (TypeError, ValueError, OverflowError):
        raise InvalidTypeError(f"older_than must be seconds, got {older_than!r}") from None
    if not seconds >= 0:
        raise InvalidArgumentError(f"older_than must be seconds from 0 on, got {older_than!r}")
    return <int64_t>int(min(seconds, 1e9) * 1e9)


cdef uint64_t _generation(object generation) except? 0:
    try:
        value = operator.index(generation)
    except TypeError:
        raise InvalidTypeError(
            f"generation must be an int, got {generation!r} of type {type(generation).__name__}") from None
    if not 0 < value < 1 << 63:
        raise InvalidArgumentError(f"generation must be one that a request has, got {value}")
    return value


cdef int64_t _lease(object lease) except? -1:
    try:
        seconds = float(lease)
    except (TypeError, ValueError, OverflowError):
        raise InvalidTypeError(f"lease must be seconds, got {lease!r}") from None
    if not 0 < seconds <= 1e9:
        raise InvalidArgumentError(f"lease must be more than 0 seconds and at most 1e9, got {lease!r}")
    return <int64_t>max(1, int(seconds * 1e9))
