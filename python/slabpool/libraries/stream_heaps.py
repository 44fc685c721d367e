"""The stream-ordered heaps that CUDA libraries allocate from, and the requests that their memory belongs to.

Each pool has one heap, so that memory which one library frees can be reused by another. Invariants: a heap
whose address a library has lives as long as the process, because the library may free its last tensor at any
time; the core knows the request of each thread's innermost activation, as of the last time that an activation
began or ended on that thread or `tell()` was called. (The core cannot ask Python for it.)
"""

from __future__ import annotations

import threading
import weakref

from slabpool._core import active as _active
from slabpool._core import heaps
from slabpool._core.heaps import StreamHeap
from slabpool._core.pool import Pool
from slabpool.errors import InvalidArgumentError, InvalidTypeError, SlabpoolError

_lock = threading.Lock()
_heaps: weakref.WeakKeyDictionary[Pool, StreamHeap] = weakref.WeakKeyDictionary()
_all: tuple[weakref.ref[StreamHeap], ...] = ()  # the same heaps, read without the lock
_kept: set[StreamHeap] = set()  # until the process ends
_in_force: dict[int, Pool] = {}  # by device


def device_of(pool: object, what: str) -> int:
    """The CUDA device of a pool's memory. `what` names the caller in messages."""
    if not isinstance(pool, Pool):
        raise InvalidTypeError(
            f"{what} needs a Pool of device memory, got {pool!r} of type {type(pool).__name__}"
        )
    kind, _, number = pool.memory.partition(":")
    if kind != "cuda":
        raise InvalidArgumentError(
            f"{what} needs a pool of device memory (memory='cuda:0'), and pool {pool.name!r} has "
            f"memory={pool.memory!r}"
        )
    return int(number)


def heap_of(pool: Pool, *, for_good: bool = False) -> StreamHeap:
    """The heap of a pool of device memory, the same each time. From now on the core knows each activation.

    With `for_good` it lives until the process ends, for callers that give its address to a library. Other
    callers keep the heap with what they allocate.
    """
    global _all
    with _lock:
        heap = _heaps.get(pool)
        if heap is None:
            heap = _heaps[pool] = StreamHeap(pool)
            _all = (*(known for known in _all if known() is not None), weakref.ref(heap))
        if for_good:
            _kept.add(heap)
        if tell not in _active.on_enter:
            _active.on_enter.append(tell)
            _active.on_leave.append(_left)
    tell()
    return heap


def serve(pools: tuple[Pool, ...], what: str) -> None:
    """Lets each pool's heap serve what torch allocates on its device, until the process ends."""
    if not pools:
        raise InvalidArgumentError(f"{what} needs a pool for each device that torch will use, got none")
    wanted: dict[int, Pool] = {}
    for pool in pools:
        device = device_of(pool, what)
        if device in wanted:
            raise InvalidArgumentError(
                f"{what}: pools {wanted[device].name!r} and {pool.name!r} are both of device {device}, which "
                "can have one pool under torch"
            )
        wanted[device] = pool
    with _lock:
        for device, pool in wanted.items():
            other = _in_force.get(device, pool)
            if other is not pool:
                raise SlabpoolError(
                    f"{what}: pool {other.name!r} serves torch on device {device} already, and tensors in it "
                    "may be alive; use that pool, or another process"
                )
        _in_force.update(wanted)
    for device, pool in wanted.items():
        heaps.put_in_force(heap_of(pool, for_good=True), device)


def stop_serving(device: int) -> None:
    """For tests, after every library has freed its memory of the device's pool."""
    with _lock:
        pool = _in_force.pop(device)
        heaps.put_in_force(None, device)
    forget(pool)


def forget(pool: Pool) -> None:
    """As above, for a pool whose heap no library uses."""
    with _lock:
        heap = _heaps.pop(pool, None)
        if heap is not None:
            _kept.discard(heap)


def tell(_: object = None) -> None:
    """Sets the request that this thread's allocations belong to, in the core."""
    activation = _active.current()
    request = None if activation is None else activation.request
    for known in _all:
        if (heap := known()) is not None:
            heap.set_request(request)  # heaps of other pools take it as no request


def _left(activation: _active.Activation) -> None:
    tell()
    for known in _all:
        if (heap := known()) is not None:
            heap.end_request(activation.request)
