"""The stream-ordered heaps that libraries allocate from, and the request that each allocation counts to.

A pool has one heap, so memory that one library frees can be used by another.

Invariants:
- A heap whose address was passed to a library lives as long as the process, because we cannot know when the
  library frees its last tensor.
- The core cannot ask Python which request is active, so each thread publishes it: when an activation begins
  or ends, and in `publish_request`.
"""

from __future__ import annotations

import threading
import weakref

from slabpool._core import active as _active
from slabpool._core import heaps
from slabpool._core.heaps import StreamHeap
from slabpool._core.pool import Pool
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError, SlabpoolError

_lock = threading.Lock()
_heaps: weakref.WeakKeyDictionary[Pool, StreamHeap] = weakref.WeakKeyDictionary()
_all: tuple[weakref.ref[StreamHeap], ...] = ()  # the same heaps, for reading without the lock
_kept: set[StreamHeap] = set()  # heaps that live as long as the process
_in_force: dict[int, Pool] = {}  # pools that serve torch, by device


def device_of(pool: object, what: str) -> int:
    """Return the number of the pool's CUDA device; errors name the caller `what`."""
    if not isinstance(pool, Pool):
        raise InvalidTypeError(f"{what} needs a Pool of device memory, got {show_typed(pool)}")
    kind, _, number = pool.memory.partition(":")
    if kind != "cuda":
        raise InvalidArgumentError(
            f"{what} needs a pool of device memory (memory='cuda:0'), and pool {show(pool.name)} has "
            f"memory={show(pool.memory)}"
        )
    return int(number)


def by_device(pools: tuple[Pool, ...], what: str) -> dict[int, Pool]:
    """Return the pools by device; raises if there is none, or if two are of the same device."""
    if not pools:
        raise InvalidArgumentError(f"{what} needs a pool for each CUDA device in use, got none")
    found: dict[int, Pool] = {}
    for pool in pools:
        device = device_of(pool, what)
        if device in found:
            raise InvalidArgumentError(
                f"{what}: pools {show(found[device].name)} and {show(pool.name)} are both of device "
                f"{device}; give "
                "one pool for each device"
            )
        found[device] = pool
    return found


def no_room(pool: Pool, size: int) -> str:
    """Return the error message for an allocation of `size` bytes that failed."""
    stats = pool.stats()
    used = stats.live + stats.retained + stats.in_doubt
    return f"pool {show(pool.name)} has no room for {size} bytes: {used} of {stats.capacity} bytes are in use"


def heap_of(pool: Pool, *, for_good: bool = False) -> StreamHeap:
    """Return the heap of a pool of device memory; make it on the first call.

    Set `for_good` if you pass the heap's address to a library. Otherwise keep a reference to the heap as long
    as you use memory of it.
    """
    global _all
    with _lock:
        heap = _heaps.get(pool)
        if heap is None:
            heap = _heaps[pool] = StreamHeap(pool)
            _all = (*(known for known in _all if known() is not None), weakref.ref(heap))
        if for_good:
            _kept.add(heap)
        if publish_request not in _active.on_enter:
            _active.on_enter.append(publish_request)
            _active.on_leave.append(_on_leave)
    publish_request()
    return heap


def serve(pools: tuple[Pool, ...], what: str) -> None:
    """Let each pool's heap serve the C functions that torch calls for its device, until the process ends."""
    wanted = by_device(pools, what)
    with _lock:
        for device, pool in wanted.items():
            other = _in_force.get(device, pool)
            if other is not pool:
                raise SlabpoolError(
                    f"{what}: pool {show(other.name)} is under torch on device {device} already, and "
                    "tensors may "
                    "still use it; use that pool, or a new process"
                )
        _in_force.update(wanted)
    for device, pool in wanted.items():
        heaps.put_in_force(heap_of(pool, for_good=True), device)


def stop_serving(device: int) -> None:
    """Undo `serve` for a device. Only for tests, which know that torch has no memory of the pool any more."""
    with _lock:
        pool = _in_force.pop(device)
        heaps.put_in_force(None, device)
    forget(pool)


def forget(pool: Pool) -> None:
    """Drop the heap of a pool. Only for tests, which know that no library has its address."""
    with _lock:
        heap = _heaps.pop(pool, None)
        if heap is not None:
            _kept.discard(heap)


def publish_request(_: object = None) -> None:
    """Set in every heap the request that allocations of this thread count to: the active one, or none."""
    activation = _active.current()
    request = None if activation is None else activation.request
    for known in _all:
        if (heap := known()) is not None:
            heap.set_request(request)  # a heap of another pool treats it as no request


def _on_leave(activation: _active.Activation) -> None:
    publish_request()
    for known in _all:
        if (heap := known()) is not None:
            heap.end_request(activation.request)
