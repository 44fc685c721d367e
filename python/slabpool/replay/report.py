"""Telling what a replay came to: text for people, one JSON object for programs, a picture.

Whatever the trace does not have (service times, devices, acks, faults) is called synthetic in all
three. Figures are the pool's own, except times, which are the driver's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import slabpool
from slabpool.replay.outcome import Outcome
from slabpool.replay.schedule import Schedule

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class MissingExtraError(slabpool.SlabpoolError, ImportError):
    """Something optional was asked for whose library is not installed."""


def human_bytes(nbytes: float) -> str:
    """Bytes for people.

    Examples
    --------
    >>> from slabpool.replay.report import human_bytes
    >>> human_bytes(1536), human_bytes(0), human_bytes(3 << 30)
    ('1.5 KiB', '0 B', '3.0 GiB')
    """
    unit = 0
    while abs(nbytes) >= 1024 and unit < len(_UNITS) - 1:
        nbytes /= 1024
        unit += 1
    return f"{nbytes:.0f} B" if unit == 0 else f"{nbytes:.1f} {_UNITS[unit]}"


@dataclass(frozen=True, slots=True)
class Report:
    """A finished replay with what it was a replay of.

    Attributes
    ----------
    schedule : Schedule
    outcome : Outcome
    model : str
        Name of the model whose KV cache it was, or "" where bytes per token were given.
    ids : str
        ``"same"`` or ``"unique"``.
    capacity : int
        Bytes.
    capacity_from : str
        How the capacity came about, in words.
    """

    schedule: Schedule
    outcome: Outcome
    model: str
    ids: str
    capacity: int
    capacity_from: str

    @property
    def operations_per_s(self) -> float:
        return self.outcome.operations / self.outcome.wall_s

    @property
    def committed_over_live(self) -> float | None:
        """Peak committed over peak live; None where nothing was ever live."""
        stats = self.outcome.final
        return stats.peak_committed / stats.peak_live if stats.peak_live else None

    def _waits(self) -> dict[str, float]:
        """Virtual seconds over all requests, those that did not wait included."""
        waits = np.array(self.outcome.waits_us or [0]) / 1e6
        return {
            "median": float(np.median(waits)),
            "p99": float(np.percentile(waits, 99)),
            "max": float(waits.max()),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON: bytes as integers, times in seconds."""
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
            "violations_told": list(out.told),
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
        """A dozen lines for a terminal."""
        plan, out = self.schedule, self.outcome
        stats, service, waits = out.final, plan.service, self._waits()
        waited = sum(wait > 0 for wait in out.waits_us)
        ratio = self.committed_over_live
        model = f"{self.model}, " if self.model else ""
        lines = [
            f"trace       {plan.trace.name} ({plan.trace.format}), {len(plan.trace):,} requests, "
            f"{out.virtual_us / 60e6:.1f} virtual minutes",
            f"model       {model}{plan.bytes_per_token:,} bytes of KV cache a token; {self.ids} request id"
            + ("s" if self.ids == "unique" else " for all"),
            f"synthetic   prefill {service.prefill_rate:g} and decode {service.decode_rate:g} tokens/s, "
            f"blocks of {service.block_tokens} tokens, {plan.devices} devices, acks after "
            f"{service.ack_delay * 1e3:g} ms (mean), seed {plan.seed}",
        ]
        if plan.faults.asked():
            lines.append(
                f"synthetic   faults: {out.acks_duplicate:,} duplicate acks, {out.acks_late:,} late acks, "
                f"{out.devices_lost:,} devices lost ({out.holds_lost:,} holds with them), "
                f"{out.aborted:,} aborts"
            )
        lines += [
            f"capacity    {human_bytes(self.capacity)} ({self.capacity_from})",
            f"requests    {out.released:,} of {len(plan.trace):,} served and released",
            f"operations  {self.operations_per_s:,.0f}/s: {out.allocated:,} allocations, "
            f"{out.acks_counted + out.acks_duplicate + out.acks_late:,} acks, {out.released:,} releases in "
            f"{out.wall_s:.2f} s, driver included",
            f"memory      peak live {human_bytes(stats.peak_live)}, peak committed "
            f"{human_bytes(stats.peak_committed)}"
            + (f", committed / live {ratio:.3f}" if ratio is not None else ""),
            f"waits       {waited:,} requests waited for memory; median {waits['median']:.3g} s, "
            f"p99 {waits['p99']:.3g} s, max {waits['max']:.3g} s (virtual, of all requests)",
            f"leaked      {out.leaked_bytes:,} bytes",
        ]
        lines += [f"            {record}" for record in out.leaks]
        if out.violations:
            lines.append(f"WRONG       {out.violations} answers of the pool against its laws:")
            lines += [f"            {what}" for what in out.told]
        return "\n".join(lines)


def plotter() -> Callable[[Report, Path], None]:
    """The function that draws a report, or a clear error before any work is done.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"a plot needs matplotlib (pip install 'slabpool[cli]'): {error}") from error

    def draw(report: Report, path: Path) -> None:
        samples = report.outcome.samples
        minutes = [sample.time_us / 60e6 for sample in samples]
        # A Figure of its own, not pyplot: no display, no global state.
        figure = Figure(figsize=(10, 5), layout="constrained")
        axes = figure.add_subplot()
        gib = float(1 << 30)
        # Stacked, since these parts add up to what is committed.
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
        faults = ", ".join(f"{name} {rate:g}" for name, rate in plan.faults.asked().items())
        axes.set_title(
            f"{plan.trace.name}: {report.outcome.released:,} requests, "
            f"KV cache of {report.model or f'{plan.bytes_per_token:,} bytes a token'}\n"
            f"synthetic: service times, {plan.devices} devices and their acks"
            + (f"; faults {faults}" if faults else ""),
            fontsize="medium",
        )
        figure.savefig(path, dpi=120)

    return draw
