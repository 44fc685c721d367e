"""Jobs come from the trace and the text, scaled as documented, and are the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest

import slabpool.demo
from slabpool.demo import workload
from slabpool.demo.workload import batches, make_jobs, read_lengths, read_prompts
from slabpool.errors import InvalidArgumentError

DATA = Path(slabpool.demo.__file__).with_name("data")


def test_the_trace_is_part_of_the_azure_trace_and_says_so() -> None:
    lengths = read_lengths(None)
    assert len(lengths) == 4000
    assert lengths[:3] == [(374, 44), (396, 109), (879, 55)]
    attribution = (DATA / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for fact in (
        "azure_conversation_part.csv",
        "AzurePublicDataset",
        "CC-BY 4.0",
        "Splitwise",
        "prompts.txt",
    ):
        assert fact in attribution


def test_jobs_follow_the_trace() -> None:
    lengths, prompts = read_lengths(None), read_prompts(None)
    jobs = make_jobs(len(lengths), prompts, lengths)
    for job, (context, generated) in zip(jobs, lengths, strict=True):
        assert len(job.prompt) == min(max(round(context / 64), 4), 48)
        assert job.generate == min(max(round(generated / 32), 2), 16)
        text = prompts[job.index % len(prompts)]
        assert job.prompt[0] == workload.BOS
        assert bytes(job.prompt[1 : len(text) + 1]) == text[: len(job.prompt) - 1]
    assert jobs == make_jobs(len(lengths), prompts, lengths)
    assert len({(job.prompt, job.generate) for job in jobs}) > 1000


def test_a_short_trace_starts_again() -> None:
    jobs = make_jobs(5, [b"a prompt of its own"], [(640, 64), (1280, 128)])
    assert [(len(job.prompt), job.generate) for job in jobs] == [(10, 2), (20, 4), (10, 2), (20, 4), (10, 2)]


def test_short_prompts_continue_with_the_next_line() -> None:
    (job,) = make_jobs(1, [b"one", b"two"], [(64 * 12, 64)])
    assert bytes(job.prompt[1:]) == b"one\ntwo\none"


@pytest.mark.parametrize(("count", "concurrency"), [(1, 1), (7, 1), (100, 3), (64, 4), (65, 4), (79, 4)])
def test_batches_have_every_job_once_in_order(count: int, concurrency: int) -> None:
    jobs = make_jobs(count, [b"text"], [(640, 64)])
    groups = list(batches(jobs, concurrency))
    assert [job for group in groups for job in group] == jobs
    assert max(map(len, groups)) <= concurrency
    if count >= 4 * concurrency > 4:
        alone = sum(len(group) for group in groups if len(group) == 1)
        assert alone / count >= 0.7


def test_prompts_may_be_any_bytes_but_not_none(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\n  caf\xc3\xa9 \r\n\xff\xfe\n\n")
    assert read_prompts(path) == [b"caf\xc3\xa9", b"\xff\xfe"]
    path.write_bytes(b" \n\n")
    with pytest.raises(InvalidArgumentError, match=r"prompts\.txt: no prompt"):
        read_prompts(path)


def test_a_bad_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,12,x\n")
    with pytest.raises(InvalidArgumentError, match=r"trace\.csv: line 2"):
        read_lengths(path)
