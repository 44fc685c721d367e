"""Compares: ratios of contenders that took turns, their spread, and whether a promise is kept.

A figure has one value per round, made from the medians of processes that ran right after each other.
Reported are the median over the rounds, and the lowest and the highest value.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.harness.model import OURS, Bar, Figure, Group, Outcome, Result


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the range of the values around it."""

    median: float
    low: float
    high: float


def extremes(values: list[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


def quartiles(values: list[float]) -> Spread:
    """Median and the quartiles."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def all_values(outcome: Outcome, metric: str) -> list[float]:
    return [value for one in outcome.rounds for value in one[metric].values]


def per_round(outcome: Outcome, metric: str) -> list[float]:
    return [statistics.median(one[metric].values) for one in outcome.rounds]


def over(outcome: Outcome, base: Outcome | None, metric: str) -> Spread | None:
    """One outcome's metric divided by another's, round by round; None if there is no other, or if it has only
    zeros."""
    if base is None or metric not in base.rounds[0]:
        return None
    pairs = zip(per_round(outcome, metric), per_round(base, metric), strict=True)
    ratios = [a / b for a, b in pairs if b]
    return extremes(ratios) if ratios else None


def value(group: Group, metric: str = "time", contender: str = OURS, scale: float = 1.0) -> Figure:
    """The figure of one metric of one contender."""

    def figure(result: Result) -> list[float] | None:
        outcome = result.outcome(group, contender)
        return None if outcome is None else [v * scale for v in per_round(outcome, metric)]

    return figure


def ratio(group: Group, over: str, of: str = OURS, metric: str = "time") -> Figure:
    """`of`'s metric divided by `over`'s. For times, below 1 means that `of` is faster."""

    def figure(result: Result) -> list[float] | None:
        ours, theirs = result.outcome(group, of), result.outcome(group, over)
        if ours is None or theirs is None:
            return None
        return [a / b for a, b in zip(per_round(ours, metric), per_round(theirs, metric), strict=True)]

    return figure


def times_faster(group: Group, than: str, of: str = OURS) -> Figure:
    """How many times faster `of` is."""
    return ratio(group, over=of, of=than)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar, the figure reached, and whether the figure meets the bar."""

    bar: Bar
    reached: Spread | None

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self._meets(self.reached.median)

    def _meets(self, figure: float) -> bool:
        return figure <= self.bar.limit if self.bar.sense == "at most" else figure >= self.bar.limit

    @property
    def text(self) -> str:
        """The verdict in a word or two. Only the median decides; rounds with another verdict are
        mentioned."""
        if self.reached is None:
            return "no figure"
        mixed = self._meets(self.reached.low) != self._meets(self.reached.high)
        if self.met:
            return "met, not in every round" if mixed else "met"
        return "NOT met, but in some rounds" if mixed else "NOT met"

    @property
    def figure_text(self) -> str:
        if self.reached is None:
            return "–"
        form, unit = self.bar.form, self.bar.unit
        low, high = format(self.reached.low, form), format(self.reached.high, form)
        return f"{self.reached.median:{form}}{unit} ({low} to {high})"


def judge(result: Result, bar: Bar) -> Verdict:
    """Compares the measured figure with the bar."""
    values = bar.figure(result)
    return Verdict(bar, extremes(values) if values else None)
