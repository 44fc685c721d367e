"""The report of a replay: text for people, one JSON object for programs, and a plot.

All three mark as synthetic what the trace does not contain: service times, devices, acks and faults. The pool
counts the bytes; the driver measures the times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import slabpool
from slabpool.replay.console import human_bytes
from slabpool.replay.outcome import Outcome
from slabpool.replay.schedule import Schedule


class MissingExtraError(slabpool.SlabpoolError, ImportError):
    """An option needs a library that is not installed."""


@dataclass(frozen=True, slots=True)
class Report:
    """A finished replay and its settings.

    Attributes
    ----------
    schedule : Schedule
    outcome : Outcome
    model : str
        Name of the model whose KV cache was replayed; "" if the bytes per token were given.
    ids : str
        ``"same"`` or ``"unique"``.
    capacity : int
        Bytes of the pool.
    capacity_from : str
        How the capacity was chosen, in words.
    wait : float, optional
        The longest wait in the pool's queue, in virtual seconds; None: requests waited outside of the pool.
    """

    schedule: Schedule
    outcome: Outcome
    model: str
    ids: str
    capacity: int
    capacity_from: str
    wait: float | None = None

    @property
    def operations_per_s(self) -> float:
        """Allocations, acks and releases in a second of wall-clock time."""
        return self.outcome.operations / self.outcome.wall_s

    @property
    def committed_over_live(self) -> float | None:
        """Peak committed bytes divided by peak live bytes; None if nothing was ever live."""
        stats = self.outcome.final
        return stats.peak_committed / stats.peak_live if stats.peak_live else None

    def _waits(self) -> dict[str, float]:
        """Return statistics of all requests' waits, in virtual seconds."""
        waits = np.array(self.outcome.waits_us or [0]) / 1e6
        return {
            "median": float(np.median(waits)),
            "p99": float(np.percentile(waits, 99)),
            "max": float(waits.max()),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON. Bytes are integers, times are in seconds."""
        plan, out = self.schedule, self.outcome
        stats = out.final
        return {
            "slabpool_replay": 1,
            "trace": plan.trace.name,
            "format": plan.trace.format,
            "rows": len(plan.trace),
            "model": self.model or None,
            "bytes_per_token": plan.bytes_per_token,
            "ids": self.ids,
            "capacity": self.capacity,
            "capacity_from": self.capacity_from,
            "requests": out.released,
            "unserved": out.unserved,
            "wait": self.wait,
            "timed_out": out.timed_out,
            "operations": out.operations,
            "operations_per_s": self.operations_per_s,
            "allocations": out.allocated,
            "acks": out.acks_counted + out.acks_duplicate + out.acks_late,
            "releases": out.released,
            "wall_s": out.wall_s,
            "virtual_s": out.virtual_us / 1e6,
            "peak_live": stats.peak_live,
            "peak_committed": stats.peak_committed,
            "committed_over_live": self.committed_over_live,
            "requests_that_waited": sum(wait > 0 for wait in out.waits_us),
            "wait_s": self._waits(),
            "leaked_bytes": out.leaked_bytes,
            "leaks": [str(record) for record in out.leaks],
            "violations": out.violations,
            "violation_texts": list(out.violation_texts),
            "synthetic": {
                "seed": plan.seed,
                "devices": plan.devices,
                "service": asdict(plan.service),
                "fault_rates": asdict(plan.faults),
                "duplicate_acks": out.acks_duplicate,
                "late_acks": out.acks_late,
                "devices_lost": out.devices_lost,
                "holds_lost_with_devices": out.holds_lost,
                "aborted": out.aborted,
            },
            "ok": out.ok,
        }

    def as_text(self) -> str:
        """Return the report as about a dozen lines of text."""
        plan, out = self.schedule, self.outcome
        stats, service, waits = out.final, plan.service, self._waits()
        waited = sum(wait > 0 for wait in out.waits_us)
        ratio = self.committed_over_live
        model = f"{self.model}, " if self.model else ""
        queue = "" if self.wait is None else " in the pool's queue"
        lines = [
            f"trace       {plan.trace.name} ({plan.trace.format}), {len(plan.trace):,} requests, "
            f"{out.virtual_us / 60e6:.1f} virtual minutes",
            f"model       {model}{plan.bytes_per_token:,} bytes of KV cache for each token; "
            + ("one request id for each request" if self.ids == "unique" else "the same request id for all"),
            f"synthetic   prefill {service.prefill_rate:g} and decode {service.decode_rate:g} tokens/s, "
            f"blocks of {service.block_tokens} tokens, {plan.devices} devices, acks after "
            f"{service.ack_delay * 1e3:g} ms (mean), seed {plan.seed}",
        ]
        if plan.faults.nonzero():
            lines.append(
                f"synthetic   faults: {out.acks_duplicate:,} duplicate acks, {out.acks_late:,} late acks, "
                f"{out.devices_lost:,} devices lost (with {out.holds_lost:,} holds on requests), "
                f"{out.aborted:,} requests aborted"
            )
        lines += [
            f"capacity    {human_bytes(self.capacity)} ({self.capacity_from})",
            f"requests    {out.released:,} of {len(plan.trace):,} served and released"
            + (f", {out.timed_out:,} gave up after {self.wait:g} s" if out.timed_out else ""),
            f"operations  {self.operations_per_s:,.0f}/s: {out.allocated:,} allocations, "
            f"{out.acks_counted + out.acks_duplicate + out.acks_late:,} acks, {out.released:,} releases in "
            f"{out.wall_s:.2f} s, including the driver's work",
            f"memory      peak live {human_bytes(stats.peak_live)}, peak committed "
            f"{human_bytes(stats.peak_committed)}"
            + (f", committed / live {ratio:.3f}" if ratio is not None else ""),
            f"waits       {waited:,} requests waited for memory{queue}; median {waits['median']:.3g} s, "
            f"p99 {waits['p99']:.3g} s, max {waits['max']:.3g} s (virtual, of all requests)",
            f"leaked      {out.leaked_bytes:,} bytes",
        ]
        lines += [f"            {record}" for record in out.leaks]
        if out.violations:
            lines.append(f"WRONG       {out.violations} answers of the pool violate its laws:")
            lines += [f"            {what}" for what in out.violation_texts]
        return "\n".join(lines)


def plotter() -> Callable[[Report, Path], None]:
    """Return the function that draws a report. Call this before the replay, because it checks for matplotlib.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"--plot needs matplotlib (pip install 'slabpool[cli]'): {error}") from error

    def draw(report: Report, path: Path) -> None:
        samples = report.outcome.samples
        minutes = [sample.time_us / 60e6 for sample in samples]
        # Figure instead of pyplot, because pyplot needs a display and has global state.
        figure = Figure(figsize=(10, 5), layout="constrained")
        axes = figure.add_subplot()
        gib = float(1 << 30)
        # Stacked, because these parts add up to the committed bytes.
        parts = (("live", "tab:blue"), ("retained", "tab:red"), ("cached", "navajowhite"))
        axes.stackplot(
            minutes,
            [[getattr(sample, name) / gib for sample in samples] for name, _ in parts],
            labels=[name for name, _ in parts],
            colors=[colour for _, colour in parts],
            step="post",
            linewidth=0,
        )
        committed = [sample.committed / gib for sample in samples]
        axes.step(minutes, committed, where="post", color="black", linewidth=1, label="committed")
        axes.axhline(report.capacity / gib, color="gray", linestyle=":", linewidth=1.5, label="capacity")
        axes.set_xlabel("virtual time since the first request (minutes)")
        axes.set_ylabel("memory of the pool (GiB)")
        axes.set_xlim(0, max(minutes[-1], 1e-9))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=5, fontsize="small")
        plan = report.schedule
        faults = ", ".join(f"{name} {rate:g}" for name, rate in plan.faults.nonzero().items())
        axes.set_title(
            f"{plan.trace.name}: {report.outcome.released:,} requests, "
            f"KV cache of {report.model or f'{plan.bytes_per_token:,} bytes for each token'}\n"
            f"synthetic: service times, {plan.devices} devices and their acks"
            + (f"; faults {faults}" if faults else ""),
            fontsize="medium",
        )
        figure.savefig(path, dpi=120)

    return draw
