"""What gives way when a pool has no room: the policy behind every retry of an allocation or a request.

Invariants: memory of a live request or session in use is never taken, and neither is memory with live views.
Nothing is evicted unless that suffices for the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabpool._core.core import FREED, NOTHING, StatusCode

if TYPE_CHECKING:
    from slabpool._core.core import Core

_NOT_MEMORY = frozenset({StatusCode.TOO_MANY_REQUESTS, StatusCode.QUOTA_EXCEEDED})


def give_way(
    core: Core, status: int, nbytes: int, root: tuple[int, int, int] | None = None, pages: bool = False
) -> int:
    """Frees something that the caller lacks. The core calls it after each failed attempt.

    The order: memory that finished copies keep, then memory that stream-ordered heaps keep for reuse, then
    idle sessions: as many as suffice, those of the lowest priority first, of these the longest idle; none if
    not even all of them would suffice.

    Parameters
    ----------
    core : Core
        Of the pool that has no room.
    status : int
        What it lacks, a `StatusCode`: EXHAUSTED or SYSTEM_REFUSED (memory), NO_ADDRESSES, TOO_MANY_REQUESTS
        (a request slot), QUOTA_EXCEEDED.
    nbytes : int
        Bytes that are needed: of the block or, with `pages`, of whole pages beyond those promised to the
        request; for NO_ADDRESSES of addresses.
    root : (int, int, int), optional
        Slot and generation of the request or group that asks. For QUOTA_EXCEEDED it may not be charged so
        many bytes; the third is then the bytes of memory that it needs beyond those promised to it.
    pages : bool
        A free block does not help, only whole pages do.

    Returns
    -------
    int
        FREED: another attempt may succeed. ROOM: also, because there is room now; nothing gave way. NOTHING:
        the attempt fails.
    """
    if core.settle_copies():
        return FREED
    if status not in _NOT_MEMORY and core.trim_heaps():
        return FREED
    sessions = None if core.sessions is None else core.sessions()
    return NOTHING if sessions is None else sessions.make_room(status, nbytes, root, pages)
