"""The command ``slabpool demo``: its options, and the run from input to verdict.

Exit status: 0 when nothing leaked and every token equals the reference, 1 when something leaked or a token
differs, 2 when a device thread failed and there is no verdict. Bad input is raised, for the caller to tell.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import slabpool
from slabpool.demo import reference
from slabpool.demo.baseline import DictMemory
from slabpool.demo.memory import Memory, MemoryFigures, PoolMemory
from slabpool.demo.model import Decoder, ModelConfig
from slabpool.demo.processes import ProcessRing, SharedMemory
from slabpool.demo.progress import progress
from slabpool.demo.report import Report, Setting, summarize
from slabpool.demo.ring import Ring, RingFailed
from slabpool.demo.serve import Run, serve
from slabpool.demo.workload import Job, make_jobs, read_lengths, read_prompts

_MODEL = ModelConfig()
_REQUEST_ID = "chat-42"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``slabpool demo`` to a parser."""
    parser.description = (
        "Serve a small Llama-shaped model over several device threads in a ring, with every cache and hidden "
        "state in a pool, and compare each token with a plain numpy run. Lengths and order come from a trace "
        "of a real service, scaled down. Exit status: 0 if nothing leaked and all tokens are equal, 1 if not "
        "so, 2 if it could not run."
    )
    number = _at_least(1)
    parser.add_argument(
        "--requests", type=number, default=3200, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--devices",
        type=number,
        default=3,
        metavar="N",
        help=f"device threads in the ring, 1 to {_MODEL.layers} (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency",
        type=number,
        default=4,
        metavar="N",
        help="requests of a burst; three quarters are served one after the other, the rest in bursts of so "
        "many at once; 1: no bursts (default: %(default)s)",
    )
    parser.add_argument(
        "--capacity", default="64MiB", metavar="SIZE", help="of the pool (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="of the model's weights (default: %(default)s)",
    )
    parser.add_argument(
        "--unique-ids",
        action="store_true",
        help=f"a new request id for each request (default: {_REQUEST_ID!r} for all)",
    )
    parser.add_argument(
        "--processes",
        action="store_true",
        help="device processes instead of threads, attached to a shared pool; hidden states go by reference",
    )
    parser.add_argument(
        "--kill-every",
        type=number,
        metavar="N",
        help="with --processes: kill a device at random (kill -9) at every N-th request, and start it again",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="no pool: memory in dictionaries by request id that nothing is ever taken out of, a model of "
        "what exo 0.0.15 did",
    )
    parser.add_argument(
        "--baseline-limit",
        type=number,
        metavar="N",
        help="with --baseline: a device keeps N request ids and drops the one used longest ago, as exo's "
        "mend did with 2",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="text file, one prompt a line (default: one of its own)"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="a trace that `slabpool replay` reads (default: the first 4,000 requests of the Azure trace of "
        "2023)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the figures as one JSON object; '-': to standard output, table to stderr",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns
    -------
    int
        Exit status: 0 or 1 by the verdict, 2 if a device thread failed.

    Raises
    ------
    SlabpoolError, OSError
        An option, a file or the capacity will not do.
    """
    try:
        report = _demonstrate(args)
    except RingFailed as failure:
        if not isinstance(failure.__cause__, slabpool.SlabpoolError):
            traceback.print_exception(failure.__cause__)  # a defect, not a matter of the options
        print(f"slabpool demo: {failure}", file=sys.stderr)
        return 2
    figures = json.dumps(report.as_json(), indent=2) + "\n"
    if args.json == "-":
        sys.stderr.write(report.as_text())
        sys.stdout.write(figures)
    else:
        sys.stdout.write(report.as_text())
        if args.json is not None:
            Path(args.json).write_text(figures, encoding="utf-8")
    return 0 if report.ok else 1


def _demonstrate(args: argparse.Namespace) -> Report:
    if args.baseline_limit is not None and not args.baseline:
        raise slabpool.InvalidArgumentError("--baseline-limit is for --baseline")
    if args.devices > _MODEL.layers:
        raise slabpool.InvalidArgumentError(
            f"--devices {args.devices}: the model has only {_MODEL.layers} layers"
        )
    if args.kill_every is not None and not args.processes:
        raise slabpool.InvalidArgumentError("--kill-every is for --processes")
    if args.processes and args.baseline:
        raise slabpool.InvalidArgumentError("--processes needs a pool, and --baseline has none")
    model = Decoder(_MODEL, args.seed)
    jobs = make_jobs(args.requests, read_prompts(args.prompts), read_lengths(args.trace))
    names = [f"device{number}" for number in range(args.devices)]
    kills, interrupted = 0, set[int]()
    if args.baseline:
        ring = Ring(model, names)
        result, memory = _serve(args, jobs, DictMemory(model, names, args.baseline_limit), ring)
    elif args.processes:
        pool = slabpool.Pool(args.capacity, memory="shared")
        try:
            crew = ProcessRing(_MODEL, args.seed, names, pool, args.kill_every)
            result, memory = _serve(args, jobs, SharedMemory(pool, model, names), crew)
            kills, interrupted = crew.kills, crew.interrupted
        finally:
            pool.close(force=True)
    else:
        pool = slabpool.Pool(args.capacity)
        try:
            result, memory = _serve(args, jobs, PoolMemory(pool, model, names), Ring(model, names))
        finally:
            # By force: what is still held then is in the figures, or an error is on its way out.
            pool.close(force=True)
    expected = []
    with progress("reference", len(jobs), enabled=not args.no_progress) as advance:
        for job in jobs:
            expected.append(reference.generate(model, job.prompt, job.generate))
            advance(1)
    setting = Setting(
        memory="dictionaries by request id" if args.baseline else "slabpool",
        requests=len(jobs),
        devices=len(names),
        concurrency=args.concurrency,
        seed=args.seed,
        unique_ids=args.unique_ids,
        processes=args.processes,
    )
    return summarize(setting, jobs, result, memory, expected, kills, interrupted)


def _serve(
    args: argparse.Namespace, jobs: list[Job], memory: Memory, devices: Ring | ProcessRing
) -> tuple[Run, MemoryFigures]:
    def request_id(job: Job) -> str:
        return f"chat-{job.index}" if args.unique_ids else _REQUEST_ID

    label = "baseline" if args.baseline else "pool"
    with progress(label, len(jobs), enabled=not args.no_progress) as advance, devices as ring:
        result = serve(jobs, memory, ring, args.concurrency, request_id, advance)
    return result, memory.figures()  # only now: the device threads have ended


def _at_least(minimum: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        return value

    whole_number.__name__ = "whole number"  # argparse names the type so where `int` refuses the text
    return whole_number
