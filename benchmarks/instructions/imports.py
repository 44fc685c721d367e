"""``python -m benchmarks.instructions.imports``: what ``import slabpool`` costs beyond ``import numpy``.

Counts the instructions of two interpreters under callgrind, each of which only imports, with their bytecode
cached. OpenBLAS, which numpy loads, gets one thread, because its threads spin while they wait for each
other: the count would depend on the load of the machine. The exit status is 1 if slabpool takes more than
15 % more, and 2 if counting is not possible here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

BAR = 0.15


def instructions(code: str) -> int:
    """Instructions that an interpreter executes for this code."""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)  # makes the bytecode
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    (count,) = re.findall(r"Collected : (\d+)", done.stderr)
    return int(count)


def main() -> int:
    if shutil.which("valgrind") is None:
        print("cannot count instructions: valgrind is not installed", file=sys.stderr)
        return 2
    numpys, ours = instructions("import numpy"), instructions("import slabpool")
    over = ours / numpys - 1
    print(
        f"import numpy {numpys / 1e6:.1f} million instructions, "
        f"import slabpool {ours / 1e6:.1f} ({over:+.1%})"
    )
    print(f"the bar is {BAR:+.0%}: {'met' if over <= BAR else 'MISSED'}")
    return 0 if over <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
