"""Records of a pool: figures, events, and writes that it should not have had.

Without ``annotations`` from ``__future__``: see the package.
"""

from typing import NamedTuple

from slabpool.arguments.texts import show


class Stats(NamedTuple):
    """A pool's bytes and counts at one instant.

    Invariants: ``committed == live + retained + in_doubt + cached`` and ``committed <= capacity``. All byte
    counts are of whole blocks, rounding included.

    Attributes
    ----------
    capacity : int
        Limit of ``committed``, in bytes.
    address_space : int
        Bytes of the pool's address range. They cost no memory.
    committed : int
        Bytes of memory that the pool has from the memory resource.
    live : int
        Bytes of blocks held by an open or draining request, or by a view without a request.
    retained : int
        Bytes of released requests that live views still keep.
    in_doubt : int
        Bytes of requests with a device that has been silent for longer than its lease.
    cached : int
        Committed bytes without a holder. They can be allocated or trimmed.
    reserved : int
        Bytes promised by ``reserve=`` and not yet allocated. They are not part of ``committed``.
    peak_live : int
        Highest sum of live, retained and in-doubt bytes so far. It is exact while only one thread
        allocates and frees. With several threads it may be too low, by less than 1/256 of the capacity
        for each thread.
    peak_committed : int
        Highest ``committed`` so far.
    allocations : int
        Blocks allocated so far.
    frees : int
        Blocks freed so far.
    requests_open : int
        Requests that the host holds.
    requests_draining : int
        Requests that the host has closed and some device still holds (those in doubt included).
    requests_in_doubt : int
        Requests with a device that has been silent for longer than its lease.
    acks : int
        Acknowledgements that counted.
    duplicate_acks : int
        Acknowledgements by a device that had already acknowledged the request.
    late_acks : int
        Acknowledgements of a request that was already released.
    stream_acks : int
        Acknowledgements that wait for work on a stream (``ack(device, stream=)``) and do not count yet.
    exhaustions : int
        Allocations and reservations that failed for lack of memory.
    quarantined : int
        The part of ``cached`` that is out of use, because the system refused to commit or to decommit it.
        The pool tries it again when it trims or needs room.
    file_bytes : int
        Bytes that the system keeps for the memory of a shared pool (host memory); 0 for other pools. More
        than ``committed`` if a device wrote or read outside of what it was given. `Pool.trim` gives those
        bytes back.
    fragmented : int
        The part of ``cached`` that no tensor of a page (4 KiB) or more can have now: free bytes between
        blocks on partly used pages, and quarantined bytes. Of a GPU's memory, and of pinned memory, only
        whole granules serve another size; free pages in granules that are partly used are not counted
        here.
    metadata : int
        Bytes of the pool's own records and tables. They are not part of ``committed`` or the capacity.
    waiting : int
        Callers that wait for memory, addresses, a free request or a quota: see `Pool.waiters`.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> array = pool.empty(4096, "u1")
    >>> s = pool.stats()
    >>> s.live, s.allocations, s.frees, s.committed - s.cached
    (4096, 1, 0, 4096)
    """

    capacity: int
    address_space: int
    committed: int
    live: int
    retained: int
    in_doubt: int
    cached: int
    reserved: int
    peak_live: int
    peak_committed: int
    allocations: int
    frees: int
    requests_open: int
    requests_draining: int
    requests_in_doubt: int
    acks: int
    duplicate_acks: int
    late_acks: int
    stream_acks: int
    exhaustions: int
    quarantined: int
    file_bytes: int
    fragmented: int
    metadata: int
    waiting: int


class NumpyUsage(NamedTuple):
    """Memory of a pool in arrays that numpy made under `numpy_handler`. It is part of ``Stats.live``.

    Attributes
    ----------
    arrays : int
        Number of arrays that own memory; their slices and views are not counted.
    nbytes : int
        Bytes of the arrays' blocks, rounding included.

    Examples
    --------
    >>> import slabpool
    >>> slabpool.numpy_usage(slabpool.Pool("1MiB"))
    NumpyUsage(arrays=0, nbytes=0)
    """

    arrays: int
    nbytes: int


class Event(NamedTuple):
    """One entry of the pool's event log.

    Attributes
    ----------
    time_ns : int
        Nanoseconds of the system's monotonic clock.
    thread : int
        The system's id of the thread.
    kind : str
        One of open, allocate, free, ack, close, lost, release, retain, exhausted, keep, adopt.
    generation : int
        Generation of the request; 0 for memory without a request.
    device : str, int or None
        The device that acknowledged or was lost; None for other events.
    nbytes : int
        Bytes that were allocated, freed, released, retained or kept, or whose allocation failed.

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB", events=100)
    >>> pool.request("r").close()
    >>> [(event.kind, event.generation) for event in pool.events()]
    [('open', 1), ('close', 1), ('release', 1)]
    """

    time_ns: int
    thread: int
    kind: str
    generation: int
    device: str | int | None
    nbytes: int

    def __repr__(self) -> str:
        return (
            f"Event(time_ns={self.time_ns}, thread={self.thread}, kind={self.kind!r}, "
            f"generation={self.generation}, device={show(self.device)}, nbytes={self.nbytes})"
        )


class Corruption(NamedTuple):
    """A write past the end of a block. A pool with ``debug`` on finds it when the block is freed.

    Attributes
    ----------
    address : int
        Address of the block.
    nbytes : int
        Its size in bytes, as requested.
    offset : int
        Offset of the first overwritten byte from the end of the block.
    generation : int
        Generation of the block's request; 0 for a block without a request.
    allocated_at : str
        ``file:line`` that allocated the block; "" if no line was recorded.

    Examples
    --------
    >>> import ctypes, slabpool
    >>> pool = slabpool.Pool("1MiB", debug=1)
    >>> array = pool.empty(100, "u1")
    >>> _ = ctypes.memset(array.ctypes.data + 100, 0, 1)  # one byte too far
    >>> del array
    >>> [(found.nbytes, found.offset) for found in pool.corruptions()]
    [(100, 0)]
    """

    address: int
    nbytes: int
    offset: int
    generation: int
    allocated_at: str

    def __repr__(self) -> str:
        return (
            f"Corruption(address={self.address}, nbytes={self.nbytes}, offset={self.offset}, "
            f"generation={self.generation}, allocated_at={show(self.allocated_at)})"
        )
