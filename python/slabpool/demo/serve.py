"""The host of the demo: opens a session for each job, closes it when its tokens are there, and takes time.

It never waits for anything but the ring. What must stay true: everything it records has its memory from
the start, so that growth of the process during the run is not the host's own bookkeeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slabpool.demo.memory import Memory, Session
from slabpool.demo.process import resident_bytes
from slabpool.demo.ring import Acknowledged, Finished
from slabpool.demo.workload import Job, batches
from slabpool.errors import PoolExhausted


class Devices(Protocol):
    """Who serves: `ring.Ring` or `processes.ProcessRing`."""

    size: int

    def submit(self, session: Session) -> None:
        """Start serving a session."""

    def acknowledge(self, session: Session) -> None:
        """Tell every device that the host is done."""

    def wait(self) -> Finished | Acknowledged:
        """The next thing that happened."""


@dataclass(frozen=True, slots=True)
class Run:
    """What happened, one row for each job."""

    #: ``(jobs, longest)`` tokens; -1 where there is none.
    tokens: npt.NDArray[np.int16]
    #: Seconds from opening the request to its last token; not a number for one that was not answered.
    latency: npt.NDArray[np.float64]
    #: Whether the job was served with no other beside it.
    alone: npt.NDArray[np.bool_]
    #: Seconds from the first request to the last ack.
    seconds: float
    #: Resident bytes of the process: after the first tenth, at the end, and the highest seen in between.
    resident_after_tenth: int
    resident_final: int
    resident_peak: int
    #: Most requests whose memory was out at one time, draining ones included.
    most_at_once: int


def serve(
    jobs: Sequence[Job],
    memory: Memory,
    ring: Devices,
    concurrency: int,
    request_id: Callable[[Job], str],
    advance: Callable[[int], None],
) -> Run:
    """Serve every job, in batches (see `workload.batches`).

    Parameters
    ----------
    jobs
        At least one.
    memory, ring
        Where sessions come from and who serves them.
    concurrency
        Size of a burst.
    request_id
        Id under which a job is opened.
    advance
        Called with the number of jobs done since the last call.
    """
    host = _Host(jobs, memory, ring, request_id)
    tenth = max(1, len(jobs) // 10)
    resident_after_tenth = resident_peak = 0
    done = 0
    began = time.perf_counter()
    for batch in batches(jobs, concurrency):
        host.serve_batch(batch)
        before, done = done, done + len(batch)
        advance(len(batch))
        if before < tenth <= done:
            resident_after_tenth = resident_bytes()
        if done * 100 // len(jobs) != before * 100 // len(jobs):
            resident_peak = max(resident_peak, resident_bytes())
    host.wait_for_acks()
    seconds = time.perf_counter() - began
    return Run(
        tokens=host.tokens,
        latency=host.latency,
        alone=host.alone,
        seconds=seconds,
        resident_after_tenth=resident_after_tenth,
        resident_final=resident_bytes(),
        resident_peak=resident_peak,
        most_at_once=host.most_at_once,
    )


class _Host:
    def __init__(
        self, jobs: Sequence[Job], memory: Memory, ring: Devices, request_id: Callable[[Job], str]
    ) -> None:
        longest = max(job.generate for job in jobs)
        # `full`, not `empty`: the pages are there before the first measurement.
        self.tokens = np.full((len(jobs), longest), -1, np.int16)
        self.latency = np.full(len(jobs), np.nan)
        self.alone = np.full(len(jobs), False)
        self.most_at_once = 0
        self._opened = np.full(len(jobs), np.nan)
        self._memory = memory
        self._ring = ring
        self._request_id = request_id
        self._unfinished = 0
        self._devices_holding: dict[int, int] = {}  # by index of the job

    def serve_batch(self, batch: Sequence[Job]) -> None:
        for job in batch:
            self.alone[job.index] = len(batch) == 1
            self._opened[job.index] = time.perf_counter()
            session = self._open(job)
            self._unfinished += 1
            self._devices_holding[job.index] = self._ring.size
            self.most_at_once = max(self.most_at_once, len(self._devices_holding))
            self._ring.submit(session)
        while self._unfinished:
            self._handle_event()

    def wait_for_acks(self) -> None:
        while self._devices_holding:
            self._handle_event()

    def _open(self, job: Job) -> Session:
        """Open a session, as soon as there is memory for it."""
        while True:
            try:
                return self._memory.open(job, self._request_id(job))
            except PoolExhausted:
                if not self._devices_holding:
                    raise  # nobody is going to give anything back
            self._handle_event()

    def _handle_event(self) -> None:
        event = self._ring.wait()
        session = event.session
        index = session.job.index
        if isinstance(event, Acknowledged):
            self._devices_holding[index] -= 1
            if not self._devices_holding[index]:
                del self._devices_holding[index]
            return
        self.tokens[index, : len(session.tokens)] = session.tokens
        if event.complete:
            self.latency[index] = time.perf_counter() - self._opened[index]
        self._unfinished -= 1
        session.close()
        self._ring.acknowledge(session)
