# Part of pool.pyx. What the core reports of a pool, as the records of slabpool.records.

from libc.stdint cimport int64_t
from libcpp.vector cimport vector

from slabpool._core.cpp_observe cimport Corruption as CppCorruption
from slabpool._core.cpp_observe cimport Event as CppEvent
from slabpool._core.cpp_observe cimport GroupInfo, Holder, Refusal, RequestInfo, kNoDevice
from slabpool._core.cpp_observe cimport Stats as CppStats
from slabpool._core.cpp_wait cimport WaiterInfo

from slabpool.records import Corruption, Event, RequestRecord, Stats

# In the order of the C++ enum.
cdef tuple EVENT_KINDS = ("open", "allocate", "free", "ack", "close", "lost", "release", "retain", "exhausted", "keep",
                          "adopt")
cdef object STATS_NEW = tuple.__new__  # what Stats._make does, without its checks


cdef object _stats_of(Core core):
    check_here(core)
    settle_copies()
    cdef CppStats s = core.pool.stats()
    return STATS_NEW(Stats, (
        s.capacity, s.address_space, s.committed, s.live, s.retained, s.in_doubt, s.cached, s.reserved, s.peak_live,
        s.peak_committed, s.allocations, s.frees, s.requests_open, s.requests_draining, s.requests_in_doubt,
        s.acks, s.duplicate_acks, s.late_acks, s.stream_acks, s.exhaustions,
        core.pool.quarantined_bytes(), core.pool.held_bytes(),
        min(core.pool.fragmented_bytes(), s.cached), core.pool.metadata_bytes(),
        core.pool.waiting()))


cdef object _record_of(const RequestInfo& info, list names, LineReport lines):
    """The record of one request, or None for a session, which has no memory of its own: see sessions()."""
    id, name = identity(info.id, info.kept)
    if info.kept and name is None:
        return None
    return RequestRecord(
        request_id=id,
        generation=info.handle.generation,
        state=state_of(<int>info.state),
        nbytes=info.nbytes,
        reserved=info.reserved,
        age=info.age_ns / 1e9,
        pending=names_of(names, info.pending),
        behind_stream=names_of(names, info.behind_stream),
        live_views=info.live_views,
        opened_at=lines.line(info.opened_at),
        parent=None if info.kept else info.parent_generation or None,
        kept_as=name,
        group=None if info.group.empty() else identity(info.group, True)[0],
    )


@cython.final
cdef class Snapshot:
    """Why a pool had no room: figures and a few holders, as the core saw them. Texts are made from it when read.

    It keeps the code alive that opened the holders, and not the pool.
    """

    cdef Refusal refusal
    cdef list names
    cdef LineReport lines
    cdef readonly object pool  # weak reference to the Pool

    def figures(self):
        """(live, retained, in doubt or None if live includes it, reserved, address space, requests, fragmented, metadata)."""
        cdef CppStats* s = &self.refusal.stats
        return (s.live, s.retained, s.in_doubt if self.refusal.counts_in_doubt else None, s.reserved,
                s.address_space, self.refusal.requests, self.refusal.fragmented, self.refusal.metadata)

    def largest(self):
        """(record, idle) of the largest holders. idle: None without a session, -1 while it is in use, else seconds."""
        return self._records(self.refusal.largest)

    def oldest(self):
        """The same of the oldest holders that are not among the largest."""
        return self._records(self.refusal.oldest)

    def groups(self):
        """Records of the groups with the most left of their reserve."""
        cdef size_t i
        return [group_record(self.refusal.groups[i], self.lines) for i in range(self.refusal.groups.size())]

    cdef list _records(self, const vector[Holder]& holders):
        cdef list records = []
        for i in range(<Py_ssize_t>holders.size()):
            record = _record_of(holders[i].info, self.names, self.lines)
            if record is not None:
                idle = None
                if holders[i].of_session:
                    idle = -1 if holders[i].idle_ns < 0 else holders[i].idle_ns / 1e9
                records.append((record, idle))
        return records


cdef Snapshot _snapshot_of(Core core, Devices devices):
    cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
    cdef size_t i
    snapshot.lines = LineReport.__new__(LineReport)
    snapshot.refusal = core.pool.explain_exhausted()
    for i in range(snapshot.refusal.largest.size()):
        snapshot.lines.add(snapshot.refusal.largest[i].info.opened_at)
    for i in range(snapshot.refusal.oldest.size()):
        snapshot.lines.add(snapshot.refusal.oldest[i].info.opened_at)
    for i in range(snapshot.refusal.groups.size()):
        snapshot.lines.add(snapshot.refusal.groups[i].opened_at)
    snapshot.names = devices.names
    snapshot.pool = core.owner
    return snapshot


cdef list _records_of(Core core, Devices devices, object older_than):
    cdef vector[RequestInfo] infos
    cdef list records = []
    check_here(core)
    settle_copies()
    cdef int64_t oldest = _older_than(older_than)
    cdef LineReport lines = LineReport.__new__(LineReport)
    infos = core.pool.requests(oldest)
    cdef list names = devices.names  # of the same moment: see Devices
    for i in range(<Py_ssize_t>infos.size()):
        lines.add(infos[i].opened_at)
    for i in range(<Py_ssize_t>infos.size()):
        record = _record_of(infos[i], names, lines)
        if record is not None:
            records.append(record)
    return records


cdef list _groups_of(Core core):
    check_here(core)
    cdef LineReport lines = LineReport.__new__(LineReport)
    cdef vector[GroupInfo] groups = core.pool.groups()
    cdef size_t i
    for i in range(groups.size()):
        lines.add(groups[i].opened_at)
    return [group_record(groups[i], lines) for i in range(groups.size())]


cdef list _waiters_of(Core core):
    check_here(core)
    cdef LineReport lines = LineReport.__new__(LineReport)
    cdef vector[WaiterInfo] waiters = core.pool.waiters()
    cdef size_t i
    for i in range(waiters.size()):
        lines.add(waiters[i].where)
    cdef bint circle = not waiters.empty() and core.pool.in_circle()
    return [waiter_record(waiters[i], circle, lines) for i in range(waiters.size())]


cdef list _events_of(Core core, Devices devices):
    check_here(core)
    cdef vector[CppEvent] events = core.pool.events()
    cdef list names = devices.names  # of the same moment, as are the former ones: see Devices
    cdef list former = devices.former
    return [
        Event(
            time_ns=events[i].time_ns,
            thread=events[i].thread,
            kind=EVENT_KINDS[<int>events[i].kind],
            generation=events[i].generation,
            device=None if events[i].device == kNoDevice else _name_at(names, former, events[i]),
            nbytes=events[i].bytes,
        )
        for i in range(<Py_ssize_t>events.size())
    ]


cdef object _name_at(list names, list former, const CppEvent& event):
    """The name that the device of an event had at that time."""
    for until, retired in former:
        if event.time_ns <= until and event.device in retired:
            return retired[event.device]
    return names[event.device]


cdef list _corruptions_of(Core core):
    check_here(core)
    cdef vector[CppCorruption] found = core.pool.corruptions()
    return [
        Corruption(
            address=found[i].address, nbytes=found[i].nbytes, offset=found[i].offset,
            generation=found[i].generation,
            allocated_at="" if found[i].line == 0 else f"{text_of(found[i].file)}:{found[i].line}")
        for i in range(<Py_ssize_t>found.size())
    ]


cdef int64_t _older_than(object older_than) except? -1:
    return <int64_t>int(seconds(older_than, "older_than") * 1e9)
