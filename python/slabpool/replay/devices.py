"""Device threads, which send acknowledgements.

At each instant of virtual time the driver gives each device its acks and waits until all devices have
answered. So the acks of one instant race with each other, and a run still repeats exactly, except for which
of two racing acks is the last one.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple

import slabpool


class AckJob(NamedTuple):
    """One device's acknowledgement of one request."""

    #: Row of the trace.
    row: int
    device: int
    request: slabpool.Request
    #: How many times to send it, back to back.
    times: int
    #: Whether the request was released before this ack is sent.
    late: bool


#: Jobs with the pool's answers, in the order in which they were sent.
_Answers = list[tuple[AckJob, list[slabpool.Ack]]]


class DeviceThreads:
    """One thread for each device, each with an inbox.

    Half of the acks use the request's handle. The others use `Pool.ack` with id and generation, as an engine
    does that passes on only these.
    """

    def __init__(self, pool: slabpool.Pool, names: list[str]) -> None:
        self._pool = pool
        self._names = names
        self._inboxes: list[SimpleQueue[list[AckJob] | None]] = [SimpleQueue() for _ in names]
        self._answers: SimpleQueue[_Answers | BaseException] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(device,), name=f"replay {name}", daemon=True)
            for device, name in enumerate(names)
        ]
        self._outstanding = 0

    def __enter__(self) -> DeviceThreads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def send(self, jobs: list[AckJob]) -> None:
        """Put each job into the inbox of its device, without waiting."""
        shares: dict[int, list[AckJob]] = {}
        for job in jobs:
            shares.setdefault(job.device, []).append(job)
        self._outstanding += len(shares)
        for device, share in shares.items():
            self._inboxes[device].put(share)

    def collect(self) -> _Answers:
        """Wait until all jobs sent are done; return the answers by device and row.

        Raises
        ------
        BaseException
            An error that a call on a device thread raised.
        """
        answers: _Answers = []
        failure: BaseException | None = None
        while self._outstanding:
            share = self._answers.get()
            self._outstanding -= 1
            if isinstance(share, BaseException):
                failure = share
            else:
                answers += share
        if failure is not None:
            raise failure
        answers.sort(key=lambda answer: (answer[0].device, answer[0].row))
        return answers

    def _serve(self, device: int) -> None:
        name = self._names[device]
        while (jobs := self._inboxes[device].get()) is not None:
            try:
                self._answers.put([(job, self._acknowledge(job, name)) for job in jobs])
            except BaseException as error:  # `collect` raises it on the driver's thread
                self._answers.put(error)
            # An idle thread must not keep the handles of its last batch alive.
            del jobs

    def _acknowledge(self, job: AckJob, name: str) -> list[slabpool.Ack]:
        request = job.request
        if (job.row + job.device) % 2:
            return [request.ack(name) for _ in range(job.times)]
        return [self._pool.ack(request.id, name, generation=request.generation) for _ in range(job.times)]
