"""The stream-ordered heap of each pool that libraries allocate from, and whose memory that is.

One heap a pool, so that what one library frees serves another. What must stay true: a heap that a library
has in its hands as a bare address lives as long as the process, because nobody can tell when that library
has let go of its last tensor. And the request that a thread allocates for is told to the core, which cannot
ask Python: it is that of the innermost activation, as of the last time that one began or ended on that
thread, or that `tell()` was called.
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
_all: tuple[weakref.ref[StreamHeap], ...] = ()  # the same, for those who look without the lock
_kept: set[StreamHeap] = set()  # for good
_in_force: dict[int, Pool] = {}  # by device


def device_of(pool: object, what: str) -> int:
    """The CUDA device whose memory the pool has; `what` is who asks."""
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
    """The heap of a pool of device memory, the same each time, and activations are told to the core from
    here on.

    `for_good` is for those who give its address to a library; others keep it with what they allocate.
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
    """Puts each pool's heap in force for its device: it serves the C symbols that torch calls. For good."""
    if not pools:
        raise InvalidArgumentError(f"{what} needs a pool for each device that torch will use, got none")
    wanted: dict[int, Pool] = {}
    for pool in pools:
        device = device_of(pool, what)
        if device in wanted:
            raise InvalidArgumentError(
                f"{what}: pools {wanted[device].name!r} and {pool.name!r} are both of device {device}, which "
                "has one pool under torch"
            )
        wanted[device] = pool
    with _lock:
        for device, pool in wanted.items():
            other = _in_force.get(device, pool)
            if other is not pool:
                raise SlabpoolError(
                    f"{what}: pool {other.name!r} is under torch on device {device} since before, and its "
                    "tensors may live; use that pool, or another process"
                )
        _in_force.update(wanted)
    for device, pool in wanted.items():
        heaps.put_in_force(heap_of(pool, for_good=True), device)


def stop_serving(device: int) -> None:
    """For those who know that no library has memory of the device's pool any more: tests."""
    with _lock:
        pool = _in_force.pop(device)
        heaps.put_in_force(None, device)
    forget(pool)


def forget(pool: Pool) -> None:
    """As above, of a pool whose heap is in nobody's hands."""
    with _lock:
        heap = _heaps.pop(pool, None)
        if heap is not None:
            _kept.discard(heap)


def tell(_: object = None) -> None:
    """Tells the core whose memory this thread allocates from here on."""
    activation = _active.current()
    request = None if activation is None else activation.request
    for known in _all:
        if (heap := known()) is not None:
            heap.set_request(request)  # those of other pools take it for nobody's


def _left(activation: _active.Activation) -> None:
    tell()
    for known in _all:
        if (heap := known()) is not None:
            heap.end_request(activation.request)
