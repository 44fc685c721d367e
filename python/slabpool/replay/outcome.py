"""The outcome of a replay: counts, waits, memory over time, and violated laws.

The engine fills it in and the report reads it. Times are virtual and in microseconds, except ``wall_s``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import slabpool

#: Violations described in `Outcome.violation_texts`; all of them are counted.
_MAX_TEXTS = 20


class ReplayError(slabpool.SlabpoolError, RuntimeError):
    """The replay cannot continue. The message names the request and the cause."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes of the pool at one instant of virtual time (microseconds since the first arrival)."""

    time_us: int
    live: int
    retained: int
    in_doubt: int
    cached: int
    committed: int


@dataclass(slots=True)
class Outcome:
    """Counts and samples of a replay. Times are virtual and in microseconds, except ``wall_s``."""

    #: Requests opened; requests of these that were released; requests that still waited at the end; requests
    #: that gave up after the longest wait.
    opened: int = 0
    released: int = 0
    unserved: int = 0
    timed_out: int = 0
    #: Time from arrival to admission of each request, in order of admission.
    waits_us: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    virtual_us: int = 0
    #: Wall-clock seconds of the whole replay, including the driver's own work.
    wall_s: float = 0.0
    #: Arrays allocated.
    allocated: int = 0
    #: Acknowledgements sent: the first ones, the repeated ones and the late ones.
    acks_counted: int = 0
    acks_duplicate: int = 0
    acks_late: int = 0
    #: Injected faults: requests aborted, devices lost, and holds that ended because a device was lost.
    aborted: int = 0
    devices_lost: int = 0
    holds_lost: int = 0
    #: Answers of the pool that violate its laws: their number, and descriptions of the first ones.
    violations: int = 0
    violation_texts: list[str] = field(default_factory=list)
    #: The pool's counters and leaks after the last event.
    stats: slabpool.Stats | None = None
    leaks: list[slabpool.RequestRecord] = field(default_factory=list)

    @property
    def final(self) -> slabpool.Stats:
        """The pool's counters after the last event."""
        if self.stats is None:
            raise ReplayError("the replay has not ended")
        return self.stats

    @property
    def leaked_bytes(self) -> int:
        """Bytes live, retained or in doubt after every request has ended."""
        return self.final.live + self.final.retained + self.final.in_doubt

    @property
    def operations(self) -> int:
        """Number of allocations, acknowledgements (counted or not) and releases."""
        return self.allocated + self.acks_counted + self.acks_duplicate + self.acks_late + self.released

    def violated(self, what: str) -> None:
        """Record an answer of the pool that its laws do not allow."""
        self.violations += 1
        if len(self.violation_texts) < _MAX_TEXTS:
            self.violation_texts.append(what)

    @property
    def ok(self) -> bool:
        """Whether every opened request was released, nothing leaked and no law was violated."""
        wrong = self.leaked_bytes or self.leaks or self.violations or self.unserved
        return not wrong and self.released == self.opened
