"""The schedule: what it draws, that it repeats, and that its peak equals that of a simple count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from slabpool.errors import InvalidArgumentError
from slabpool.replay.schedule import Faults, Schedule, Service, lay_out
from slabpool.replay.trace import Trace


def made(*rows: tuple[int, int, int]) -> Trace:
    """A trace of (arrival in ms, prompt, output)."""
    table = np.array(rows, dtype=np.int64)
    return Trace("made", "azure", table[:, 0] * 1000, table[:, 1], table[:, 2])


def arrays(plan: Schedule) -> dict[str, bytes]:
    return {
        field.name: getattr(plan, field.name).tobytes()
        for field in dataclasses.fields(plan)
        if isinstance(getattr(plan, field.name), np.ndarray)
    }


def test_times_of_one_request() -> None:
    service = Service(prefill_rate=1000, decode_rate=10, block_tokens=4, ack_delay=0.0, tick=0.5)
    plan = lay_out(made((0, 500, 9)), 10, service=service)
    assert plan.prompt_bytes.tolist() == [5000]
    assert plan.block_bytes == 40
    assert plan.blocks.tolist() == plan.blocks_drawn.tolist() == [3]
    assert plan.first_block_us.tolist() == [500_000]
    assert plan.block_step_us == 400_000
    assert plan.end_us.tolist() == [1_400_000]
    assert plan.to_tick(1_400_000) == plan.to_tick(1_500_000) == 1_500_000
    assert plan.need(np.array([8192]), 64).tolist() == [8192 + 3 * 64]


def test_unlimited_peak_and_end_by_hand() -> None:
    service = Service(prefill_rate=1000, decode_rate=10, block_tokens=4, ack_delay=0.0, tick=0.5)
    # First: prompt at 0, blocks at 0.5, 0.9 and 1.3, released at 1.5. Second: prompt at 1.4, no output,
    # end at 1.4 + 0.2 = 1.6, released at 2.0.
    plan = lay_out(made((0, 500, 9), (1400, 200, 0)), 1, service=service)
    assert plan.unlimited(np.array([600, 200]), 10) == (600 + 30 + 200, 2_000_000)


def test_unlimited_peak_equals_a_plain_count(trace: Trace) -> None:
    plan = lay_out(trace, 7, faults=Faults(abort=0.3), seed=5)
    whole = plan.prompt_bytes
    peak, end = plan.unlimited(whole, plan.block_bytes)
    moments: list[tuple[int, int, int]] = []
    for i in range(len(trace)):
        t = int(trace.arrival_us[i])
        gone = max(plan.to_tick(t + int(plan.end_us[i]) + int(d)) for d in plan.ack_delay_us[i])
        total = int(whole[i])
        moments.append((t, 0, total))
        for k in range(int(plan.blocks_drawn[i])):
            at = t + int(plan.first_block_us[i]) + k * plan.block_step_us
            assert at < t + int(plan.end_us[i])
            moments.append((at, 0, plan.block_bytes))
            total += plan.block_bytes
        moments.append((gone, 1, -total))
    live = highest = 0
    for _, _, change in sorted(moments):
        live += change
        highest = max(highest, live)
    assert live == 0
    assert (peak, end) == (highest, max(moments)[0])


def test_same_seed_same_schedule_and_another_seed_another(trace: Trace) -> None:
    faults = Faults(0.1, 0.1, 0.1, 0.1)
    first, again, other = (lay_out(trace, 64, faults=faults, seed=seed) for seed in (3, 3, 4))
    assert arrays(first) == arrays(again)
    assert arrays(first) != arrays(other)


def test_one_fault_does_not_move_another(trace: Trace) -> None:
    quiet = lay_out(trace, 64, faults=Faults(duplicate_acks=0.2))
    both = lay_out(trace, 64, faults=Faults(duplicate_acks=0.2, late_acks=0.5))
    assert (quiet.duplicate == both.duplicate).all()
    assert (quiet.ack_delay_us == both.ack_delay_us).all()
    assert not quiet.late.any()
    assert both.late.any()


def test_rates_of_zero_and_one(trace: Trace) -> None:
    none, every = lay_out(trace, 64), lay_out(trace, 64, faults=Faults(1, 1, 1, 1))
    assert not none.duplicate.any()
    assert not none.late.any()
    assert not none.aborted.any()
    assert (none.lost_device == -1).all()
    assert every.duplicate.all()
    assert every.late.all()
    assert every.aborted.all()
    assert ((every.lost_device >= 0) & (every.lost_device < every.devices)).all()
    assert (every.end_us <= none.end_us).all()
    assert (every.blocks_drawn <= every.blocks).all()
    assert (every.blocks == none.blocks).all()


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(InvalidArgumentError, match="late_acks"):
        Faults(late_acks=rate)


@pytest.mark.parametrize(
    "service", [{"prefill_rate": 0}, {"decode_rate": -1}, {"block_tokens": 0}, {"tick": 0}, {"ack_delay": -1}]
)
def test_bad_services_are_refused(service: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(service))):
        Service(**service)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"bytes_per_token": 0}, {"devices": 0}, {"seed": -1}])
def test_bad_settings_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        lay_out(made((0, 1, 1)), **{"bytes_per_token": 1, **options})  # type: ignore[arg-type]
