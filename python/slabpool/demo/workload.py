"""The requests of the demo: prompts from a text file, lengths and order from a trace of real requests.

The trace is scaled down to the toy model: a prompt has 1/64 of the trace's context tokens, and 1/32 of the
trace's generated tokens are generated. Both are rounded and clipped to the limits below. Arrival times are
not used. There is no randomness, so two runs serve the same jobs in the same order.
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

#: A round has ``ROUND_BURSTS * concurrency`` requests; the last `concurrency` of them are one burst.
ROUND_BURSTS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """One request to serve."""

    #: Position among all jobs.
    index: int
    #: Tokens of the prompt.
    prompt: tuple[int, ...]
    #: Number of tokens to generate.
    generate: int


def tokenize(text: bytes) -> tuple[int, ...]:
    """Return the tokens of `text`: the begin-of-sequence token, then one token for each byte.

    Examples
    --------
    >>> from slabpool.demo.workload import tokenize
    >>> tokenize(b"Hi")
    (256, 72, 105)
    """
    return (BOS, *text)


def read_prompts(path: Path | None) -> list[bytes]:
    """Return the non-blank lines of a text file; by default of the file that comes with the demo."""
    source = path if path is not None else _DATA / "prompts.txt"
    lines = [line.strip() for line in source.read_bytes().splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise InvalidArgumentError(f"{source}: no prompt, every line is blank; write one prompt in each line")
    return prompts


def read_lengths(path: Path | None) -> list[tuple[int, int]]:
    """Return the numbers of context and generated tokens of each request of a trace, in order of arrival.

    Parameters
    ----------
    path : Path, optional
        A trace that `slabpool.replay.trace.read_trace` can read. By default the part of the Azure trace that
        comes with the demo.
    """
    trace = read_trace(path if path is not None else _DATA / "azure_conversation_part.csv")
    return list(zip(trace.prompt.tolist(), trace.output.tolist(), strict=True))


def make_jobs(count: int, prompts: Sequence[bytes], lengths: Sequence[tuple[int, int]]) -> list[Job]:
    """Make `count` jobs: lengths from the trace, text from the prompts.

    The prompt of request *i* begins at line *i* of the text file and has the length that the trace gives.
    Text file and trace start again from the beginning when they are used up.

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
    """Split jobs into groups. The jobs of a group are served concurrently, the groups one after the other.

    A round has ``4 * concurrency`` requests: three quarters of them are served alone, then one burst of
    `concurrency`. So each part of a long run has the same mixture.

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
    """Return `length` bytes of the text from a line on; after the last line the text starts again."""
    parts: list[bytes] = []
    size = 0
    for part in itertools.islice(itertools.cycle(prompts), line, None):
        parts.append(part)
        size += len(part) + 1
        if size > length:
            break
    return b"\n".join(parts)[:length]
