"""Plots: time over size on log axes, and memory over time. Needs matplotlib.

Writes one file per condition that was measured at several sizes, and one for the memory of a process or a
pool over its run.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.harness import figures
from benchmarks.harness.model import OURS, Group, Outcome, Result, size_text


def draw_all(results: list[Result], folder: Path) -> list[Path]:
    """Draws every plot that these results allow; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for result in results:
        conditions: dict[str, dict[Group, list[Outcome]]] = {}
        for group, outcomes in result.groups().items():
            if group.nbytes is not None and all("time" in o.rounds[0] for o in outcomes):
                conditions.setdefault(group.condition, {})[group] = outcomes
        for condition, groups in conditions.items():
            if len(groups) > 1:
                path = folder / f"{result.benchmark.name}-{_slug(condition)}.png"
                _time_over_size(f"{result.benchmark.title}\n{condition}", groups, path)
                written.append(path)
        for outcome in result.outcomes:
            if "resident" in outcome.rounds[0]:
                path = folder / f"{result.benchmark.name}-memory.png"
                _memory_over_time(result.benchmark.title, outcome, path)
                written.append(path)
    return written


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _time_over_size(title: str, groups: dict[Group, list[Outcome]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    lines: dict[str, list[tuple[int, figures.Spread]]] = {}
    for group, outcomes in groups.items():
        for outcome in outcomes:
            spread = figures.quartiles(figures.all_values(outcome, "time"))
            lines.setdefault(outcome.case.contender, []).append((group.nbytes or 0, spread))
    # A Figure without pyplot needs no display and changes no global state.
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        points.sort(key=lambda point: point[0])
        sizes = [size for size, _ in points]
        ours = name.startswith(OURS)
        dashes = "--" if name.startswith("floor") else "-"
        medians = [spread.median * 1e9 for _, spread in points]
        (line,) = axes.plot(sizes, medians, dashes, marker="o", markersize=4, label=name)
        line.set(linewidth=2.5 if ours else 1.3, zorder=3 if ours else 2)
        low, high = [s.low * 1e9 for _, s in points], [s.high * 1e9 for _, s in points]
        axes.fill_between(sizes, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({group.nbytes or 0 for group in groups})
    axes.set_xticks(ticks, [size_text(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: _time_text(ns)))
    axes.set_xlabel("size of one tensor")
    axes.set_ylabel("time of one operation (median, middle half)")
    axes.grid(alpha=0.3, which="both")
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


def _time_text(ns: float) -> str:
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= scale:
            return f"{ns / scale:g} {unit}"
    return f"{ns:g} ns"


def _memory_over_time(title: str, outcome: Outcome, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    for number, one in enumerate(outcome.rounds):
        pages = one["resident"].values
        seconds, elapsed = [], 0.0
        for value in one["time"].values:
            elapsed += value
            seconds.append(elapsed)
        share = [100 * s / elapsed for s in seconds]
        axes.step(share, [p * 4096 / (1 << 20) for p in pages], where="post", label=f"process {number + 1}")
    axes.set_xlabel("share of the run (%)")
    axes.set_ylabel("memory of the process (MiB)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
