"""A run as one JSON object: medians, quartiles, all values, ratios and verdicts. For programs that read or
compare runs. Times are in seconds per operation."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import figures
from benchmarks.harness.model import OURS, Outcome, Result


def _metric(outcome: Outcome, name: str, ours: Outcome | None) -> dict[str, Any]:
    values = figures.all_values(outcome, name)
    spread = figures.quartiles(values)
    entry: dict[str, Any] = {
        "unit": outcome.rounds[0][name].unit,
        "median": spread.median,
        "q1": spread.low,
        "q3": spread.high,
        "values": [list(one[name].values) for one in outcome.rounds],
    }
    ratio = figures.over(outcome, ours, name)
    if ratio is not None:
        entry["over_slabpool"] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
    return entry


def as_dict(
    results: list[Result], machine: dict[str, str], versions: dict[str, str], quick: bool
) -> dict[str, Any]:
    """The whole run."""
    return {
        "format": 1,
        "quick": quick,
        "machine": machine,
        "versions": versions,
        "benchmarks": {result.benchmark.name: _benchmark(result) for result in results},
    }


def _benchmark(result: Result) -> dict[str, Any]:
    groups = {}
    for group, outcomes in result.groups().items():
        ours = next((o for o in outcomes if o.case.contender.startswith(OURS)), None)
        groups[group.label] = {
            "nbytes": group.nbytes,
            "contenders": {
                o.case.contender: {name: _metric(o, name, ours) for name in o.rounds[0]} for o in outcomes
            },
        }
    verdicts = [figures.judge(result, bar) for bar in result.bars]
    return {
        "title": result.benchmark.title,
        "seconds": result.seconds,
        "left_out": result.left_out,
        "groups": groups,
        "bars": [
            {
                "text": v.bar.text,
                "sense": v.bar.sense,
                "limit": v.bar.limit,
                "reached": None if v.reached is None else v.reached.median,
                "low": None if v.reached is None else v.reached.low,
                "high": None if v.reached is None else v.reached.high,
                "met": v.met,
            }
            for v in verdicts
        ],
    }
