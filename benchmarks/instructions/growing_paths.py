"""``growing_paths.py MARKS TIMES OPERATION N …``: does each operation TIMES times beside N of something.

callgrind counts from one mark to the other; MARKS is the library with the marks.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import slabpool

Mark = Callable[[], object]


def open_after_lines(pool: slabpool.Pool, n: int, times: int, start: Mark, stop: Mark) -> None:
    """request() and close() in a function with n lines before them."""
    lines = ["def f(pool, times):", " if times < 0:", *(f"  x{i % 50} = {i % 7}" for i in range(n))]
    # First without counting, because the interpreter rewrites the whole function once.
    lines += [" for _ in range(20):", "  pool.request('chat-42').close()"]
    lines += [" start()", " for _ in range(times):", "  pool.request('chat-42').close()", " stop()"]
    space: dict[str, Any] = {"start": start, "stop": stop}
    exec(compile("\n".join(lines), "generated.py", "exec"), space)
    space["f"](pool, times)


def ack_among_devices(pool: slabpool.Pool, n: int, times: int, start: Mark, stop: Mark) -> None:
    """ack() of a request with n devices, those with the largest numbers."""
    names = [f"gpu{i}" for i in range(n)]
    last = names[1:][-times:]
    requests = [pool.request("chat-42", names) for _ in range(-(-times // len(last)))]
    acks = [(req.ack, name) for req in requests for name in last][:times]
    start()
    for ack, name in acks:
        ack(name)
    stop()
    for req in requests:
        req.close()


def ack_by_generation(pool: slabpool.Pool, n: int, times: int, start: Mark, stop: Mark) -> None:
    """ack() by id and generation, of an id with n open generations: the first ones."""
    requests = [pool.request("chat-42", ["gpu0", "gpu1"]) for _ in range(n)]
    generations = ([req.generation for req in requests[:times]] * times)[:times]
    start()
    for generation in generations:
        pool.ack("chat-42", "gpu0", generation=generation)
    stop()
    for req in requests:
        req.close()


def look_beside_blocks(pool: slabpool.Pool, n: int, times: int, start: Mark, stop: Mark) -> None:
    """A look at a request with n blocks."""
    with pool.request("chat-42") as req:
        for _ in range(n):
            req.empty(1)
        start()
        for _ in range(times):
            req.nbytes  # noqa: B018
        stop()


OPERATIONS = (open_after_lines, ack_among_devices, ack_by_generation, look_beside_blocks)


def main() -> None:
    marks, times, *wanted = sys.argv[1:]
    library = ctypes.CDLL(marks)
    gc.disable()  # a collection looks at everything that the set-up made
    named = {operation.__name__: operation for operation in OPERATIONS}
    for operation, n in zip(wanted[::2], wanted[1::2], strict=True):
        pool = slabpool.Pool("256MiB")
        named[operation](pool, int(n), int(times), library.count_from_here, library.count_to_here)
        pool.close(force=True)


if __name__ == "__main__":
    main()
