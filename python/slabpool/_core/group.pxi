# Part of request.pyx. Groups of requests and sessions, which share a bound.
#
# The core counts (csrc/slabpool/request/levels.cpp). A Group object, and each request and session under the group, has a
# GroupHold. Invariant: the last one that dies closes the group, so no group outlives all that could open something in it.

cdef struct _GroupOpening:
    OpenSpec* spec
    Handle* handle


cdef Status _attempt_group(Core core, void* job, Waiter* waiter) noexcept:
    cdef _GroupOpening* opening = <_GroupOpening*>job
    return core.pool.open_group(opening.spec[0], opening.handle[0], waiter)


@cython.final
@cython.no_gc
cdef class GroupHold:
    def __dealloc__(self):
        if self.core is not None:
            self.core.pool.close_request(self.handle, False)


cdef object group_record(const GroupInfo& info, LineReport lines):
    id, _ = identity(info.id, True)
    return GroupRecord(
        group_id=id,
        nbytes=info.nbytes,
        quota=info.quota or None,
        reserve=info.reserve,
        reserved=info.reserved,
        requests=info.requests,
        sessions=info.sessions,
        priority=info.priority,
        closed=bool(info.closed),
        age=info.age_ns / 1e9,
        opened_at=lines.line(info.opened_at),
    )


cdef object open_group(object pool, Core core, Devices names, object group_id, object quota, object reserve,
                       object priority):
    cdef OpenSpec spec
    cdef Handle handle
    cdef _GroupOpening opening
    check_here(core)
    cdef bytes name = name_key(group_id, "group_id")
    cdef bytes key = b"k" + len(name).to_bytes(4, "little") + name
    cdef Wait wait = wait_of(core, patience(None, priority), None)
    spec.id = view_of(key)
    if reserve is not None:
        spec.reserve = parse_size(reserve, "reserve", least=0, most=1 << 62)
    if quota is not None:
        spec.quota = parse_size(quota, "quota", least=1, most=1 << 62)
    spec.where = caller()
    cdef GroupHold hold = GroupHold.__new__(GroupHold)  # first: once the group is open, nothing may fail before it has an owner
    cdef Group group = Group.__new__(Group)
    opening.spec = &spec
    opening.handle = &handle
    spec.priority = wait.waiter.priority
    wait.key = key
    show_line(wait, spec.where)
    cdef Status status = find_room(core, Status.waiters_ahead, _attempt_group, &opening, wait, NO_REQUEST, spec.reserve,
                                   True)
    if status != Status.ok:
        hooks.messages.group_failed(pool, status_code(<int>status), group_id, spec.reserve, spec.quota, wait)
    if not core.pool.released(handle):  # else another record may have its slot
        note_code(core, handle, spec.where)
    hold.core = core
    hold.handle = handle
    hold.key = key
    hold.priority = wait.waiter.priority
    hold.id = plain_name(group_id)
    group.hold = hold
    group.pool = pool
    group.devices = names
    group.quota = spec.quota or None
    group.reserve = spec.reserve
    return group


cdef object refuser_of(Core core, Handle handle, object nbytes, bint drawn):
    """(kind, id, generation, quota, used) of the level that refuses a request so many bytes; None if none does now.

    With `drawn` as many as can be are drawn from promises.
    """
    cdef QuotaInfo info
    cdef uint64_t bytes = core.pool.shortage(NO_REQUEST, min(nbytes, 1 << 62), False).bytes
    return _refuser(info) if core.pool.describe_quota(handle, bytes, drawn, info) else None


cdef object level_that_refused(Core core, const LevelNeed& refused):
    """The same of the level that refused a move."""
    cdef QuotaInfo info
    return _refuser(info) if core.pool.describe_level(refused.at, info) else None


cdef object _refuser(const QuotaInfo& info):
    id, _ = identity(info.id, info.group)
    return "group" if info.group else "request", id, info.handle.generation, info.quota, info.used


@cython.final
cdef class Group:
    """Requests and sessions that share a bound; made by `Pool.group`. A server has one for each tenant.

    What is opened under it counts in its quota, and may draw on its reserve: tensors of its requests, what its sessions
    keep, and what is promised to its requests by a ``reserve=`` of their own. Where its quota has no room, idle sessions
    of this group give way, and none of others.

    After `close`, or once the object and everything under the group are gone, nothing more can be opened under it. It ends
    with the last request under it.

    Attributes
    ----------
    id : str, int or bytes
    quota : int or None
        Most bytes that requests and sessions under it may hold together.
    reserve : int
        Bytes reserved for them.
    priority : int
        Of requests under it that wait, unless a call names another.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> with pool.group("tenant-a", quota="1MiB", priority=1) as tenant:
    ...     with tenant.request("chat-42") as req, tenant.request("chat-43") as other:
    ...         kv = req.zeros(768 << 10, "u1")
    ...         try:
    ...             other.zeros(768 << 10, "u1")
    ...         except slabpool.QuotaExceededError as error:
    ...             print(str(error).partition(": ")[2][:58])
    group 'tenant-a' holds 768 KiB of its quota of 1 MiB; its
    """

    cdef GroupHold hold
    cdef object pool
    cdef Devices devices
    cdef readonly object quota
    cdef readonly object reserve

    @property
    def id(self):
        """As given to `Pool.group`."""
        return self.hold.id

    @property
    def priority(self):
        """Of requests under it that wait, unless a call names another (int)."""
        return self.hold.priority

    def request(self, request_id, devices=(), *, reserve=None, quota=None, lease=None, timeout=None, priority=None):
        """Opens a request under the group. The arguments and errors are those of `Pool.request`.

        Parameters
        ----------
        request_id : str, int or bytes
        devices : iterable of str or int
        reserve : int or str, optional
            Out of the group's reserve, as far as that suffices. It counts in the group's quota.
        quota : int or str, optional
            Beside the group's.
        lease, timeout : float, optional
        priority : int, optional
            By default the group's.

        Returns
        -------
        Request

        Raises
        ------
        QuotaExceededError
            The group's quota has no room for the reserve.
        RequestClosedError
            The group is closed.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> tenant = pool.group("tenant-a", reserve="256KiB")
        >>> with tenant.request("chat-42", reserve="64KiB") as req:
        ...     print(req.group, tenant.stats().reserved)
        tenant-a 196608
        """
        return open_request(self.pool, self.hold.core, self.devices, request_id, devices, reserve, quota, lease,
                            patience(timeout, priority), None, None, self.hold)

    def request_async(self, request_id, devices=(), *, reserve=None, quota=None, lease=None, timeout=None, priority=None):
        """As `request`, awaitable: waits without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default there is no limit. The others are those of `request`.

        Returns
        -------
        Request
        """
        opened_at = caller_site()
        devices = tuple(devices) if not isinstance(devices, (str, bytes)) else devices
        return async_wait.served(
            self.pool, loop_wait(self.hold.core, priority),
            lambda wait: open_request(self.pool, self.hold.core, self.devices, request_id, devices, reserve,
                                      quota, lease, wait, None, opened_at, self.hold), timeout)

    def session(self, session_id, *, budget=None, ttl=None, priority=None):
        """The live session of this id under the group, or a new one. The arguments and errors are those of `Pool.session`.

        A group has session ids of its own: another group, or the pool, may have a session of the same id.

        Parameters
        ----------
        session_id : str, int or bytes
        budget : int or str, optional
        ttl : float, optional
        priority : int, optional
            Of the session when sessions are evicted. Its turns have the group's priority.

        Returns
        -------
        Session

        Raises
        ------
        RequestClosedError
            The group is closed.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> tenant = pool.group("tenant-a", quota="512KiB")
        >>> session = tenant.session("chat-42")
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.zeros(1000, "u1"))
        >>> tenant.stats().nbytes, tenant.stats().sessions
        (1024, 1)
        """
        where = caller_site()
        return self.pool._sessions().open(session_id, budget, ttl, priority, where, self.hold)

    def close(self):
        """Nothing more can be opened under the group, and its sessions end. Calling it again does nothing.

        Requests under it go on, and may allocate within its quota. The group, and its reserve, end with the last of them.
        Its id can be used again at once.
        """
        check_here(self.hold.core)
        self.hold.core.pool.close_request(self.hold.handle, False)
        if self.hold.core.sessions is not None:
            sessions = self.hold.core.sessions()
            if sessions is not None:
                sessions.close_group(self.hold)

    @property
    def closed(self):
        """Whether `close` was called, or the pool is closed."""
        check_here(self.hold.core)
        return not self.hold.core.pool.is_open(self.hold.handle)

    def stats(self):
        """What is under the group now.

        Returns
        -------
        GroupRecord
            Of zeros once the group is over.
        """
        cdef GroupInfo info
        check_here(self.hold.core)
        cdef LineReport lines = LineReport.__new__(LineReport)
        if self.hold.core.pool.describe_group(self.hold.handle, info):
            lines.add(info.opened_at)
            return group_record(info, lines)
        return GroupRecord(self.id, 0, self.quota, 0, 0, 0, 0, self.priority, True, 0.0, "")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        # A child of fork leaves the block too, and must not close its parent's group.
        if self.hold.core.pool.usable_here():
            self.close()

    def __reduce__(self):
        raise InvalidTypeError("a Group is a bound of this process: it cannot be copied or pickled")

    def __repr__(self):
        if not self.hold.core.pool.usable_here():
            return f"<Group {show(self.id)}: inherited through fork>"
        record = self.stats()
        state = "closed, " if record.closed else ""
        bound = "" if self.quota is None else f" of {self.quota}"
        return (f"<Group {show(self.id)}: {state}{record.nbytes}{bound} bytes, {record.requests} requests, "
                f"{record.sessions} sessions>")
