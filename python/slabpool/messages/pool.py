"""Turns a status of the core into the error a person can act on: which request, device, bytes, line.

Called on failure only, so it may take its time. The numbers are those of `Status` in
``csrc/slabpool/base/status.hpp``.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from slabpool.arguments.sizes import show_size
from slabpool.errors import (
    AmbiguousRequestError,
    DeviceLostError,
    DeviceUnavailableError,
    DuplicateDeviceError,
    ForkedPoolError,
    InvalidArgumentError,
    InvalidReferenceError,
    OwnerLostError,
    PoolClosedError,
    PoolExhausted,
    QuotaExceededError,
    RequestClosedError,
    SlabpoolError,
    StaleReferenceError,
    TensorTooLargeError,
    UnknownDeviceError,
)

if TYPE_CHECKING:
    from slabpool._core.peer import Peer
    from slabpool._core.pool import Pool
    from slabpool._core.ref import TensorRef
    from slabpool._core.request import Request
    from slabpool.arguments.pool_options import Options
    from slabpool.records import RequestRecord

_INVALID = 1
_EXHAUSTED = 2
_TOO_LARGE = 3
_SYSTEM = 4
_QUOTA = 5
_TOO_MANY_REQUESTS = 6
_TOO_MANY_DEVICES = 7
_DUPLICATE_DEVICE = 8
_UNKNOWN_DEVICE = 9
_REQUEST_CLOSED = 10
_AMBIGUOUS = 11
_POOL_CLOSED = 12
_POOL_BUSY = 13
_FORKED = 14
_NO_ADDRESSES = 16
_DEVICE_LOST = 17

_SHOWN = 5


def no_pool(wanted: Options, capacity: object, why: str, error: int) -> NoReturn:
    """The memory for a pool is not to be had: `why` says so for CUDA memory, an errno for the host's."""
    if wanted.memory.kind != "host":
        raise DeviceUnavailableError(
            f"cannot make a pool of {capacity!r} with memory={str(wanted.memory)!r}: {why}"
        )
    node = f" on NUMA node {wanted.numa_node}" if wanted.numa_node >= 0 else ""
    raise DeviceUnavailableError(
        f"the system does not give a {wanted.memory} pool of {capacity!r}{node}: {os.strerror(error)}"
    )


def host_only(what: str) -> NoReturn:
    """Something that is made of numpy arrays was asked of a pool of device memory."""
    raise InvalidArgumentError(
        f"{what} needs memory that the host reaches, and this pool's is a device's. Use a pool of "
        "memory='host', 'pinned' or 'managed:N' for it"
    )


def names(devices: Iterable[object]) -> str:
    """Device names for a message, a few of them."""
    known = sorted(map(repr, devices))
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return (", ".join(known[:_SHOWN]) + more) or "no device"


def holders(pool: Pool) -> str:
    """The requests that hold most, a line each, and numpy."""
    from slabpool._core import numpy_heap  # which imports the pool, which imports this

    records = sorted(pool.requests(), key=lambda r: r.nbytes, reverse=True)
    idle = {record.session_id: record.idle for record in pool.sessions()}
    lines = [f"\n  {record}{_idle(record, idle)}" for record in records[:_SHOWN]]
    if len(records) > _SHOWN:
        lines.append(f"\n  and {len(records) - _SHOWN} more requests")
    arrays, nbytes = numpy_heap.usage(pool)
    if arrays:
        lines.append(f"\n  {arrays} arrays that numpy made under numpy_handler: {show_size(nbytes)}")
    return "".join(lines) or "\n  no request; views without one"


def _idle(record: RequestRecord, sessions: dict[str | int | bytes, float | None]) -> str:
    if record.kept_as is None or record.request_id not in sessions:
        return ""
    idle = sessions[record.request_id]
    return ", in use" if idle is None else f", idle for {idle:.1f} s"


def usage(pool: Pool) -> str:
    """Where the capacity is, in one line."""
    s = pool.stats()
    return (
        f"pool {pool.name!r} has {show_size(s.capacity)}: {show_size(s.live)} live, "
        f"{show_size(s.retained)} retained by views, {show_size(s.in_doubt)} in doubt, "
        f"{show_size(s.set_aside)} set aside"
    )


def _common(pool: Pool, status: int) -> None:
    if status == _FORKED:
        raise ForkedPoolError(
            f"pool {pool.name!r} was inherited through fork; in this process its views may only be read. "
            "Make a pool of this process's own"
        )
    if status == _POOL_CLOSED:
        raise PoolClosedError(f"pool {pool.name!r} is closed: it hands out nothing any more. Make a new pool")


def _who(request: Request | None) -> str:
    return "" if request is None else f" for request {request.id!r} generation {request.generation}"


class Reporter:
    """Raises for a failed call on a pool or one of its requests. Holds the pool weakly: the core keeps
    the reporter, and must not keep the pool alive through it.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)

    def __call__(self, request: Request | None, status: int, nbytes: int, extra: object) -> NoReturn:
        pool = self._pool()
        if pool is None:
            raise PoolClosedError("the pool is gone")
        _common(pool, status)
        what = f"{show_size(nbytes)}{_who(request)}"
        if status == _TOO_LARGE:
            raise TensorTooLargeError(
                f"cannot allocate {what}: larger than the capacity of pool {pool.name!r}, "
                f"{show_size(pool.capacity)}. Make the pool larger or the tensor smaller"
            )
        if status == _EXHAUSTED:
            waited = f" within {extra} s" if extra is not None else ""
            raise PoolExhausted(f"cannot allocate {what}{waited}: {usage(pool)}. Held by:{holders(pool)}")
        if status == _NO_ADDRESSES:
            raise PoolExhausted(
                f"cannot reserve addresses for a tensor of up to {what}: pool {pool.name!r} has "
                f"{show_size(pool.stats().reserved)} of them, for the limits of all its growing tensors. "
                f"Lower limit=, or make the pool larger. Held by:{holders(pool)}"
            )
        if status == _SYSTEM:
            from slabpool._core.cuda import refusal

            why = refusal(pool) or (
                "the system refuses more memory or mappings (see overcommit_memory and max_map_count in "
                "/proc/sys/vm on Linux)"
            )
            raise PoolExhausted(f"cannot allocate {what}: {why}; {usage(pool)}")
        if status == _QUOTA:
            assert request is not None
            raise QuotaExceededError(
                f"cannot allocate {what}: its quota of {show_size(request.quota or 0)} would be exceeded; it "
                f"has {show_size(request.nbytes)} itself, and its family counts too. "
                "Open it with a larger quota="
            )
        if status == _REQUEST_CLOSED:
            assert request is not None
            state = "released" if request.state.value == "released" else "closed by the host"
            raise RequestClosedError(
                f"request {request.id!r} generation {request.generation} is {state}: nothing can be "
                "allocated on it or changed; open a new request"
            )
        if status == _UNKNOWN_DEVICE:
            assert request is not None
            unknown_device(extra, request)
        if status == _DUPLICATE_DEVICE:
            raise DuplicateDeviceError(
                f"device {extra!r} already has to acknowledge{_who(request)}, which waits for "
                f"{names(request.pending if request else ())}. Add a device once"
            )
        if status == _DEVICE_LOST:
            raise DeviceLostError(
                f"cannot allocate {what}: the GPU of pool {pool.name!r} has failed, and CUDA does nothing "
                "more on it in this process. Start a new process; the first CUDA error says what failed"
            )
        raise SlabpoolError(f"pool {pool.name!r}: unexpected status {status}")


def unknown_device(device: object, request: Request) -> NoReturn:
    """Raises for a device that a request was not opened with."""
    raise UnknownDeviceError(
        f"device {device!r} was never named{_who(request)}; it waits for {names(request.pending)}. Name it "
        "in devices= when the request is opened, or with add_device()"
    )


def not_the_parents(device: object, child: Request) -> NoReturn:
    """Raises for a device added to a child whose parent does not wait for it."""
    raise UnknownDeviceError(
        f"device {device!r} cannot be added{_who(child)}, a child: its parent, generation {child.parent}, "
        "does not wait for it. Add it to the parent first"
    )


def not_shared(request: Request) -> NoReturn:
    """Raises for a reference to memory that no other process can see."""
    raise InvalidArgumentError(
        f"the memory{_who(request)} is private to this process; "
        "references need a pool made with memory='shared'"
    )


def not_of_the_request(array: object, request: Request) -> NoReturn:
    """Raises for a reference to an array somewhere else."""
    shape = getattr(array, "shape", None)
    raise InvalidArgumentError(
        f"the array of shape {shape} is not in the memory of request {request.id!r} generation "
        f"{request.generation}; refer to one that this request made, or copy() it into the request"
    )


_PEER_CLOSED = 1
_PEER_OTHER_POOL = 2
_PEER_OVER = 3
_PEER_FORGED = 4
_PEER_RANGE = 5
_PEER_UNKNOWN = 6
_PEER_ACKNOWLEDGED = 7


def peer_failed(peer: Peer, status: int, ref: TensorRef | None) -> NoReturn:
    """Raises for a reference that a peer cannot open or acknowledge."""
    if status == _PEER_CLOSED or ref is None:
        raise OwnerLostError(
            f"the owner of pool {peer.name!r} has closed it or is gone; what device {peer.device!r} has open "
            "stays readable. attach() again once there is a new owner"
        )
    if status == _PEER_OTHER_POOL:
        raise InvalidReferenceError(
            f"{ref!r} is of another pool than {peer.name!r}, which this peer is attached to, or of one that "
            "had the name before; open it with a peer of the pool that made it"
        )
    if status == _PEER_OVER:
        raise StaleReferenceError(
            f"{ref!r}: its request is over and its memory may be another's. A device has to be named in "
            "devices= and open what it gets before it acknowledges"
        )
    if status == _PEER_ACKNOWLEDGED:
        raise StaleReferenceError(
            f"{ref!r}: device {peer.device!r} has acknowledged this request (or was reported lost), so its "
            "memory may be another's"
        )
    if status == _PEER_UNKNOWN:
        raise UnknownDeviceError(
            f"{ref!r}: device {peer.device!r} was never named for this request. The owner names it in "
            "devices= when it opens the request, or with add_device()"
        )
    if status == _PEER_RANGE:
        raise InvalidReferenceError(f"{ref!r} leads out of the memory of pool {peer.name!r}")
    raise InvalidReferenceError(
        f"{ref!r} was not made by the owner of pool {peer.name!r}, or was changed on the way. Pass on what "
        "Request.ref() gave"
    )


def peer_unusable(peer: Peer, closed: bool) -> NoReturn:
    """Raises for a peer that is closed, or was attached by the parent of this process."""
    if closed:
        raise PoolClosedError(f"this peer of pool {peer.name!r} is closed; attach() makes a new one")
    raise ForkedPoolError(
        f"the peer of pool {peer.name!r} was inherited through fork; in this process its views may only be "
        "read. attach() in the process that is the device"
    )


def open_failed(
    pool: Pool,
    status: int,
    request_id: object,
    devices: tuple[object, ...],
    reserve: int,
    quota: int,
    timeout: object,
    parent: Request | None,
) -> NoReturn:
    """Raises for a request that could not be opened."""
    _common(pool, status)
    if status == _DUPLICATE_DEVICE:
        twice = next(d for i, d in enumerate(devices) if d in devices[:i])
        raise DuplicateDeviceError(
            f"device {twice!r} is named twice for request {request_id!r}: {names(devices)}. "
            "Name each device once"
        )
    if status == _TOO_LARGE:
        raise TensorTooLargeError(
            f"cannot set {show_size(reserve)} aside for request {request_id!r}: larger than the capacity of "
            f"pool {pool.name!r}, {show_size(pool.capacity)}. Make the pool larger or the reserve smaller"
        )
    if status == _EXHAUSTED:
        waited = f" within {timeout} s" if timeout is not None else ""
        raise PoolExhausted(
            f"cannot set {show_size(reserve)} aside for request {request_id!r}{waited}: {usage(pool)}. "
            f"Held by:{holders(pool)}"
        )
    if status == _TOO_MANY_REQUESTS:
        raise PoolExhausted(
            f"cannot open request {request_id!r}: pool {pool.name!r} has as many requests as it can tell "
            f"apart. The largest:{holders(pool)}"
        )
    if status == _INVALID:
        raise InvalidArgumentError(
            f"reserve ({show_size(reserve)}) must not be larger than quota ({show_size(quota)}) for request "
            f"{request_id!r}"
        )
    if parent is not None and status == _UNKNOWN_DEVICE:
        waiting = parent.pending
        wrong = next((d for d in devices if d not in waiting), devices)
        raise UnknownDeviceError(
            f"device {wrong!r} cannot be a child's: request {parent.id!r} generation {parent.generation} "
            f"waits for {names(waiting)}"
        )
    if parent is not None and status == _REQUEST_CLOSED:
        raise RequestClosedError(
            f"request {parent.id!r} generation {parent.generation} is closed: no child can be opened in it"
        )
    raise SlabpoolError(f"pool {pool.name!r}: request {request_id!r} could not be opened (status {status})")


def ack_failed(pool: Pool, status: int, request_id: object, device: object) -> NoReturn:
    """Raises for an acknowledgement by id."""
    _common(pool, status)
    live = [r for r in pool.requests() if r.request_id == request_id and r.state.value != "released"]
    if status == _AMBIGUOUS:
        waiting = [str(r.generation) for r in live if device in r.pending and r.parent is None]
        raise AmbiguousRequestError(
            f"generations {', '.join(waiting)} of request {request_id!r} all wait for device {device!r}; "
            "say which with generation="
        )
    raise UnknownDeviceError(
        f"device {device!r} was never named for request {request_id!r}; its live generations wait for "
        f"{names(set().union(*(r.pending for r in live)))}"
    )


def stream_failed(status: int, stream: object, why: str) -> None:
    """Raises for an acknowledgement that was to follow a stream, if that is what the status is about."""
    what = f"the ack cannot follow stream {stream!r}"
    if status == _INVALID:
        raise InvalidArgumentError(
            f"{what}: {why}. Pass a stream that exists and is not being captured, or none if the device is "
            "done; nothing was acknowledged"
        )
    if status == _SYSTEM:
        raise DeviceUnavailableError(
            f"{what}: {why or 'the system has no memory'}. Without a stream an ack needs no CUDA; nothing "
            "was acknowledged"
        )
    if status == _DEVICE_LOST:
        raise DeviceLostError(
            f"{what}: its GPU has failed ({why}), and what was queued on it will never be done. "
            "pool.device_lost(...) lets go of what its device holds"
        )


def busy(pool: Pool) -> str:
    """Why a pool cannot be closed."""
    return (
        f"pool {pool.name!r} cannot be closed: {usage(pool)}. Held by:{holders(pool)}\n"
        "Let them go first, or close(force=True) to cut requests loose (views stay valid)"
    )
