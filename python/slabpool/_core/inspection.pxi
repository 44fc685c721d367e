# Part of pool.pyx. What the core reports of a pool, as the records of slabpool.records.

from libc.stdint cimport int64_t
from libcpp.vector cimport vector

from slabpool._core.cpp_observe cimport Corruption as CppCorruption
from slabpool._core.cpp_observe cimport Event as CppEvent
from slabpool._core.cpp_observe cimport RequestInfo, kNoDevice
from slabpool._core.cpp_observe cimport Stats as CppStats

from slabpool.records import Corruption, Event, RequestRecord, Stats

# In the order of the C++ enum.
cdef tuple EVENT_KINDS = ("open", "allocate", "free", "ack", "close", "lost", "release", "retain", "exhausted", "keep")
cdef object STATS_NEW = tuple.__new__  # what Stats._make does, without its checks


cdef object _stats_of(Core core):
    check_here(core)
    settle_copies()
    cdef CppStats s = core.pool.stats()
    return STATS_NEW(Stats, (
        s.capacity, s.address_space, s.committed, s.live, s.retained, s.in_doubt, s.cached, s.reserved, s.peak_live,
        s.peak_committed, s.allocations, s.frees, s.requests_open, s.requests_draining, s.requests_in_doubt,
        s.acks, s.duplicate_acks, s.late_acks, s.stream_acks, s.exhaustions,
        core.pool.quarantined_bytes(), core.pool.held_bytes()))


cdef list _records_of(Core core, Devices devices, object older_than):
    cdef vector[RequestInfo] infos
    cdef list records = []
    check_here(core)
    settle_copies()
    infos = core.pool.requests(_older_than(older_than))
    for i in range(<Py_ssize_t>infos.size()):
        id, name = identity(infos[i].id, infos[i].kept)
        if infos[i].kept and name is None:
            continue  # a session, without memory of its own: see sessions()
        records.append(RequestRecord(
            request_id=id,
            generation=infos[i].handle.generation,
            state=state_of(<int>infos[i].state),
            nbytes=infos[i].nbytes,
            reserved=infos[i].reserved,
            age=infos[i].age_ns / 1e9,
            pending=devices.named(infos[i].pending),
            behind_stream=devices.named(infos[i].behind_stream),
            live_views=infos[i].live_views,
            opened_at=location(infos[i].opened_at),
            parent=None if infos[i].kept else infos[i].parent_generation or None,
            kept_as=name,
        ))
    return records


cdef list _events_of(Core core, Devices devices):
    check_here(core)
    cdef vector[CppEvent] events = core.pool.events()
    return [
        Event(
            time_ns=events[i].time_ns,
            thread=events[i].thread,
            kind=EVENT_KINDS[<int>events[i].kind],
            generation=events[i].generation,
            device=None if events[i].device == kNoDevice else devices.names[events[i].device],
            nbytes=events[i].bytes,
        )
        for i in range(<Py_ssize_t>events.size())
    ]


cdef list _corruptions_of(Core core):
    check_here(core)
    cdef vector[CppCorruption] found = core.pool.corruptions()
    return [
        Corruption(
            address=found[i].address, nbytes=found[i].nbytes, offset=found[i].offset,
            generation=found[i].generation, allocated_at=location(found[i].allocated_at))
        for i in range(<Py_ssize_t>found.size())
    ]


cdef int64_t _older_than(object older_than) except? -1:
    try:
        seconds = float(older_than)
    except (TypeError, ValueError, OverflowError):
        raise InvalidTypeError(f"older_than must be seconds, got {show(older_than)}") from None
    if not seconds >= 0:
        raise InvalidArgumentError(f"older_than must be seconds from 0 on, got {show(older_than)}")
    return <int64_t>int(min(seconds, 1e9) * 1e9)
