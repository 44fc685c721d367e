"""The host of the demo: opens a conversation for each job, closes it after its last token, and times it.

The host waits only for the ring.

Invariant: the host allocates the memory of its records before the run, so growth of the process during the
run is not the host's own bookkeeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slabpool.demo.memory import Conversation, Memory
from slabpool.demo.process import resident_bytes
from slabpool.demo.ring import Acknowledged, Finished
from slabpool.demo.workload import Job, batches
from slabpool.errors import PoolExhausted


class Devices(Protocol):
    """A ring of devices: `ring.Ring` or `processes.ProcessRing`."""

    size: int

    def submit(self, conversation: Conversation) -> None:
        """Start serving a conversation."""

    def acknowledge(self, conversation: Conversation) -> None:
        """Ask every device to acknowledge."""

    def wait(self) -> Finished | Acknowledged:
        """Return the next event."""


@dataclass(frozen=True, slots=True)
class Run:
    """Measurements of a run. Arrays have one row for each job."""

    #: Tokens, of shape ``(jobs, longest)``; -1 where there is no token.
    tokens: npt.NDArray[np.int16]
    #: Seconds from opening the request to its last token; NaN if the request was not answered in full.
    latency: npt.NDArray[np.float64]
    #: Whether the job was served alone, not in a burst.
    alone: npt.NDArray[np.bool_]
    #: Seconds from the first request to the last ack.
    seconds: float
    #: Resident bytes of the process: after the first tenth of the jobs, at the end, and the highest sample.
    resident_after_tenth: int
    resident_final: int
    resident_peak: int
    #: Largest number of unreleased requests at one time, draining ones included.
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
    jobs : sequence of Job
        At least one.
    memory : Memory
        Opens the conversations.
    ring : Devices
        Serves them.
    concurrency : int
        Number of requests in a burst.
    request_id : callable
        Returns the request id of a job.
    advance : callable
        Called with the number of jobs done since the last call.

    Returns
    -------
    Run
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
        # np.full writes every page before the first measurement; np.empty would not.
        self.tokens = np.full((len(jobs), longest), -1, np.int16)
        self.latency = np.full(len(jobs), np.nan)
        self.alone = np.full(len(jobs), False)
        self.most_at_once = 0
        self._opened = np.full(len(jobs), np.nan)
        self._memory = memory
        self._ring = ring
        self._request_id = request_id
        self._unfinished = 0
        self._devices_holding: dict[int, int] = {}  # number of devices, by index of the job

    def serve_batch(self, batch: Sequence[Job]) -> None:
        for job in batch:
            self.alone[job.index] = len(batch) == 1
            self._opened[job.index] = time.perf_counter()
            conversation = self._open(job)
            self._unfinished += 1
            self._devices_holding[job.index] = self._ring.size
            self.most_at_once = max(self.most_at_once, len(self._devices_holding))
            self._ring.submit(conversation)
        while self._unfinished:
            self._handle_event()

    def wait_for_acks(self) -> None:
        while self._devices_holding:
            self._handle_event()

    def _open(self, job: Job) -> Conversation:
        """Open a conversation; while the pool is exhausted, handle events until memory comes back."""
        while True:
            try:
                return self._memory.open(job, self._request_id(job))
            except PoolExhausted:
                if not self._devices_holding:
                    raise  # no device holds memory, so waiting cannot help
            self._handle_event()

    def _handle_event(self) -> None:
        event = self._ring.wait()
        conversation = event.conversation
        index = conversation.job.index
        if isinstance(event, Acknowledged):
            self._devices_holding[index] -= 1
            if not self._devices_holding[index]:
                del self._devices_holding[index]
            return
        self.tokens[index, : len(conversation.tokens)] = conversation.tokens
        if event.complete:
            self.latency[index] = time.perf_counter() - self._opened[index]
        self._unfinished -= 1
        conversation.close()
        self._ring.acknowledge(conversation)
