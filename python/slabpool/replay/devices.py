"""Device threads: the other side of an acknowledgement, on a thread of its own.

Virtual time stands still while they work: the driver hands each device what it has to send at one
instant and goes on when all have answered, so that a run repeats exactly while the calls of one
instant really race with each other. Which of two racing acks is the last is the only thing left open.
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
    #: Whether the request was gone before this was sent.
    late: bool


#: What one device made of its jobs: the answers, in the order sent.
_Answers = list[tuple[AckJob, list[slabpool.Ack]]]


class DeviceThreads:
    """One thread per device, each with an inbox.

    Half of the acks go through the request's handle and half through the pool by id and generation,
    as from an engine that carries only those.
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
        """Give every device its share of ``jobs``; returns at once."""
        shares: dict[int, list[AckJob]] = {}
        for job in jobs:
            shares.setdefault(job.device, []).append(job)
        self._outstanding += len(shares)
        for device, share in shares.items():
            self._inboxes[device].put(share)

    def collect(self) -> _Answers:
        """Wait until everything sent is answered; answers in the order of devices.

        Raises
        ------
        BaseException
            What a call on a device thread raised.
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
            except BaseException as error:  # handed to the driver, which raises it
                self._answers.put(error)
            # No handle may be kept alive by an idle thread's last batch.
            del jobs

    def _acknowledge(self, job: AckJob, name: str) -> list[slabpool.Ack]:
        request = job.request
        if (job.row + job.device) % 2:
            return [request.ack(name) for _ in range(job.times)]
        return [self._pool.ack(request.id, name, generation=request.generation) for _ in range(job.times)]
