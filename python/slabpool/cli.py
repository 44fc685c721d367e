"""``slabpool``: the command line. Runs the subcommand, and prints errors of the user as one line.

A subcommand is a module with ``add_arguments(parser)`` and ``run(args) -> int``; it is imported when it is
used. Errors that the user can correct (a missing file, a bad size, an exhausted pool) exit with status 2 and
one line on standard error. All others are defects and keep their traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from slabpool import __version__
from slabpool.errors import SlabpoolError

#: Subcommand: its module and its line in ``slabpool --help``.
_COMMANDS = {
    "demo": ("slabpool.demo", "a small decoder on several device threads, its memory from a pool"),
    "replay": ("slabpool.replay.command", "replay a trace of a real service in a pool"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``slabpool`` with these arguments.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; default: those of the process.

    Returns
    -------
    int
        Exit status: that of the subcommand, 2 for an error of the user, 130 if interrupted.

    Examples
    --------
    >>> from slabpool.cli import main
    >>> main(["replay", "no-such-file.csv"])
    2
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # No option before the subcommand takes a value, so the first word that is none is the subcommand.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="slabpool", description="Memory that belongs to a request and is returned exactly once."
    )
    parser.add_argument("--version", action="version", version=f"slabpool {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == chosen:
            subcommand = importlib.import_module(module)
            subcommand.add_arguments(command)
    args = parser.parse_args(argv)
    try:
        status = subcommand.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has closed it (`slabpool ... | head`).
        # Standard output goes nowhere from here, or Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SlabpoolError, OSError) as error:
        print(f"slabpool {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"slabpool {args.command}: interrupted", file=sys.stderr)
        return 130
    return int(status)


def _one_line(error: Exception) -> str:
    """The message of an error without line breaks; the name of its type where it has none."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
