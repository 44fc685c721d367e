"""A run as Markdown, for the terminal and for RESULTS.md. Promises first, then ratios, then times."""

from __future__ import annotations

from benchmarks.harness import figures
from benchmarks.harness.model import OURS, Outcome, Result


def quantity(value: float, unit: str) -> str:
    """A value with its unit, in three or four digits.

    Examples
    --------
    >>> quantity(7.25e-8, "s"), quantity(0.00215, "s"), quantity(1.05, ""), quantity(12345, "pages")
    ('72.5 ns', '2.15 ms', '1.05', '12345 pages')
    """
    if unit != "s":
        shown = f"{value:.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"
        return f"{shown} {unit}".strip()
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
        if abs(value) >= scale or name == "ns":
            return (
                f"{value / scale:.3g} {name}" if abs(value) < 1000 * scale else f"{value / scale:.0f} {name}"
            )
    raise AssertionError


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, padded so that it also reads in a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def bars(results: list[Result]) -> list[str]:
    """The table of promises, with the figures reached."""
    rows = []
    for result in results:
        for bar in result.bars:
            verdict = figures.judge(result, bar)
            limit = f"{bar.sense} {bar.limit:g}{bar.unit}"
            rows.append([result.benchmark.name, bar.text, limit, verdict.figure_text, verdict.text])
    return table(["benchmark", "figure", "bar", "reached (rounds)", ""], rows) if rows else []


def _ratio(outcome: Outcome, ours: Outcome | None, metric: str) -> str:
    if outcome is ours:
        return "1"
    spread = figures.over(outcome, ours, metric)
    return "" if spread is None else f"**{spread.median:.3g}** ({spread.low:.3g} to {spread.high:.3g})"


def _group(label: str, outcomes: list[Outcome]) -> list[str]:
    ours = next((o for o in outcomes if o.case.contender.startswith(OURS)), None)
    rows = []
    for outcome in outcomes:
        for number, metric in enumerate(outcome.rounds[0]):
            values = figures.all_values(outcome, metric)
            spread = figures.quartiles(values)
            unit = outcome.rounds[0][metric].unit
            between = (
                f"{quantity(spread.low, unit)} to {quantity(spread.high, unit)}" if len(values) > 1 else ""
            )
            rows.append([
                outcome.case.contender if number == 0 else "", metric, _ratio(outcome, ours, metric),
                quantity(spread.median, unit), between, str(len(values)),
            ])  # fmt: skip
    first = f"over {ours.case.contender}" if ours is not None else "ratio"
    return [
        f"**{label}**",
        "",
        *table(["contender", "metric", first, "median", "middle half", "values"], rows),
        "",
    ]


def benchmark(result: Result) -> list[str]:
    """Title, notes, left-out peers, and a table for each group."""
    lines = [f"## {result.benchmark.name}: {result.benchmark.title}", ""]
    lines += [f"{note}\n" for note in result.benchmark.notes]
    if result.left_out:
        lines += [f"Left out: {name} ({reason})\n" for name, reason in result.left_out.items()]
    for group, outcomes in result.groups().items():
        lines += _group(group.label, outcomes)
    return lines


def report(results: list[Result], machine: dict[str, str], versions: dict[str, str], quick: bool) -> str:
    """The whole document."""
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks --results`; how to read it: [README.md](README.md).",
        "",
    ]
    if quick:
        lines += ["**A quick run: figures show that everything works, not how fast it is.**", ""]
    lines += [*table(["machine", ""], [[k, v] for k, v in machine.items()]), ""]
    lines += [*table(["version", ""], [[k, v] for k, v in versions.items()]), ""]
    lines += ["## Promises", "", *bars(results), ""]
    for result in results:
        lines += benchmark(result)
    return "\n".join(lines).rstrip() + "\n"


def short(results: list[Result], machine: dict[str, str], versions: dict[str, str]) -> str:
    """Promises and medians only: the summary kept beside the JSON of a run."""
    lines = [f"# {machine['GPU']}, {machine['date']}", ""]
    shown = ", ".join(f"{k} {v}" for k, v in versions.items())
    lines += [f"{machine['processor']}, CUDA driver {machine['CUDA driver']}; {shown}.", ""]
    lines += [*bars(results), ""]
    rows = []
    for result in results:
        for group, outcomes in result.groups().items():
            for outcome in outcomes:
                values = figures.all_values(outcome, "time")
                median = quantity(figures.quartiles(values).median, "s")
                rows.append([result.benchmark.name, group.label, outcome.case.contender, median])
    lines += table(["benchmark", "group", "contender", "time, median"], rows)
    left_out = {name: why for result in results for name, why in result.left_out.items()}
    if left_out:
        lines += ["", *(f"Left out: {name} ({reason})" for name, reason in left_out.items())]
    return "\n".join(lines) + "\n"
