"""What came of a replay: counts, waits, the curve of memory, and everything that was not right.

Filled in by the engine, read by the report. Virtual times are in microseconds; only ``wall_s`` is of
the real clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import slabpool

#: Violations kept as text; all are counted.
_MAX_TOLD = 20


class ReplayError(slabpool.SlabpoolError, RuntimeError):
    """The replay could not go on; the message says at which request and why."""


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
    """What a replay came to. Times are virtual, in microseconds, except ``wall_s``."""

    #: Requests opened, those of them that came to be released, and those that waited in vain.
    opened: int = 0
    released: int = 0
    unserved: int = 0
    #: Per request in order of admission: from arrival to admission.
    waits_us: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    virtual_us: int = 0
    #: Wall-clock seconds of the whole replay, the driver's own work included.
    wall_s: float = 0.0
    #: Views made, and acknowledgements sent: counted ones, repeated ones and late ones.
    allocated: int = 0
    acks_counted: int = 0
    acks_duplicate: int = 0
    acks_late: int = 0
    #: Injected faults: requests aborted, devices lost, and how often a request lost a device.
    aborted: int = 0
    devices_lost: int = 0
    holds_lost: int = 0
    #: Where the pool's answer was not what its laws say: how many, and the first of them in words.
    violations: int = 0
    told: list[str] = field(default_factory=list)
    #: The pool's own account when all was over.
    stats: slabpool.Stats | None = None
    leaks: list[slabpool.RequestRecord] = field(default_factory=list)

    @property
    def final(self) -> slabpool.Stats:
        if self.stats is None:
            raise ReplayError("the replay has not ended")
        return self.stats

    @property
    def leaked_bytes(self) -> int:
        """Bytes not back after every request has ended: live, retained or in doubt."""
        return self.final.live + self.final.retained + self.final.in_doubt

    @property
    def operations(self) -> int:
        """Allocations, acknowledgements (counted or not) and releases."""
        return self.allocated + self.acks_counted + self.acks_duplicate + self.acks_late + self.released

    def violated(self, what: str) -> None:
        """Note an answer of the pool that its laws do not allow."""
        self.violations += 1
        if len(self.told) < _MAX_TOLD:
            self.told.append(what)

    @property
    def ok(self) -> bool:
        wrong = self.leaked_bytes or self.leaks or self.violations or self.unserved
        return not wrong and self.released == self.opened
