"""The life of runs on one node: how a run begins, joins, ends, and is acknowledged by every node of its ring.

Invariants:
- The devices of a run's request are the nodes of the ring. A node acknowledges when it will not use the run
  again. So memory returns only when no more tensors of the run are expected; a tensor that arrives later is
  refused.
- On each node at most one run of a request_id is current, because exo keeps its own entries by that id.
- Messages may be lost, repeated or late. `sweep` repeats every message that was not answered. If a run makes
  no progress, `sweep` asks its entry node and the next node whether it is still alive.

Everything runs on the event loop's thread, except `current`, which the engine's thread may call too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Protocol

from slabpool._core.pool import Pool
from slabpool.errors import SlabpoolError, UnknownDeviceError
from slabpool.exo._run import Run, RunRecord
from slabpool.exo._wire import Message, Tag
from slabpool.records import Ack, RequestState

log = logging.getLogger("slabpool.exo")

#: Reasons for an end that are not errors.
FINISHED = "finished"
CLIENT_GONE = "the client disconnected"
#: Number of past runs whose names are kept, to refuse late tensors.
REMEMBERED = 4096
#: Seconds that a prompt waits for the acks of an earlier run with the same id.
GRACE = 5.0


class RunRefusedError(SlabpoolError):
    """A node refuses work on a run, because the run is over or its ring has changed.

    Examples
    --------
    >>> import slabpool
    >>> issubclass(slabpool.exo.RunRefusedError, slabpool.SlabpoolError)
    True
    """


class Surroundings(Protocol):
    """What `Runs` needs from the node."""

    def ring(self) -> tuple[str, ...]:
        """Return the ids of the nodes in the order of their layers, as this node sees it."""

    def peers(self) -> set[str]:
        """Return the ids of the nodes that can be reached."""

    def send(self, peer: str, request_id: str, message: Message) -> None:
        """Send a message in the background. It may be lost."""

    def forget(self, run: Run) -> None:
        """Remove all entries of exo and of the engine for the run on this node."""

    def failed(self, run: Run) -> None:
        """Report the failure of the run to its client, if the client is on this node."""


class Runs:
    """The runs of one node."""

    def __init__(self, me: str, pool: Pool, node: Surroundings) -> None:
        self.me = me
        self.pool = pool
        self._node = node
        self._runs: dict[str, Run] = {}
        self._current: dict[str, Run] = {}
        self._past: dict[str, None] = {}  # in order of their end
        self._count = itertools.count(1)
        self._incarnation = uuid.uuid4().hex[:12]  # so that names stay unique when a node is restarted
        self._swept = 0.0

    # ---- queries

    def current(self, request_id: str) -> Run | None:
        """Return the run of this request id that the node works on, if any."""
        return self._current.get(request_id)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def records(self) -> list[RunRecord]:
        """Return a record of each run, oldest first."""
        now = time.monotonic()
        return [run.record(now) for run in self]

    # ---- beginning of a run

    async def begin(self, request_id: str) -> Run:
        """Open a run for a prompt that enters at this node, after earlier runs of this id have ended."""
        while (earlier := self._current.get(request_id)) is not None:
            await earlier.quiet.wait()
        for earlier in self:
            if earlier.request_id == request_id:
                # Late results of the earlier run may arrive under this id until every node has acknowledged.
                # A silent node delays this run by at most GRACE seconds, because each run has its own memory.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(earlier.released.wait(), GRACE)
        if request_id in self._current:  # another prompt of this id waited too and began first
            return await self.begin(request_id)
        name = f"{self.me}:{self._incarnation}:{next(self._count)}"
        return self._open(request_id, name, self.me, self._node.ring())

    async def join(self, request_id: str, tag: Tag) -> Run:
        """Return the run of work that arrived; open it if this is its first work on this node."""
        run = self._runs.get(tag.run)
        if run is None:
            self._refuse_late(request_id, tag)
            while (other := self._current.get(request_id)) is not None and other.name != tag.run:
                if not other.over and other.entry != tag.entry:
                    raise RunRefusedError(
                        f"request {request_id!r} entered at node {tag.entry} while a request with the same "
                        f"id, from node {other.entry}, is running on node {self.me}; use ids that are unique "
                        "in the ring"
                    )
                # An entry node has at most one run of an id in the ring, so `other` has already ended there.
                self.end(other, "the next prompt with the same id has arrived")
                await other.quiet.wait()
            self._refuse_late(request_id, tag)  # again, because the run may have ended during the wait
            run = self._runs.get(tag.run) or self._open(request_id, tag.run, tag.entry, tag.ring)
        if run.over:
            raise RunRefusedError(f"request {request_id!r} is over on node {self.me}: {run.reason}")
        if self._node.ring() != run.ring:
            self.end(run, f"the ring changed from {', '.join(run.ring)} to {', '.join(self._node.ring())}")
            raise RunRefusedError(f"request {request_id!r} cannot continue on node {self.me}: {run.reason}")
        run.touched = time.monotonic()
        return run

    def _refuse_late(self, request_id: str, tag: Tag) -> None:
        if tag.run in self._past or not (tag.fresh or tag.run in self._runs):
            raise RunRefusedError(
                f"request {request_id!r} (run {tag.run}) is over on node {self.me}; work for it is late"
            )

    def _open(self, request_id: str, name: str, entry: str, ring: tuple[str, ...]) -> Run:
        handle = self.pool.request(request_id, devices=ring)
        run = Run(request_id, name, entry, ring, handle, time.monotonic())
        self._runs[name] = run
        self._current[request_id] = run
        return run

    def tag(self, run: Run) -> Tag:
        """Return the tag for work that this node sends to another node."""
        # The receiver has not seen the run if this is the first step here (or none: this node only forwards
        # the prompt to the first node). Exception: the last node sends to the first one, which has seen it.
        fresh = run.steps <= 1 and (run.steps == 0 or run.ring[-1] != self.me)
        return Tag(run.name, run.entry, run.ring, fresh)

    # ---- end of a run

    def hold(self, run: Run) -> None:
        """Count one more user of the run on this node: work on it, or a message that is being sent."""
        run.busy += 1

    def unhold(self, run: Run) -> None:
        """Undo `hold`; after the last user of a run that is over, this node leaves it."""
        run.busy -= 1
        if run.over and run.busy == 0 and not run.left:
            self._leave(run)

    def end(self, run: Run, reason: str, *, failed: bool = True) -> None:
        """End the run. If it is over already, do nothing.

        This node leaves the run when its last user has called `unhold`.
        """
        if run.over:
            return
        run.reason = reason
        if failed:
            level = logging.INFO if reason == CLIENT_GONE else logging.WARNING
            log.log(level, "request %r ends on node %s: %s", run.request_id, self.me, reason)
            run.handle.cancel()
            self._node.failed(run)
        else:
            run.handle.close()
        if run.busy == 0:
            self._leave(run)
        elif failed:
            self._notify_all(run)  # at once, so that the other nodes need not wait for this one to leave

    def _leave(self, run: Run) -> None:
        run.left = True
        self._node.forget(run)
        if self._current.get(run.request_id) is run:
            del self._current[run.request_id]
        run.state = None  # before the ack, because a live tensor would retain its memory
        run.error = None  # its traceback refers to tensors
        run.quiet.set()
        self._acknowledge(run, self.me)
        self._notify_all(run)

    def _acknowledge(self, run: Run, node: str) -> None:
        if node in run.ring and run.handle.ack(node) is Ack.RELEASED:
            self._remove(run)

    def _remove(self, run: Run) -> None:
        self._runs.pop(run.name, None)
        self._remember(run.name)
        run.released.set()

    def _remember(self, name: str) -> None:
        self._past[name] = None
        while len(self._past) > REMEMBERED:
            del self._past[next(iter(self._past))]

    # ---- messages

    def _notify_all(self, run: Run) -> None:
        waits_for = run.handle.pending
        for node in run.ring:
            if node != self.me:
                self._notify(run, node, node in waits_for)

    def _notify(self, run: Run, node: str, waits: bool) -> None:
        """Send a node the message that the run is over; `waits` asks for its ack."""
        message = Message(self.me, run.name, over=True, done=run.left, waits=waits, reason=run.reason)
        self._node.send(node, run.request_id, message)

    def receive(self, request_id: str, message: Message) -> None:
        """Process a message of another node."""
        run = self._runs.get(message.run)
        if message.over:
            if run is None:
                self._remember(message.run)  # so that work which is still on its way here is refused
            else:
                # Every reason except FINISHED is a failure.
                self.end(run, message.reason or "over", failed=message.reason != FINISHED)
                if message.done:
                    self._acknowledge(run, message.sender)
        if message.waits and (run is None or run.left):
            # While the run is active here there is no answer; `_leave` sends one later.
            waits = run is not None and message.sender in run.handle.pending
            reason = run.reason if run is not None else message.reason or "unknown here"
            self._node.send(
                message.sender, request_id, Message(self.me, message.run, True, True, waits, reason)
            )

    def sweep(self) -> None:
        """Repeat messages that were not answered, ask about runs without progress, and give up on lost nodes.

        The adapter calls this after each peer discovery, which exo runs every two seconds.
        """
        now = time.monotonic()
        peers = self._node.peers()
        for lost in {node for run in self for node in run.ring} - peers - {self.me}:
            self.lost(lost)
        for run in self:
            if run.touched > self._swept:  # active since the last sweep: its messages may still be in transit
                continue
            if run.over:
                for node in run.handle.pending:
                    if node != self.me:
                        self._notify(run, str(node), True)
            elif run.busy == 0:
                # A node that no longer knows the run (it was restarted, or missed the end) answers that it is
                # over.
                question = Message(self.me, run.name, over=False, done=False, waits=True, reason="")
                for node in self._nodes_that_know(run):
                    self._node.send(node, run.request_id, question)
        self._swept = now

    def _nodes_that_know(self, run: Run) -> set[str]:
        """Return the nodes that have surely seen the run: its entry node and the receiver of our work."""
        at = run.ring.index(self.me)
        next_one = run.ring[(at + 1) % len(run.ring)] if run.steps else run.ring[0]
        return {run.entry, next_one} - {self.me}

    def lost(self, node: str) -> None:
        """End the runs of a lost node and its holds on them."""
        for run in self:
            if node in run.ring:
                self.end(run, f"node {node} was lost")
        with contextlib.suppress(UnknownDeviceError):  # raised if no run of this pool ever named the node
            self.pool.device_lost(node)
        for run in self:
            if run.handle.state is RequestState.RELEASED:
                self._remove(run)

    def end_all(self, reason: str) -> None:
        """End every run on this node, and acknowledge for all other nodes."""
        for run in self:
            self.end(run, reason)
        for run in self:
            for node in run.ring:
                if node != self.me:
                    self._acknowledge(run, node)


def one_line(error: BaseException) -> str:
    """Format an error in one line, for messages to other nodes and to clients."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__
