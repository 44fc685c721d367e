"""The command line of ``slabpool replay``.

Only the report goes to standard output; progress goes to standard error. Bad input raises SlabpoolError or
OSError, which the caller prints.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from slabpool import Pool
from slabpool.arguments.reading import UnreadableError, decimal
from slabpool.arguments.texts import show
from slabpool.errors import InvalidArgumentError
from slabpool.replay.console import human_bytes, progress, whole_number
from slabpool.replay.engine import Replay, whole_sizes
from slabpool.replay.models import MODELS, model_shape
from slabpool.replay.report import Report, plotter
from slabpool.replay.schedule import Faults, Schedule, Service, lay_out
from slabpool.replay.trace import read_trace

_DEFAULT_MODEL = "llama-3.1-8b"
_DEFAULT_CAPACITY = "1.2x"
_MULTIPLE = re.compile(r"([0-9.]+)\s*x", re.IGNORECASE)
_MOST_MULTIPLE = 1 << 20
_MAX_DEVICES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``slabpool replay`` to a parser."""
    service = Service()
    parser.description = (
        "Replay a trace of a real inference service in a pool: real allocations and real acknowledgements "
        "from device threads, in virtual time. Arrivals and lengths come from the trace; service times, "
        "devices, acknowledgements and faults are synthetic. Without --touch, memory is committed but not "
        "written, so a replay of a 100 GiB pool runs on a small machine. Exit status: 0 if the replay is "
        "right, 1 if memory leaked or the pool violated a law, 2 if the replay could not run."
    )
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="an Azure LLM inference CSV or a Mooncake JSONL; the content decides which, not the name",
    )
    count = whole_number(1)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--model",
        metavar="NAME",
        help=f"the model whose KV cache is replayed: {', '.join(MODELS)} (default: {_DEFAULT_MODEL})",
    )
    size.add_argument(
        "--bytes-per-token",
        type=count,
        metavar="N",
        help="bytes of KV cache for each token, instead of --model",
    )
    parser.add_argument(
        "--capacity",
        default=_DEFAULT_CAPACITY,
        metavar="SIZE",
        help="capacity of the pool: bytes, a size such as 64GiB, or a multiple such as 0.8x of the peak of "
        "a run without limit (default: %(default)s)",
    )
    parser.add_argument(
        "--wait",
        type=_not_negative,
        metavar="SECONDS",
        help="let requests that do not fit wait in the pool's queue, each for at most SECONDS of virtual "
        "time, and check that they are served in order (default: they wait outside of the pool, "
        "without limit)",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="replay only the first N requests")
    parser.add_argument(
        "--ids",
        choices=("same", "unique"),
        default="same",
        help="use the same request id for all requests, or one for each (default: %(default)s)",
    )
    parser.add_argument(
        "--touch", action="store_true", help="write a byte to every page, so that it costs real memory"
    )

    made = parser.add_argument_group("synthetic service")
    made.add_argument(
        "--devices",
        type=whole_number(1, _MAX_DEVICES),
        default=3,
        metavar="N",
        help=f"number of device threads, 1 to {_MAX_DEVICES} (default: %(default)s)",
    )
    made.add_argument(
        "--prefill-rate",
        type=_positive,
        default=service.prefill_rate,
        metavar="T",
        help="prompt tokens in a second, of one request (default: %(default)g)",
    )
    made.add_argument(
        "--decode-rate",
        type=_positive,
        default=service.decode_rate,
        metavar="T",
        help="generated tokens in a second, of one request (default: %(default)g)",
    )
    made.add_argument(
        "--block-tokens",
        type=count,
        default=service.block_tokens,
        metavar="N",
        help="allocate a block for every N generated tokens (default: %(default)s)",
    )
    made.add_argument(
        "--ack-delay",
        type=_not_negative,
        default=service.ack_delay,
        metavar="S",
        help="mean seconds from the host's close to a device's ack (default: %(default)g)",
    )
    made.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of everything that is random (default: %(default)s)",
    )

    faults = parser.add_argument_group("synthetic faults (rates from 0 to 1)")
    for name, text in (
        ("--duplicate-acks", "fraction of acks that are sent twice"),
        ("--late-acks", "fraction of acks that are sent again after the request was released"),
        ("--lost-devices", "fraction of requests of which a device is lost, with all its holds"),
        ("--abort", "fraction of requests that are cancelled before they end"),
    ):
        faults.add_argument(name, type=_rate, default=0.0, metavar="RATE", help=text)

    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output instead of text"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="plot memory over virtual time (needs matplotlib)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the replay and print its report.

    Returns
    -------
    int
        Exit status: 0 if the replay is right, 1 if memory leaked or the pool violated a law.

    Raises
    ------
    SlabpoolError, OSError
        An option or a file cannot be used.
    """
    draw = plotter() if args.plot else None
    if args.plot and not args.plot.parent.is_dir():
        raise InvalidArgumentError(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    if args.bytes_per_token is not None:
        model, bytes_per_token = "", args.bytes_per_token
    else:
        model = (args.model or _DEFAULT_MODEL).lower()
        bytes_per_token = model_shape(model).bytes_per_token
    trace = read_trace(args.trace, args.limit)
    schedule = lay_out(
        trace,
        bytes_per_token,
        devices=args.devices,
        service=Service(args.prefill_rate, args.decode_rate, args.block_tokens, args.ack_delay),
        faults=Faults(args.duplicate_acks, args.late_acks, args.lost_devices, args.abort),
        seed=args.seed,
    )
    with progress("replay", len(trace)) as advance:
        report = replay(
            schedule,
            args.capacity,
            model=model,
            ids=args.ids,
            touch=args.touch,
            wait=args.wait,
            on_released=advance,
        )
    if args.json:
        json.dump(report.as_dict(), sys.stdout, indent=2)
        print()
    else:
        print(report.as_text())
    if draw is not None:
        draw(report, args.plot)
    return 0 if report.outcome.ok else 1


def replay(
    schedule: Schedule,
    capacity: str = _DEFAULT_CAPACITY,
    *,
    model: str = "",
    ids: str = "same",
    touch: bool = False,
    wait: float | None = None,
    on_released: Callable[[int], None] | None = None,
) -> Report:
    """Replay a schedule in a pool made for it.

    Parameters
    ----------
    schedule : Schedule
    capacity : str
        Size of the pool, or a multiple (``"1.2x"``) of the peak that `Schedule.unlimited` computes. A
        multiple is raised to the bytes that the largest request needs.
    model : str
        Name of the model, for the report.
    ids : str
        ``"same"`` or ``"unique"``.
    touch : bool
        Write a byte to every page.
    wait : float, optional
        Let requests wait in the pool's queue, each for at most so many seconds of virtual time.
    on_released : callable, optional
        Called now and then with the number of requests released since the last call.

    Returns
    -------
    Report

    Examples
    --------
    >>> import numpy as np
    >>> from slabpool.replay.command import replay
    >>> from slabpool.replay.schedule import lay_out
    >>> from slabpool.replay.trace import Trace
    >>> one = Trace("one", "azure", np.array([0]), np.array([800]), np.array([40]))
    >>> report = replay(lay_out(one, 1024))
    >>> report.outcome.released, report.outcome.leaked_bytes
    (1, 0)
    """
    whole = whole_sizes(schedule.prompt_bytes)
    block = int(whole_sizes(np.array([schedule.block_bytes]))[0])
    need = schedule.need(whole, block)
    peak, end_us = schedule.unlimited(whole, block)
    size, origin = _capacity(capacity, peak, int(need.max()))
    with Pool(size, name="replay") as pool:
        if touch:
            _check_memory(min(pool.capacity, peak))
        outcome = Replay(
            pool,
            schedule,
            need,
            end_us,
            unique_ids=ids == "unique",
            touch=touch,
            wait=wait,
            progress=on_released,
        ).run()
        report = Report(schedule, outcome, model, ids, pool.capacity, origin, wait)
        if not outcome.ok:
            # By force, because close() would raise for leaks, which are already in the report.
            pool.close(force=True)
    return report


def _capacity(text: str, peak: int, largest: int) -> tuple[int | str, str]:
    """Return the capacity of the pool, and how it was chosen, in words."""
    multiple = _MULTIPLE.fullmatch(text.strip())
    if multiple is None:
        return text, "as given"
    try:
        number, scale = decimal(multiple[1])
    except UnreadableError as error:
        raise InvalidArgumentError(
            f"--capacity must be bytes, a size or a multiple such as 0.8x: {error}"
        ) from None
    times = number / scale
    if times > _MOST_MULTIPLE:
        raise InvalidArgumentError(f"--capacity must be at most {_MOST_MULTIPLE}x, got {show(text)}")
    # Rounded up to whole MiB, because the pool rounds down to its pages.
    size = -(-max(int(times * peak), largest, 1) // (1 << 20)) * (1 << 20)
    origin = f"{times:g} times the peak of a run without limit, {human_bytes(peak)}"
    return size, origin + (", raised to hold the largest request" if times * peak < largest else "")


def _check_memory(nbytes: int) -> None:
    """Raise if touching so much memory could make the kernel kill other programs."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > 0.9 * physical:
        raise InvalidArgumentError(
            f"--touch would use up to {human_bytes(nbytes)}, but the machine has {human_bytes(physical)}; "
            "lower --limit or --capacity, or choose a smaller --model"
        )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {show(text)}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"not a finite number: {show(text)}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive: {show(text)}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {show(text)}")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a rate is from 0 to 1: {show(text)}")
    return value
