# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The pool as Python sees it: memory, requests, sessions, and inspection.

Converts arguments, calls the C++ core, wraps what it returns. The texts of errors are made in `slabpool.messages`.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.optional cimport optional

from slabpool._core.array cimport new_array, new_copy, new_full, new_quick
from slabpool._core.core cimport (
    KEY_ROOM, NO_REQUEST, Core, Devices, LineReport, Site, ack_answer, add_reachable, caller_site, check_here, failed,
    identity, loop_wait, name_key, names_of, patience, settle_copies, short_key, state_of, text_of, trim_heaps, view_of,
    waiter_record,
)
from slabpool._core.cpp_cuda cimport StreamName
from slabpool._core.cpp_memory cimport MemoryKind
from slabpool._core.cpp_pool cimport Acked, PoolOptions
from slabpool._core.cpp_pool cimport Pool as CppPool
from slabpool._core.cpp_request cimport string_view
from slabpool._core.cpp_status cimport Error, Status
from slabpool._core.cuda cimport stream_device, stream_of
from slabpool._core.device_array cimport device_maker
from slabpool._core.request cimport GroupHold, Request, group_record, open_group, open_request, refuser_of

import itertools
import operator
import os
import weakref

from slabpool._core import async_wait, hooks
from slabpool._core.core import StatusCode
from slabpool.arguments.pool_options import parse_options
from slabpool.arguments.seconds import seconds
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.records import RequestState

include "inspection.pxi"
include "pool_link.pxi"
include "pressure.pxi"

_pool_numbers = itertools.count(1)


cdef MemoryKind _kind_of(str kind) noexcept:
    if kind == "device":
        return MemoryKind.device
    if kind == "pinned":
        return MemoryKind.pinned
    return MemoryKind.managed if kind == "managed" else MemoryKind.host


@cython.final
cdef class Pool:
    """Pool(capacity, *, memory='host', name=None, scrub='never', debug=0, events=0, huge_pages=None, numa_node=None)\n--\n
    A fixed amount of memory that is lent to requests and returned when their last holder leaves.

    Parameters
    ----------
    capacity : int or str
        Most bytes that the pool commits; a number, or text such as ``"2GiB"``, ``"512 MB"``.
    memory : str, default "host"
        The kind of memory.

        - "host": memory of this process.
        - "shared" (Linux): devices in other processes of this user can `attach` by the pool's name, read its memory
          without a copy, and acknowledge.
        - "cuda:N": memory of CUDA device N; "cuda" is "cuda:0". The pool and its requests then return `DeviceArray`
          instead of numpy arrays. "shared:cuda:N": such memory that other processes can map.
        - "pinned", "pinned:N": host memory that CUDA devices can access too, with N near device N. Arrays are numpy
          arrays; `device_pointer` gives the device's address of one.
        - "managed:N": memory that migrates between the host and device N when they access it. Arrays are numpy arrays;
          `device_pointer` gives the device's address of one.
    name : str, optional
        Used in messages, and by peers to attach; by default ``pool-1``, ``pool-2``, ..., with the process id in front
        of the number if shared. Only one shared pool of a name can exist at a time.
    scrub : {"never", "release"}, default "never"
        With "release" every block is zeroed before it can be handed out again.
    debug : {0, 1, 2}, default 0
        1 detects writes past the end of each block, poisons returned blocks, and records the line that allocated
        each; 2 also checks the allocator's own invariants at every slow step. Not for the memory of a device.
    events : int, default 0
        Entries of the event log; 0 turns it off.
    huge_pages : bool, optional
        Ask the kernel for huge pages (Linux); by default for pools of 64 MiB and more. Only for "host".
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
        There is no such CUDA device, no driver (see `slabpool.cuda.why_unavailable`), or not enough memory on the
        device.
    MemoryLimitError
        A limit of this process refuses what the pool needs, or the memory limit of its control group (a container's) is
        lower than the capacity of a "shared" or pinned pool, whose memory is allocated when it is committed. For other
        pools that is a RuntimeWarning. The message has the limits and what to do.
    SystemRefusedError
        The kernel refuses memory of that NUMA node, or a descriptor; or the name of a shared pool cannot be taken, because
        its directory is not this user's, a file is in its place, or another process holds the lock of the directory for
        10 seconds.
    NameInUseError
        A shared pool of this name exists already.

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
        cdef Error error
        cdef unique_ptr[CppPool] made
        owner = hooks.owner if wanted.memory.shared else None  # loaded first: that needs descriptors, too
        options.capacity = wanted.capacity
        options.scrub_on_release = wanted.scrub
        options.debug = wanted.debug
        options.events = wanted.events
        options.huge_pages = wanted.huge_pages
        options.numa_node = wanted.numa_node
        options.shared = wanted.memory.shared
        options.memory = _kind_of(wanted.memory.kind)
        options.device = wanted.memory.device
        with nogil:  # the first pool of CUDA memory starts the driver, which takes a while
            made = CppPool.create(options, error)
        if made.get() is NULL:
            hooks.messages.no_pool(wanted, capacity, text_of(error.text), error.system_errno)
        if not error.text.empty():
            hooks.messages.warn_of_limit(capacity, text_of(error.text))
        self.core = Core.__new__(Core)
        self.core.pool = made.release()
        self.core.owner = weakref.ref(self)
        self.core.give_way = hooks.sessions.give_way
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
        self.devices = Devices(self.core, self.name)
        if wanted.memory.shared:
            self.service = owner.serve(self)

    # ---- memory that belongs to no request

    # Methods with `dtype=float` write their signature themselves: `inspect` reads no default that is a type.
    @cython.embedsignature(False)
    def empty(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """empty($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `Request.empty`, held by its views alone.

        Examples
        --------
        >>> import slabpool
        >>> slabpool.Pool("1MiB").empty((2, 3), "f4").shape
        (2, 3)
        """
        if align is None and timeout is None and priority is None:
            return new_quick(self.core, shape, dtype)
        return new_array(self.core, NO_REQUEST, shape, dtype, align, False, patience(timeout, priority), None)

    @cython.embedsignature(False)
    def zeros(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """zeros($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `empty`, filled with zeros. Memory that is known to be zero is not written again."""
        return new_array(self.core, NO_REQUEST, shape, dtype, align, True, patience(timeout, priority), None)

    def full(self, shape, fill_value, dtype=None, *, align=None, timeout=None, priority=None):
        """As `empty`, filled with a value; the dtype is the value's unless given."""
        return new_full(self.core, NO_REQUEST, shape, fill_value, dtype, align, patience(timeout, priority), None)

    def copy(self, array, *, align=None, timeout=None, priority=None):
        """As `empty`, with shape, dtype and contents of `array`, in C order."""
        return new_copy(self.core, NO_REQUEST, array, align, patience(timeout, priority), None)

    @cython.embedsignature(False)
    def empty_async(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """empty_async($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `Request.empty_async`, held by its views alone.

        Examples
        --------
        >>> import asyncio, slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> async def main():
        ...     return (await pool.empty_async((2, 3), "f4")).shape
        >>> asyncio.run(main())
        (2, 3)
        """
        check_here(self.core)
        return async_wait.served(self, loop_wait(self.core, priority),
                                 lambda wait: self.empty(shape, dtype, align=align, timeout=wait), timeout)

    @cython.embedsignature(False)
    def zeros_async(self, shape, dtype=float, *, align=None, timeout=None, priority=None):
        """zeros_async($self, shape, dtype='float64', *, align=None, timeout=None, priority=None)\n--\n
        As `empty_async`, filled with zeros."""
        check_here(self.core)
        return async_wait.served(self, loop_wait(self.core, priority),
                                 lambda wait: self.zeros(shape, dtype, align=align, timeout=wait), timeout)

    # ---- requests

    def request(self, request_id, devices=(), *, reserve=None, quota=None, lease=None, timeout=None,
                priority=None):
        """Opens a request. Its memory is returned when the host and every device have left.

        Parameters
        ----------
        request_id : str, int or bytes
            Chosen by the caller. Opening an id again while an older request of it is alive makes a new generation with
            memory of its own.
        devices : iterable of str or int
            The devices that must acknowledge before the memory is returned.
        reserve : int or str, optional
            Bytes to reserve now for this request and its children, in whole pages of 4 KiB. Tensors take their block
            sizes out of it, see `Request.nbytes`.
        quota : int or str, optional
            Most bytes it may hold, children included.
        lease : float, optional
            Seconds that a device may be silent before the request counts as in doubt.
        timeout : float, optional
            Seconds to wait for the reserve, or where too many requests are alive. By default running out is an error at
            once.
        priority : int, default 0
            Callers that wait are served by priority, the highest first, then in order of arrival. It is also that of
            what the request allocates.

        Returns
        -------
        Request

        Raises
        ------
        PoolExhausted
            There is no room for the reserve, or too many requests are alive.
        DuplicateDeviceError, TooManyDevicesError
            A device named twice; more names than one pool can tell apart at a time (4,096). A name that nothing waits
            for gives up its place when another one needs it.
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
        if priority is not None:
            return open_request(self, self.core, self.devices, request_id, devices, reserve, quota, lease,
                                patience(timeout, priority), None, None, None)
        return open_request(self, self.core, self.devices, request_id, devices, reserve, quota, lease, timeout,
                            None, None, None)

    def request_async(self, request_id, devices=(), *, reserve=None, quota=None, lease=None, timeout=None,
                      priority=None):
        """As `request`, awaitable: waits for the reserve without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default there is no limit. The other parameters are those of `request`.

        Returns
        -------
        Request
        """
        opened_at = caller_site()
        devices = tuple(devices) if not isinstance(devices, (str, bytes)) else devices
        return async_wait.served(
            self, loop_wait(self.core, priority),
            lambda wait: self._open_turn(request_id, devices, reserve, quota, lease, wait, opened_at), timeout)

    def _open_turn(self, request_id, devices, reserve, quota, lease, timeout, Site opened_at not None, GroupHold group=None):
        """As `request`, on behalf of the caller at this line."""
        return open_request(self, self.core, self.devices, request_id, devices, reserve, quota, lease, timeout,
                            None, opened_at, group)

    # ---- groups

    def group(self, group_id, *, quota=None, reserve=None, priority=None):
        """Opens a group: requests and sessions opened under it share a bound. One for each tenant of a server.

        Parameters
        ----------
        group_id : str, int or bytes
            Chosen by the caller; groups have ids of their own. It can be used again once the group is closed.
        quota : int or str, optional
            Most bytes that its requests and sessions may hold together. Bytes that are promised to a request under it by
            ``reserve=`` count from its opening on.
        reserve : int or str, optional
            Bytes to reserve now for what is under it, in whole pages of 4 KiB. They are promised until the group ends: what
            a request gives back is the group's again.
        priority : int, default 0
            Of requests under it that wait, unless a call names another.

        Returns
        -------
        Group

        Raises
        ------
        NameInUseError
            A group of this id is open.
        PoolExhausted
            There is no room for the reserve, or too many requests are alive.
        InvalidArgumentError, InvalidTypeError
            A bad id, size or priority, or a reserve above the quota.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("16MiB")
        >>> with pool.group("tenant-a", quota="8MiB", reserve="2MiB", priority=1) as tenant:
        ...     with tenant.request("chat-42", devices=["gpu0"]) as req:
        ...         kv = req.zeros((2, 4, 64), "f2")
        ...     print([(g.group_id, g.nbytes, g.requests) for g in pool.groups()])
        [('tenant-a', 1024, 1)]
        """
        return open_group(self, self.core, self.devices, group_id, quota, reserve, priority)

    def groups(self):
        """Every group that is open, or has requests or sessions under it; the oldest first.

        Returns
        -------
        list of GroupRecord
        """
        return _groups_of(self.core)

    # ---- sessions

    def session(self, session_id, *, budget=None, ttl=None, priority=None):
        """The live session of this id, or a new one: memory that one request leaves for the next.

        Parameters
        ----------
        session_id : str, int or bytes
            Chosen by the caller, as for `request`; its requests have the same id.
        budget : int or str, optional
            Most bytes that it may keep, in whole blocks. For a live session it replaces the old budget; by default a
            new session is limited by the pool's session budget only.
        ttl : float, optional
            Seconds after which it expires if no request uses it. For a live session it replaces the old one; by
            default a new session does not expire.
        priority : int, optional
            Idle sessions of a lower priority are evicted first. For a live session it replaces the old one; by default
            that of a new session is 0.

        Returns
        -------
        Session
            An idle session is evicted when the pool has no room and that makes enough: those of the lowest priority
            first, of these the longest idle. One that a request uses never is.

        Raises
        ------
        QuotaExceededError
            A live session keeps more than this budget.
        PoolExhausted
            Too many requests and sessions are alive.
        PoolClosedError, ForkedPoolError
            The pool is closed, or was inherited from the parent process.
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
        where = caller_site()
        return self._sessions().open(session_id, budget, ttl, priority, where)

    def sessions(self):
        """Every live session: the longest idle first, those in use last.

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

    def session_stats(self):
        """How often `session` found a live session, and how many were evicted, by reason.

        Returns
        -------
        SessionStats
            Counted since the pool was made.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.session("chat-42") as session, session.request() as turn:
        ...     session.keep("kv", turn.zeros(1 << 19, "u1"))
        ...     _ = pool.session("chat-42")
        >>> pool.session_stats()[:3]
        (1, 1, 0)
        """
        return self._sessions().stats()

    @property
    def session_budget(self):
        """Most bytes that all sessions together may keep (int), or None; settable, also as text.

        To stay below it, idle sessions are evicted when it is set and when a session keeps more: those of the lowest
        priority first, of these the longest idle. Sessions in use, pinned ones and ones with live views are not.
        """
        return None if self.sessions_ is None else self.sessions_.budget

    @session_budget.setter
    def session_budget(self, budget):
        self._sessions().set_budget(budget)

    def _sessions(self):
        check_here(self.core)
        if self.sessions_ is None:
            if self.core.maker is not None:
                hooks.messages.host_only("a session")
            sessions = hooks.sessions.Sessions(self)
            if self.sessions_ is None:  # otherwise another thread was first
                self.sessions_ = sessions
                self.core.sessions = weakref.ref(sessions)
                self.core.pool.set_gives_way(True)  # callers may wait already
        return self.sessions_

    # ---- holders

    def ack(self, request_id, device, *, generation=None, stream=None):
        """A device acknowledges a request that the caller knows by its id.

        Parameters
        ----------
        request_id : str, int or bytes
        device : str or int
        generation : int, optional
            Needed if several requests of the id wait for the device.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            The ack counts once everything queued on this CUDA stream so far is done: see `Request.ack`, also for the
            errors. Until then the request is not one of those that wait for the device.

        Returns
        -------
        Ack
            As of `Request.ack`, with one difference: without `generation`, ``LATE`` says that no request of the id waits
            for the device. That is also the answer if the device has acknowledged a request that is not released. With
            `generation` it is ``DUPLICATE``.

        Raises
        ------
        AmbiguousRequestError
            Several generations wait for this device, and none was given.
        UnknownDeviceError
            The device was never named, in this pool or for the live requests of this id; or nothing waited for it when
            other names needed room.

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
        cdef uint32_t number
        cdef char room[KEY_ROOM]
        cdef bytes key
        cdef string_view id = short_key(request_id, room)
        if id.empty():
            key = name_key(request_id, "request_id")
            id = view_of(key)
        if generation is not None:
            wanted = _generation(generation)
        number = self.devices.known(device, None)  # last, because a number may be taken back once Python code runs
        cdef StreamName on
        cdef Error error
        if stream is not None:
            on.stream = stream_of(stream)
            on.device = stream_device(stream)
            number = self.devices.known(device, None)
            self.core.pool.devices().hold_number(number)
            with nogil:
                acked = self.core.pool.ack_id_after(id, number, wanted, on, error)
            self.core.pool.devices().drop(number)
            hooks.messages.stream_failed(StatusCode(<int>acked.status), stream,
                                         text_of(error.text))
        elif self.core.cleans:
            self.core.pool.devices().hold_number(number)
            with nogil:
                acked = self.core.pool.ack_id(id, number, wanted)
            self.core.pool.devices().drop(number)
        else:
            acked = self.core.pool.ack_id(id, number, wanted)
        if acked.status == Status.ok:
            return ack_answer(<int>acked.result)
        hooks.messages.ack_failed(self, StatusCode(<int>acked.status), request_id, device)

    def cancel(self, request_id, *, generation=None):
        """Cancels a request that the caller knows by its id: see `Request.cancel`.

        Ids of requests are the pool's: requests of several groups may have the same id. Then name the generation. A request
        that still waits to be opened is not open, and is not found: cancel its task, or let its timeout end.

        Parameters
        ----------
        request_id : str, int or bytes
        generation : int, optional
            Needed if several requests of the id are open, in whatever groups, and for a child.

        Returns
        -------
        bool
            Whether there was one. False, and nothing has changed, if no request of the id is open: it was never opened, or
            its host has closed it.

        Raises
        ------
        AmbiguousRequestError
            Several generations are open, and none was given. Nothing has changed.
        InvalidArgumentError, InvalidTypeError
            `request_id` or `generation` is none.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> req = pool.request("chat-42", devices=["gpu0"])
        >>> pool.cancel("chat-42"), req.cancelled, pool.cancel("chat-42")
        (True, True, False)
        >>> req.ack("gpu0")
        <Ack.RELEASED: 'released'>
        """
        cdef optional[uint64_t] wanted
        cdef cbool cancelled = False
        cdef Status status
        check_here(self.core)
        cdef bytes key = name_key(request_id, "request_id")
        cdef string_view id = view_of(key)
        if generation is not None:
            wanted = _generation(generation)
        with nogil:
            status = self.core.pool.cancel_id(id, wanted, cancelled)
        if status == Status.ambiguous:
            hooks.messages.cancel_ambiguous(self, request_id)
        return cancelled

    def device_lost(self, device, *, kill=False):
        """A device is dead: acknowledges on its behalf everything that it holds.

        The death of a device that is attached from another process is detected, and need not be reported.

        Parameters
        ----------
        device : str or int
        kill : bool, default False
            If the device is attached, kill its process (SIGKILL) and wait for its end first. That is the only safe
            way to take memory from a process that hangs.

        Returns
        -------
        int
            Requests that it held, children included.

        Raises
        ------
        UnknownDeviceError
            No request named it, or nothing waited for it when other names needed room.
        DeviceAttachedError
            Its process is attached and alive, and `kill` is false; or it is this process; or it cannot be killed from
            here, as in another PID namespace; or it has not ended within 30 seconds after it was killed.
        """
        cdef uint32_t number
        cdef uint64_t lost
        check_here(self.core)
        if self.service is not None:
            name_key(device, "device")
            count = self.service.device_lost(device, bool(kill))
            if count is not None:
                return count
        number = self.devices.known(device, None)
        self.core.pool.devices().hold_number(number)
        with nogil:
            lost = self.core.pool.device_lost(number)
        self.core.pool.devices().drop(number)
        return lost

    def heartbeat(self, device):
        """The device is alive: renews its leases.

        Parameters
        ----------
        device : str or int

        Raises
        ------
        UnknownDeviceError
            No request named it, or nothing waited for it when other names needed room.
        """
        check_here(self.core)
        cdef uint32_t number = self.devices.known(device, None)
        self.core.pool.heartbeat(number)

    # ---- inspection

    def stats(self):
        """Bytes and counts now. Takes no lock that allocation takes.

        Returns
        -------
        Stats
            Always ``committed == live + retained + in_doubt + cached``.
        """
        return _stats_of(self.core)

    def requests(self):
        """Every request that is not released or whose bytes live views retain, and every tensor that a session keeps;
        oldest first.

        Returns
        -------
        list of RequestRecord
        """
        return _records_of(self.core, self.devices, 0)

    def leaks(self, older_than=0):
        """Requests at least `older_than` seconds old, oldest first: what they hold, which devices are pending, and the
        line that opened them.

        Without `older_than` that is every request that is not released, and every one that views retain, also those that
        are at work. Sessions and reserves of groups hold memory, too: see `sessions` and `groups`.

        Parameters
        ----------
        older_than : float, default 0
            Seconds. A request of this age counts as a leak: more than the longest that a request takes.

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
        records = _records_of(self.core, self.devices, older_than)
        return [record for record in records if record.state is not RequestState.KEPT]

    def waiters(self):
        """Every caller that waits for memory, addresses, a free request or a quota, in order of arrival.

        They are served by priority, then in this order. Coroutines are listed as threads are.

        Returns
        -------
        list of WaiterRecord

        Examples
        --------
        >>> import asyncio, slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> async def main():
        ...     array = pool.empty(1 << 20, "u1")
        ...     task = asyncio.create_task(pool.request_async("chat-42", reserve="64KiB", timeout=60))
        ...     await asyncio.sleep(0)
        ...     found = [(w.request_id, w.nbytes, w.resource) for w in pool.waiters()]
        ...     del array
        ...     (await task).close()
        ...     return found, pool.stats().waiting
        >>> asyncio.run(main())
        ([('chat-42', 65536, 'memory')], 0)
        """
        return _waiters_of(self.core)

    def on_pressure(self, fraction, callback, *, hysteresis=0.05, loop=None):
        """Calls back when the use of the pool passes a fraction of its capacity: upwards, and downwards again.

        In use are the bytes that no other caller can have: ``live + retained + in_doubt + reserved`` of `stats`, also those
        of idle sessions. No call is made inside an allocation, and none on a thread of the pool, which has none.

        Parameters
        ----------
        fraction : float
            Above 0, up to 1. The use has passed it when it reaches ``fraction * capacity``; if it is there already, that
            is the first call.
        callback : callable
            Takes a `Pressure`: what happened, and the use then.
        hysteresis : float, default 0.05
            The use has passed downwards when it is below ``(fraction - hysteresis) * capacity``. Less than `fraction`.
        loop : asyncio event loop, optional
            The thread of this loop calls back, until the watch is closed, or the pool. Without it the thread does that
            calls `PressureWatch.wait`, `check` or `serve`: ``executor.submit(watch.serve)`` makes it one of an executor.

        Returns
        -------
        PressureWatch
            To be closed. The pool keeps one that has a loop; any other is over once nothing refers to it.

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            A bad fraction, callback, hysteresis or loop.
        PoolClosedError, ForkedPoolError
            The pool is closed, or was inherited from the parent process.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> with pool.on_pressure(0.9, lambda now: print(now.high, now.usage)) as watch:
        ...     array = pool.empty(1 << 20, "u1")
        ...     _ = watch.wait(timeout=60)
        ...     del array
        ...     _ = watch.check()
        True 1.0
        False 0.0
        """
        check_here(self.core)
        if self.core.pool.closed():
            failed(self.core, None, Status.pool_closed, 0, None)
        from slabpool._core.pressure import PressureWatch

        return PressureWatch._of(self, fraction, callback, hysteresis, loop)

    def events(self):
        """The event log, oldest first; empty unless the pool was made with ``events=``.

        Returns
        -------
        list of Event
        """
        return _events_of(self.core, self.devices)

    def corruptions(self):
        """Writes past the end of a block that a pool with ``debug`` on has found so far.

        Returns
        -------
        list of Corruption
        """
        return _corruptions_of(self.core)

    def _verify(self):
        """None, or the invariant of the allocator that does not hold. For tests."""
        check_here(self.core)
        cdef const char* wrong = self.core.pool.verify()
        return None if wrong is NULL else wrong.decode()

    def _snapshot(self):
        """Why the pool has no room, in constant time."""
        return _snapshot_of(self.core, self.devices)

    def _refuser(self, Request parent, GroupHold group, nbytes):
        """What refuses so many bytes to a child, or to a request under a group: see `messages`."""
        return refuser_of(self.core, parent.handle if parent is not None else group.handle, nbytes, True)

    @property
    def _weak(self):
        """A weak reference to it."""
        return self.core.owner

    def _refusal(self):
        """Why the pool was last refused memory: the driver's text, or ""; and the system's errno, or 0."""
        cdef Error error
        with nogil:
            error = self.core.pool.refusal()
        return text_of(error.text), error.system_errno

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
        """Decommits memory that is committed and unused. Of a shared pool it also frees what devices that touched memory
        outside of what they were given made the system allocate (``stats().file_bytes``).
        Memory of records that nothing uses goes as well (``stats().metadata``); the result does not count it.

        Returns
        -------
        int
            Bytes given back to the system.
        """
        cdef uint64_t freed
        check_here(self.core)
        settle_copies()
        trim_heaps(self.core, False)
        with nogil:
            freed = self.core.pool.trim()
        return freed

    def close(self, *, force=False):
        """Closes the pool. Calling it again does nothing.

        Parameters
        ----------
        force : bool, default False
            Release open requests instead of refusing. Live views stay valid all the same; the memory is unmapped when
            the last of them dies. A request that a device in another process holds stays as it is until that device
            lets go: it closes its peer, or its process ends. Its memory counts in `stats` until then.

        Raises
        ------
        PoolBusyError
            Memory is still held; the message names the holders. The pool stays open.
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
            hooks.messages.busy(self)
        if status != Status.ok:
            failed(self.core, None, status, 0, None)
        if self.sessions_ is not None:
            self.sessions_.stop()
        if self.service is not None:
            self.service.close()
        if getattr(self, "_pressure", None):
            from slabpool._core.pressure import leave_closed_loops

            leave_closed_loops(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        # A child of fork leaves the block too, and must not close its parent's pool.
        if self.core.pool.usable_here():
            # The traceback of an exception keeps views alive; PoolBusyError would hide it.
            self.close(force=kind is not None)

    @property
    def _must_poll(self):
        """Whether memory may come back without a wake-up."""
        return self.core.pool.must_poll()

    @property
    def _bell(self):
        """For event loops: a descriptor that is readable after a peer has acknowledged, or -1."""
        return self.core.pool.bell()

    def _answer_bell(self):
        """Collects what peers acknowledged. To be called when `_bell` is readable."""
        self.core.pool.answer_bell()

    def _wakeup_count(self):
        """Number of wake-ups of waiters. For tests."""
        return self.core.pool.wakeups()

    def __reduce__(self):
        raise InvalidTypeError(f"pool {show(self.name)} is memory of this process: it cannot be copied or pickled")

    def __repr__(self):
        if not self.core.pool.usable_here():
            return f"<Pool {show(self.name)}: inherited through fork>"
        s = self.stats()
        state = "closed, " if self.closed else ""
        return (f"<Pool {show(self.name)}: {state}{s.live} live, {s.retained} retained, {s.in_doubt} in doubt, "
                f"{s.cached} cached of {s.capacity} bytes, {s.requests_open + s.requests_draining} requests>")


cdef uint64_t _generation(object generation) except? 0:
    try:
        value = operator.index(generation)
    except TypeError:
        raise InvalidTypeError(
            f"generation must be an int, got {show_typed(generation)}") from None
    if not 0 < value < 1 << 63:
        raise InvalidArgumentError(f"generation must be one that a request has, got {show(value)}")
    return value
