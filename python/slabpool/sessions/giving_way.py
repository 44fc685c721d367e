"""What gives way when a pool has no room: the policy behind every retry of an allocation or a request.

Invariant: memory of a live request or session in use is never taken, and neither is memory with live views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabpool._core.core import Core


def give_way(core: Core, needs_slot: bool) -> bool:
    """Frees some memory of the pool, the cheapest to free first. The core calls it after each failed attempt.

    The order: memory that finished copies keep, then memory that stream-ordered heaps keep for reuse, then
    the session that has been idle longest.

    Parameters
    ----------
    core : Core
        Of the pool that has no room.
    needs_slot : bool
        Every request slot is taken, rather than memory.

    Returns
    -------
    bool
        Whether another attempt may succeed.
    """
    if core.settle_copies() or core.trim_heaps():
        return True
    sessions = None if core.sessions is None else core.sessions()
    return sessions is not None and sessions.evict_longest_idle(needs_slot)
