"""The command ``slabpool demo``: its options, and the run from input to verdict.

The exit status is 0 if nothing leaked and every token equals the reference, 1 if something leaked or a token
differs, and 2 if a device failed, so that there is no verdict. Bad input raises an error, which the caller
prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path

import slabpool
from slabpool.demo import reference
from slabpool.demo.baseline import DictMemory
from slabpool.demo.memory import Memory, MemoryFigures, PoolMemory
from slabpool.demo.model import Decoder, ModelConfig
from slabpool.demo.processes import ProcessRing, SharedMemory
from slabpool.demo.report import Report, Setting, summarize
from slabpool.demo.ring import Ring, RingFailed
from slabpool.demo.serve import Run, serve
from slabpool.demo.workload import Job, make_jobs, read_lengths, read_prompts
from slabpool.replay.console import progress, whole_number

_MODEL = ModelConfig()
_REQUEST_ID = "chat-42"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``slabpool demo`` to a parser."""
    parser.description = (
        "Serve a small Llama-shaped model over several device threads in a ring. All caches and hidden "
        "states are in a pool, and each token is compared with a plain numpy run. The lengths and the order "
        "of the requests come from a trace of a real service, scaled down. Exit status: 0 if nothing leaked "
        "and all tokens are equal, 1 if something leaked or a token differs, 2 if the demo could not run."
    )
    number = whole_number(1)
    parser.add_argument(
        "--requests",
        type=number,
        default=3200,
        metavar="N",
        help="number of requests to serve (default: %(default)s)",
    )
    parser.add_argument(
        "--devices",
        type=number,
        default=3,
        metavar="N",
        help=f"number of device threads in the ring, 1 to {_MODEL.layers} (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency",
        type=number,
        default=4,
        metavar="N",
        help="number of requests in a burst: three quarters of all requests are served one after the other, "
        "the rest in bursts of N at the same time; 1: no bursts (default: %(default)s)",
    )
    parser.add_argument(
        "--capacity", default="64MiB", metavar="SIZE", help="capacity of the pool (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed of the model's weights (default: %(default)s)",
    )
    parser.add_argument(
        "--unique-ids",
        action="store_true",
        help=f"use one request id for each request (default: {_REQUEST_ID!r} for all)",
    )
    parser.add_argument(
        "--processes",
        action="store_true",
        help="use device processes instead of threads: they attach to a shared pool and get hidden states by "
        "reference",
    )
    parser.add_argument(
        "--kill-every",
        type=number,
        metavar="N",
        help="with --processes: kill a random device (kill -9) after every N requests, and start it again",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="run without a pool, as exo 0.0.15 did: each device keeps its caches in a dictionary by request "
        "id and never removes them",
    )
    parser.add_argument(
        "--baseline-limit",
        type=number,
        metavar="N",
        help="with --baseline: a device keeps N request ids and evicts the least recently used one, as exo's "
        "fix did with N = 2",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="text file with one prompt in each line (default: a file that comes with the demo)",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="a trace that `slabpool replay` can read (default: the first 4,000 requests of the Azure trace "
        "of 2023)",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write the figures as one JSON object to FILE; '-': to standard output, and the table to "
        "standard error",
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns
    -------
    int
        Exit status: 0 if the run is right, 1 if it leaked memory or a token differs, 2 if a device failed.

    Raises
    ------
    SlabpoolError, OSError
        An option, a file or the capacity cannot be used.
    """
    try:
        report = _demonstrate(args)
    except RingFailed as failure:
        if not isinstance(failure.__cause__, slabpool.SlabpoolError):
            traceback.print_exception(failure.__cause__)  # a defect, not a mistake in the options
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
        raise slabpool.InvalidArgumentError("--baseline-limit needs --baseline")
    if args.devices > _MODEL.layers:
        raise slabpool.InvalidArgumentError(
            f"--devices {args.devices}: the model has only {_MODEL.layers} layers, and each device needs one"
        )
    if args.kill_every is not None and not args.processes:
        raise slabpool.InvalidArgumentError("--kill-every needs --processes")
    if args.processes and args.baseline:
        raise slabpool.InvalidArgumentError("--processes needs a pool, and --baseline runs without one")
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
            # By force, because leaks are already in the figures, and close() must not hide another error.
            pool.close(force=True)
    expected = []
    with progress("reference", len(jobs), enabled=not args.no_progress, lines=True) as advance:
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
    with progress(label, len(jobs), enabled=not args.no_progress, lines=True) as advance, devices as ring:
        result = serve(jobs, memory, ring, args.concurrency, request_id, advance)
    return result, memory.figures()  # after the `with`, because the device threads have ended there
