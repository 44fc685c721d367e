# Part of core.pyx. How a caller finds room: attempts, what gives way, and its place in the queue.
#
# The order of waiters is the core's (csrc/slabpool/wait/queue.hpp). A caller whose turn it is first asks the policy to make
# room, then waits. A thread waits in slices, without losing its place: for Ctrl-C, and because what gives way may come
# without a wake-up. A coroutine makes one attempt a call, and sleeps between them in its loop (async_wait.py).

from slabpool._core.cpp_wait cimport Resource

# A thread that waits looks up this often (ns): the main thread for signals, otherwise Ctrl-C would have to wait for the
# memory; the first in the queue for what gives way without a wake-up.
cdef int64_t SLICE = 50_000_000
cdef int64_t LONG_SLICE = 1_000_000_000

# By Resource.
cdef tuple RESOURCES = ("memory", "addresses", "requests", "quota", "session budget")


cdef int64_t next_slice(int64_t deadline) noexcept:
    return min(deadline, now_ns() + SLICE)


cdef int64_t deadline_of(object timeout) except -1:
    if timeout is None:
        return 0
    cdef object at = time.monotonic_ns() + int(seconds(timeout, "timeout", " or None") * 1e9)
    return at


@cython.final
cdef class LoopWaiters:
    """The waiters of one event loop and pool: a descriptor that is written to, and which of them were woken."""

    def __cinit__(self, int fd):
        self.target.fd = fd

    def take(self):
        """Those that were woken since the last call."""
        cdef list woken = []
        cdef Waiter* waiter
        if self.core is not None and self.core.pool.usable_here():
            while True:
                waiter = self.core.pool.take_woken(self.target)
                if waiter is NULL:
                    break
                woken.append(<Wait>waiter.owner)
        return woken


@cython.final
@cython.no_gc_clear  # the waiter leaves the queue of `core` when this dies
cdef class Wait:
    """How a caller looks for room, and its place in the queue."""

    def join(self, LoopWaiters loop not None):
        """From its next attempt on, the waiter stands in the queue and is woken through the loop."""
        loop.core = self.core
        self.loop = loop
        self.waiter.target = &loop.target
        self.waiter.owner = <void*>self

    def leave(self):
        """The loop waits no longer."""
        if self.core is not None and self.core.pool.usable_here():
            self.core.pool.leave(self.waiter)
        self.core = None

    @property
    def first(self):
        """Whether it is its turn."""
        return self.core is not None and self.core.pool.usable_here() and self.core.pool.is_first(self.waiter)

    def ahead(self):
        """(number of waiters that stood before it when it gave up, records of the first of them)."""
        cdef list records = []
        cdef size_t i
        for i in range(self.before.first.size()):
            records.append(waiter_record(self.before.first[i], self.circle, self.lines))
        return self.before.count, records


cdef object waiter_record(const WaiterInfo& info, bint circle, LineReport lines):
    cdef object id = None, quota_of = None  # declared: Cython's inference of the types does not end
    if not info.id.empty():
        id, _ = identity(info.id, info.kept)
    if not info.of_id.empty():
        quota_of = ("group" if info.of_group else "request", identity(info.of_id, info.of_group)[0], info.of.generation)
    return WaiterRecord(
        request_id=id, nbytes=info.nbytes, priority=info.priority, waited=info.waited_ns / 1e9,
        resource=RESOURCES[<int>info.resource], where=lines.line(info.where),
        deadlock=circle and info.resource == Resource.memory,
        generation=None if info.kept else info.request.generation or None,
        group=None if info.group.empty() else identity(info.group, True)[0],
        quota_of=quota_of)


cdef int _priority(object priority) except? -1:
    try:
        value = operator.index(priority)
    except TypeError:
        raise InvalidTypeError(f"priority must be an int, got {show(priority)}") from None
    if not -(1 << 31) <= value < 1 << 31:
        raise InvalidArgumentError(f"priority must be an int of 32 bits, got {show(value)}")
    return value


cdef Wait _wait(object timeout, object priority):
    cdef Wait wait = Wait.__new__(Wait)
    if priority is not None:
        wait.waiter.priority = _priority(priority)
        wait.priority = priority
    wait.timeout = timeout
    wait.deadline = deadline_of(timeout)
    return wait


cdef object patience(object timeout, object priority):
    return timeout if priority is None else _wait(timeout, priority)


cdef Wait wait_of(Core core, object timeout, object request):
    cdef Wait wait
    if type(timeout) is Wait:
        wait = timeout
    else:
        wait = _wait(timeout, None)
    if wait.priority is None and request is not None:
        wait.waiter.priority = request.priority
    wait.core = core
    return wait


cdef Wait loop_wait(Core core, object priority):
    cdef Wait wait = _wait(None, priority)
    wait.core = core
    wait.in_loop = True
    show_line(wait, caller())
    return wait


# Answers of the policy that makes room: nothing gave way; there is room already; something gave way.
cdef enum:
    _NOTHING = 0
    _ROOM = 1
    _FREED = 2
NOTHING, ROOM, FREED = _NOTHING, _ROOM, _FREED

# How often in a row an attempt is repeated because there seemed to be room. Other threads may take it each time; and what
# is free may not be usable, for instance where the memory's granules are larger than a page.
cdef int ROOM_TRIES = 16


cdef bint _may_give_way(Status status) noexcept:
    return (status == Status.exhausted or status == Status.system_refused or status == Status.too_many_requests
            or status == Status.no_addresses or status == Status.quota_exceeded)


cdef int _give_way(Core core, Status status, Handle request, uint64_t nbytes, bint pages) except -1:
    cdef Shortage shortage
    root = None
    if status == Status.quota_exceeded:
        shortage = core.pool.shortage(request, nbytes, pages)
        root = (request.slot, request.generation, shortage.bytes)
        shortage = core.pool.shortage(NO_REQUEST, nbytes, pages)  # what is promised to it is charged like the rest
    elif status == Status.no_addresses:
        shortage.bytes = nbytes
        shortage.pages = True
    else:
        shortage = core.pool.shortage(request, nbytes, pages)
        if request.generation != 0:
            root = (request.slot, request.generation, 0)
    return core.give_way(core, <int>status, shortage.bytes, root, shortage.pages)


cdef bint _room_may_come(Status status) noexcept:
    return (status == Status.exhausted or status == Status.waiters_ahead or status == Status.too_many_requests
            or status == Status.no_addresses or status == Status.quota_exceeded)


# The status for a caller behind other waiters: that of an attempt which finds nothing of the resource.
cdef Status _refused(const Waiter& waiter) noexcept:
    cdef Resource resource = waiter.blocked_on().resource
    if resource == Resource.addresses:
        return Status.no_addresses
    if resource == Resource.slots:
        return Status.too_many_requests
    if resource == Resource.quota or resource == Resource.kept:
        return Status.quota_exceeded
    return Status.exhausted


cdef int _enter(Core core, Wait wait) except -1:
    if wait.waiter.where.line == 0:
        show_line(wait, caller())
    core.pool.set_gives_way(core.sessions is not None or core.heaps is not None or _copies_under_way != 0)
    core.pool.enter(wait.waiter)
    return 0


cdef Status find_room(Core core, Status status, Attempt attempt, void* job, Wait wait, Handle request,
                      uint64_t nbytes, bint pages) except *:
    cdef Waiter* waiter = &wait.waiter
    if not waiter.entered():
        waiter.nbytes = nbytes
        waiter.request.slot = request.slot
        waiter.request.generation = request.generation
    wait.waits = False
    try:
        status = _search(core, status, attempt, job, wait, request, nbytes, pages)
        if status != Status.ok and (wait.last or not wait.in_loop):
            _give_up(core, wait, status, request, nbytes)
        if status == Status.waiters_ahead:
            status = _refused(waiter[0])
        return status
    finally:
        if status == Status.ok or not wait.in_loop:
            wait.leave()


cdef int _give_up(Core core, Wait wait, Status status, Handle request, uint64_t nbytes) except -1:
    cdef size_t i
    if _room_may_come(status) and core.pool.waiting() != 0:
        wait.lines = LineReport.__new__(LineReport)
        wait.before = core.pool.ahead_of(wait.waiter)
        for i in range(wait.before.first.size()):
            wait.lines.add(wait.before.first[i].where)
        wait.circle = wait.waits and core.pool.in_circle()
    if status == Status.exhausted or status == Status.waiters_ahead or status == Status.system_refused:
        core.pool.note_exhausted(request, nbytes)
    return 0


cdef Status _search(Core core, Status status, Attempt attempt, void* job, Wait wait, Handle request, uint64_t nbytes,
                    bint pages) except *:
    cdef Waiter* waiter = &wait.waiter
    cdef bint may_wait = wait.in_loop or wait.deadline != 0
    cdef bint tried = False     # with the waiter
    cdef bint expired = False
    cdef bint woken
    cdef int64_t until
    cdef int way
    cdef int tries = 0
    while True:
        if waiter.cancelled():
            return Status.request_closed
        way = _NOTHING
        if _may_give_way(status) and core.give_way is not None:
            way = _give_way(core, status, wait.group if request.generation == 0 else request, nbytes, pages)
        if way == _FREED or (way == _ROOM and tries < ROOM_TRIES):
            tries = 0 if way == _FREED else tries + 1
            status = attempt(core, job, waiter)
            continue
        if not _room_may_come(status):
            return status
        if not tried and (may_wait or status == Status.waiters_ahead):
            tried = True  # learns what it is blocked on
            status = attempt(core, job, waiter)
            continue
        if not may_wait or not core.pool.may_come(status, waiter[0]):
            return status
        wait.waits = True
        if wait.in_loop:
            if waiter.target is NULL or wait.last:
                return status
            if not waiter.entered():
                _enter(core, wait)
            if not core.pool.take_again(waiter[0]):
                return status
            status = attempt(core, job, waiter)
            continue
        if expired:
            return status
        if not waiter.entered():
            _enter(core, wait)
        PyErr_CheckSignals()
        if core.pool.is_first(waiter[0]) or threading.current_thread() is threading.main_thread():
            until = min(wait.deadline, now_ns() + SLICE)
        else:
            until = min(wait.deadline, now_ns() + LONG_SLICE)
        with nogil:
            woken = core.pool.wait(waiter[0], until)
        # The clock decides, not the reason for waking: in a busy pool there is always news.
        expired = now_ns() >= wait.deadline
        if not waiter.cancelled() and (woken or core.pool.is_first(waiter[0])):
            status = attempt(core, job, waiter)
