"""The schedule of a replay in virtual time, computed before the replay starts.

A trace has arrivals and lengths. Service times, devices, acknowledgements and faults are synthetic: they
depend only on the settings here and on the seed. Each kind of fault has a random stream of its own, so
changing the rate of one fault does not change the others. Times are integers in microseconds, relative to the
request's admission unless the name says otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from slabpool.errors import InvalidArgumentError
from slabpool.replay.trace import IntArray, Trace

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Service:
    """The synthetic service.

    A request allocates one tensor for the KV of its prompt when it is admitted. Prefill takes ``prompt /
    prefill_rate`` seconds. Then ``decode_rate`` tokens are generated in each second, and a block is allocated
    for every ``block_tokens`` of them. Requests do not slow each other down. After the last token the host
    closes the request. Each device acknowledges it after an exponential delay, rounded up to the next
    multiple of ``tick``, because devices report between steps, in batches.

    Attributes
    ----------
    prefill_rate, decode_rate : float
        Tokens per second, of one request.
    block_tokens : int
        Generated tokens in a block of KV (16 is vLLM's default).
    ack_delay : float
        Mean seconds between the host's close and a device's acknowledgement.
    tick : float
        Seconds between the moments at which devices report.
    """

    prefill_rate: float = 8000.0
    decode_rate: float = 40.0
    block_tokens: int = 16
    ack_delay: float = 0.020
    tick: float = 0.010

    def __post_init__(self) -> None:
        for name in ("prefill_rate", "decode_rate", "block_tokens", "tick"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} must be positive, not {getattr(self, name)!r}")
        if not self.ack_delay >= 0:
            raise InvalidArgumentError(f"ack_delay must not be negative: {self.ack_delay!r}")


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates of injected faults, each from 0 (never) to 1 (always).

    Attributes
    ----------
    duplicate_acks : float
        Fraction of acknowledgements that are sent twice, back to back.
    late_acks : float
        Fraction of acknowledgements that are sent again after the request was released.
    lost_devices : float
        Fraction of requests of which a device is lost while it holds them. All other holds of that device end
        too. A new device of the same name takes its place.
    abort : float
        Fraction of requests that the host cancels before they end.
    """

    duplicate_acks: float = 0.0
    late_acks: float = 0.0
    lost_devices: float = 0.0
    abort: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = getattr(self, field.name)
            if not 0 <= rate <= 1:
                raise InvalidArgumentError(f"{field.name} must be from 0 to 1, not {rate!r}")

    def nonzero(self) -> dict[str, float]:
        """Return the rates that are not zero, by name."""
        return {name: rate for name, rate in asdict(self).items() if rate}


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of one replay.

    Arrays have one row for each request. Arrays marked (n, devices) also have one column for each device.
    """

    trace: Trace
    service: Service
    faults: Faults
    devices: int
    seed: int
    bytes_per_token: int
    #: Bytes of the prompt's tensor, and of each block of generated tokens.
    prompt_bytes: IntArray
    block_bytes: int
    #: Blocks of the whole output, and blocks that are allocated before the request ends or is aborted.
    blocks: IntArray
    blocks_drawn: IntArray
    #: Time of the first block, and time from one block to the next.
    first_block_us: IntArray
    block_step_us: int
    #: Time at which the host closes or cancels the request, and whether it cancels it.
    end_us: IntArray
    aborted: _Flags
    #: (n, devices): time from the host's close to the acknowledgement, before rounding to ticks.
    ack_delay_us: IntArray
    #: (n, devices): whether the ack is sent twice; whether it is sent again after the release.
    duplicate: _Flags
    late: _Flags
    #: The device that is lost while it holds this request, or -1; and the time of the loss.
    lost_device: IntArray
    lost_us: IntArray

    @property
    def tick_us(self) -> int:
        """Microseconds between the moments at which devices report."""
        return max(1, round(self.service.tick * 1e6))

    def to_tick(self, time_us: int) -> int:
        """Return the first moment at or after `time_us` at which devices report."""
        return -(-time_us // self.tick_us) * self.tick_us

    def need(self, whole_prompt: IntArray, whole_block: int) -> IntArray:
        """Return the bytes that each request reserves, given the bytes that tensors take in the pool.

        Aborted requests reserve as much as others, because the host does not know of the abort in advance.
        """
        return whole_prompt + self.blocks * whole_block

    def unlimited(self, whole_prompt: IntArray, whole_block: int) -> tuple[int, int]:
        """Compute the peak of live bytes and the end of this schedule in a pool without limit.

        Nothing is allocated: if no request waits, every time is known in advance. The peak is an upper bound:
        lost devices, which return memory earlier, are ignored, and at the same microsecond allocations count
        before releases.

        Returns
        -------
        tuple of int
            Bytes, rounding included, and microseconds from the first arrival to the last release.
        """
        arrival = self.trace.arrival_us
        drawn = self.blocks_drawn
        start = np.cumsum(drawn) - drawn
        nth = np.arange(int(drawn.sum())) - np.repeat(start, drawn)
        block_times = np.repeat(arrival + self.first_block_us, drawn) + nth * self.block_step_us
        asked = (arrival + self.end_us)[:, None] + self.ack_delay_us
        released = (-(-asked // self.tick_us) * self.tick_us).max(axis=1)
        times = np.concatenate([arrival, block_times, released])
        change = np.concatenate(
            [whole_prompt, np.full(len(block_times), whole_block), -(whole_prompt + drawn * whole_block)]
        )
        order = np.lexsort((-change, times))
        return int(np.cumsum(change[order]).max(initial=0)), int(released.max())


def lay_out(
    trace: Trace,
    bytes_per_token: int,
    *,
    devices: int = 3,
    service: Service | None = None,
    faults: Faults | None = None,
    seed: int = 0,
) -> Schedule:
    """Compute the schedule of a replay.

    Parameters
    ----------
    trace : Trace
    bytes_per_token : int
        Bytes of KV cache of one token.
    devices : int
        Number of devices. All of them hold every request.
    service : Service, optional
    faults : Faults, optional
        By default there are no faults.
    seed : int
        The same seed gives the same schedule.

    Returns
    -------
    Schedule

    Examples
    --------
    >>> import numpy as np
    >>> from slabpool.replay.schedule import lay_out
    >>> from slabpool.replay.trace import Trace
    >>> one = Trace("one", "azure", np.array([0]), np.array([800]), np.array([40]))
    >>> plan = lay_out(one, 1024)
    >>> int(plan.prompt_bytes[0]), plan.block_bytes, int(plan.blocks[0])
    (819200, 16384, 3)
    >>> int(plan.first_block_us[0]), int(plan.end_us[0])  # 0.1 s of prefill, then 1 s of tokens
    (100000, 1100000)
    """
    service = service or Service()
    faults = faults or Faults()
    if not 1 <= bytes_per_token <= 1 << 30:
        raise InvalidArgumentError(f"bytes per token must be from 1 to 2**30, not {bytes_per_token}")
    if devices < 1:
        raise InvalidArgumentError(f"devices must be at least 1, not {devices}")
    if seed < 0:
        raise InvalidArgumentError(f"seed must not be negative: {seed}")
    count = len(trace)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    delay_draws, duplicate_draws, late_draws, lost_draws, lost_details, abort_draws = streams

    prefill = np.ceil(trace.prompt * (1e6 / service.prefill_rate)).astype(np.int64)
    blocks = -(-trace.output // service.block_tokens)
    # Rounded down, so that the last block is not due after the end.
    step = int(service.block_tokens * 1e6 / service.decode_rate)
    full = prefill + np.ceil(trace.output * (1e6 / service.decode_rate)).astype(np.int64)

    fate = abort_draws.random((count, 2))
    aborted = fate[:, 0] < faults.abort
    end = np.where(aborted, (full * fate[:, 1]).astype(np.int64), full)
    # A block that is due at the microsecond of the abort is not allocated.
    in_time = np.clip(-(-(end - prefill) // max(step, 1)), 0, blocks)
    delay = (delay_draws.exponential(1.0, (count, devices)) * service.ack_delay * 1e6).astype(np.int64)

    lost_device = np.where(
        lost_draws.random(count) < faults.lost_devices, lost_details.integers(devices, size=count), -1
    )
    held = end + np.take_along_axis(delay, np.maximum(lost_device, 0)[:, None], axis=1)[:, 0]
    return Schedule(
        trace=trace,
        service=service,
        faults=faults,
        devices=devices,
        seed=seed,
        bytes_per_token=bytes_per_token,
        prompt_bytes=trace.prompt * bytes_per_token,
        block_bytes=service.block_tokens * bytes_per_token,
        blocks=blocks,
        blocks_drawn=np.where(aborted, in_time, blocks),
        first_block_us=prefill,
        block_step_us=step,
        end_us=end,
        aborted=aborted,
        ack_delay_us=delay,
        duplicate=duplicate_draws.random((count, devices)) < faults.duplicate_acks,
        late=late_draws.random((count, devices)) < faults.late_acks,
        lost_device=lost_device,
        lost_us=(held * lost_details.random(count)).astype(np.int64),
    )
