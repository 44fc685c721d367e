"""Errors of requests: opening them, naming devices, acks, and references to their memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from slabpool._core.core import StatusCode, Wait
from slabpool.arguments.sizes import show_size
from slabpool.arguments.texts import few, show
from slabpool.errors import (
    AmbiguousRequestError,
    DeviceLostError,
    DeviceUnavailableError,
    DuplicateDeviceError,
    InvalidArgumentError,
    NameInUseError,
    PoolExhausted,
    QuotaExceededError,
    RequestClosedError,
    SlabpoolError,
    TensorTooLargeError,
    UnknownDeviceError,
)
from slabpool.messages.pool import (
    MORE_OF_GROUP,
    SET_ASIDE,
    Refuser,
    ahead,
    around_use,
    group_use,
    held_at,
    how_over,
    names,
    of_request,
    refusal,
    unusable,
    usage,
    usage_at,
    waited,
)
from slabpool.records import of_group

if TYPE_CHECKING:
    import weakref

    from slabpool._core.pool import Pool, Snapshot
    from slabpool._core.request import GroupHold, Request


def _no_reserve(name: str, capacity: int, what: str, reserve: int, wait: Wait, snapshot: Snapshot) -> str:
    return (
        f"cannot reserve {show_size(reserve)} for {what}{waited(wait)}: "
        f"{usage_at(name, capacity, snapshot)}.{ahead(wait)} Held by:{held_at(snapshot)}"
    )


def _no_slot(name: str, what: str, wait: Wait, snapshot: Snapshot) -> str:
    return (
        f"cannot open {what}{waited(wait)}: pool {show(name)} has as many requests as it "
        f"can hold.{ahead(wait)} The largest:{held_at(snapshot)}"
    )


def _no_quota(
    pool_of: weakref.ref[Pool],
    request_id: object,
    reserve: int,
    group_id: object,
    wait: Wait,
    refuser: Refuser,
) -> str:
    what = f"request {show(request_id)}{of_group(group_id)}"
    begin = f"cannot reserve {show_size(reserve)} for {what}{waited(wait)}: "
    if refuser is None:
        return f"{begin}a quota around it has no room.{ahead(wait)} Ask for less, or wait with timeout="
    if refuser[0] == "group":
        return f"{begin}{group_use(pool_of, refuser)}{ahead(wait)} {MORE_OF_GROUP}"
    return f"{begin}{around_use(refuser)}{ahead(wait)} Open that with a larger quota="


def group_closed(group_id: object) -> NoReturn:
    """Raises for a request or session under a group that is closed."""
    raise RequestClosedError(
        f"group {show(group_id)} is closed: nothing can be opened under it. "
        f"pool.group({show(group_id)}) opens a new one"
    )


def group_failed(
    pool: Pool, status: StatusCode, group_id: object, reserve: int, quota: int, wait: Wait
) -> NoReturn:
    """Raises for a group that could not be opened."""
    unusable(pool, status)
    what = f"group {show(group_id)}"
    if status == StatusCode.NAME_IN_USE:
        raise NameInUseError(
            f"{what} is open in pool {show(pool.name)} already. Use the Group that opened it, or close "
            "that first"
        )
    if status == StatusCode.INVALID_ARGUMENT:
        raise InvalidArgumentError(
            f"reserve ({show_size(reserve)}) must not be larger than quota ({show_size(quota)}) for {what}"
        )
    if status == StatusCode.TOO_LARGE:
        raise TensorTooLargeError(
            f"cannot reserve {show_size(reserve)} for {what}: larger than the capacity of pool "
            f"{show(pool.name)}, {show_size(pool.capacity)}. Make the pool larger or the reserve smaller"
        )
    if status == StatusCode.EXHAUSTED:
        raise PoolExhausted.later(
            _no_reserve, pool.name, pool.capacity, what, reserve, wait, pool._snapshot()
        )
    if status == StatusCode.TOO_MANY_REQUESTS:
        raise PoolExhausted.later(_no_slot, pool.name, what, wait, pool._snapshot())
    raise PoolExhausted(f"cannot open {what}: {refusal(pool)}; {usage(pool)}")


def open_failed(
    pool: Pool,
    status: StatusCode,
    request_id: object,
    devices: tuple[object, ...],
    reserve: int,
    quota: int,
    wait: Wait,
    parent: Request | None,
    group: GroupHold | None,
) -> NoReturn:
    """Raises for a request that could not be opened."""
    unusable(pool, status)
    if status == StatusCode.QUOTA_EXCEEDED:
        raise QuotaExceededError.later(
            _no_quota, pool._weak, request_id, reserve, None if group is None else group.id, wait,
            pool._refuser(parent, group, reserve),
        )  # fmt: skip
    if status == StatusCode.TOO_DEEP:
        raise InvalidArgumentError(
            f"request {show(request_id)} cannot have a quota= or reserve=: it is inside of eight requests "
            "that have one (a group counts, too). Open it without, or outside of some of them"
        )
    what = f"request {show(request_id)}{of_group(None if group is None else group.id)}"
    if status == StatusCode.DUPLICATE_DEVICE:
        twice = next(d for i, d in enumerate(devices) if d in devices[:i])
        raise DuplicateDeviceError(
            f"device {show(twice)} is named twice for request {show(request_id)}: {names(devices)}. "
            "Name each device once"
        )
    if status == StatusCode.TOO_LARGE:
        raise TensorTooLargeError(
            f"cannot reserve {show_size(reserve)} for request {show(request_id)}: larger than the "
            "capacity of "
            f"pool {show(pool.name)}, {show_size(pool.capacity)}. Make the pool larger or the reserve smaller"
        )
    if status == StatusCode.EXHAUSTED:
        raise PoolExhausted.later(
            _no_reserve, pool.name, pool.capacity, what, reserve, wait, pool._snapshot()
        )
    if status == StatusCode.TOO_MANY_REQUESTS:
        raise PoolExhausted.later(_no_slot, pool.name, what, wait, pool._snapshot())
    if status == StatusCode.SYSTEM_REFUSED:
        raise PoolExhausted(f"cannot open request {request_id!r}: {refusal(pool)}; {usage(pool)}")
    if status == StatusCode.INVALID_ARGUMENT:
        raise InvalidArgumentError(
            f"reserve ({show_size(reserve)}) must not be larger than quota ({show_size(quota)}) for request "
            f"{show(request_id)}"
        )
    if parent is not None and status == StatusCode.UNKNOWN_DEVICE:
        waiting = parent.pending
        wrong = next((repr(d) for d in devices if d not in waiting), names(devices))
        raise UnknownDeviceError(
            f"device {wrong} cannot hold a child: request {show(parent.id)} generation {parent.generation} "
            f"waits for {names(waiting)}"
        )
    if parent is None and group is not None and status == StatusCode.REQUEST_CLOSED:
        group_closed(group.id)
    if parent is None and status == StatusCode.REQUEST_CLOSED:
        raise RequestClosedError(
            f"cannot open request {show(request_id)}: its session was closed while it waited"
        )
    if parent is not None and status == StatusCode.REQUEST_CLOSED:
        raise RequestClosedError(
            f"request {show(parent.id)} generation {parent.generation} {how_over(parent)}: no child can be "
            "opened in it"
        )
    raise SlabpoolError(
        f"pool {show(pool.name)}: request {show(request_id)} could not be opened (status {status.name})"
    )


def not_the_parents(device: object, child: Request) -> NoReturn:
    """Raises for a device added to a child whose parent does not wait for it."""
    raise UnknownDeviceError(
        f"device {show(device)} cannot be added{of_request(child)}, a child: its parent, generation "
        f"{child.parent}, does not wait for it. Add it to the parent first"
    )


def ack_failed(pool: Pool, status: StatusCode, request_id: object, device: object) -> NoReturn:
    """Raises for a failed ack by id."""
    unusable(pool, status)
    live = [r for r in pool.requests() if r.request_id == request_id and r.state.value != "released"]
    if status == StatusCode.AMBIGUOUS:
        waiting = [str(r.generation) for r in live if device in r.pending and r.parent is None]
        raise AmbiguousRequestError(
            f"generations {few(waiting)} of request {show(request_id)} all wait for device {show(device)}; "
            "say which with generation="
        )
    raise UnknownDeviceError(
        f"device {show(device)} was never named for request {show(request_id)}; its live generations "
        "wait for "
        f"{names(set().union(*(r.pending for r in live)))}"
    )


def cancel_ambiguous(pool: Pool, request_id: object) -> NoReturn:
    """Raises for an id of which several requests are open."""
    live = [
        f"{r.generation}{of_group(r.group)}"
        for r in pool.requests()
        if r.request_id == request_id and r.parent is None and r.state.value in ("open", "in_doubt")
    ]
    raise AmbiguousRequestError(
        f"several generations of request {show(request_id)} are open, {few(live)}, and none was "
        "cancelled; say which with generation="
    )


def _cannot_adopt(request: Request, tensor: object) -> str:
    shape = getattr(tensor, "shape", None)
    what = type(tensor).__name__ if shape is None else f"array of shape {shape}"
    return f"request {show(request.id)} generation {request.generation} cannot adopt the {what}"


def nothing_to_adopt(request: Request, tensor: object) -> NoReturn:
    """Raises for a tensor that is in no request's memory."""
    raise InvalidArgumentError(
        f"{_cannot_adopt(request, tensor)}: it has no bytes, or is not in the memory of a request of this "
        "pool. Make a copy: request.copy(array)"
    )


def adopt_released(request: Request, tensor: object, generation: int) -> NoReturn:
    """Raises for a tensor of a request that is released."""
    raise RequestClosedError(
        f"{_cannot_adopt(request, tensor)}: its request, generation {generation}, is released, and only live "
        "views retain the memory. Call adopt() before the last holder leaves, or make a copy: "
        "request.copy(array)"
    )


def adopt_exceeds(
    pool_of: weakref.ref[Pool],
    request: Request,
    tensor: object,
    generation: int,
    nbytes: int,
    refuser: Refuser,
) -> NoReturn:
    """Raises for a tensor that a quota does not allow."""
    begin = (
        f"{_cannot_adopt(request, tensor)}, {show_size(nbytes)}, which stays with generation {generation}: "
    )
    raise QuotaExceededError.later(
        _adopt_exceeds, pool_of, begin, request.generation, request.nbytes, refuser
    )


def _adopt_exceeds(
    pool_of: weakref.ref[Pool], begin: str, generation: int, nbytes: int, refuser: Refuser
) -> str:
    if refuser is None:
        return f"{begin}{SET_ASIDE}. Call adopt() again once they are served"
    if refuser[0] == "group":
        return f"{begin}{group_use(pool_of, refuser)} {MORE_OF_GROUP}"
    if refuser[2] != generation:
        return f"{begin}{around_use(refuser)} Open that with a larger quota="
    return (
        f"{begin}its quota of {show_size(refuser[3])} would be exceeded; it holds {show_size(nbytes)} "
        "itself, and its children count too. Open it with a larger quota="
    )


def adopt_behind(request: Request, tensor: object, nbytes: int) -> NoReturn:
    """Raises for a tensor for which the quota has room that is set aside for waiters."""
    raise QuotaExceededError(
        f"{_cannot_adopt(request, tensor)}, {show_size(nbytes)}: what is free of the quota is set aside for "
        "callers that wait for it. Call adopt() again once they are served"
    )


def adopted_before(request: Request, tensor: object) -> NoReturn:
    """Raises for a tensor that the request has already."""
    raise InvalidArgumentError(
        f"{_cannot_adopt(request, tensor)}: it is this request's already. "
        "Call adopt() once, on the request that is to have it"
    )


def adopt_kept(request: Request, tensor: object) -> NoReturn:
    """Raises for a tensor that a session keeps."""
    raise InvalidArgumentError(
        f"{_cannot_adopt(request, tensor)}: a session keeps its memory. Make a copy: request.copy(array)"
    )


def stream_failed(status: StatusCode, stream: object, why: str) -> None:
    """Raises for an ack that was to follow a stream, if the status is about the stream."""
    what = f"the ack cannot follow stream {show(stream)}"
    if status == StatusCode.INVALID_ARGUMENT:
        raise InvalidArgumentError(
            f"{what}: {why}. Pass a stream that exists and is not being captured, or none if the device is "
            "done; nothing was acknowledged"
        )
    if status == StatusCode.SYSTEM_REFUSED:
        raise DeviceUnavailableError(
            f"{what}: {why or 'the system has no memory'}. Without a stream an ack needs no CUDA; nothing "
            "was acknowledged"
        )
    if status == StatusCode.DEVICE_LOST:
        raise DeviceLostError(
            f"{what}: its GPU has failed ({why}), and the work queued on it will never be done. "
            "pool.device_lost(...) releases what its device holds"
        )


def not_shared(request: Request) -> NoReturn:
    """Raises for a reference to memory that no other process can map."""
    raise InvalidArgumentError(
        f"the memory{of_request(request)} is private to this process; "
        "references need a pool made with memory='shared'"
    )


def not_of_the_request(array: object, request: Request) -> NoReturn:
    """Raises for a reference to an array in other memory."""
    shape = getattr(array, "shape", None)
    raise InvalidArgumentError(
        f"the array of shape {shape} is not in the memory of request {show(request.id)} generation "
        f"{request.generation}; refer to one that this request made, or copy() it into the request"
    )
