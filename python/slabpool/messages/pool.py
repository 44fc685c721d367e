"""Errors of a pool and of allocations: which request, how many bytes, and which holders."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from slabpool._core import heaps
from slabpool._core.core import StatusCode, Wait
from slabpool.arguments.sizes import show_size
from slabpool.arguments.texts import SHOWN, few, short, show
from slabpool.errors import (
    DeviceLostError,
    DeviceUnavailableError,
    DuplicateDeviceError,
    ForkedPoolError,
    InvalidArgumentError,
    MemoryLimitError,
    PoolBusyError,
    PoolClosedError,
    PoolExhausted,
    QuotaExceededError,
    RequestClosedError,
    SlabpoolError,
    TensorTooLargeError,
    UnknownDeviceError,
)
from slabpool.messages.system import system_refused
from slabpool.records import of_group

if TYPE_CHECKING:
    import weakref

    from slabpool._core.pool import Pool, Snapshot
    from slabpool._core.request import Request
    from slabpool.arguments.pool_options import Options
    from slabpool.records import RequestRecord, WaiterRecord


def no_pool(wanted: Options, capacity: object, why: str, error: int) -> NoReturn:
    """Raises for a pool whose memory is refused.

    Parameters
    ----------
    wanted : Options
    capacity : object
        As the caller gave it.
    why : str
        For CUDA memory: the driver's text. For host memory: the limits of the process or its control group,
        or "".
    error : int
        For host memory: the errno. For pinned memory ENOMEM, if the limit of the control group refuses it.
    """
    over_limit = wanted.memory.kind == "pinned" and error == errno.ENOMEM and why
    if wanted.memory.kind != "host" and not over_limit:
        raise DeviceUnavailableError(
            f"cannot make a pool of {show(capacity)} with memory={show(str(wanted.memory))}: {why}"
        )
    if why:
        raise MemoryLimitError(f"cannot make a {wanted.memory} pool of {show(capacity)}: {why}")
    node = f" on NUMA node {wanted.numa_node}" if wanted.numa_node >= 0 else ""
    raise system_refused(
        f"the system refuses memory for a {wanted.memory} pool of {show(capacity)}{node}",
        error,
        memfd=wanted.memory.shared,
    )


def warn_of_limit(capacity: object, why: str) -> None:
    """Warns the caller of `slabpool.Pool` that the kernel may end the process as the pool fills."""
    warnings.warn(f"slabpool.Pool({show(capacity)}): {why}", RuntimeWarning, stacklevel=2)


def host_only(what: str) -> NoReturn:
    """Raises for a feature that is based on numpy arrays, used with a pool of device memory."""
    raise InvalidArgumentError(
        f"{what} needs memory that the host can access, and this pool is in device memory. Use a pool of "
        "memory='host', 'pinned' or 'managed:N' for it"
    )


def names(devices: Iterable[object]) -> str:
    """Device names for a message, a few of them."""
    return few(sorted(map(repr, devices))) or "no device"


def holders(pool: Pool) -> str:
    """A line for each of the requests that hold most, and one for numpy."""
    records = sorted(pool.requests(), key=lambda r: r.nbytes, reverse=True)
    idle = {record.session_id: record.idle for record in pool.sessions()}
    lines = [f"\n  {record}{_idle(record, idle)}" for record in records[:SHOWN]]
    if len(records) > SHOWN:
        lines.append(f"\n  and {len(records) - SHOWN} more requests")
    arrays, nbytes = heaps.usage(pool)
    if arrays:
        lines.append(f"\n  {arrays} arrays that numpy made under numpy_handler: {show_size(nbytes)}")
    return "".join(lines) or "\n  no request; views that belong to none"


def _idle(record: RequestRecord, sessions: dict[str | int | bytes, float | None]) -> str:
    if record.kept_as is None or record.request_id not in sessions:
        return ""
    idle = sessions[record.request_id]
    return ", in use" if idle is None else f", idle for {idle:.1f} s"


def held_at(snapshot: Snapshot) -> str:
    """As `holders`, of the instant of a refusal. Arrays of numpy are counted when the text is made."""
    largest = snapshot.largest()
    oldest = snapshot.oldest()
    lines = [f"\n  {record}{_idle_for(idle)}" for record, idle in largest]
    more = snapshot.figures()[5] - len(largest)
    if more > 0:
        ages = few(f"{_name(record)} {record.age:.1f} s" for record, _ in oldest) or "among these"
        lines.append(f"\n  and {more} more requests; the oldest: {ages}")
    pool = snapshot.pool()
    # A forked child may read the text of an error that its parent caught.
    arrays, nbytes = heaps.usage(pool) if pool is not None and pool._usable_here else (0, 0)
    if arrays:
        lines.append(f"\n  {arrays} arrays that numpy made under numpy_handler: {show_size(nbytes)}")
    lines.extend(
        f"\n  group {show(group.group_id)}: {show_size(group.reserved)} of its reserve left, "
        f"opened at {short(group.opened_at, 100)}"
        for group in snapshot.groups()
    )
    return "".join(lines) or "\n  no request; views that belong to none"


def _name(record: RequestRecord) -> str:
    name = show(record.request_id)
    return short(name if record.kept_as is None else f"{name} {show(record.kept_as)}", 30)


def _idle_for(idle: float | None) -> str:
    return "" if idle is None else ", in use" if idle < 0 else f", idle for {idle:.1f} s"


def usage_at(name: str, capacity: int, snapshot: Snapshot) -> str:
    """As `usage`, of the instant of a refusal."""
    live, retained, in_doubt, reserved, _, _, fragmented, metadata = snapshot.figures()
    return _usage(name, capacity, live, retained, in_doubt, reserved, fragmented, metadata)


def usage(pool: Pool) -> str:
    """How the capacity is used, in one line."""
    s = pool.stats()
    return _usage(pool.name, s.capacity, s.live, s.retained, s.in_doubt, s.reserved, s.fragmented, s.metadata)


def _usage(
    name: str,
    capacity: int,
    live: int,
    retained: int,
    in_doubt: int | None,  # None: `live` includes it
    reserved: int,
    fragmented: int,
    metadata: int,
) -> str:
    doubt = "" if in_doubt is None else f", {show_size(in_doubt)} in doubt"
    return (
        f"pool {show(name)} has {show_size(capacity)}: {show_size(live)} live"
        f"{' or in doubt' if in_doubt is None else ''}, {show_size(retained)} retained by views{doubt}, "
        f"{show_size(reserved)} reserved, {show_size(fragmented)} fragmented "
        f"(records and tables: {show_size(metadata)} more)"
    )


def refusal(pool: Pool) -> str:
    """Why the system or the driver refused the pool's last call."""
    text, errno = pool._refusal()
    return text or (
        f"the system refuses more memory or mappings{f' ({os.strerror(errno)})' if errno else ''}; see "
        "overcommit_memory and max_map_count in /proc/sys/vm on Linux"
    )


def unusable(pool: Pool, status: StatusCode) -> None:
    """Raises if the status says that the pool cannot be used at all."""
    if status == StatusCode.FORKED:
        raise ForkedPoolError(
            f"pool {show(pool.name)} was inherited through fork; in this process its views may only be read. "
            "Make a pool of this process's own"
        )
    if status == StatusCode.POOL_CLOSED:
        raise PoolClosedError(
            f"pool {show(pool.name)} is closed, and nothing can be allocated from it. Make a new pool"
        )


def of_request(request: Request | None) -> str:
    """The request in a message, if there is one."""
    return "" if request is None else _for_request(_named(request))


def unknown_device(device: object, request: Request) -> NoReturn:
    """Raises for a device that was never named for a request."""
    raise UnknownDeviceError(
        f"device {show(device)} was never named{of_request(request)}; it waits for {names(request.pending)}. "
        "Name it in devices= when the request is opened, or with add_device()"
    )


def waited(wait: Wait | None) -> str:
    """How long the caller has waited at most, for a message."""
    return "" if wait is None or wait.timeout is None else f" within {wait.timeout} s"


def ahead(wait: Wait | None) -> str:
    """What stood before the caller when it gave up, a few of it, and whether that could ever have moved."""
    if wait is None:
        return ""
    count, first = wait.ahead()
    text = ""
    if count:
        more = f" and {count - len(first)} more" if count > len(first) else ""
        text = f" {count} waiter{'' if count == 1 else 's'} ahead: {'; '.join(map(_waiter, first))}{more}."
    if wait.circle:
        text += (
            " Deadlock: the requests that wait for memory hold so much of it that none of them can be served "
            "before one is closed; give each what it needs at once, with reserve=."
        )
    return text


def _waiter(record: WaiterRecord) -> str:
    name = "no request" if record.request_id is None else short(show(record.request_id), 30)
    return f"{name} ({show_size(record.nbytes)}, priority {record.priority}, since {record.waited:.1f} s)"


Named = tuple[object, int, object] | None  # id, generation, id of the group


def _named(request: Request | None) -> Named:
    return None if request is None else (request.id, request.generation, request.group)


def _for_request(named: Named) -> str:
    return "" if named is None else f" for request {show(named[0])} generation {named[1]}{of_group(named[2])}"


def _exhausted(
    name: str, capacity: int, request: Named, nbytes: int, wait: Wait | None, snapshot: Snapshot
) -> str:
    return (
        f"cannot allocate {show_size(nbytes)}{_for_request(request)}{waited(wait)}: "
        f"{usage_at(name, capacity, snapshot)}.{ahead(wait)} Held by:{held_at(snapshot)}"
    )


def _no_addresses(
    name: str, capacity: int, request: Named, nbytes: int, wait: Wait | None, snapshot: Snapshot
) -> str:
    return (
        f"cannot reserve addresses for a tensor of up to {show_size(nbytes)}{_for_request(request)}"
        f"{waited(wait)}: pool "
        f"{show(name)} has {show_size(snapshot.figures()[4])} of them, for the limits of all its growing "
        f"tensors. Lower limit=, or make the pool larger.{ahead(wait)} Held by:{held_at(snapshot)}"
    )


def call_failed(
    pool: Pool | None, request: Request | None, status: StatusCode, nbytes: int, extra: object
) -> NoReturn:
    """Raises for a failed call on a pool or one of its requests.

    Parameters
    ----------
    pool : Pool or None
        None if the Pool object is gone.
    request : Request or None
        None for memory that belongs to no request.
    status : StatusCode
    nbytes : int
        Bytes asked for.
    extra : object
        The `Wait` of an allocation, or the device of an ack.
    """
    if pool is None:
        raise PoolClosedError("the pool is gone")
    if status in (StatusCode.EXHAUSTED, StatusCode.NO_ADDRESSES):
        raise PoolExhausted.later(
            _no_addresses if status == StatusCode.NO_ADDRESSES else _exhausted,
            pool.name, pool.capacity, _named(request), nbytes,
            extra if isinstance(extra, Wait) else None, pool._snapshot(),
        )  # fmt: skip
    unusable(pool, status)
    what = f"{show_size(nbytes)}{of_request(request)}"
    if status == StatusCode.TOO_LARGE:
        raise TensorTooLargeError(
            f"cannot allocate {what}: larger than the capacity of pool {show(pool.name)}, "
            f"{show_size(pool.capacity)}. Make the pool larger or the tensor smaller"
        )
    if status == StatusCode.SYSTEM_REFUSED:
        raise PoolExhausted(f"cannot allocate {what}: {refusal(pool)}; {usage(pool)}")
    if status == StatusCode.QUOTA_EXCEEDED:
        assert request is not None
        raise QuotaExceededError.later(
            _quota, pool._weak, f"cannot allocate {show_size(nbytes)}", _named(request),
            extra if isinstance(extra, Wait) else None, request._refuser(nbytes), request.quota,
            request.nbytes,
        )  # fmt: skip
    if status == StatusCode.REQUEST_CLOSED:
        assert request is not None
        raise RequestClosedError(
            f"request {show(request.id)} generation {request.generation} {how_over(request)}: nothing can be "
            "allocated for it or changed; open a new request"
        )
    if status == StatusCode.UNKNOWN_DEVICE:
        assert request is not None
        unknown_device(extra, request)
    if status == StatusCode.DUPLICATE_DEVICE:
        raise DuplicateDeviceError(
            f"device {show(extra)} already has to acknowledge{of_request(request)}, which waits for "
            f"{names(request.pending if request else ())}. Add a device once"
        )
    if status == StatusCode.DEVICE_LOST:
        raise DeviceLostError(
            f"cannot allocate {what}: the GPU of pool {show(pool.name)} has failed, and CUDA refuses all "
            "further work on it in this process. Start a new process; the first CUDA error says what failed"
        )
    raise SlabpoolError(f"pool {show(pool.name)}: unexpected status {status}")


def how_over(request: Request) -> str:
    """How the host left a request, for a message."""
    if request.cancelled:
        return "was cancelled"
    return "is released" if request.state.value == "released" else "is closed by the host"


Refuser = tuple[str, object, int, int, int] | None  # kind, id, generation, quota, used


def _quota(
    pool_of: weakref.ref[Pool],
    what: str,
    named: Named,
    wait: Wait | None,
    refuser: Refuser,
    quota: int | None,
    nbytes: int,
) -> str:
    begin = f"{what}{_for_request(named)}{waited(wait)}: "
    if refuser is not None and refuser[0] == "group":
        return f"{begin}{group_use(pool_of, refuser)}{ahead(wait)} {MORE_OF_GROUP}"
    if refuser is not None and named is not None and refuser[2] != named[1]:
        return f"{begin}{around_use(refuser)}{ahead(wait)} Open that with a larger quota="
    if refuser is None:
        return f"{begin}{SET_ASIDE}.{ahead(wait)} Wait with timeout=, or pass a higher priority="
    return (
        f"{begin}its quota of {show_size(quota or 0)} would be exceeded; it holds {show_size(nbytes)} "
        f"itself, and its children and parent count too.{ahead(wait)} Open it with a larger quota="
    )


SET_ASIDE = (
    "a quota had no room at that moment, or what is free of it is set aside for callers that wait for it"
)
MORE_OF_GROUP = "Close some of them, wait with timeout=, or open the group with a larger quota="


def around_use(refuser: tuple[str, object, int, int, int]) -> str:
    """What a request around another one has used of its quota."""
    _, id, generation, quota, used = refuser
    return (
        f"request {show(id)} generation {generation}, around it, holds {show_size(used)} of its quota of "
        f"{show_size(quota)}, its children included."
    )


def group_use(pool_of: weakref.ref[Pool], refuser: tuple[str, object, int, int, int]) -> str:
    """What a group has used of its quota, and what holds most of it now."""
    _, id, _, quota, used = refuser
    text = f"group {show(id)} holds {show_size(used)} of its quota of {show_size(quota)}"
    pool = pool_of()
    if pool is None or not pool._usable_here:  # a forked child may read the text
        return f"{text}."
    held = [r for r in pool.requests() if r.group == id and (r.nbytes or r.reserved)]
    held.sort(key=lambda record: record.nbytes, reverse=True)
    largest = few(
        (f"{_name(record)} {show_size(record.nbytes)}{_reserve(record)}" for record in held), longest=80
    )
    return f"{text}; its largest: {largest or 'none'}.{_sessions_of(pool, id, held)}"


def _reserve(record: RequestRecord) -> str:
    return f" ({show_size(record.reserved)} of its reserve left)" if record.reserved else ""


def _sessions_of(pool: Pool, group: object, held: list[RequestRecord]) -> str:
    """What the sessions of a group keep, and why they do not give way."""
    sessions = [record for record in pool.sessions() if record.group == group and record.nbytes]
    if not sessions:
        return ""
    viewed = {r.request_id for r in held if r.kept_as is not None and r.live_views}
    counts = dict.fromkeys(("in use", "pinned", "with live views", "idle"), 0)
    for record in sessions:
        if record.idle is None:
            why = "in use"
        elif record.pinned:
            why = "pinned"
        else:
            why = "with live views" if record.session_id in viewed else "idle"
        counts[why] += 1
    size = show_size(sum(record.nbytes for record in sessions))
    return f" Its sessions keep {size}: {', '.join(f'{n} {why}' for why, n in counts.items() if n)}."


def busy(pool: Pool) -> NoReturn:
    """Raises for a pool that cannot be closed."""
    raise PoolBusyError(
        f"pool {show(pool.name)} cannot be closed: {usage(pool)}. Held by:{holders(pool)}\n"
        "Release them first, or use close(force=True), which releases the requests (views stay valid)"
    )
