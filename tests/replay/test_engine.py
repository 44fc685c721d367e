"""The replay itself: everything served, nothing leaked, faults answered, waits in order, false answers
noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool.replay.engine import SAMPLES, Replay, whole_sizes
from slabpool.replay.outcome import Outcome, ReplayError
from slabpool.replay.schedule import Faults, Schedule, Service, lay_out
from slabpool.replay.trace import Trace

from .sabotage import CountsMessages, IgnoresLoss, KeepsNoReservation, LetsOvertake, LosesAcks

TOKEN = 4096  # bytes; pools are small and requests are whole pages
ALL_FAULTS = Faults(duplicate_acks=0.3, late_acks=0.3, lost_devices=0.1, abort=0.2)


def sizes(plan: Schedule) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    """The bytes that each request needs, and the peak without a limit."""
    whole = whole_sizes(plan.prompt_bytes)
    block = int(whole_sizes(np.array([plan.block_bytes]))[0])
    return plan.need(whole, block), plan.unlimited(whole, block)[0]


def played(
    plan: Schedule,
    capacity: int | None = None,
    make_pool: Callable[..., Any] = slabpool.Pool,
    **options: Any,
) -> Outcome:
    """Replay with room to spare, or in ``capacity`` bytes."""
    need, peak = sizes(plan)
    with make_pool(capacity or 2 * peak + int(need.max())) as pool:
        outcome = Replay(pool, plan, need, 60_000_000, **options).run()
        if not outcome.ok:
            pool.close(force=True)
    return outcome


def without_clock(outcome: Outcome) -> dict[str, Any]:
    """The part of an outcome that must repeat: without wall time, and without how the pool used its
    memory."""
    figures = asdict(outcome)
    del figures["wall_s"]
    # How much was committed beyond what was live may depend on which thread gave a block back.
    figures["samples"] = [(s.time_us, s.live, s.retained, s.in_doubt) for s in outcome.samples]
    figures["stats"] = {
        name: value
        for name, value in outcome.final._asdict().items()
        if name not in ("committed", "cached", "peak_committed", "duplicate_acks", "late_acks")
    }
    return figures


def test_everything_is_served_and_nothing_leaks(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN)
    outcome = played(plan)
    assert outcome.violation_texts == []
    assert outcome.ok
    assert outcome.opened == outcome.released == len(trace)
    assert outcome.leaked_bytes == 0
    assert outcome.acks_counted == 3 * len(trace)
    assert outcome.allocated == len(trace) + int(plan.blocks.sum())
    assert outcome.waits_us == [0] * len(trace)
    assert outcome.final.live == outcome.final.reserved == 0
    assert outcome.operations == outcome.allocated + 3 * len(trace) + len(trace)


def test_live_peak_is_that_of_the_schedule(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN)
    _, peak = sizes(plan)
    # Not above it; below it only if a release and an arrival fall on the same microsecond.
    assert 0.95 * peak <= played(plan).final.peak_live <= peak


@pytest.mark.parametrize("devices", [1, 2, 7])
def test_any_number_of_devices(trace: Trace, devices: int) -> None:
    outcome = played(lay_out(trace, TOKEN, devices=devices, faults=ALL_FAULTS))
    assert outcome.violation_texts == []
    assert outcome.ok
    assert outcome.acks_counted + outcome.holds_lost == devices * len(trace)


def test_same_seed_same_outcome(trace: Trace) -> None:
    first, again = (played(lay_out(trace, TOKEN, faults=ALL_FAULTS, seed=11)) for _ in range(2))
    assert without_clock(first) == without_clock(again)
    other = played(lay_out(trace, TOKEN, faults=ALL_FAULTS, seed=12))
    assert without_clock(first) != without_clock(other)


def test_ids_make_no_difference_to_memory(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN, faults=ALL_FAULTS)
    same, unique = played(plan), played(plan, unique_ids=True)
    assert same.ok
    assert unique.ok
    assert without_clock(same) == without_clock(unique)


def test_duplicate_and_late_acks_change_nothing(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN, faults=Faults(duplicate_acks=0.5, late_acks=0.5))
    outcome, quiet = played(plan), played(lay_out(trace, TOKEN))
    assert outcome.violation_texts == []
    assert outcome.acks_duplicate == plan.duplicate.sum() > 0
    assert outcome.acks_late == plan.late.sum() > 0
    assert outcome.acks_counted == quiet.acks_counted
    assert outcome.final.peak_live == quiet.final.peak_live
    assert outcome.final.frees == quiet.final.frees


def test_lost_devices_release_all_they_held(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN, faults=Faults(lost_devices=0.3))
    outcome = played(plan)
    assert outcome.violation_texts == []
    assert outcome.ok
    assert 0 < outcome.devices_lost <= (plan.lost_device >= 0).sum()
    assert outcome.holds_lost >= outcome.devices_lost
    assert outcome.acks_counted + outcome.holds_lost == 3 * len(trace)


def test_every_device_lost_every_time(trace: Trace) -> None:
    outcome = played(lay_out(trace, TOKEN, faults=Faults(1, 1, 1, 1)))
    assert outcome.violation_texts == []
    assert outcome.ok
    assert outcome.aborted == len(trace)


def test_aborted_requests_hold_less_and_return_it(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN, faults=Faults(abort=1.0))
    outcome = played(plan)
    assert outcome.violation_texts == []
    assert outcome.ok
    assert outcome.aborted == len(trace)
    assert outcome.allocated == len(trace) + int(plan.blocks_drawn.sum())
    assert plan.blocks_drawn.sum() < plan.blocks.sum()


@pytest.mark.parametrize("faults", [Faults(), ALL_FAULTS], ids=["quiet", "faults"])
def test_a_pool_of_the_largest_request_makes_others_wait_and_refuses_none(
    trace: Trace, faults: Faults
) -> None:
    plan = lay_out(trace, TOKEN, faults=faults)
    need, peak = sizes(plan)
    capacity = -(-int(need.max()) // (1 << 20)) << 20
    assert capacity < peak
    outcome = played(plan, capacity)
    assert outcome.violation_texts == []
    assert outcome.ok
    assert outcome.released == len(trace)
    assert max(outcome.waits_us) > 0
    assert sum(wait > 0 for wait in outcome.waits_us) > len(trace) // 2
    assert outcome.final.peak_committed <= capacity
    assert outcome.final.exhaustions > 0


def test_the_longest_waiter_is_served_first() -> None:
    arrivals = np.array([0, 1, 2, 3]) * 1000
    queue = Trace("queue", "azure", arrivals, np.array([800] * 4), np.array([0] * 4))
    # One fits at a time; each takes 0.1 s and acks at the next 10 ms.
    plan = lay_out(queue, TOKEN, service=Service(ack_delay=0.0))
    outcome = played(plan, 4 << 20)
    assert outcome.ok
    # Admitted at 0, 100, 200 and 300 ms.
    assert outcome.waits_us == [0, 99_000, 198_000, 297_000]


@pytest.mark.parametrize("faults", [Faults(), ALL_FAULTS], ids=["quiet", "faults"])
@pytest.mark.parametrize("times", [0.5, 1.0])
def test_the_pools_queue_serves_all_in_the_order_in_which_they_came(
    trace: Trace, faults: Faults, times: float
) -> None:
    plan = lay_out(trace, TOKEN, faults=faults)
    need, peak = sizes(plan)
    capacity = -(-max(int(times * peak), int(need.max())) // (1 << 20)) << 20
    outcome = played(plan, capacity, wait=100_000.0)
    assert outcome.violation_texts == []
    assert outcome.ok
    assert outcome.released == len(trace)
    assert outcome.timed_out == 0
    assert max(outcome.waits_us) > 0
    # As the driver itself would serve them: strictly in order of arrival, as soon as there is room.
    assert outcome.waits_us == played(plan, capacity).waits_us


def test_a_waiter_that_gives_up_leaves_the_pools_queue_and_the_next_is_served() -> None:
    arrivals = np.array([0, 1, 2, 60]) * 1000
    queue = Trace("queue", "azure", arrivals, np.array([800, 1600, 800, 800]), np.array([0] * 4))
    # Each is served for 0.1 s. The second needs nearly all of the pool, and leaves at 51 ms. Then the third
    # fits beside the first; the fourth waits for the first to end.
    plan = lay_out(queue, TOKEN, service=Service(ack_delay=0.0))
    outcome = played(plan, 7 << 20, wait=0.05)
    assert outcome.violation_texts == []
    assert outcome.waits_us == [0, 49_000, 40_000]
    assert (outcome.opened, outcome.released, outcome.timed_out, outcome.unserved) == (3, 3, 1, 0)
    assert outcome.virtual_us < 300_000, "a wait that ended in time does not prolong the replay"


def test_a_wait_of_no_time_refuses_what_does_not_fit() -> None:
    arrivals = np.array([0, 1, 200_000])
    queue = Trace("queue", "azure", arrivals, np.array([800] * 3), np.array([0] * 3))
    outcome = played(lay_out(queue, TOKEN, service=Service(ack_delay=0.0)), 4 << 20, wait=0.0)
    assert (outcome.waits_us, outcome.timed_out) == ([0, 0], 1)


def test_requests_without_bytes_pass_the_pools_queue() -> None:
    arrivals = np.array([0, 1, 2]) * 1000
    queue = Trace("queue", "azure", arrivals, np.array([800, 800, 0]), np.array([0] * 3))
    outcome = played(lay_out(queue, TOKEN, service=Service(ack_delay=0.0)), 4 << 20, wait=10.0)
    assert outcome.violation_texts == []
    assert outcome.waits_us == [0, 0, 99_000]


def test_waiters_that_overtake_are_noticed() -> None:
    arrivals = np.array([0, 1, 2]) * 1000
    queue = Trace("queue", "azure", arrivals, np.array([800, 800, 400]), np.array([0] * 3))
    plan = lay_out(queue, TOKEN, service=Service(ack_delay=0.0))
    outcome = played(plan, 5 << 20, make_pool=LetsOvertake, wait=10.0)
    assert not outcome.ok
    assert outcome.violation_texts == ["request 3 was served before request 2, which waited longer"]


def test_a_request_larger_than_the_pool_is_refused_before_anything_runs(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN)
    need, _ = sizes(plan)
    worst = int(need.argmax()) + 1
    with slabpool.Pool(int(need.max()) // 2) as pool:
        with pytest.raises(slabpool.PoolExhausted, match=f"request {worst} of the trace"):
            Replay(pool, plan, need, 1).run()
        assert pool.stats().allocations == 0


def test_requests_without_tokens_hold_nothing() -> None:
    empty = Trace("empty", "azure", np.array([0, 5]), np.array([0, 0]), np.array([0, 3]))
    outcome = played(lay_out(empty, TOKEN), 1 << 20)
    assert outcome.ok
    assert outcome.released == 2
    assert outcome.allocated == 1


def test_touching_writes_every_page() -> None:
    one = Trace("one", "azure", np.array([0]), np.array([100]), np.array([20]))
    assert played(lay_out(one, TOKEN), 4 << 20, touch=True).ok


def test_samples_add_up_and_are_few(trace: Trace) -> None:
    outcome = played(lay_out(trace, TOKEN, faults=ALL_FAULTS))
    times = [sample.time_us for sample in outcome.samples]
    assert times == sorted(times)
    assert 2 <= len(times) <= SAMPLES + 2
    assert times[-1] == outcome.virtual_us
    for sample in outcome.samples:
        assert sample.committed == sample.live + sample.retained + sample.in_doubt + sample.cached
    assert outcome.samples[-1].live == 0
    assert max(sample.live for sample in outcome.samples) > 0


def test_progress_is_reported() -> None:
    many = Trace("many", "azure", np.arange(600), np.full(600, 1), np.full(600, 0))
    steps: list[int] = []
    played(lay_out(many, 64), 1 << 20, progress=steps.append)
    assert steps == [256, 256]


# The replay must not accept a pool's mistakes.


def test_lost_acks_are_noticed(trace: Trace) -> None:
    outcome = played(lay_out(trace, TOKEN), make_pool=LosesAcks)
    assert not outcome.ok
    assert outcome.violations > 0
    assert outcome.leaked_bytes > 0


def test_late_acks_that_count_are_noticed(trace: Trace) -> None:
    outcome = played(lay_out(trace, TOKEN, faults=Faults(late_acks=0.5)), make_pool=CountsMessages)
    assert not outcome.ok
    assert any("late ack" in text for text in outcome.violation_texts)


def test_ignored_losses_are_noticed(trace: Trace) -> None:
    outcome = played(lay_out(trace, TOKEN, faults=Faults(lost_devices=0.3)), make_pool=IgnoresLoss)
    assert not outcome.ok
    assert any("device_lost of device-" in text for text in outcome.violation_texts)
    assert outcome.leaked_bytes > 0


def test_broken_reservations_stop_the_replay(trace: Trace) -> None:
    plan = lay_out(trace, TOKEN)
    need, _ = sizes(plan)
    with pytest.raises(ReplayError, match="did not keep the reservation"):
        played(plan, int(need.max()), make_pool=KeepsNoReservation)


def test_an_unfinished_outcome_has_no_account() -> None:
    with pytest.raises(ReplayError, match="not ended"):
        _ = Outcome().leaked_bytes
