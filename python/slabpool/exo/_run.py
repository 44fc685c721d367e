"""One prompt on one node: its memory, and whether this node still uses it.

Invariants:
- `busy` counts everything on this node that may access the run's memory or exo's entries for it, and every
  message about it that is being sent.
- The node leaves the run (`left`) once, when the run is over and `busy` is 0.

Only the event loop's thread uses a run, except for `state`, which the engine's thread sets while `busy` is
not 0.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from slabpool._core.request import Request
from slabpool.arguments.sizes import show_size


class RunRecord(NamedTuple):
    """One run, as `Adapter.runs` reports it.

    Examples
    --------
    >>> from slabpool.exo import RunRecord
    >>> print(RunRecord("chat-42", "a:7", "a", ("a", "b"), 2, "finished", frozenset({"b"}), 8192, 0.5))
    request 'chat-42' run a:7 (finished): 8 KiB, waits for b
    """

    request_id: str
    #: Name of the run, unique among all nodes.
    run: str
    #: The node where the prompt entered.
    entry: str
    #: All nodes that work on the run, in the order of their layers.
    ring: tuple[str, ...]
    #: Generation of its request in this node's pool.
    generation: int
    #: Why the run is over; "" while it is running.
    reason: str
    #: Nodes that have not acknowledged.
    pending: frozenset[str]
    #: Bytes of its request in this node's pool.
    nbytes: int
    #: Seconds since this node last worked on it.
    idle: float

    def __str__(self) -> str:
        waiting = ", ".join(sorted(self.pending)) or "no node"
        return (
            f"request {self.request_id!r} run {self.run} ({self.reason or 'running'}): "
            f"{show_size(self.nbytes)}, waits for {waiting}"
        )


class Run:
    """A run that this node takes part in, or for which it still waits for acks."""

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
        #: The engine's last error, for messages.
        self.error: BaseException | None = None
        #: Set when this node has left the run.
        self.quiet = asyncio.Event()
        #: Set when all nodes have acknowledged and the memory is back.
        self.released = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether no more work may start for it."""
        return self.reason != ""

    def record(self, now: float) -> RunRecord:
        """Return the state of the run as a plain value; `now` is from `time.monotonic`."""
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
