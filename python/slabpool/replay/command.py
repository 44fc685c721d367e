"""The command line of ``slabpool replay``: options in, report out.

The report goes to standard output and nothing else does; progress goes to standard error. What the
user got wrong is raised as SlabpoolError or OSError before or instead of a report, never printed here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from slabpool import Pool
from slabpool.errors import InvalidArgumentError
from slabpool.replay.engine import Replay, whole_sizes
from slabpool.replay.models import MODELS, model_shape
from slabpool.replay.report import Report, human_bytes, plotter
from slabpool.replay.schedule import Faults, Schedule, Service, lay_out
from slabpool.replay.trace import read_trace

_DEFAULT_MODEL = "llama-3.1-8b"
_DEFAULT_CAPACITY = "1.2x"
_MULTIPLE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*x", re.IGNORECASE)
_MAX_DEVICES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``slabpool replay``."""
    service = Service()
    parser.description = (
        "Replays a trace of a real inference service in a pool: real allocations, real acknowledgements from "
        "device threads, in virtual time. Arrivals and lengths are the trace's; service times, devices, "
        "acknowledgements and faults are synthetic. Memory is committed but, without --touch, not touched: "
        "a replay of a pool of 100 GiB runs on a small machine. Exit status: 0, 1 if anything leaked or the "
        "pool broke a law, 2 if the replay could not be made."
    )
    parser.add_argument(
        "trace", metavar="TRACE", help="Azure LLM inference CSV or Mooncake JSONL; told by content"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--model",
        metavar="NAME",
        help=f"whose KV cache: {', '.join(MODELS)} (default: {_DEFAULT_MODEL})",
    )
    size.add_argument(
        "--bytes-per-token", type=_positive_int, metavar="N", help="bytes of KV cache a token instead"
    )
    parser.add_argument(
        "--capacity",
        default=_DEFAULT_CAPACITY,
        metavar="SIZE",
        help="of the pool: bytes, a size such as 64GiB, or a multiple of the peak that a run without limit "
        "would have, such as 0.8x (default: %(default)s)",
    )
    parser.add_argument("--limit", type=_positive_int, metavar="N", help="only the first N requests")
    parser.add_argument(
        "--ids",
        choices=("same", "unique"),
        default="same",
        help="one request id for all, or one each (default: %(default)s)",
    )
    parser.add_argument(
        "--touch", action="store_true", help="write a byte to every page, so that it costs real memory"
    )

    made = parser.add_argument_group("synthetic service")
    made.add_argument(
        "--devices", type=_devices, default=3, metavar="N", help="device threads (default: %(default)s)"
    )
    made.add_argument(
        "--prefill-rate",
        type=_positive,
        default=service.prefill_rate,
        metavar="T",
        help="prompt tokens a second (default: %(default)g)",
    )
    made.add_argument(
        "--decode-rate",
        type=_positive,
        default=service.decode_rate,
        metavar="T",
        help="generated tokens a second of one request (default: %(default)g)",
    )
    made.add_argument(
        "--block-tokens",
        type=_positive_int,
        default=service.block_tokens,
        metavar="N",
        help="generated tokens to one further allocation (default: %(default)s)",
    )
    made.add_argument(
        "--ack-delay",
        type=_not_negative,
        default=service.ack_delay,
        metavar="S",
        help="mean seconds from the host's close to a device's ack (default: %(default)g)",
    )
    made.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of all that is drawn (default: %(default)s)"
    )

    faults = parser.add_argument_group("synthetic faults (rates from 0 to 1)")
    for name, text in (
        ("--duplicate-acks", "of acks: sent twice"),
        ("--late-acks", "of acks: sent again after the request is gone"),
        ("--lost-devices", "of requests: a device of theirs is lost with all that it holds"),
        ("--abort", "of requests: cancelled before they end"),
    ):
        faults.add_argument(name, type=_rate, default=0.0, metavar="RATE", help=text)

    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output instead of text"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw memory over virtual time (needs matplotlib)"
    )


def run(args: argparse.Namespace) -> int:
    """Replay as the options say; returns the exit status."""
    draw = plotter() if args.plot else None
    if args.plot and not args.plot.parent.is_dir():
        raise InvalidArgumentError(f"no folder {args.plot.parent} to write {args.plot.name} to")
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
    with _progress(len(trace)) as tick:
        report = replay(schedule, args.capacity, model=model, ids=args.ids, touch=args.touch, progress=tick)
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
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Replay a schedule in a pool made for it.

    Parameters
    ----------
    schedule : Schedule
    capacity : str
        Size of the pool, or a multiple (``"1.2x"``) of `Schedule.unlimited`'s peak; never less, then,
        than the largest request needs.
    model, ids, touch, progress
        As in `Report` and `slabpool.replay.engine.Replay`.

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
    block = int(whole_sizes(schedule.prompt_bytes[:1] * 0 + schedule.block_bytes)[0])
    need = schedule.need(whole, block)
    peak, end_us = schedule.unlimited(whole, block)
    size, said = _capacity(capacity, peak, int(need.max()))
    with Pool(size, name="replay") as pool:
        if touch:
            _check_memory(min(pool.capacity, peak))
        outcome = Replay(
            pool, schedule, need, end_us, unique_ids=ids == "unique", touch=touch, progress=progress
        ).run()
        report = Report(schedule, outcome, model, ids, pool.capacity, said)
        if not outcome.ok:
            # The report says what is still held; closing would raise for the same reason.
            pool.close(force=True)
    return report


def _capacity(text: str, peak: int, largest: int) -> tuple[int | str, str]:
    """What to give the pool, and how that came about."""
    multiple = _MULTIPLE.fullmatch(text.strip())
    if multiple is None:
        return (int(text) if text.strip().isdigit() else text), "as given"
    times = float(multiple[1])
    # Whole MiB, so that what the pool rounds to its own pages is not lost.
    size = -(-max(int(times * peak), largest, 1) // (1 << 20)) * (1 << 20)
    said = f"{times:g} times the peak of a run without limit, {human_bytes(peak)}"
    return size, said + (", raised to hold the largest request" if times * peak < largest else "")


def _check_memory(nbytes: int) -> None:
    """Refuse to touch more than the machine has: the system would end other programs for it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > 0.9 * physical:
        raise InvalidArgumentError(
            f"--touch would use up to {human_bytes(nbytes)} and the machine has {human_bytes(physical)}: "
            "lower --limit or --capacity, or choose a smaller --model"
        )


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on standard error where that is a terminal and rich is installed, else none."""
    bar = None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            bar = Progress(
                TextColumn("replay"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
    if bar is None:
        yield None
        return
    with bar:
        task = bar.add_task("replay", total=total)
        yield lambda done: bar.update(task, completed=done)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"not a finite number: {text!r}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive: {text!r}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text!r}")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a rate is from 0 to 1: {text!r}")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None


def _positive_int(text: str) -> int:
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1: {text!r}")
    return value


def _seed(text: str) -> int:
    value = _integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text!r}")
    return value


def _devices(text: str) -> int:
    value = _positive_int(text)
    if value > _MAX_DEVICES:
        raise argparse.ArgumentTypeError(f"each device is a thread, so at most {_MAX_DEVICES}: {text!r}")
    return value
