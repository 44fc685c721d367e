# Part of request.pyx. Opens a request: names to numbers, sizes to bytes, and waiting for a reserve.
#
# Invariant: an argument that is refused adds no device name and opens no request.

cdef struct _Opening:
    OpenSpec* spec
    Handle* handle


cdef Status _attempt(Core core, void* job, Waiter* waiter) noexcept:
    cdef _Opening* opening = <_Opening*>job
    return core.pool.open_as(opening.spec[0], opening.handle[0], waiter)


cdef int64_t _lease(object lease) except? -1:
    return <int64_t>max(1, int(some_seconds(lease, "lease") * 1e9))


cdef tuple _several(object devices):
    if isinstance(devices, (str, bytes)):
        raise InvalidTypeError(f"devices must be several names, got one {type(devices).__name__} {show(devices)}")
    try:
        return tuple(devices)
    except TypeError:
        raise InvalidTypeError(f"devices must be an iterable of names, got {show(devices)}") from None


cdef Request open_request(object pool, Core core, Devices names, object request_id, object devices, object reserve,
                          object quota, object lease, object timeout, Request parent, Site opened_at,
                          GroupHold group):
    cdef OpenSpec spec
    cdef Handle handle
    cdef Status status
    cdef Wait wait
    cdef uint32_t few[16]
    cdef vector[uint32_t] many
    cdef Py_ssize_t count = 0
    cdef uint32_t index
    cdef uint64_t mask = 0
    cdef vector[uint64_t] more  # as Request.named_more
    cdef char room[KEY_ROOM]
    cdef bytes key = None
    cdef KnownName* last
    cdef int64_t number
    cdef _Opening opening
    check_here(core)
    if type(devices) is not tuple:
        devices = _several(devices)
    spec.id = short_key(request_id, room)
    if unlikely(spec.id.empty()):
        key = name_key(request_id, "request_id")
        spec.id = view_of(key)
    if reserve is not None:
        spec.reserve = parse_size(reserve, "reserve", least=0, most=1 << 62)
    if quota is not None:
        spec.quota = parse_size(quota, "quota", least=1, most=1 << 62)
    if lease is not None:
        spec.lease_ns = _lease(lease)
    if parent is not None:
        spec.parent = parent.handle
        group = parent.hold
    elif group is not None:
        spec.parent = group.handle
    if opened_at is None:
        spec.where = caller()
    else:
        spec.where = opened_at.where
    # Made first: once the request is open, nothing may fail before it has an owner.
    cdef Request request = Request.__new__(Request)
    if timeout is not None:
        wait = wait_of(core, timeout, group if parent is None else parent)
        request.priority = wait.waiter.priority
    elif parent is not None:
        request.priority = parent.priority
    elif group is not None:
        request.priority = group.priority
    spec.priority = request.priority
    # Last, because a number may be taken back once Python code runs.
    while True:
        for device in <tuple>devices:
            last = known_name(names, device)
            if likely(last.name == <PyObject*>device):
                index = last.number
            else:
                number = names.number_of(device)
                if unlikely(number < 0):
                    break
                index = <uint32_t>number
            if index < 64:
                mask |= <uint64_t>1 << index
            else:
                if more.empty():
                    more.resize((kMaxDevices - 1) // 64)
                more[(index >> 6) - 1] |= <uint64_t>1 << (index & 63)
            if count < 16:
                few[count] = index
            else:
                if count == 16:
                    many.assign(&few[0], &few[0] + 16)
                many.push_back(index)
            count += 1
        else:
            break
        devices = names.made_known(<tuple>devices, parent)
        count = 0
        mask = 0
        more.clear()
    if count <= 16:
        spec.devices = device_span(&few[0], <size_t>count)
    else:
        spec.devices = device_span(many.data(), <size_t>count)
    status = core.pool.open(spec, handle) if timeout is None else Status.waiters_ahead
    if unlikely(status != Status.ok):
        opening.spec = &spec
        opening.handle = &handle
        if timeout is None:
            wait = wait_of(core, None, group if parent is None else parent)
        if group is not None and not wait.waiter.entered():
            wait.group = group.handle
            if wait.waiter.session.generation == 0:  # not a session's turn, which waits no longer than that is open
                wait.waiter.session.slot = group.handle.slot
                wait.waiter.session.generation = group.handle.generation
        if not wait.waiter.entered():
            wait.key = name_key(request_id, "request_id") if key is None else key
            wait.waiter.id = view_of(wait.key)
            show_line(wait, spec.where)
        status = names.find_room(<tuple>devices, status, _attempt, &opening, wait,
                                 NO_REQUEST if parent is None else parent.handle, spec.reserve)
        if status != Status.ok:
            hooks.messages.open_failed(pool, status_code(<int>status), request_id, devices, spec.reserve, spec.quota,
                                       wait, parent, group)
        if not core.pool.released(handle):  # else another record may have its slot
            note_code(core, handle, spec.where)
    else:
        note_code(core, handle, spec.where)
    request.pool = pool
    request.core = core
    request.devices = names
    request.handle = handle
    request.id = request_id if type(request_id) is str else plain_name(request_id)
    request.named = devices
    request.named_mask = mask
    if unlikely(not more.empty()):
        request.named_more.swap(more)
    request.hold = group
    if parent is not None:
        request.parent = parent.handle.generation
        request.quota = parent.quota
    if quota is not None:
        request.quota = spec.quota
    return request
