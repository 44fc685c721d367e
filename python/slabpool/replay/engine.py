"""Replays a schedule in a real pool: real allocations, real acks on device threads, virtual time.

One driver thread plays the host and moves virtual time from event to event; nothing sleeps. The driver keeps
its own list of the holders of each request and compares every answer of the pool with it: a request must be
released exactly once, by its last holder. Each request reserves all bytes that it may need, so an admitted
request never runs out of memory.

A request that does not fit waits. By default it waits in the driver, which opens requests in order of
arrival. With `wait` it waits in the pool's own queue, at most so many seconds of virtual time (waiting.py),
and the driver checks that the pool serves the waiters in the order in which they began to wait.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import slabpool
from slabpool.replay.devices import AckJob, DeviceThreads
from slabpool.replay.outcome import Outcome, ReplayError, Sample
from slabpool.replay.schedule import Schedule
from slabpool.replay.trace import IntArray
from slabpool.replay.waiting import PoolQueue

_ARRIVE, _GROW, _END, _LOSE, _ACK, _LATE_ACK, _GIVE_UP = range(7)
_PAGE = 4096
#: Points of the memory curve, spread evenly over virtual time.
SAMPLES = 2000


def whole_sizes(nbytes: IntArray) -> IntArray:
    """Return the bytes that tensors of these sizes take in a pool, rounding included.

    They are measured in a scratch pool, because the size classes are an internal of the pool.
    """
    sizes = np.unique(nbytes)
    sizes = sizes[sizes > 0]
    whole = {0: 0}
    with slabpool.Pool(max(64 << 20, 2 * int(sizes.max(initial=0)))) as scratch:
        for size in sizes.tolist():
            view = scratch.empty(size, np.uint8)
            whole[size] = scratch.stats().live
            del view
    return np.array([whole[size] for size in nbytes.tolist()], dtype=np.int64)


@dataclass(slots=True)
class _Held:
    """The driver's record of a request that is not yet released."""

    request: slabpool.Request
    views: list[npt.NDArray[np.uint8]]
    #: Devices that have neither acknowledged nor been lost.
    pending: set[int]
    blocks_left: int
    host: bool = True


class Replay:
    """One run of one schedule in one pool.

    Parameters
    ----------
    pool : slabpool.Pool
        Nothing else may use it during the replay.
    schedule : Schedule
    need : ndarray of int64
        Bytes to reserve for each request (`Schedule.need`).
    virtual_end_us : int
        Estimated end, in microseconds; decides the interval between memory samples.
    unique_ids : bool
        Give each request its own id, instead of the same id for all.
    touch : bool
        Write a byte to every allocated page, so that it costs real memory.
    wait : float, optional
        Let requests wait in the pool's queue, each for at most so many seconds of virtual time.
    progress : callable, optional
        Called after every 256 released requests, with 256.
    """

    def __init__(
        self,
        pool: slabpool.Pool,
        schedule: Schedule,
        need: IntArray,
        virtual_end_us: int,
        *,
        unique_ids: bool = False,
        touch: bool = False,
        wait: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._pool = pool
        self._plan = schedule
        self._unique_ids = unique_ids
        self._touch = touch
        self._progress = progress
        self._names = [f"device-{d}" for d in range(schedule.devices)]
        # Lists, because reading an element of a numpy array is several times slower.
        self._arrival = schedule.trace.arrival_us.tolist()
        self._need = need.tolist()
        self._prompt = schedule.prompt_bytes.tolist()
        self._drawn = schedule.blocks_drawn.tolist()
        self._first_block = schedule.first_block_us.tolist()
        self._end = schedule.end_us.tolist()
        self._ack_delay = schedule.ack_delay_us.tolist()
        self._lost_device = schedule.lost_device.tolist()
        self._held: dict[int, _Held] = {}
        #: For each device: the requests that it still holds.
        self._holding: list[set[int]] = [set() for _ in self._names]
        self._waiting: deque[int] = deque()
        self._blocked = False
        self._wait_us = round((wait or 0) * 1e6)
        self._queue = None if wait is None else PoolQueue(pool)
        # Heap of (time, sequence number, kind, request, device, handle of a released request).
        self._events: list[tuple[int, int, int, int, int, slabpool.Request | None]] = []
        self._made = 0
        self._sample_step = max(1, virtual_end_us // SAMPLES)
        self._next_sample = 0
        self._out = Outcome()

    def run(self) -> Outcome:
        """Replay the whole schedule. Call this once.

        Returns
        -------
        Outcome

        Raises
        ------
        PoolExhausted
            A request needs more than the capacity, so it can never be served.
        ReplayError
            The pool refused an allocation within a reservation.
        """
        capacity = self._pool.capacity
        worst = max(range(len(self._need)), key=self._need.__getitem__)
        if self._need[worst] > capacity:
            raise slabpool.PoolExhausted(
                f"request {worst + 1} of the trace needs {self._need[worst]} bytes, but the capacity is "
                f"{capacity} bytes, so it could never be served; raise --capacity"
            )
        out = self._out
        for index, arrival in enumerate(self._arrival):
            self._at(arrival, _ARRIVE, index)
        started = time.perf_counter()
        with DeviceThreads(self._pool, self._names) as self._threads, self._queue or nullcontext():
            while self._events:
                self._step()
            waiting = list(self._waiting) if self._queue is None else self._queue.waiting()
        out.wall_s = time.perf_counter() - started
        out.unserved = len(waiting)
        if waiting:
            first = waiting[0]
            self._out.violated(
                f"{out.unserved} requests still wait although all others are released: request {first + 1} "
                f"of the trace needs {self._need[first]} of {capacity} bytes"
            )
        self._check_counters()
        return out

    # ---- virtual time

    def _at(
        self, when: int, kind: int, index: int, device: int = 0, released: slabpool.Request | None = None
    ) -> None:
        self._made += 1
        heapq.heappush(self._events, (when, self._made, kind, index, device, released))

    def _step(self) -> None:
        """Run all events of the next instant: first the host's, then all devices' concurrently."""
        events = self._events
        if events[0][2] == _GIVE_UP and self._queue is not None and not self._queue.waits(events[0][3]):
            heapq.heappop(events)  # it was served in time
            return
        now = events[0][0]
        lost: set[int] = set()
        acks: list[tuple[int, int]] = []
        late: list[AckJob] = []
        give_up: list[int] = []
        while events and events[0][0] == now:
            _, _, kind, index, device, released = heapq.heappop(events)
            if kind == _GROW:
                self._grow(now, index)
            elif kind == _ACK:
                acks.append((index, device))
            elif kind == _ARRIVE:
                self._waiting.append(index)
            elif kind == _END:
                self._end_of_service(now, index)
            elif kind == _GIVE_UP:
                give_up.append(index)
            elif kind == _LOSE:
                if index in self._holding[device]:
                    lost.add(device)
            elif released is not None:
                late.append(AckJob(index, device, released, 1, True))
        if acks or late or lost:
            self._devices_report(now, acks, late, lost)
        if self._queue is not None:
            self._admit_from_pool(now, self._queue, give_up)
        while self._waiting and not self._blocked:
            self._admit(now)
        if now >= self._next_sample:
            self._sample(now)
        self._out.virtual_us = now

    # ---- the host

    def _admit(self, now: int) -> None:
        """Open the request that has waited longest, or set `_blocked` if there is no room for it."""
        index = self._waiting[0]
        try:
            request = self._pool.request(self._id(index), self._names, reserve=self._need[index] or None)
        except slabpool.PoolExhausted:
            self._blocked = True
            return
        self._waiting.popleft()
        self._serve(now, index, request)

    def _admit_from_pool(self, now: int, queue: PoolQueue, give_up: list[int]) -> None:
        """Let what came back serve the pool's waiters, then let the requests that arrived ask, in order."""
        if not self._blocked:
            self._serve_from_pool(now, queue)
        # What a request that gives up would have had may serve the next one.
        left = sum([queue.leave(index) for index in give_up])
        self._out.timed_out += left
        for index in self._waiting:
            queue.ask(index, self._id(index), self._names, self._need[index] or None)
        if left or self._waiting:
            self._serve_from_pool(now, queue)
        for index in self._waiting:
            if queue.waits(index):
                self._at(now + self._wait_us, _GIVE_UP, index)
        self._waiting.clear()

    def _serve_from_pool(self, now: int, queue: PoolQueue) -> None:
        for index, request in queue.settle():
            self._serve(now, index, request)
        for what in queue.overtaken():
            self._out.violated(what)
        self._blocked = True  # until something comes back

    def _id(self, index: int) -> str:
        return f"replay-{index}" if self._unique_ids else "replay"

    def _serve(self, now: int, index: int, request: slabpool.Request) -> None:
        """Start the service of a request that was opened."""
        out = self._out
        out.opened += 1
        out.waits_us.append(now - self._arrival[index])
        held = _Held(request, [], set(range(len(self._names))), self._drawn[index])
        self._held[index] = held
        for holding in self._holding:
            holding.add(index)
        self._allocate(index, held, self._prompt[index])
        if held.blocks_left:
            self._at(now + self._first_block[index], _GROW, index)
        self._at(now + self._end[index], _END, index)
        if self._lost_device[index] >= 0:
            self._at(now + int(self._plan.lost_us[index]), _LOSE, index, self._lost_device[index])

    def _grow(self, now: int, index: int) -> None:
        held = self._held[index]
        self._allocate(index, held, self._plan.block_bytes)
        held.blocks_left -= 1
        if held.blocks_left:
            self._at(now + self._plan.block_step_us, _GROW, index)

    def _allocate(self, index: int, held: _Held, nbytes: int) -> None:
        if not nbytes:
            return
        try:
            view = held.request.empty(nbytes, np.uint8)
        except slabpool.PoolExhausted as error:
            raise ReplayError(
                f"the pool did not keep the reservation of request {index + 1} of the trace "
                f"({self._need[index]} bytes reserved, {held.request.nbytes} used, {nbytes} requested): "
                f"{error}"
            ) from error
        self._out.allocated += 1
        if self._touch:
            view[::_PAGE] = 1
        held.views.append(view)

    def _end_of_service(self, now: int, index: int) -> None:
        """Drop the host's views, then close or cancel the request."""
        held = self._held[index]
        held.views.clear()
        if self._plan.aborted[index]:
            self._out.aborted += 1
            held.request.cancel()
        else:
            held.request.close()
        held.host = False
        self._blocked = False  # the unused part of the reservation is available again
        delays = self._ack_delay[index]
        for device in held.pending:
            self._at(self._plan.to_tick(now + delays[device]), _ACK, index, device)
        self._settle(now, index, 0)

    # ---- the devices

    def _devices_report(
        self, now: int, acks: list[tuple[int, int]], late: list[AckJob], lost: set[int]
    ) -> None:
        """Run everything that the devices do at one instant, concurrently, and check the answers."""
        plan, out = self._plan, self._out
        # A device sends nothing from the instant of its loss on, and holds nothing after it.
        jobs = [
            AckJob(i, d, self._held[i].request, 2 if plan.duplicate[i, d] else 1, False)
            for i, d in acks
            if d not in lost and i in self._holding[d]
        ]
        self._threads.send(jobs + late)
        # This thread reports the lost devices while the device threads acknowledge.
        for device in sorted(lost):
            name, held = self._names[device], len(self._holding[device])
            count = self._pool.device_lost(name)
            out.devices_lost += 1
            out.holds_lost += held
            if count != held:
                self._out.violated(f"device_lost of {name} ended the holds of {count} requests, not {held}")
        released: dict[int, int] = {}
        for job, answers in self._threads.collect():
            self._judge(job, answers, released)
        for device in lost:
            for index in self._holding[device]:
                self._held[index].pending.discard(device)
                released.setdefault(index, 0)
            self._holding[device].clear()
        for index, times in released.items():
            self._settle(now, index, times, only_acks=not lost)

    def _judge(self, job: AckJob, answers: list[slabpool.Ack], released: dict[int, int]) -> None:
        """Check the answers to a device's acks; count in `released` how many acks released each request."""
        out = self._out
        where = f"{self._names[job.device]} for request {job.row + 1}"
        if job.late:
            out.acks_late += 1
            if answers != [slabpool.Ack.LATE]:
                self._out.violated(f"a late ack of {where} returned {answers}")
            return
        first, again = answers[0], answers[1:]
        out.acks_counted += 1
        out.acks_duplicate += len(again)
        self._held[job.row].pending.discard(job.device)
        self._holding[job.device].discard(job.row)
        released[job.row] = released.get(job.row, 0) + (first is slabpool.Ack.RELEASED)
        if first not in (slabpool.Ack.PENDING, slabpool.Ack.RELEASED):
            self._out.violated(f"the first ack of {where} returned {first}")
        # A repeated ack is LATE if other devices have released the request in the meantime.
        if any(answer not in (slabpool.Ack.DUPLICATE, slabpool.Ack.LATE) for answer in again):
            self._out.violated(f"a repeated ack of {where} returned {again}")

    def _settle(self, now: int, index: int, times: int, *, only_acks: bool = False) -> None:
        """Check a request after some of its holds ended, and drop the record if none is left.

        `times` is the number of acks that returned RELEASED. `only_acks` means that no hold ended in another
        way.
        """
        held = self._held[index]
        over = not held.host and not held.pending
        left = f"with devices {sorted(held.pending)} pending"
        # Exactly one ack returns RELEASED, unless the last hold may have been the host's or a lost device's.
        if times > int(over) or (only_acks and times != int(over)):
            self._out.violated(f"request {index + 1} was released by {times} acks, {left}")
        if (held.request.state is slabpool.RequestState.RELEASED) is not over:
            self._out.violated(f"request {index + 1} is {held.request.state.value}, {left}")
        if not over:
            return
        request = held.request
        del self._held[index]
        self._blocked = False
        out = self._out
        out.released += 1
        if self._progress is not None and out.released % 256 == 0:
            self._progress(256)
        for device in np.flatnonzero(self._plan.late[index]).tolist():
            when = self._plan.to_tick(now + self._ack_delay[index][device] + 1)
            self._at(when, _LATE_ACK, index, device, request)

    # ---- counters

    def _sample(self, now: int) -> None:
        stats = self._pool.stats()
        self._next_sample = now + self._sample_step
        self._out.samples.append(
            Sample(now, stats.live, stats.retained, stats.in_doubt, stats.cached, stats.committed)
        )
        parts = stats.live + stats.retained + stats.in_doubt + stats.cached
        if parts != stats.committed or stats.committed > stats.capacity:
            self._out.violated(f"the byte counts do not add up: {stats}")

    def _check_counters(self) -> None:
        """Compare the pool's counters with the replay's own, after the last event."""
        out = self._out
        self._sample(out.virtual_us)
        stats = self._pool.stats()
        out.stats = stats
        out.leaks = self._pool.leaks()
        counters = {
            "allocations": (stats.allocations, out.allocated),
            "frees": (stats.frees, out.allocated),
            "reserved bytes": (stats.reserved, 0),
            "acks": (stats.acks, out.acks_counted),
            "repeated and late acks": (
                stats.duplicate_acks + stats.late_acks,
                out.acks_duplicate + out.acks_late,
            ),
        }
        for what, (counted, expected) in counters.items():
            if counted != expected:
                self._out.violated(f"the pool counts {counted} {what}, the replay {expected}")
