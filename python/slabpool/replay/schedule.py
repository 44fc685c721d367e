"""What happens when, in virtual time: everything a replay adds to a trace, drawn before it starts.

A trace has arrivals and lengths. Service times, devices, acknowledgements and faults are synthetic:
they follow from the settings here and the seed, and from nothing that happens while a replay runs.
Each kind of draw has a stream of its own, so asking for one fault does not move another. Times are
integers in microseconds, relative to the request's admission unless the name says otherwise.
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

    A request holds one tensor for the KV of its prompt from its admission on. Prefill takes
    ``prompt / prefill_rate`` seconds; then tokens come at ``decode_rate`` a second, and every
    ``block_tokens`` of them a further block is allocated. Requests do not slow each other down.
    At its end the host closes it, and each device acknowledges after an exponential delay, rounded
    up to the next multiple of ``tick``: devices report between steps, so reports come in batches.

    Attributes
    ----------
    prefill_rate, decode_rate : float
        Tokens per second of one request.
    block_tokens : int
        Generated tokens to a block of KV (16 is the default block of vLLM).
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
    """How often something goes wrong, each from 0 (never) to 1 (always).

    Attributes
    ----------
    duplicate_acks : float
        Of acknowledgements: sent twice, back to back.
    late_acks : float
        Of acknowledgements: sent once more after the request is gone.
    lost_devices : float
        Of requests: one of their devices is lost while it holds them, and with it all else that it
        held. Another device of that name serves from then on.
    abort : float
        Of requests: cancelled by the host before they end.
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

    def asked(self) -> dict[str, float]:
        """The rates that are not zero, by name."""
        return {name: rate for name, rate in asdict(self).items() if rate}


@dataclass(frozen=True, slots=True)
class Schedule:
    """One replay, laid out. Arrays have a row per request and, where said, a column per device."""

    trace: Trace
    service: Service
    faults: Faults
    devices: int
    seed: int
    bytes_per_token: int
    #: Bytes of the prompt's tensor, and of each block of generated tokens.
    prompt_bytes: IntArray
    block_bytes: int
    #: Blocks the whole output takes, and those allocated before the request ends or is aborted.
    blocks: IntArray
    blocks_drawn: IntArray
    #: When the first block is allocated, and the time from one block to the next.
    first_block_us: IntArray
    block_step_us: int
    #: When the host lets go, and whether it does so before its time.
    end_us: IntArray
    aborted: _Flags
    #: (n, devices): time from the host's letting go to the acknowledgement, before rounding to ticks.
    ack_delay_us: IntArray
    #: (n, devices): sent twice; sent again after release.
    duplicate: _Flags
    late: _Flags
    #: The device lost while it holds this request, or -1; and when.
    lost_device: IntArray
    lost_us: IntArray

    @property
    def tick_us(self) -> int:
        return max(1, round(self.service.tick * 1e6))

    def to_tick(self, time_us: int) -> int:
        """The first moment at or after ``time_us`` at which devices report."""
        return -(-time_us // self.tick_us) * self.tick_us

    def need(self, whole_prompt: IntArray, whole_block: int) -> IntArray:
        """Bytes each request may come to hold, given the sizes of whole blocks.

        An abort does not lower it: who reserves cannot know that the request will be aborted.
        """
        return whole_prompt + self.blocks * whole_block

    def unlimited(self, whole_prompt: IntArray, whole_block: int) -> tuple[int, int]:
        """Peak of live bytes, and end in virtual time, of this schedule with memory to spare.

        Nothing is allocated: with no request waiting, every time is known beforehand. Devices are
        taken to be never lost, which can only give memory back earlier; where an allocation and a
        release share a microsecond the allocation counts first. So the true peak is not higher.

        Returns
        -------
        tuple of int
            Bytes in whole blocks, and microseconds from the first arrival to the last release.
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
    """Draw everything that a replay of ``trace`` adds to it.

    Parameters
    ----------
    trace : Trace
    bytes_per_token : int
        Bytes of KV cache of one token.
    devices : int
        Devices that hold every request.
    service, faults : Service, Faults, optional
        Defaults: those of the classes.
    seed : int
        Same seed, same schedule.

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
        raise InvalidArgumentError(f"there must be a device: {devices}")
    if seed < 0:
        raise InvalidArgumentError(f"seed must not be negative: {seed}")
    count = len(trace)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    delay_draws, duplicate_draws, late_draws, lost_draws, lost_details, abort_draws = streams

    prefill = np.ceil(trace.prompt * (1e6 / service.prefill_rate)).astype(np.int64)
    blocks = -(-trace.output // service.block_tokens)
    # Rounded down, so that the last block is never due after the end.
    step = int(service.block_tokens * 1e6 / service.decode_rate)
    full = prefill + np.ceil(trace.output * (1e6 / service.decode_rate)).astype(np.int64)

    fate = abort_draws.random((count, 2))
    aborted = fate[:, 0] < faults.abort
    end = np.where(aborted, (full * fate[:, 1]).astype(np.int64), full)
    # A block due at the microsecond of the abort is not allocated any more.
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
