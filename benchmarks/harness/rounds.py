"""Runs benchmarks in rounds: every case once, each in a fresh process, then every case again.

Within a group the order rotates by one each round, so no contender is always first, or always after the same
other. Drift (clock speed, temperature, other load) then affects all contenders alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.harness import peers
from benchmarks.harness.model import OURS, Benchmark, Case, Effort, Outcome, Result
from benchmarks.harness.native import NoCompilerError
from benchmarks.harness.programs import CaseFailedError, Programs

#: Called before each process with a text: what runs, and how far the benchmark is.
Tick = Callable[[str], None]


def run(benchmark: Benchmark, effort: Effort, programs: Programs, tick: Tick) -> Result:
    """All rounds of one benchmark. A peer whose case fails is left out from then on; slabpool's must not
    fail."""
    start = time.monotonic()
    left_out: dict[str, str] = {}
    groups: dict[object, list[Outcome]] = {}
    for case in benchmark.cases(effort):
        reasons = {name: why for name in case.peers if (why := peers.missing(name)) is not None}
        if reasons:
            left_out.update(reasons)
        else:
            groups.setdefault(case.group, []).append(Outcome(case))

    rounds = 1 if benchmark.exact else effort.rounds
    total = rounds * sum(map(len, groups.values()))
    done = 0
    for number in range(rounds):
        for outcomes in groups.values():
            turn = number % len(outcomes)
            for outcome in outcomes[turn:] + outcomes[:turn]:
                done += 1
                if _key(outcome.case) in left_out:
                    continue
                tick(f"{benchmark.name} {done}/{total}: {outcome.case.group.label}, {outcome.case.contender}")
                try:
                    outcome.rounds.append(programs.run(outcome.case))
                except NoCompilerError as error:
                    left_out["C++ driver"] = str(error)
                    return Result(benchmark, [], [], left_out, time.monotonic() - start)
                except CaseFailedError as error:
                    if outcome.case.contender.startswith(OURS):
                        raise
                    left_out[_key(outcome.case)] = str(error)

    kept = [o for outcomes in groups.values() for o in outcomes if len(o.rounds) == rounds]
    return Result(benchmark, kept, benchmark.bars(effort), left_out, time.monotonic() - start)


def _key(case: Case) -> str:
    return f"{case.contender} in {case.group.label}"
