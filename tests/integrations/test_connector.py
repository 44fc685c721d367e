"""Requests are free once every rank has reported, even if reports are repeated, late, reordered or
missing."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

import slabpool
from slabpool import Ack
from slabpool.connector import AckAggregator
from tests.integrations import connector_scenes
from tests.integrations.connector_scenes import SCENES, with_counting, with_ranks

DOCS = Path(__file__).resolve().parents[2] / "docs"


# ---- the table


def test_the_table_in_the_documentation_is_right() -> None:
    table = connector_scenes.table()
    pages = [path for path in DOCS.rglob("*.md") if "`AckAggregator` |" in path.read_text()]
    assert pages, f"no page has the table; it is\n{table}"
    for page in pages:
        assert table in page.read_text(), f"{page} lacks this table:\n{table}"


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.what)
def test_with_generations_nothing_is_freed_early_or_kept(scene: connector_scenes.Scene) -> None:
    said = with_ranks(scene)
    if scene.generations:
        assert "**" not in said
    else:
        assert "**" in said, "ids alone are ambiguous, and the table has to say so"


def test_counting_fails_where_the_table_says() -> None:
    wrong = [scene.what for scene in SCENES if "**" in with_counting(scene)]
    assert len(wrong) == 5


# ---- answers


def test_reports_are_answered_and_each_request_is_free_once() -> None:
    with slabpool.Pool("1MiB") as pool:
        aggregator = AckAggregator(["a", "b"])
        reqs = [aggregator.watch(pool.request(f"r{i}", devices=["a", "b"])) for i in range(3)]
        for req in reqs:
            req.zeros(100)
        assert aggregator.report("a", ["r2", "r0", "r2", "who"]) == [
            Ack.PENDING,
            Ack.PENDING,
            Ack.DUPLICATE,
            Ack.LATE,
        ]
        # All ranks are done with it, but the host is not.
        assert aggregator.report("b", [("r0", reqs[0].generation)]) == [Ack.PENDING]
        assert aggregator.free() == []
        reqs[0].close()
        assert aggregator.free() == [reqs[0]]
        assert aggregator.free() == []
        assert len(aggregator) == 2
        # Requests that end in another way are reported too.
        reqs[1].cancel()
        pool.device_lost("a")
        reqs[1].ack("b")
        reqs[2].close()
        assert aggregator.report("b", iter(["r2"])) == [Ack.RELEASED]
        assert aggregator.free() == [reqs[1], reqs[2]]
        assert aggregator.report("b", ["r2", ("r2", 1)]) == [Ack.LATE, Ack.LATE]
        assert len(aggregator) == 0 and pool.stats().live == 0


def test_without_a_pool_requests_are_only_handles() -> None:
    aggregator = AckAggregator(range(2))
    first = aggregator.expect("r")
    second = aggregator.expect(7, ranks=[1])
    assert first.nbytes == 0 and first.pending == {0, 1} and second.pending == {1}
    assert first.generation != aggregator.expect("other").generation
    assert aggregator.report(1, ["r", 7]) == [Ack.PENDING, Ack.RELEASED]
    assert aggregator.report(0, ["r", "r"]) == [Ack.RELEASED, Ack.LATE]
    assert aggregator.free() == [first, second]
    # It keeps nothing of requests that are over.
    for _ in range(1000):
        aggregator.expect("same")
        aggregator.report(0, ["same"])
        aggregator.report(1, ["same"])
        assert len(aggregator.free()) == 1
    assert len(aggregator) == 1


def test_a_dead_rank_holds_nothing_then_and_later() -> None:
    with slabpool.Pool("1MiB") as pool:
        aggregator = AckAggregator([0, 1])
        ours = aggregator.watch(pool.request("r", devices=[0, 1]))
        others = pool.request("elsewhere", devices=[1])
        ours.close()
        others.close()
        assert aggregator.rank_lost(1) == 1
        assert aggregator.rank_lost(1) == 0
        assert aggregator.ranks == (0,)
        assert others.pending == {1}  # the ranks of this aggregator hold nothing
        assert aggregator.report(1, ["r"]) == [Ack.DUPLICATE]
        assert aggregator.report(0, ["r"]) == [Ack.RELEASED]
        # New requests do not wait for the dead rank, even if the caller that opened them named it.
        late = aggregator.watch(pool.request("late", devices=[0, 1]))
        late.close()
        assert late.pending == {0}
        assert aggregator.expect("e").pending == {0}
        aggregator.rank_back(1)
        assert aggregator.expect("f").pending == {0, 1}
        aggregator.rank_lost(0)
        aggregator.rank_lost(1)
        assert {req.id for req in aggregator.free()} == {"r", "late", "e", "f"}
        with pytest.raises(slabpool.InvalidArgumentError, match="no rank is left"):
            aggregator.expect("g")
        others.ack(1)


# ---- mistakes change nothing


def test_a_report_with_a_mistake_in_it_changes_nothing() -> None:
    with slabpool.Pool("1MiB") as pool:
        aggregator = AckAggregator([0, 1])
        good = aggregator.watch(pool.request("good", devices=[0, 1]))
        only = aggregator.watch(pool.request("only 1", devices=[1]))
        twice = [aggregator.watch(pool.request("twice", devices=[0])) for _ in range(2)]
        with pytest.raises(slabpool.UnknownDeviceError, match=r"rank 2 is not among the ranks \[0, 1\]"):
            aggregator.report(2, ["good"])
        with pytest.raises(slabpool.UnknownDeviceError, match="never named"):
            aggregator.report(0, ["good", "only 1"])
        with pytest.raises(slabpool.AmbiguousRequestError, match=r"report \(id, generation\)"):
            aggregator.report(0, ["good", "twice"])
        for wrong in ("good", b"good"):
            with pytest.raises(slabpool.InvalidTypeError, match="an iterable of ids"):
                aggregator.report(0, wrong)
        for rank in (True, 1.0, None):
            with pytest.raises(slabpool.InvalidTypeError, match="a rank must be"):
                aggregator.report(rank, ["good"])  # type: ignore[arg-type]
        assert good.pending == {0, 1} and only.pending == {1}
        assert aggregator.report(0, [("twice", twice[1].generation)]) == [Ack.PENDING]
        assert aggregator.report(0, ["twice"]) == [Ack.PENDING]  # only one of the two still waits
        for req in (good, only, *twice):
            req.cancel()
        assert aggregator.report(0, ["good"]) + aggregator.report(1, ["good", "only 1"]) == [
            Ack.PENDING,
            Ack.RELEASED,
            Ack.RELEASED,
        ]


def test_bad_ranks_and_requests_are_refused() -> None:
    for ranks, error, message in (
        ((), slabpool.InvalidArgumentError, "ranks is empty"),
        ([0, 1, 0], slabpool.DuplicateDeviceError, "named twice"),
        ("ab", slabpool.InvalidTypeError, "an iterable of names"),
        ([0, None], slabpool.InvalidTypeError, "a rank must be"),
    ):
        with pytest.raises(error, match=message):
            AckAggregator(ranks)  # type: ignore[arg-type]
    aggregator = AckAggregator([0])
    with slabpool.Pool("1MiB") as pool:
        strange = pool.request("r", devices=[0, "gpu"])
        with pytest.raises(slabpool.UnknownDeviceError, match=r"'gpu'.*not among the ranks"):
            aggregator.watch(strange)
        with pytest.raises(slabpool.InvalidTypeError, match="expect"):
            aggregator.watch("r")  # type: ignore[arg-type]
        with pool.request("r", devices=[0]) as req:
            aggregator.watch(req)
            with pytest.raises(slabpool.InvalidArgumentError, match="watched already"):
                aggregator.watch(req)
        with pytest.raises(slabpool.UnknownDeviceError, match="rank 5 is not among"):
            aggregator.expect("x", ranks=[0, 5])
        with pytest.raises(slabpool.UnknownDeviceError, match="rank 5 is not among"):
            aggregator.rank_lost(5)
        assert len(aggregator) == 1
        req.cancel()
        strange.cancel()
        pool.device_lost(0)
        pool.device_lost("gpu")


# ---- many at once


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_each_request_is_freed_once_after_its_last_reader(seed: int) -> None:
    draw = random.Random(seed)
    ranks = range(4)
    aggregator = AckAggregator(ranks)
    with slabpool.Pool("8MiB") as pool:
        reading: dict[slabpool.Request, set[int]] = {}
        messages: list[tuple[int, slabpool.Request]] = []
        freed: list[slabpool.Request] = []
        for _ in range(400):
            if len(messages) < 30:  # a new request, whose id may be that of a live one
                req = aggregator.watch(pool.request(draw.randrange(5), devices=ranks))
                req.copy(np.full(100, req.generation))
                req.close()
                reading[req] = set(ranks)
                messages += [(rank, req) for rank in ranks for _ in range(draw.choice((1, 1, 2)))]
            rank, req = messages.pop(draw.randrange(len(messages)))
            aggregator.report(rank, [(req.id, req.generation)])
            reading[req].discard(rank)
            done = aggregator.free()
            assert all(not reading[req] for req in done)
            freed += done
            assert pool.stats().live == 832 * len(aggregator)
        for rank, req in messages:
            aggregator.report(rank, [(req.id, req.generation)])
        freed += aggregator.free()
        assert len(freed) == len(set(freed)) == len(reading)
        assert pool.stats().live == 0


def test_ranks_on_threads_of_their_own() -> None:
    ranks, requests = range(4), 300
    aggregator = AckAggregator(ranks)
    with slabpool.Pool("8MiB") as pool:
        reqs = [aggregator.watch(pool.request("same", devices=ranks)) for _ in range(requests)]
        for req in reqs:
            req.zeros(100)
            req.close()
        answers: list[list[Ack]] = [[] for _ in ranks]
        freed: list[slabpool.Request] = []
        start = threading.Barrier(len(ranks))

        def work(rank: int) -> None:
            order = reqs * 2
            random.Random(rank).shuffle(order)
            start.wait()
            for req in order:
                answers[rank] += aggregator.report(rank, [("same", req.generation)])
                freed.extend(aggregator.free())

        threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        freed += aggregator.free()
        assert sorted(req.generation for req in freed) == [req.generation for req in reqs]
        said = [answer for one in answers for answer in one]
        assert said.count(Ack.RELEASED) == requests
        assert said.count(Ack.PENDING) == requests * (len(ranks) - 1)
        assert pool.stats().live == 0
