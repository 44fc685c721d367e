"""The figures of a run, as a table for people and as one JSON object for programs."""

from __future__ import annotations

import io
from collections.abc import Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slabpool.demo import workload
from slabpool.demo.memory import MemoryFigures
from slabpool.demo.serve import Run
from slabpool.demo.workload import Job
from slabpool.replay.console import human_bytes


@dataclass(frozen=True, slots=True)
class Setting:
    """The options of the run that change its figures."""

    memory: str
    requests: int
    devices: int
    concurrency: int
    seed: int
    unique_ids: bool
    #: Whether the devices are processes instead of threads.
    processes: bool = False


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency, in seconds from opening a request to its last token.

    The tenths contain only requests that were served alone. Their lengths differ, because the trace changes
    over time, so the median number of generated tokens is given as well.
    """

    #: Median of the first and of the last tenth of the requests.
    first_tenth: float
    last_tenth: float
    #: Median number of generated tokens of the same requests.
    tokens_first_tenth: float
    tokens_last_tenth: float
    #: Last tenth divided by first tenth, for equal numbers of tokens (see `_latency_ratio`).
    ratio: float
    #: Median of the requests that were served in bursts; None if there were no bursts.
    in_bursts: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run."""

    setting: Setting
    #: Tokens that the reference generates for these requests.
    tokens: int
    #: Tokens that the devices generated, right or wrong.
    tokens_given: int
    #: Requests for which all tokens were generated, right or wrong.
    answered: int
    seconds: float
    most_at_once: int
    latency: Latency
    memory: MemoryFigures
    #: Growth of the process' resident bytes after the first tenth of the requests: at the end, and at most.
    process_growth: int
    process_peak_growth: int
    #: Requests with at least one token that differs from the reference, and the number of those tokens.
    wrong_requests: int
    wrong_tokens: int
    #: Device processes killed on purpose.
    kills: int = 0
    #: Requests that a kill ended early. Their missing tokens do not count as wrong.
    interrupted_requests: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing leaked and every token equals the reference."""
        return not (self.memory.leaked_requests or self.memory.leaked_bytes or self.wrong_tokens)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values, for JSON. Times are in seconds, memory in bytes."""
        s, latency, memory = self.setting, self.latency, self.memory
        return {
            **asdict(s),
            "schedule": _schedule(s),
            "length_scale": _scale(),
            "seconds": self.seconds,
            "answered_requests": self.answered,
            "requests_per_s": self.answered / self.seconds,
            "tokens": self.tokens,
            "tokens_given": self.tokens_given,
            "tokens_per_s": self.tokens_given / self.seconds,
            "most_requests_at_once": self.most_at_once,
            "latency_first_tenth_s": latency.first_tenth,
            "latency_last_tenth_s": latency.last_tenth,
            "latency_first_tenth_tokens": latency.tokens_first_tenth,
            "latency_last_tenth_tokens": latency.tokens_last_tenth,
            "latency_ratio": latency.ratio,
            "latency_in_bursts_s": latency.in_bursts,
            "peak_live": memory.peak_live,
            "final_live": memory.final_live,
            "peak_committed": memory.peak_committed,
            "final_committed": memory.final_committed,
            "process_growth_after_first_tenth": self.process_growth,
            "process_peak_growth_after_first_tenth": self.process_peak_growth,
            "leaked_requests": memory.leaked_requests,
            "leaked_bytes": memory.leaked_bytes,
            "leaks": list(memory.leaks),
            "wrong_requests": self.wrong_requests,
            "wrong_tokens": self.wrong_tokens,
            "kills": self.kills,
            "interrupted_requests": self.interrupted_requests,
            "tokens_equal_reference": self.wrong_tokens == 0,
            "ok": self.ok,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return label and value of each line of the table."""
        s, latency, memory = self.setting, self.latency, self.memory
        ids = "one for each request" if s.unique_ids else "the same for all"
        kind = "device processes" if s.processes else "devices"
        rows = [
            ("memory", s.memory),
            ("requests", f"{s.requests} over {s.devices} {kind}; request id: {ids}"),
            ("schedule", _schedule(s)),
            ("most requests at once", f"{self.most_at_once} (including requests that wait for acks)"),
            ("answered", f"{self.answered} of {s.requests} in {self.seconds:.1f} s"),
            (
                "requests/s, tokens/s",
                f"{self.answered / self.seconds:.1f}, {self.tokens_given / self.seconds:.0f}",
            ),
            ("latency, first tenth", _latency(latency.first_tenth, latency.tokens_first_tenth)),
            ("latency, last tenth", _latency(latency.last_tenth, latency.tokens_last_tenth)),
            ("last / first tenth", f"{latency.ratio:.2f} (requests with equal numbers of tokens)"),
        ]
        if latency.in_bursts is not None:
            rows.append(("latency in bursts", f"{latency.in_bursts * 1e3:.2f} ms (median)"))
        if self.kills:
            interrupted = _count(self.interrupted_requests, "request")
            rows.append(
                ("killed", f"{_count(self.kills, 'device')}; {interrupted} ended early because of it")
            )
        rows += [
            ("live bytes, peak", human_bytes(memory.peak_live)),
            ("live bytes, final", human_bytes(memory.final_live)),
            ("committed, peak", human_bytes(memory.peak_committed)),
            ("process growth", f"{human_bytes(self.process_growth)} after the first tenth"),
            ("leaked", f"{_count(memory.leaked_requests, 'request')}, {human_bytes(memory.leaked_bytes)}"),
            (
                "tokens",
                f"all {self.tokens_given if self.kills else self.tokens} equal the reference"
                if not self.wrong_tokens
                else f"{self.wrong_tokens} of {self.tokens} are missing or differ from the reference, "
                f"in {self.wrong_requests} of {s.requests} requests",
            ),
        ]
        return rows + [("leak", leak) for leak in memory.leaks]

    def as_text(self) -> str:
        """Return the table as text, drawn by `rich` if that is installed."""
        verdict = "OK" if self.ok else "FAILED: memory leaked or tokens differ"
        rows = self.rows()
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            width = max(len(label) for label, _ in rows)
            return "\n".join([*(f"{label:<{width}}  {value}" for label, value in rows), verdict, ""])
        table = Table(show_header=False, title="slabpool demo", caption=verdict)
        for label, value in rows:
            table.add_row(Text(label), Text(value))  # Text(), because brackets in a str would be markup
        buffer = io.StringIO()
        Console(file=buffer, width=110).print(table)
        return buffer.getvalue()


def summarize(
    setting: Setting,
    jobs: list[Job],
    run: Run,
    memory: MemoryFigures,
    expected: list[list[int]],
    kills: int = 0,
    interrupted: Set[int] = frozenset(),
) -> Report:
    """Compute the figures of a run.

    Parameters
    ----------
    setting : Setting
    jobs : list of Job
    run : Run
    memory : MemoryFigures
    expected : list of list of int
        Tokens of the reference, for each job.
    kills : int
        Device processes killed on purpose.
    interrupted : set of int
        Indices of the jobs that a kill ended early.

    Returns
    -------
    Report
    """
    wrong = [
        sum(
            int(got) != want and not (got < 0 and index in interrupted)
            for got, want in zip(row, tokens, strict=False)
        )
        for index, (row, tokens) in enumerate(zip(run.tokens, expected, strict=True))
    ]
    return Report(
        setting=setting,
        tokens=sum(job.generate for job in jobs),
        tokens_given=int(np.count_nonzero(run.tokens >= 0)),
        answered=int(np.count_nonzero(~np.isnan(run.latency))),
        seconds=run.seconds,
        most_at_once=run.most_at_once,
        latency=_tenths(jobs, run),
        memory=memory,
        process_growth=run.resident_final - run.resident_after_tenth,
        process_peak_growth=run.resident_peak - run.resident_after_tenth,
        wrong_requests=sum(count > 0 for count in wrong),
        wrong_tokens=sum(wrong),
        kills=kills,
        interrupted_requests=len(interrupted),
    )


def _tenths(jobs: list[Job], run: Run) -> Latency:
    """Compare the first and the last tenth of the requests that were answered."""
    answered = np.flatnonzero(~np.isnan(run.latency))
    tenth = max(1, len(answered) // 10)
    first, last = (_alone(run, part) for part in (answered[:tenth], answered[-tenth:]))
    generated = np.array([job.generate for job in jobs])
    bursts = answered[~run.alone[answered]]
    return Latency(
        first_tenth=float(np.median(run.latency[first])),
        last_tenth=float(np.median(run.latency[last])),
        tokens_first_tenth=float(np.median(generated[first])),
        tokens_last_tenth=float(np.median(generated[last])),
        ratio=_latency_ratio(run.latency, generated, first, last),
        in_bursts=float(np.median(run.latency[bursts])) if len(bursts) else None,
    )


def _latency_ratio(
    latency: npt.NDArray[np.float64],
    generated: npt.NDArray[np.int_],
    first: npt.NDArray[np.intp],
    last: npt.NDArray[np.intp],
) -> float:
    """Return the latency of the last requests relative to first requests with the same number of tokens.

    The medians of the two tenths compare different work. So the latency of each of the last requests is
    divided by the median latency of the first requests with the same number of generated tokens; the result
    is the median of these ratios. In a very short run no numbers may match: then it is the ratio of the two
    medians.
    """
    counts = generated[first]
    medians = {count: np.median(latency[first[counts == count]]) for count in set(counts.tolist())}
    ratios = [
        latency[index] / medians[count] for index in last if (count := int(generated[index])) in medians
    ]
    return float(np.median(ratios) if ratios else np.median(latency[last]) / np.median(latency[first]))


def _alone(run: Run, indices: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Select the jobs that were served alone; if a short run has none, all of them."""
    alone = indices[run.alone[indices]]
    return alone if len(alone) else indices


def _schedule(setting: Setting) -> str:
    if setting.concurrency == 1:
        return "one after the other"
    alone = (workload.ROUND_BURSTS - 1) * setting.concurrency
    return f"rounds of {alone} one after the other, then {setting.concurrency} at once"


def _scale() -> str:
    return (
        f"context tokens / {workload.CONTEXT_DIVISOR} within {workload.CONTEXT_LIMITS}, "
        f"generated tokens / {workload.GENERATED_DIVISOR} within {workload.GENERATED_LIMITS}"
    )


def _latency(seconds: float, tokens: float) -> str:
    return f"{seconds * 1e3:.2f} ms for {tokens:g} tokens (medians of requests served alone)"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
