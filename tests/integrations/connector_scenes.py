"""The fate of a request when reports go wrong: `AckAggregator` beside a model of counting to the world size.

Each scene is a list of steps. Both sides go through the same steps, and their outcomes become a row of the
table in the documentation. ``python -m tests.integrations.connector_scenes`` prints that table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import slabpool
from slabpool.connector import AckAggregator

RANKS = (0, 1, 2)


class CountingModel:
    """Our own model of vLLM 0.33's `KVOutputAggregator`: an id is finished once it has as many reports as
    there are ranks. The sender of a report is ignored."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._missing: dict[str, int] = {}

    def report(self, request_id: str) -> bool:
        """Whether the request is finished with this report."""
        missing = self._missing.get(request_id, self._world_size) - 1
        if missing == 0:
            del self._missing[request_id]
        else:
            self._missing[request_id] = missing
        return missing == 0

    def waiting(self) -> dict[str, int]:
        """The reports that are still missing, by id."""
        return dict(self._missing)


@dataclass(frozen=True)
class Open:
    """The id is opened, for the first time or again."""


@dataclass(frozen=True)
class Done:
    """A rank has really finished the request of this turn, and reports it."""

    rank: int
    turn: int = 1


@dataclass(frozen=True)
class Again:
    """A rank's report of this turn arrives once more, or late."""

    rank: int
    turn: int = 1


@dataclass(frozen=True)
class Dies:
    """A rank dies and reads no more."""

    rank: int


Step = Open | Done | Again | Dies


@dataclass(frozen=True)
class Scene:
    what: str
    steps: tuple[Step, ...]
    #: Whether messages carry the generation.
    generations: bool = True


SCENES = (
    Scene("each rank reports once", (Open(), Done(0), Done(1), Done(2))),
    Scene("reports in another order", (Open(), Done(2), Done(0), Done(1))),
    Scene("rank 0 reports twice, rank 2 still reads", (Open(), Done(0), Again(0), Done(1), Done(2))),
    Scene("one report repeated after the end", (Open(), Done(0), Done(1), Done(2), Again(1))),
    Scene("rank 2 never reports", (Open(), Done(0), Done(1))),
    Scene("rank 2 dies without a report", (Open(), Done(0), Done(1), Dies(2))),
    Scene("rank 2 dies, its report comes after that", (Open(), Done(0), Dies(2), Again(2), Done(1))),
    Scene(
        "same id again; a late repeat of the first turn comes early in the second",
        (Open(), Done(0), Done(1), Done(2), Open(), Again(0), Done(1, 2), Done(2, 2), Done(0, 2)),
    ),
    Scene(
        "the same, and messages carry the id only",
        (Open(), Done(0), Done(1), Done(2), Open(), Again(0), Done(1, 2), Done(2, 2), Done(0, 2)),
        generations=False,
    ),
    Scene(
        "same id again while the first turn still waits for rank 2",
        (Open(), Done(0), Done(1), Open(), Done(0, 2), Done(1, 2), Done(2, 2), Done(2)),
    ),
)


def _judge(scene: Scene, free: Callable[[Step], list[int]]) -> str:
    """Go through a scene; `free` takes a step and returns the turns that are free after it."""
    reading: dict[int, set[int]] = {}
    freed: dict[int, str] = {}
    turn = 0
    for number, step in enumerate(scene.steps, 1):
        if isinstance(step, Open):
            turn += 1
            reading[turn] = set(RANKS)
        elif isinstance(step, Done):
            reading[step.turn].discard(step.rank)
        elif isinstance(step, Dies):
            for ranks in reading.values():
                ranks.discard(step.rank)
        for which in free(step):
            if which in freed:
                freed[which] += ", and freed again"
            elif which not in reading:
                freed[which] = "freed before it was there"
            elif reading[which]:
                ranks = ", ".join(map(str, sorted(reading[which])))
                freed[which] = f"**freed while rank {ranks} reads**"
            else:
                freed[which] = "free" if number == _last(scene, which) else f"free, at step {number}"
    said = []
    for which in sorted(reading):
        outcome = freed.get(which)
        if outcome is None:
            outcome = (
                "waits for rank " + ", ".join(map(str, sorted(reading[which])))
                if reading[which]
                else "**held for ever**"
            )
        said.append(outcome if len(reading) == 1 else f"turn {which}: {outcome}")
    return "; ".join(said)


def _last(scene: Scene, turn: int) -> int:
    """The step after which a turn's memory is really free: its last reader reports, or dies."""
    reading = set(RANKS)
    for number, step in enumerate(scene.steps, 1):
        if isinstance(step, Dies) or (isinstance(step, Done) and step.turn == turn):
            reading.discard(step.rank)
        if not reading:
            return number
    return 0


def with_counting(scene: Scene) -> str:
    """How counting to the world size fares. It knows only ids, and an id means its newest turn."""
    model = CountingModel(len(RANKS))
    turn = 0

    def free(step: Step) -> list[int]:
        nonlocal turn
        if isinstance(step, Open):
            turn += 1
        elif not isinstance(step, Dies):  # a death is not reported to it
            return [turn] if model.report("chat-42") else []
        return []

    said = _judge(scene, free)
    stays = (
        model.waiting() and not any(isinstance(step, Dies) for step in scene.steps) and "waits" not in said
    )
    return said + ("; a count stays, for the next of that id to trip over" if stays else "")


def with_ranks(scene: Scene) -> str:
    """How `AckAggregator` fares; the memory is checked in the pool."""
    with slabpool.Pool("1MiB") as pool:
        aggregator = AckAggregator(RANKS)
        turns: list[slabpool.Request] = []

        def free(step: Step) -> list[int]:
            if isinstance(step, Open):
                req = aggregator.watch(pool.request("chat-42", devices=RANKS))
                req.zeros(1000)
                req.close()
                turns.append(req)
            elif isinstance(step, Dies):
                aggregator.rank_lost(step.rank)
            else:
                named = ("chat-42", turns[step.turn - 1].generation) if scene.generations else "chat-42"
                aggregator.report(step.rank, [named])
            done = aggregator.free()
            assert pool.stats().live == 8192 * len(aggregator)
            return [turns.index(req) + 1 for req in done]

        said = _judge(scene, free)
        pool.close(force=True)
        return said


def table() -> str:
    """The table in the documentation, as Markdown."""
    lines = [
        "| what happens, three ranks | counting to the world size (a model) | `AckAggregator` |",
        "|---|---|---|",
    ]
    lines += [f"| {scene.what} | {with_counting(scene)} | {with_ranks(scene)} |" for scene in SCENES]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
