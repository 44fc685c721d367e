"""The command line ``slabpool``: finds and runs the subcommand, and prints errors in one line.

A subcommand is a module with ``add_arguments(parser)`` and ``run(args) -> int``. It is imported only if the
command line names it. For an error that the user can fix (a missing file, a bad size, an exhausted pool) the
exit status is 2 and standard error gets one line. Any other error is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from slabpool import __version__
from slabpool.errors import SlabpoolError

#: Subcommands: module, and description in ``slabpool --help``.
_COMMANDS = {
    "demo": ("slabpool.demo", "run a small decoder on several device threads, with its memory in a pool"),
    "replay": ("slabpool.replay.command", "replay a trace of a real inference service in a pool"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``slabpool``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name. By default those of the process.

    Returns
    -------
    int
        Exit status of the subcommand; 2 for an error that the user can fix, 1 if the reader of standard
        output has gone, 130 after Ctrl-C.

    Examples
    --------
    >>> from slabpool.cli import main
    >>> main(["replay", "no-such-file.csv"])
    2
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # No option before the subcommand takes a value, so the first word that is not an option is the
    # subcommand.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="slabpool", description="Memory that belongs to a request and returns exactly once."
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
        # The reader of our output has exited (`slabpool ... | head`). Redirect standard output to /dev/null,
        # because Python flushes it at exit and would print a traceback.
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
    """Return the message of an error without line breaks; if it is empty, the name of the error's type."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
