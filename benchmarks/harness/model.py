"""What a benchmark is made of, and what a run of it leaves behind.

A benchmark is a list of cases; cases of one `Group` did the same work under the same conditions and may
be compared. A `Bar` is a promise about such a comparison. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: Ours, in every table.
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
    """Conditions under which cases are compared; `nbytes` is the size where the group has one."""

    condition: str
    nbytes: int | None = None
    #: What comes before the size, such as "64 x".
    times: str = ""

    @property
    def size(self) -> str:
        """How many of what size, or ""."""
        return "" if self.nbytes is None else f"{self.times} {size_text(self.nbytes)}".strip()

    @property
    def label(self) -> str:
        return self.condition if self.nbytes is None else f"{self.size}, {self.condition}"


@dataclass(frozen=True, slots=True)
class Case:
    """One contender in one group, and the program that measures it in a process of its own.

    Attributes
    ----------
    kind : {"timed", "measured", "native"}
        "timed": `target` is a function of the suite (``module:function``) that returns what pyperf is to
        time. "measured": a function that returns metrics itself. "native": a workload of the C++ driver.
    args : mapping
        Keyword arguments of that function (as JSON), or options of the C++ driver.
    heap : str
        For native cases: what to allocate from.
    program : str
        For native cases: which of the C++ programs of `benchmarks.harness.native`.
    preload : str, optional
        A peer (`Peer.name`) whose library replaces malloc in that process.
    peer : str, optional
        A peer the case needs.
    """

    group: Group
    contender: str
    kind: Literal["timed", "measured", "native"]
    target: str
    # Outside the hash: a mapping has none. Two cases of a benchmark differ in the rest.
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

    #: Fresh processes of each case, and values each of them reports.
    rounds: int = 5
    values: int = 3
    #: Least seconds of one value.
    min_time: float = 0.05
    #: For benchmarks whose length is a number of steps: a small one.
    quick: bool = False
    #: Folder of full traces, or None for the excerpts in the repository.
    traces: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """Values of one process: seconds per operation ("s"), or a ratio or count ("")."""

    unit: str
    values: Sequence[float]


#: What one process reports, by the metric's name.
Metrics = Mapping[str, Metric]


@dataclass(slots=True)
class Outcome:
    """What the processes of one case reported, one after another; the position is the round."""

    case: Case
    rounds: list[Metrics] = field(default_factory=list)


@dataclass(slots=True)
class Result:
    """All that came of one benchmark."""

    benchmark: Benchmark
    outcomes: list[Outcome]
    bars: list[Bar]
    #: Peers that were left out, and why.
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
    """A promise: the median over the rounds of `figure` is at most (or at least) `limit`."""

    text: str
    figure: Figure
    sense: Literal["at most", "at least"]
    limit: float
    #: How the figure is printed: a format specification, and a unit after it.
    form: str = ".2f"
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One row of the table of promises."""

    name: str
    title: str
    cases: Callable[[Effort], list[Case]]
    bars: Callable[[Effort], list[Bar]]
    #: What a reader must know to read the figures right.
    notes: tuple[str, ...] = ()
