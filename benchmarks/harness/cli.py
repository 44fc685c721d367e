"""The command line: ``python -m benchmarks [names…] [--quick] [--json FILE] [--plot DIR] [--results]``.

Tables go to standard output, progress to standard error. The exit status is 2 if a benchmark could not run, 1
if one that counts what repeats (`growth`) misses a promise, and 0 otherwise, promises met or not. The name
"gpu" stands for all benchmarks that need a GPU; these run apart from all others, and their results are also
kept under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import machine, plot, record, rounds, text
from benchmarks.harness.figures import judge
from benchmarks.harness.model import Effort, Result
from benchmarks.harness.programs import ROOT, CaseFailedError, Programs
from benchmarks.suite import BENCHMARKS, GPU_BENCHMARKS, gpu

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
GPU_RESULTS = ROOT / "benchmarks" / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="which benchmarks; default: all that need no GPU; `gpu` for those that do",
    )
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round: shows that everything works, not how fast it is",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="fresh processes of each case (default 5, quick 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="draw time over size and memory over time (matplotlib)"
    )
    parser.add_argument(
        "--results",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FILE",
        help="write the tables, by default to benchmarks/RESULTS.md",
    )
    parser.add_argument(
        "--traces",
        metavar="DIR",
        help="folder of full traces for `replay` (default: the excerpts of the tests)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        for one in (BENCHMARKS | GPU_BENCHMARKS).values():
            print(f"{one.name:20} {one.title}")
        return 0
    known = BENCHMARKS | GPU_BENCHMARKS
    unknown = [name for name in args.names if name not in known and name != "gpu"]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are gpu, {', '.join(known)}")
    names = list(GPU_BENCHMARKS) if args.names == ["gpu"] else args.names or list(BENCHMARKS)
    on_gpu = [name for name in names if name not in BENCHMARKS]
    if on_gpu and on_gpu != names:
        parser.error(f"benchmarks on a GPU ({', '.join(on_gpu)}) are run apart from all others")
    if on_gpu and (why := gpu.missing(args.quick)) is not None:
        print(f"benchmarks: {', '.join(on_gpu)} cannot run without a GPU: {why}", file=sys.stderr)
        return 2
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.plot is not None:
        # Checked before an hour of measuring, not after it.
        try:
            importlib.import_module("matplotlib")
        except ImportError as error:
            parser.error(f"--plot needs matplotlib (pip install 'slabpool[cli]'): {error}")
    quick = bool(args.quick)
    effort = Effort(
        rounds=args.rounds or (1 if quick else 5),
        values=2 if quick else 3,
        min_time=0.002 if quick else 0.05,
        quick=quick,
        traces=args.traces,
    )
    where = machine.describe() | (gpu.describe() if on_gpu else {})
    results: list[Result] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="slabpool-bench-") as folder:
        programs = Programs(Path(folder), effort)
        for name in names:
            try:
                results.append(rounds.run(known[name], effort, programs, _tick))
            except CaseFailedError as error:
                print(f"{name}: {error}", file=sys.stderr)
                if not on_gpu:
                    return 2
                failed = True  # the other benchmarks still run
                continue
            _tick("")
            print(f"{name}: {results[-1].seconds:.0f} s", file=sys.stderr)
    used = {peer for r in results for o in r.outcomes for peer in o.case.peers}
    versions = machine.versions(used)
    report = text.report(results, where, versions, quick)
    print(report, end="")
    everything = json.dumps(record.as_dict(results, where, versions, quick), indent=1) + "\n"
    if args.results is not None:
        args.results.write_text(report, encoding="utf-8")
    if args.json is not None:
        args.json.write_text(everything, encoding="utf-8")
    if on_gpu and results and not quick:
        GPU_RESULTS.mkdir(exist_ok=True)
        kept = GPU_RESULTS / gpu.file_stem(where)
        kept.with_suffix(".json").write_text(everything, encoding="utf-8")
        kept.with_suffix(".md").write_text(text.short(results, where, versions), encoding="utf-8")
    if args.plot is not None:
        plot.draw_all(results, args.plot)
    return 2 if failed else 1 if any(_missed(result) for result in results) else 0


def _missed(result: Result) -> bool:
    return result.benchmark.exact and any(judge(result, bar).met is False for bar in result.bars)


def _tick(what: str) -> None:
    """One line that overwrites itself on a terminal; in a log file, one line per benchmark."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{what}", end="", file=sys.stderr, flush=True)
