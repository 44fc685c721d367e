"""What gives way when a pool has no room: the policy behind every retry of an allocation or a request.

Invariant: memory of a live request or session in use is never taken, and neither is memory with live views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slabpool._core.core import StatusCode

if TYPE_CHECKING:
    from slabpool._core.core import Core


def give_way(core: Core, status: int, nbytes: int, request: int | None) -> bool:
    """Frees some memory of the pool, the cheapest to free first. The core calls it after each failed attempt.

    The order: memory that finished copies keep, then memory that stream-ordered heaps keep for reuse, then
    the session that has been idle longest.

    Parameters
    ----------
    core : Core
        Of the pool that has no room.
    status : int
        The `StatusCode` of the attempt: EXHAUSTED, SYSTEM_REFUSED, TOO_MANY_REQUESTS or NO_ADDRESSES.
    nbytes : int
        Bytes that the attempt needs; 0 if it is not memory.
    request : int or None
        Generation of the request in which the caller allocates.

    Returns
    -------
    bool
        Whether another attempt may succeed.
    """
    if core.settle_copies() or core.trim_heaps():
        return True
    sessions = None if core.sessions is None else core.sessions()
    if sessions is None:
        return False
    return sessions.evict_longest_idle(status in (StatusCode.TOO_MANY_REQUESTS, StatusCode.NO_ADDRESSES))
