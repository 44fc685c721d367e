# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""Opening a request: names to numbers, sizes to bytes, and waiting for a reserve.

What must stay true: an argument that is refused leaves no name behind, and no request.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from slabpool._core.array cimport (
    Core, caller, can_give_way, check_here, deadline_of, located, next_slice, others_give_way,
)
from slabpool._core.cpp_request cimport Handle, OpenSpec, device_span, string_view
from slabpool._core.cpp_status cimport Status
from slabpool._core.naming cimport Devices, name_key
from slabpool._core.request cimport Request, new_request

from slabpool.messages import pool as _report
from slabpool.arguments.sizes import parse_size
from slabpool.errors import InvalidArgumentError, InvalidTypeError


cdef Request open_request(object pool, Core core, Devices names, object request_id, object devices, object reserve,
                          object quota, object lease, object timeout, Request parent, object opened_at):
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
    check_here(core)
    if isinstance(devices, (str, bytes)):
        raise InvalidTypeError(f"devices must be several names, got one {type(devices).__name__} {devices!r}")
    if type(devices) is not tuple:
        try:
            devices = tuple(devices)
        except TypeError:
            raise InvalidTypeError(f"devices must be an iterable of names, got {devices!r}") from None
    for device in <tuple>devices:
        number = names.numbers.get(device) if type(device) is str or type(device) is int else None
        if number is None:
            if new == 0 and parent is None:
                new = names.room_for(<tuple>devices)  # before any name is added: all of them or none
            number = names.number(device) if parent is None else names.known(device, parent)
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
        spec.where = caller(core)
    else:
        spec.where = located(core, opened_at[0], opened_at[1])
    status = Status.exhausted
    if can_give_way(core):
        spec.counts = False
        status = core.pool.open(spec, handle)
        while others_give_way(core, status):
            status = core.pool.open(spec, handle)
        spec.counts = True
    if status not in (Status.exhausted, Status.too_many_requests):
        pass
    elif timeout is None:
        status = core.pool.open(spec, handle)
    else:
        deadline = deadline_of(timeout)
        while True:
            until = next_slice(deadline)
            with nogil:
                status = core.pool.open_until(spec, handle, until, until == deadline)
            if status not in (Status.exhausted, Status.too_many_requests) or until == deadline:
                break
            PyErr_CheckSignals()
            others_give_way(core, status)  # what has become idle, or done, meanwhile
    if status != Status.ok:
        _report.open_failed(pool, <int>status, request_id, devices, spec.reserve, spec.quota, timeout, parent)
    if parent is not None:
        return new_request(pool, core, names, handle, request_id, <tuple>devices, mask, parent.handle.generation,
                           parent.quota)
    return new_request(pool, core, names, handle, request_id, <tuple>devices, mask, None,
                       None if quota is None else spec.quota)


cdef int64_t _lease(object lease) except? -1:
    try:
        seconds = float(lease)
    except (TypeError, ValueError, OverflowError):
        raise InvalidTypeError(f"lease must be seconds, got {lease!r}") from None
    if not 0 < seconds <= 1e9:
        raise InvalidArgumentError(f"lease must be more than 0 seconds and at most 1e9, got {lease!r}")
    return <int64_t>max(1, int(seconds * 1e9))
