"""The terms: what a benchmark consists of, and what a run of it produces.

A benchmark is a list of cases. Cases of one `Group` did the same work under the same conditions and may be
compared. A `Bar` is a promise about such a comparison. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: The contender name of slabpool in every table.
OURS = "slabpool"


def size_text(nbytes: int) -> str:
    """Bytes in the largest unit that divides them.

    Examples
    --------
    >>> size_text(4096), size_text(3 << 20), size_text(100)
    ('4 KiB', '3 MiB', '100 B')
    """
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


@dataclass(frozen=True, slots=True)
class Group:
    """Conditions under which cases are compared. `nbytes` is the size, where the group has one."""

    condition: str
    nbytes: int | None = None
    #: Text before the size, such as "64 x".
    times: str = ""

    @property
    def size(self) -> str:
        """The count and the size as text, or ""."""
        return "" if self.nbytes is None else f"{self.times} {size_text(self.nbytes)}".strip()

    @property
    def label(self) -> str:
        return self.condition if self.nbytes is None else f"{self.size}, {self.condition}"


@dataclass(frozen=True, slots=True)
class Case:
    """One contender in one group, and the program that measures it in a fresh process.

    Attributes
    ----------
    kind : {"timed", "measured", "native"}
        "timed": `target` is a function of the suite (``module:function``) that returns what pyperf times.
        "measured": a function that returns metrics itself. "native": a workload of the C++ driver.
    args : mapping
        Keyword arguments of that function (as JSON), or options of the C++ driver.
    heap : str
        For native cases: the heap to allocate from.
    program : str
        For native cases: which C++ program of `benchmarks.harness.native`.
    preload : str, optional
        A peer (`Peer.name`) whose library replaces malloc in the process.
    peer : str, optional
        A peer that the case needs.
    """

    group: Group
    contender: str
    kind: Literal["timed", "measured", "native"]
    target: str
    # Not hashed, because a mapping has no hash. Two cases of a benchmark always differ in another field.
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    heap: str = ""
    preload: str | None = None
    peer: str | None = None
    program: str = "host"

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(name for name in (self.preload, self.peer) if name is not None)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    #: Fresh processes per case, and values that each process reports.
    rounds: int = 5
    values: int = 3
    #: Shortest duration of one value, in seconds.
    min_time: float = 0.05
    #: True: benchmarks whose length is a number of steps take a small one.
    quick: bool = False
    #: Folder with the full traces, or None for the excerpts in the repository.
    traces: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """Values of one process, and their unit: seconds per operation ("s"), or "" for a ratio or a count."""

    unit: str
    values: Sequence[float]


#: What one process reports: metric by name.
Metrics = Mapping[str, Metric]


@dataclass(slots=True)
class Outcome:
    """What the processes of one case reported, one entry per round."""

    case: Case
    rounds: list[Metrics] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """Everything that a run of one benchmark produced."""

    benchmark: Benchmark
    outcomes: list[Outcome]
    bars: list[Bar]
    #: Peers that were left out, with the reason.
    left_out: dict[str, str]
    seconds: float = 0.0

    def groups(self) -> dict[Group, list[Outcome]]:
        found: dict[Group, list[Outcome]] = {}
        for outcome in self.outcomes:
            found.setdefault(outcome.case.group, []).append(outcome)
        return found

    def outcome(self, group: Group, contender: str) -> Outcome | None:
        for outcome in self.outcomes:
            if outcome.case.group == group and outcome.case.contender == contender:
                return outcome
        return None


#: One figure per round, or None where a contender is missing.
Figure = Callable[[Result], "list[float] | None"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise: the median of `figure` over the rounds is at most (or at least) `limit`."""

    text: str
    figure: Figure
    sense: Literal["at most", "at least"]
    limit: float
    #: How the figure is printed: a format specification, and the unit after it.
    form: str = ".2f"
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark: its cases, its promises and its notes."""

    name: str
    title: str
    cases: Callable[[Effort], list[Case]]
    bars: Callable[[Effort], list[Bar]]
    #: What a reader must know to read the figures correctly.
    notes: tuple[str, ...] = ()
    #: It counts what repeats: one round is enough, and a bar that is missed is a failure (exit status 1).
    exact: bool = False
