"""What the demo serves: prompts from a text file, lengths and order from a trace of real requests.

The trace is scaled down to the toy model: prompt tokens are context tokens / 64, generated tokens are
generated / 32, both rounded and clipped to the limits below. Times of arrival are not used. Everything here
depends on the input alone, so that two runs serve the same jobs in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slabpool.errors import InvalidArgumentError
from slabpool.replay.trace import read_trace

_DATA = Path(__file__).with_name("data")

#: Begin-of-sequence token of the byte-level tokenizer; the other tokens are the bytes themselves.
BOS = 256

CONTEXT_DIVISOR = 64
CONTEXT_LIMITS = (4, 48)
GENERATED_DIVISOR = 32
GENERATED_LIMITS = (2, 16)

#: One round is this many bursts' worth of requests, of which one burst is served at once.
ROUND_BURSTS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """One request to serve."""

    index: int
    prompt: tuple[int, ...]
    generate: int


def tokenize(text: bytes) -> tuple[int, ...]:
    """Tokens of `text`: one for the beginning, then one a byte.

    Examples
    --------
    >>> from slabpool.demo.workload import tokenize
    >>> tokenize(b"Hi")
    (256, 72, 105)
    """
    return (BOS, *text)


def read_prompts(path: Path | None) -> list[bytes]:
    """Lines of a text file that are not blank; those that come with the demo where `path` is None."""
    source = path if path is not None else _DATA / "prompts.txt"
    lines = [line.strip() for line in source.read_bytes().splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise InvalidArgumentError(f"{source}: no prompt in it, every line is blank")
    return prompts


def read_lengths(path: Path | None) -> list[tuple[int, int]]:
    """Context and generated tokens of each request of a trace, in order of arrival.

    Parameters
    ----------
    path
        A trace that `slabpool.replay.trace.read_trace` reads; None for the part of the Azure trace that
        comes with the demo.
    """
    trace = read_trace(path if path is not None else _DATA / "azure_conversation_part.csv")
    return list(zip(trace.prompt.tolist(), trace.output.tolist(), strict=True))


def make_jobs(count: int, prompts: Sequence[bytes], lengths: Sequence[tuple[int, int]]) -> list[Job]:
    """The first `count` requests of the trace with prompts that go round the text file.

    Request *i* has the text that begins at line *i* of the file and is as long as the trace says. A trace
    that is too short starts again from its first row.

    Examples
    --------
    >>> from slabpool.demo.workload import make_jobs
    >>> [(len(job.prompt), job.generate) for job in make_jobs(3, [b"Hello"], [(640, 64), (9000, 31)])]
    [(10, 2), (48, 2), (10, 2)]
    """
    texts = [_text_from(prompts, line, CONTEXT_LIMITS[1]) for line in range(len(prompts))]
    jobs = []
    for index, (context, generated) in enumerate(itertools.islice(itertools.cycle(lengths), count)):
        tokens = tokenize(texts[index % len(texts)])
        prompt = tokens[: _scaled(context, CONTEXT_DIVISOR, CONTEXT_LIMITS)]
        jobs.append(Job(index, prompt, _scaled(generated, GENERATED_DIVISOR, GENERATED_LIMITS)))
    return jobs


def batches(jobs: Sequence[Job], concurrency: int) -> Iterator[Sequence[Job]]:
    """Jobs in groups; those of a group are served at once, the groups one after the other.

    A round has ``4 * concurrency`` requests: three quarters of them alone, then one burst of `concurrency`.
    So each part of a long run has the same mixture.

    Examples
    --------
    >>> from slabpool.demo.workload import batches, make_jobs
    >>> jobs = make_jobs(10, [b"Hello"], [(640, 64)])
    >>> [len(batch) for batch in batches(jobs, 2)]
    [1, 1, 1, 1, 1, 1, 2, 1, 1]
    """
    alone = (ROUND_BURSTS - 1) * concurrency
    for first in range(0, len(jobs), ROUND_BURSTS * concurrency):
        for job in jobs[first : first + alone]:
            yield (job,)
        burst = jobs[first + alone : first + alone + concurrency]
        if burst:
            yield burst


def _scaled(tokens: int, divisor: int, limits: tuple[int, int]) -> int:
    return min(max(round(tokens / divisor), limits[0]), limits[1])


def _text_from(prompts: Sequence[bytes], line: int, length: int) -> bytes:
    """`length` bytes of the text that begins at a line and goes on, round and round."""
    parts: list[bytes] = []
    size = 0
    for part in itertools.islice(itertools.cycle(prompts), line, None):
        parts.append(part)
        size += len(part) + 1
        if size > length:
            break
    return b"\n".join(parts)[:length]
