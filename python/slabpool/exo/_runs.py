"""The rules for runs on one node: how one begins, joins, ends, and is acknowledged by every node of its ring.

What must stay true:
- A run's request names every node of the ring. A node acknowledges once it will not touch the run again; so
  memory goes back when no tensor of the run can arrive any more, and what arrives all the same is refused.
- Of one request_id at most one run is current on a node, for exo keeps its own entries by that id.
- Messages may be lost, repeated or late. What was not answered is said again by `sweep`, and a run that
  nobody has worked on is asked about at the node it came in at.

All of it runs on the event loop's thread; `current` may also be asked by the engine's thread.
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

#: Reasons that are no error.
FINISHED = "finished"
CLIENT_GONE = "the client went away"
#: Runs that are over and forgotten, of which late tensors are still recognised by name.
REMEMBERED = 4096
#: Seconds that a prompt waits for the acks of the run before it with the same id.
GRACE = 5.0


class RunRefusedError(SlabpoolError):
    """A node does not take part in a run: it is over, or its ring is no longer the ring.

    Examples
    --------
    >>> import slabpool
    >>> issubclass(slabpool.exo.RunRefusedError, slabpool.SlabpoolError)
    True
    """


class Surroundings(Protocol):
    """What the rules need of the node."""

    def ring(self) -> tuple[str, ...]:
        """Ids of the nodes in the order of their layers, as this node sees it."""

    def peers(self) -> set[str]:
        """Ids of the nodes that can be reached."""

    def send(self, peer: str, request_id: str, message: Message) -> None:
        """Sends, later, without waiting; may fail."""

    def forget(self, run: Run) -> None:
        """Drops all that exo and the engine keep for the run on this node."""

    def failed(self, run: Run) -> None:
        """Tells whoever waits for the run on this node that nothing more comes."""


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
        self._incarnation = uuid.uuid4().hex[:12]  # a node that was started again makes new names
        self._swept = 0.0

    # ---- looking

    def current(self, request_id: str) -> Run | None:
        """The run of this id that the node works on."""
        return self._current.get(request_id)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def records(self) -> list[RunRecord]:
        """All of them, oldest first."""
        now = time.monotonic()
        return [run.record(now) for run in self]

    # ---- a run's beginning

    async def begin(self, request_id: str) -> Run:
        """A new run for a prompt that comes in here. Waits while one of the same id is still going."""
        while (earlier := self._current.get(request_id)) is not None:
            await earlier.quiet.wait()
        for earlier in self:
            if earlier.request_id == request_id:
                # Until every node has acknowledged, late results of the earlier one may still come in under
                # the id. Its memory is its own in any case, so a silent node does not hold this one up.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(earlier.released.wait(), GRACE)
        if request_id in self._current:  # somebody else waited too, and was first
            return await self.begin(request_id)
        name = f"{self.me}:{self._incarnation}:{next(self._count)}"
        return self._open(request_id, name, self.me, self._node.ring())

    async def join(self, request_id: str, tag: Tag) -> Run:
        """The run of work that arrived, opened here if this is its first."""
        run = self._runs.get(tag.run)
        if run is None:
            self._refuse_late(request_id, tag)
            while (other := self._current.get(request_id)) is not None and other.name != tag.run:
                if not other.over and other.entry != tag.entry:
                    raise RunRefusedError(
                        f"request {request_id!r} came in at node {tag.entry} while one of the same id, from "
                        f"node {other.entry}, is running on node {self.me}; use ids unique in the ring"
                    )
                # The entry lets one run of an id at a time into the ring: it has seen the end of this one.
                self.end(other, "the next prompt of the same id is here")
                await other.quiet.wait()
            self._refuse_late(request_id, tag)  # its end may have come in the meantime
            run = self._runs.get(tag.run) or self._open(request_id, tag.run, tag.entry, tag.ring)
        if run.over:
            raise RunRefusedError(f"request {request_id!r} is over on node {self.me}: {run.reason}")
        if self._node.ring() != run.ring:
            self.end(run, f"the ring changed from {', '.join(run.ring)} to {', '.join(self._node.ring())}")
            raise RunRefusedError(f"request {request_id!r} cannot go on at node {self.me}: {run.reason}")
        run.touched = time.monotonic()
        return run

    def _refuse_late(self, request_id: str, tag: Tag) -> None:
        if tag.run in self._past or not (tag.fresh or tag.run in self._runs):
            raise RunRefusedError(
                f"request {request_id!r} (run {tag.run}) is over on node {self.me}; this came late"
            )

    def _open(self, request_id: str, name: str, entry: str, ring: tuple[str, ...]) -> Run:
        handle = self.pool.request(request_id, devices=ring)
        run = Run(request_id, name, entry, ring, handle, time.monotonic())
        self._runs[name] = run
        self._current[request_id] = run
        return run

    def tag(self, run: Run) -> Tag:
        """For work on the run that this node passes on."""
        # In its first turn on this node, the next in the ring has not seen it: except after the last, which
        # hands on to the first. A node that only passes the prompt on to the first has had no turn yet.
        fresh = run.steps <= 1 and (run.steps == 0 or run.ring[-1] != self.me)
        return Tag(run.name, run.entry, run.ring, fresh)

    # ---- its end

    def hold(self, run: Run) -> None:
        """Something on this node starts to touch the run, or to send for it."""
        run.busy += 1

    def let_go(self, run: Run) -> None:
        """The opposite of `hold`."""
        run.busy -= 1
        if run.over and run.busy == 0 and not run.left:
            self._leave(run)

    def end(self, run: Run, reason: str, *, failed: bool = True) -> None:
        """The run is over, for this reason; again: nothing happens.

        This node lets go of it when nothing here is busy with it any more.
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
            self._tell_all(run)  # the others can stop before this node has come to a halt

    def _leave(self, run: Run) -> None:
        run.left = True
        self._node.forget(run)
        if self._current.get(run.request_id) is run:
            del self._current[run.request_id]
        run.state = None  # before the ack: what is not dropped now is retained
        run.error = None  # its traceback leads to tensors
        run.quiet.set()
        self._acknowledge(run, self.me)
        self._tell_all(run)

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

    def _tell_all(self, run: Run) -> None:
        waits_for = run.handle.pending
        for node in run.ring:
            if node != self.me:
                self._tell(run, node, node in waits_for)

    def _tell(self, run: Run, node: str, waits: bool) -> None:
        message = Message(self.me, run.name, over=True, done=run.left, waits=waits, reason=run.reason)
        self._node.send(node, run.request_id, message)

    def hear(self, request_id: str, message: Message) -> None:
        """Takes in what another node says."""
        run = self._runs.get(message.run)
        if message.over:
            if run is None:
                self._remember(message.run)  # its work may still be on the way here: it will be refused
            else:
                # A finish is told by the last node when it is done with it; all else is a failure.
                self.end(run, message.reason or "over", failed=message.reason != FINISHED)
                if message.done:
                    self._acknowledge(run, message.sender)
        if message.waits and (run is None or run.left):
            # Not answered while it goes on here: the answer then comes when this node leaves.
            waits = run is not None and message.sender in run.handle.pending
            reason = run.reason if run is not None else message.reason or "unknown here"
            self._node.send(
                message.sender, request_id, Message(self.me, message.run, True, True, waits, reason)
            )

    def sweep(self) -> None:
        """Says again what was not answered, asks about runs that stand still, and gives up on lost nodes.

        Called whenever the node has looked for its peers, which exo does every other second.
        """
        now = time.monotonic()
        peers = self._node.peers()
        for lost in {node for run in self for node in run.ring} - peers - {self.me}:
            self.lost(lost)
        for run in self:
            if run.touched > self._swept:  # news of it may still be on the way
                continue
            if run.over:
                for node in run.handle.pending:
                    if node != self.me:
                        self._tell(run, str(node), True)
            elif run.busy == 0:
                # Unknown there: that node was started again, or had given this one up.
                question = Message(self.me, run.name, over=False, done=False, waits=True, reason="")
                for node in self._who_knows(run):
                    self._node.send(node, run.request_id, question)
        self._swept = now

    def _who_knows(self, run: Run) -> set[str]:
        """Nodes that have seen the run for certain: it came in at one and was handed on to the other."""
        at = run.ring.index(self.me)
        next_one = run.ring[(at + 1) % len(run.ring)] if run.steps else run.ring[0]
        return {run.entry, next_one} - {self.me}

    def lost(self, node: str) -> None:
        """A node is gone: its acks count as given, and what ran on it is over."""
        for run in self:
            if node in run.ring:
                self.end(run, f"node {node} was lost")
        with contextlib.suppress(UnknownDeviceError):  # no run of this pool ever named it
            self.pool.device_lost(node)
        for run in self:
            if run.handle.state is RequestState.RELEASED:
                self._remove(run)

    def end_all(self, reason: str) -> None:
        """Ends every run on this node, and waits for no other's ack any more."""
        for run in self:
            self.end(run, reason)
        for run in self:
            for node in run.ring:
                if node != self.me:
                    self._acknowledge(run, node)


def one_line(error: BaseException) -> str:
    """An error for messages to other nodes and to clients."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__
