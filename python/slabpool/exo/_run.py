"""One prompt on one node: the memory it has there, and whether anything here still touches it.

What must stay true: `busy` counts everything on this node that may touch the run's memory or exo's entries
for it, or that is on its way to a peer; the node lets go (`left`) once, when the run is over and `busy` is 0.
Used by the event loop's thread alone, but for `state`, which the engine's thread fills while `busy` is not 0.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from slabpool._core.request import Request


class RunRecord(NamedTuple):
    """One run as `Adapter.runs` reports it.

    Examples
    --------
    >>> from slabpool.exo import RunRecord
    >>> print(RunRecord("chat-42", "a:7", "a", ("a", "b"), 2, "finished", frozenset({"b"}), 8192, 0.5))
    request 'chat-42' run a:7 (finished): 8192 bytes, waits for b
    """

    request_id: str
    #: Tells prompts of one id apart, on all nodes.
    run: str
    #: The node it came in at.
    entry: str
    ring: tuple[str, ...]
    #: Generation of its request in this node's pool.
    generation: int
    #: Why it is over; "" while it runs.
    reason: str
    #: Nodes that have not acknowledged.
    pending: frozenset[str]
    #: Bytes of this node's pool that it keeps.
    nbytes: int
    #: Seconds since this node worked on it.
    idle: float

    def __str__(self) -> str:
        waiting = ", ".join(sorted(self.pending)) or "no node"
        return (
            f"request {self.request_id!r} run {self.run} ({self.reason or 'running'}): {self.nbytes} bytes, "
            f"waits for {waiting}"
        )


class Run:
    """A run that this node takes part in, or still waits for acks of."""

    def __init__(
        self, request_id: str, name: str, entry: str, ring: tuple[str, ...], handle: Request, now: float
    ) -> None:
        self.request_id = request_id
        self.name = name
        self.entry = entry
        self.ring = ring
        self.handle = handle
        self.touched = now
        self.busy = 0
        self.steps = 0
        self.reason = ""
        self.left = False
        #: The engine's KV state, in the handle's memory.
        self.state: Any = None
        #: What went wrong in the engine, for messages.
        self.error: BaseException | None = None
        #: This node has let go of it.
        self.quiet = asyncio.Event()
        #: All nodes have; its memory is back.
        self.released = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether no more work may start for it."""
        return self.reason != ""

    def record(self, now: float) -> RunRecord:
        """As a plain value."""
        pending = frozenset(str(device) for device in self.handle.pending)
        return RunRecord(
            self.request_id,
            self.name,
            self.entry,
            self.ring,
            self.handle.generation,
            self.reason,
            pending,
            self.handle.nbytes,
            now - self.touched,
        )
