"""The ack protocol, checked in every interleaving of small configurations: docs/design/ack-model.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.model.explorer import Automaton, Violation, explore, require
from tests.model.protocol import FAULTS
from tests.model.scenes import SCENES, run

# The smallest scene in which each fault shows.
FOUND_IN = {
    "post is a blind exchange": "the slot is used again",
    "leave does not compare the generation": "the slot is used again while a thread collects",
    "last is decided by an earlier load": "three words of holders in one process",
    "claim is a load and a store": "three words of holders in one process",
    "marked before posted": "released is true for the next call",
    "dirty before marked": "released is true for the next call",
    "generation read before the mark is off": "the slot is used again",
    "no look at the parent after linking": "a child and its parent",
    "children before the bit": "a child and its parent",
    "the bell before the board": "a waiter sleeps until the bell",
    "collected before silenced": "a waiter sleeps until the bell",
    "no look at who is collecting": "released is true for the next call",
    "a board is not forgotten": "a device is named again",
    "the tally is not rejoined": "a device is named again",
    "the tally reads its words before it leaves": "released is true unless an ack is on its way",
    "words are counted before the first is read": "three words of holders and peers",
    "a late thread clears the tally": "the slot is used again by two devices",
    "a lost device does not leave": "a peer dies between two steps",
    "a forced close ends a peer's hold": "a forced close beside a peer",
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_protocol_holds(scene):
    states = run(scene).states
    # The document says how much was looked at. How many local states are merged may differ a little between
    # Pythons.
    assert states == pytest.approx(_states_in_the_document()[scene], rel=0.05)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    with pytest.raises(Violation):
        run(FOUND_IN[fault], [fault])


def _states_in_the_document() -> dict[str, int]:
    text = (Path(__file__).parents[2] / "docs/design/ack-model.md").read_text()
    rows = re.findall(r"^\| ([a-z ]+) \| .* \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    return {name: int(states.replace(",", "")) for name, states, _ in rows}


# ---- the checker itself


def test_an_interleaving_of_two_threads_is_found():
    def add():
        value = yield lambda m: m[0]

        def store(m):
            m[0] = value + 1

        yield store

    with pytest.raises(Violation) as lost:
        explore([0], [Automaton("A", add), Automaton("B", add)], lambda m, _: m[0] == 2)
    assert [step.split()[0] for step in lost.value.steps[:2]] == ["A", "B"]


def test_a_thread_that_turns_in_a_circle_is_no_end():
    def spin():
        while True:
            yield lambda m: m[0]

    with pytest.raises(Violation, match="no way to a good end"):
        explore([0], [Automaton("A", spin)], lambda m, _: m[0] == 1)


def test_a_false_statement_shows_the_way():
    def program():
        yield lambda m: m.__setitem__(0, 1)
        yield lambda m: require(m[0] == 0, "the cell is not 0")

    with pytest.raises(Violation, match=r"the cell is not 0\nA program:\d+\nthen A"):
        explore([0], [Automaton("A", program)], lambda *_: True)
