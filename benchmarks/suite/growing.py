"""growing: the keys of one layer grow by one token at a time, as an engine's KV cache does.

Measures the time and the memory it takes to have all tokens so far as one array after each step: grown in
place, by concatenation, and in an array made for the maximum length. Each token is written and the array so
far is made; no code reads the array.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import ratio, value
from benchmarks.harness.model import OURS, Bar, Benchmark, Case, Effort, Group, Metric, Metrics

#: Heads and head dimension of one token, in float16: 2 KiB.
ROW = (8, 128)
ROW_BYTES = 2 * ROW[0] * ROW[1]
#: The most tokens that an engine allows one conversation.
LIMIT = 32768
ONE = Group("one sequence to 4,096 tokens of 2 KiB; at most 32,768")
MANY = Group("32 sequences in turn, to 64, 128 ... 2,048 tokens; at most 32,768 each")
CONCATENATE = "numpy.concatenate"
MAXIMUM = f"{OURS}, the maximum at once"

#: A sequence: one call makes it one token longer, writes that token, and returns the whole array.
Append = Callable[[], Any]


def _kib(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


class PeakMemory:
    """The most by which the memory of this process has grown since this object was made."""

    def __init__(self) -> None:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as marks:
            marks.write("5")  # resets the high water mark
        self._before = _kib("VmRSS:")

    def kib(self) -> int:
        return _kib("VmHWM:") - self._before


def _grown_in_place(pool: Any, request: Any) -> Callable[[], Append]:
    import numpy as np

    def make() -> Append:
        tensor = request.growable((ROW[0], 0, ROW[1]), np.float16, axis=1, limit=LIMIT)
        extend = tensor.extend

        def append() -> Any:
            array = extend(1)
            array[:, -1] = 1
            return array

        return append

    return make


def _maximum(empty: Callable[..., Any]) -> Callable[[], Append]:
    import numpy as np

    def make() -> Append:
        whole = empty((LIMIT, *ROW), np.float16)
        length = 0

        def append() -> Any:
            nonlocal length
            whole[length] = 1
            length += 1
            return whole[:length]

        return append

    return make


def _concatenated() -> Append:
    import numpy as np

    array = np.empty((ROW[0], 0, ROW[1]), np.float16)
    token = np.ones((ROW[0], 1, ROW[1]), np.float16)

    def append() -> Any:
        nonlocal array
        array = np.concatenate((array, token), axis=1)
        return array

    return append


def _torch_concatenated() -> Append:
    import torch

    tensor = torch.empty((ROW[0], 0, ROW[1]), dtype=torch.float16)
    token = torch.ones((ROW[0], 1, ROW[1]), dtype=torch.float16)

    def append() -> Any:
        nonlocal tensor
        tensor = torch.cat((tensor, token), dim=1)
        return tensor

    return append


def measure(contender: str, lengths: list[int]) -> Metrics:
    """The sequences grow in turn, one token each, until each has its length; all are kept until the end."""
    import numpy as np

    import slabpool

    # Capacity for the maximum lengths. The pool commits only what it needs.
    pool = slabpool.Pool(2 * len(lengths) * LIMIT * ROW_BYTES)
    request = pool.request("growing")
    makers: dict[str, Callable[[], Append]] = {
        OURS: _grown_in_place(pool, request),
        MAXIMUM: _maximum(request.empty),
        "numpy.empty, the maximum at once": _maximum(np.empty),
        CONCATENATE: lambda: _concatenated(),
    }
    if contender == "torch.cat":
        import torch

        torch.set_num_threads(1)
        makers[contender] = lambda: _torch_concatenated()
    memory = PeakMemory()
    start = time.perf_counter()
    growing = [(makers[contender](), length) for length in lengths]
    arrays: list[Any] = [None] * len(growing)
    for token in range(max(lengths)):
        for number, (append, length) in enumerate(growing):
            if token < length:
                arrays[number] = append()
    taken = time.perf_counter() - start
    nbytes = sum(lengths) * ROW_BYTES
    metrics = {
        "time": Metric("s", [taken / sum(lengths)]),
        "peak memory": Metric("", [memory.kib() * 1024 / nbytes]),
    }
    if contender.startswith(OURS):
        metrics["counted"] = Metric("", [pool.stats().live / nbytes])
    for array, length in zip(arrays, lengths, strict=True):
        if np.asarray(array).sum(dtype=np.float64) != length * ROW[0] * ROW[1]:
            raise AssertionError(f"{contender} did not keep its {length} tokens")
    del append, growing, arrays, array
    request.close()
    return metrics


def _cases(effort: Effort) -> list[Case]:
    here = "benchmarks.suite.growing:measure"
    shorter = 8 if effort.quick else 1
    contenders = [(OURS, None), (CONCATENATE, None), ("torch.cat", "torch"), (MAXIMUM, None)]
    contenders.append(("numpy.empty, the maximum at once", None))
    cases = []
    for group, lengths in ((ONE, [4096]), (MANY, [64 * (i + 1) for i in range(32)])):
        for contender, peer in contenders:
            args = {"contender": contender, "lengths": [length // shorter for length in lengths]}
            cases.append(Case(group, contender, "measured", here, args, peer=peer))
    return cases


def _bars(effort: Effort) -> list[Bar]:
    bars = []
    for group, name in ((ONE, "one sequence"), (MANY, "32 sequences")):
        peak = ratio(group, CONCATENATE, metric="peak memory")
        bars += [
            Bar(f"{name}: time over {CONCATENATE}", ratio(group, CONCATENATE), "at most", 0.1),
            Bar(f"{name}: peak memory over {CONCATENATE}", peak, "at most", 1.0),
            Bar(f"{name}: bytes that count over bytes of tokens", value(group, "counted"), "at most", 1.2),
        ]
    return bars


BENCHMARK = Benchmark(
    "growing",
    "Keys that grow by a token at a time",
    _cases,
    _bars,
    (
        "`peak memory` is how far the process's resident high water mark rose, divided by the bytes of all "
        "tokens: 1 is perfect. numpy.empty of the maximum touches only what is written, so it is near 1 "
        "too; its cost is that the whole array counts wherever memory is counted, as in a pool.",
        "`counted` is what the pool counts, divided by the same. A quick run has an eighth of the tokens.",
    ),
)
