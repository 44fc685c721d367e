"""``python -m benchmarks.instructions [--update]``: counts instructions and compares them with budget.json.

The exit status is 1 if an operation takes more than 3 % over its budget or has no budget, and 2 if counting
is not possible here. Counts "in all" have the interpreter's share, for work that slabpool makes it do; they
may take 20 % more, and are compared only with the Python of the budget. --update writes the counts as the new
budget. Use it only when a change is worth its instructions, and say why in the commit.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

from benchmarks.harness.machine import describe
from benchmarks.harness.native import NoCompilerError
from benchmarks.instructions.count import PYTHON, WHOLE, CannotCountError, count_all

BUDGET = Path(__file__).parent / "budget.json"
TOLERANCE = 0.03
#: Instructions over a budget that are no operation's: what a few thousand operations share.
LEAST = 0.5
#: Of counts with the interpreter's share, which depends on how it was built.
TOLERANCE_IN_ALL = 0.20


def is_in_all(name: str) -> bool:
    return any(name == WHOLE.format(operation) for operation in PYTHON)


def compare(counts: dict[str, float], budget: dict[str, float]) -> tuple[list[str], bool]:
    """The lines to print, and whether everything is within its budget.

    Examples
    --------
    >>> compare({"ack": 103.0}, {"ack": 100.0})[1], compare({"ack": 103.2}, {"ack": 100.0})[1]
    (True, False)
    >>> compare({"new": 1.0}, {})[1], compare({}, {"gone": 1.0})[1]
    (False, False)
    >>> compare({"free locked": 0.1}, {"free locked": 0.0})[1]
    True
    >>> compare({"free locked": 1.0}, {"free locked": 0.0})[1]
    False
    >>> compare({"Python ack in all": 119.0}, {"Python ack in all": 100.0})[1]
    True
    """
    lines, right = [], True
    for name in sorted({*counts, *budget}):
        if name not in counts or name not in budget:
            lines.append(
                f"{name:30} {'has no budget' if name in counts else 'is in the budget and was not counted'}"
            )
            right = False
            continue
        change = f" ({counts[name] / budget[name] - 1:+.1%})" if budget[name] != 0 else ""
        tolerance = TOLERANCE_IN_ALL if is_in_all(name) else TOLERANCE
        over = counts[name] > max(budget[name] * (1 + tolerance), budget[name] + LEAST)
        right = right and not over
        lines.append(
            f"{name:30} {counts[name]:9.1f} of {budget[name]:9.1f} instructions{change}"
            + (" OVER" if over else "")
        )
    return lines, right


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions")
    parser.add_argument("--update", action="store_true", help="write the counts as the new budget")
    args = parser.parse_args()
    try:
        counts = count_all()
    except (CannotCountError, NoCompilerError) as error:
        print(f"cannot count instructions: {error}", file=sys.stderr)
        return 2
    compiler = describe()["compiler"]
    if args.update:
        content = {
            "architecture": platform.machine(),
            "compiler": compiler,
            "python": platform.python_version(),
            "instructions": {name: round(count, 1) + 0.0 for name, count in counts.items()},
        }
        BUDGET.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {BUDGET}")
        return 0
    kept = json.loads(BUDGET.read_text(encoding="utf-8"))
    if kept["architecture"] != platform.machine():
        print(f"the budget is for {kept['architecture']}, not {platform.machine()}", file=sys.stderr)
        return 2
    budget = kept["instructions"]
    if kept["python"] != platform.python_version():
        print(f"note: counts in all are not compared, because they are of Python {kept['python']}")
        counts, budget = (
            {name: n for name, n in some.items() if not is_in_all(name)} for some in (counts, budget)
        )
    lines, right = compare(counts, budget)
    print("\n".join(lines))
    if kept["compiler"] != compiler:
        print(f"note: the budget was counted with {kept['compiler']}, this with {compiler}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
