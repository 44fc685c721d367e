"""Errors of sessions: which session, how many bytes, and what to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NoReturn

from slabpool.arguments.sizes import show_size
from slabpool.arguments.texts import few, short, show
from slabpool.errors import (
    InvalidArgumentError,
    PoolClosedError,
    PoolExhausted,
    QuotaExceededError,
    RequestClosedError,
    SessionLostError,
)
from slabpool.messages.pool import MORE_OF_GROUP, group_use, held_at, usage

if TYPE_CHECKING:
    from slabpool._core.pool import Pool, Snapshot
    from slabpool.sessions.state import State


def pool_gone() -> NoReturn:
    """Raises for a session whose pool object is gone."""
    raise PoolClosedError(
        "the pool of this session is gone. Keep a reference to the pool or to the Session while it is used"
    )


def lost(state: State) -> NoReturn:
    """Raises for a session that is over."""
    how = {
        "closed": "was closed",
        "closed with its group": "was closed with its group",
        "expired": f"expired: no request used it for its ttl of {state.ttl} s",
        "evicted": f"was evicted while it was idle, because the pool had no room ({state.lost_for}),",
    }.get(state.lost or "", "was closed with its pool")
    ago = (time.monotonic_ns() - state.lost_ns) / 1e9 if state.lost else 0.0
    # Of a session that was closed, requests may go on.
    back = (
        "was returned"
        if state.lost in ("expired", "evicted")
        else "returns with the last request that uses it"
    )
    what = f"session({show(state.id)})"
    if state.group is None:
        group, opens = "", f"pool.{what} opens a new one"
    else:
        group = f" of group {show(state.group.id)}"
        opens = f"{what}{group} opens a new one"
        if state.lost == "closed with its group":
            opens = f"pool.group({show(state.group.id)}) opens a new group"
    raise SessionLostError(
        f"session {show(state.id)}{group} {how} {ago:.1f} s ago; its memory {back}. {opens}"
    )


def calls_back(session_id: object) -> NoReturn:
    """Raises for a session that an on_evict callback opens or keeps something in."""
    raise PoolExhausted(
        f"session {show(session_id)} can take nothing now: an on_evict callback of this pool is running on "
        "this thread, because the pool has no room. Copy what leaves to other memory, or to another pool"
    )


def not_pinned(state: State) -> NoReturn:
    """Raises for an unpin() without a pin()."""
    raise InvalidArgumentError(
        f"session {show(state.id)} is not pinned. Each unpin() takes back one pin(); a with statement over "
        "pin() does so at its end"
    )


def no_slot(pool: Pool, session_id: object) -> NoReturn:
    """Raises if every request slot is taken."""
    raise PoolExhausted.later(_no_slot, pool.name, session_id, pool._snapshot())


def _no_slot(name: str, session_id: object, snapshot: Snapshot) -> str:
    return (
        f"cannot keep anything for session {show(session_id)}: pool {show(name)} has as many requests and "
        f"kept tensors as it can hold. The largest:{held_at(snapshot)}"
    )


def system_refuses(pool: Pool, state: State, name: str) -> NoReturn:
    """Raises if the system refuses memory for the record of a kept tensor."""
    raise PoolExhausted(
        f"session {show(state.id)} cannot keep {show(name)}: the system refuses memory for the record of it; "
        f"{usage(pool)}"
    )


def budget_below(state: State, budget: int) -> NoReturn:
    """Raises for a new budget that is less than what the session keeps."""
    raise QuotaExceededError(
        f"session {show(state.id)} keeps {show_size(state.nbytes)}, more than a budget of "
        f"{show_size(budget)}. "
        "drop() some of it first"
    )


def budget_exceeded(state: State, name: str, nbytes: int) -> NoReturn:
    """Raises for a tensor that the session's own budget does not allow."""
    figures = state.shelf.figures()
    budget = 0 if figures is None else figures[1] or 0
    kept = few(
        f"{short(repr(other), 20)} {show_size(block.kept.nbytes)}"
        for other, (block, _) in list(state.tensors.items())
    )
    raise QuotaExceededError(
        f"session {show(state.id)} cannot keep {show(name)} of {show_size(nbytes)}: it keeps "
        f"{show_size(state.nbytes)} of its budget of {show_size(budget)} ({kept or 'nothing'}). drop() some "
        f"of it, or give pool.session({show(state.id)}, budget=...) more"
    )


def group_exceeded(pool: Pool, state: State, name: str, nbytes: int) -> None:
    """Raises for a tensor that the quota of the session's group does not allow; returns if it allows it."""
    refuser = state.shelf.refuser(nbytes)
    if refuser is not None and refuser[0] == "group":
        raise QuotaExceededError(
            f"session {show(state.id)} cannot keep {show(name)} of {show_size(nbytes)}: "
            f"{group_use(pool._weak, refuser)} {MORE_OF_GROUP}"
        )


def waits_for_others(pool: Pool, state: State, name: str, nbytes: int) -> NoReturn:
    """Raises for a tensor for which the quota or a budget has room that is set aside for waiters."""
    raise QuotaExceededError(
        f"session {show(state.id)} cannot keep {show(name)} of {show_size(nbytes)}: what is free of the "
        f"quota is set aside for callers that wait for it ({pool.stats().waiting} wait). Keep it again once "
        "they are served"
    )


def session_budget_exceeded(pool: Pool, state: State, name: str, nbytes: int, budget: int) -> NoReturn:
    """Raises for a tensor that the budget of all sessions does not allow."""
    records = pool.sessions()
    total = sum(record.nbytes for record in records)
    raise QuotaExceededError(
        f"session {show(state.id)} cannot keep {show(name)} of {show_size(nbytes)}: {len(records)} "
        "sessions keep "
        f"{show_size(total)} of the pool's session_budget of {show_size(budget)}, and evicting the idle ones "
        "would not make enough room. Raise pool.session_budget, or close sessions"
    )


def nothing_to_keep(pool: Pool, state: State, name: str, tensor: object) -> NoReturn:
    """Raises for a tensor that is in no request's memory."""
    shape = getattr(tensor, "shape", None)
    raise InvalidArgumentError(
        f"session {show(state.id)} cannot keep {show(name)}: the array of shape {shape} is not in the "
        "memory of a "
        f"request of pool {show(pool.name)}. Keep an array that a request made, or keep request.copy(array)"
    )


def kept_elsewhere(state: State, name: str, other: State) -> NoReturn:
    """Raises for a tensor that another session keeps."""
    raise InvalidArgumentError(
        f"session {show(state.id)} cannot keep {show(name)}: session {show(other.id)} keeps its memory "
        "already. Keep a "
        "copy: request.copy(array)"
    )


def growth_of_the_dropped(session_id: object, name: str) -> NoReturn:
    """Raises for a tensor that grows after its session has dropped it."""
    raise RequestClosedError(
        f"the tensor that session {show(session_id)} kept as {show(name)} cannot grow any more: it was "
        "dropped or "
        "replaced, or the session is over. Its arrays stay valid; get the current one from the session"
    )


def not_kept(state: State, name: str, *, closed: bool) -> NoReturn:
    """Raises for a tensor whose request is released, or which a session kept and dropped."""
    if closed:
        raise RequestClosedError(
            f"session {show(state.id)} cannot keep {show(name)}: its request is released, and only live "
            "views retain "
            "the memory. Call keep() before the last holder leaves"
        )
    raise InvalidArgumentError(
        f"session {show(state.id)} cannot keep {show(name)}: its memory was kept before and has been "
        "dropped or "
        "replaced; it is returned with the requests that may still read it. Keep a copy: request.copy(array)"
    )
